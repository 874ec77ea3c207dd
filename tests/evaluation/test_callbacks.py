import csv
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from judgelit.batches.datamodules import JudgeData, JudgeDataModule, SFTDataModule
from judgelit.errors import UserError
from judgelit.evaluation import protocols
from judgelit.evaluation.callbacks import JudgeEvaluation, JudgmentWriter
from judgelit.evaluation.intervals import Mean
from judgelit.evaluation.metrics import METRICS, Verdicts, accuracy
from judgelit.evaluation.protocols.benchmark import Benchmark
from judgelit.evaluation.protocols.pairs import PAIRS
from judgelit.generation.sampling import Sampling
from judgelit.judging.prompts import AnswersPrompt, PromptReport
from judgelit.models.backbone import Backbone
from judgelit.models.lora import LoRA
from judgelit.records.files import read_rows, write_records
from judgelit.records.records import AnswerSet, Judgment, Label, PreferencePair, SFTExample
from judgelit.training.sft import SFTModule
from tests.support import make_judgment, make_pair, short_templates

HELD_OUT = [make_pair(number, "AB"[number % 2]) for number in range(3)]


class Modes(Callback):
    """Sets one module to eval mode, as for a frozen module, and notes the mode of each module before each batch."""

    def __init__(self) -> None:
        self.seen: list[dict[str, bool]] = []

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for name, module in pl_module.named_modules():
            if name.endswith("embed_tokens"):
                module.eval()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.seen.append({name: module.training for name, module in pl_module.named_modules()})


ANSWERS = [AnswerSet(f"q{number}", f"which of {number}?", ("one", "two", "three"), right=(2,)) for number in (0, 1)]


def ask_for_a_word(items: Sequence[AnswerSet], *_: Any, **more: Any) -> tuple[list[AnswersPrompt], PromptReport]:
    messages = ({"role": "user", "content": "one, two or three?"},)
    return [AnswersPrompt(item, "cab", "words", messages) for item in items], PromptReport(len(items), 0, ())


def read_answers(source: Any, limit: int | None) -> list[AnswerSet]:
    return [AnswerSet.from_dict(row, at) for at, row in read_rows(source)][:limit]


RANKING: Benchmark[AnswerSet] = Benchmark(
    title="rankings of three answers",
    size="2",
    licence="none",
    convention="Share of texts that are a word of any kind.",
    read=read_answers,
    metrics=lambda items, judgments: {
        "words": [Mean(np.array([one.verdict == "C" for one in judgments]), np.arange(len(judgments)))]
    },
    shown={"words": "words"},
    prompts=ask_for_a_word,
    verdict=lambda text: "C",
)


class Bench:
    """A tiny model, a training set that teaches it to say [[A]], and pairs to judge."""

    def __init__(self, folder: Path, model: str) -> None:
        self.folder, self.model = folder, model
        self.root = folder / "run"
        write_records(folder / "pairs.jsonl", HELD_OUT)
        messages = ({"role": "user", "content": "Q"},)
        write_records(folder / "sft.jsonl", [SFTExample(messages, "[[A]]", f"e{number}") for number in range(12)])
        self.judge = JudgeData(
            {"held": str(folder / "pairs.jsonl")}, short_templates(folder / "templates"), max_new_tokens=6, batch_size=4
        )

    def data(self, judge: bool = True) -> SFTDataModule:
        file = str(self.folder / "sft.jsonl")
        return SFTDataModule(self.model, file, val=file, batch_size=2, judge=self.judge if judge else None)

    def module(self, **backbone: Any) -> SFTModule:
        torch.manual_seed(0)
        return SFTModule(Backbone(self.model, **backbone), lambda weights: torch.optim.AdamW(weights, lr=1e-2))

    def trainer(self, callbacks: Sequence[Callback], **more: Any) -> L.Trainer:
        settings: dict[str, Any] = {"logger": False, "max_steps": 4, **more}
        return L.Trainer(
            default_root_dir=self.root,
            accelerator="cpu",
            callbacks=list(callbacks),
            use_distributed_sampler=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            **settings,
        )

    def judgments(self, name: str) -> list[Judgment]:
        return [Judgment.from_dict(row, at) for at, row in read_rows(str(self.root / name))]

    def judged(self) -> set[str]:
        return {path.name for path in self.root.glob("judgments/*")}


@pytest.fixture
def bench(tmp_path: Path, llama: str) -> Bench:
    return Bench(tmp_path, llama)


def test_judges_at_the_start_every_n_steps_and_at_the_end(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    loggers = [CSVLogger(bench.root, name="csv"), TensorBoardLogger(bench.root, name="tensorboard", version="")]
    # A step has two micro-batches, but is judged once.
    trainer = bench.trainer([JudgeEvaluation(every_n_steps=2)], logger=loggers, max_steps=5, accumulate_grad_batches=2)
    trainer.fit(bench.module(), bench.data())
    assert bench.judged() == {f"held-step{step}.jsonl" for step in (0, 2, 4, 5)}

    for step in (0, 5):
        judgments = bench.judgments(f"judgments/held-step{step}.jsonl")
        assert [(j.pair_id, j.order) for j in judgments] == [
            (pair.id, order) for pair in HELD_OUT for order in ("ab", "ba")
        ]
        assert {judgment.engine for judgment in judgments} == {f"step-{step}"}
    found = PAIRS.estimates(HELD_OUT, judgments)
    for name in METRICS:
        value = trainer.callback_metrics[f"judge/held/{name}"].item()
        assert value == pytest.approx(found[name].value, nan_ok=True)

    rows = list(csv.DictReader((bench.root / "csv/version_0/metrics.csv").open()))
    logged = {int(row["step"]): row for row in rows if row.get("judge/held/accuracy")}
    assert set(logged) == {0, 2, 4, 5}
    assert float(logged[5]["judge/held/no_verdict"]) == found["no_verdict"].value
    events = EventAccumulator(str(bench.root / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("judge/held/accuracy")] == [0, 2, 4, 5]
    text = events.Tensors("judge/held/0/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert HELD_OUT[0].question in text and judgments[0].text.split("\n")[0] in text
    assert "step5, held: accuracy " in capsys.readouterr().out


def test_metrics_show_what_the_judge_has_learned(bench: Bench) -> None:
    trainer = bench.trainer([JudgeEvaluation(at_start=False)], max_steps=30)
    trainer.fit(bench.module(), bench.data())
    assert {judgment.text for judgment in bench.judgments("judgments/held-step30.jsonl")} == {"[[A]]"}
    found = {name: trainer.callback_metrics[f"judge/held/{name}"].item() for name in METRICS}
    assert found == {
        "accuracy": 0.5,
        "consistent_accuracy": 0,
        "consistency": 0,
        "no_verdict": 0,
        "cut_by_length": 0,
        "share_a": 1,
        "length_bias": pytest.approx(float("nan"), nan_ok=True),
        "kappa": 0,
        "ties": 0,
    }


@pytest.mark.parametrize(
    ("settings", "steps"), [({"at_start": False, "at_end": False, "every_n_steps": 3}, {3}), ({}, {0, 4})]
)
def test_judges_only_at_the_chosen_steps(bench: Bench, settings: dict[str, Any], steps: set[int]) -> None:
    bench.trainer([JudgeEvaluation(**settings)]).fit(bench.module(), bench.data())
    assert bench.judged() == {f"held-step{step}.jsonl" for step in steps}


def test_validate_judges_and_leaves_the_judgments_of_the_run(bench: Bench) -> None:
    trainer = bench.trainer([JudgeEvaluation(at_end=False), ModelCheckpoint(bench.root, save_last=True)], max_epochs=1)
    trainer.fit(bench.module(), bench.data())
    before = (bench.root / "judgments/held-step0.jsonl").read_text()
    trainer = bench.trainer([JudgeEvaluation()])
    module = bench.module()
    trainer.validate(module, bench.data(), ckpt_path=str(bench.root / "last.ckpt"), weights_only=False)
    assert {"val/loss", "judge/held/accuracy"} <= trainer.callback_metrics.keys()
    assert bench.judged() == {"held-step0.jsonl", "held-validate.jsonl"}
    assert (bench.root / "judgments/held-step0.jsonl").read_text() == before
    judgments = bench.judgments("judgments/held-validate.jsonl")
    assert {judgment.engine for judgment in judgments} == {str(bench.root / "last.ckpt")}


def test_the_best_judge_can_be_kept(bench: Bench) -> None:
    checkpoints = ModelCheckpoint(
        bench.root, monitor="judge/held/no_verdict", mode="min", every_n_train_steps=2, filename="{step}"
    )
    bench.trainer([checkpoints, JudgeEvaluation(every_n_steps=2)], max_steps=30).fit(bench.module(), bench.data())
    assert checkpoints.best_model_score == 0
    assert Path(checkpoints.best_model_path).exists()


def test_a_continued_run_does_not_judge_the_start_or_a_step_again(bench: Bench) -> None:
    # Four steps end the first epoch; two micro-batches to a step.
    callbacks: Callable[[], list[Callback]] = lambda: [  # noqa: E731
        JudgeEvaluation(every_n_steps=2),
        ModelCheckpoint(bench.root, save_last=True, every_n_train_steps=2),
    ]
    bench.trainer(callbacks(), accumulate_grad_batches=2).fit(bench.module(), bench.data())
    assert bench.judged() == {f"held-step{step}.jsonl" for step in (0, 2, 4)}
    for path in bench.root.glob("judgments/*"):
        path.unlink()
    trainer = bench.trainer(callbacks(), max_steps=7, accumulate_grad_batches=2)
    trainer.fit(bench.module(), bench.data(), ckpt_path=str(bench.root / "last.ckpt"), weights_only=False)
    assert bench.judged() == {f"held-step{step}.jsonl" for step in (6, 7)}


@pytest.mark.parametrize("backbone", [{}, {"lora": LoRA(r=2, dropout=0.5)}], ids=["full", "lora-with-dropout"])
def test_judging_does_not_change_training(bench: Bench, backbone: dict[str, Any]) -> None:
    ends, modes = [], []
    for judged in (False, True):
        seen, module = Modes(), bench.module(**backbone)
        callbacks = [seen, *([JudgeEvaluation(every_n_steps=1)] if judged else [])]
        torch.manual_seed(1)
        bench.trainer(callbacks, enable_checkpointing=False).fit(module, bench.data(judged))
        ends.append({name: weight.detach().clone() for name, weight in module.named_parameters()})
        modes.append(seen.seen)
    assert modes[0] == modes[1]
    assert all(set(mode.values()) == {True, False} for mode in modes[0])
    assert all(torch.equal(weight, ends[1][name]) for name, weight in ends[0].items())


def test_nothing_to_judge_is_an_error_before_training(bench: Bench) -> None:
    with pytest.raises(UserError, match=r"set data\.judge\.sets"):
        bench.trainer([JudgeEvaluation()]).fit(bench.module(), bench.data(judge=False))
    with pytest.raises(UserError, match="every_n_steps: found 0"):
        JudgeEvaluation(every_n_steps=0)


def test_a_benchmark_brings_its_own_metrics(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def metrics(pairs: Any, judgments: Any) -> Any:
        return {"own": accuracy(Verdicts.of(pairs, judgments))}

    own = replace(PAIRS, metrics=metrics, shown={"own": "own"})
    monkeypatch.setitem(protocols.BENCHMARKS, "own", own)
    trainer = bench.trainer([JudgeEvaluation(at_end=False, benchmark="own")], max_steps=1)
    trainer.fit(bench.module(), bench.data())
    assert "judge/held/own" in trainer.callback_metrics and "judge/held/accuracy" not in trainer.callback_metrics
    with pytest.raises(UserError, match=r"benchmark: found 'owned'.* nearest known one is 'own'"):
        JudgeEvaluation(benchmark="owned")


def test_each_set_has_its_benchmark(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(protocols.BENCHMARKS, "ranks", RANKING)
    write_records(tmp_path / "ranks.jsonl", ANSWERS)
    bench.judge = replace(bench.judge, sets={**bench.judge.sets, "hard": str(tmp_path / "ranks.jsonl")})
    evaluation = JudgeEvaluation(at_end=False, benchmark={"hard": "ranks"})
    trainer = bench.trainer([evaluation], max_steps=1)
    trainer.fit(bench.module(), bench.data())
    assert trainer.callback_metrics["judge/hard/words"] == 1 and "judge/hard/accuracy" not in trainer.callback_metrics
    assert "judge/held/accuracy" in trainer.callback_metrics
    judgments = bench.judgments("judgments/hard-step0.jsonl")
    assert [(one.pair_id, one.order, one.verdict) for one in judgments] == [("q0", "cab", "C"), ("q1", "cab", "C")]

    data = JudgeDataModule(bench.model, bench.judge)
    bench.trainer([evaluation, JudgmentWriter()]).predict(bench.module(), data, return_predictions=False)
    assert {one.verdict for one in bench.judgments("predictions/hard.jsonl")} == {"C"}
    assert {one.order for one in bench.judgments("predictions/held.jsonl")} == {"ab", "ba"}

    with pytest.raises(UserError, match=r"benchmark: found the set 'heard', expected sets of data\.judge\.sets: held"):
        bench.trainer([JudgeEvaluation(benchmark={"heard": "ranks"})]).fit(bench.module(), bench.data())


def test_judges_at_epoch_ends_and_stops_early(bench: Bench) -> None:
    stop = EarlyStopping("judge/held/no_verdict", patience=1, check_on_train_epoch_end=True)
    best = ModelCheckpoint(bench.root, monitor="judge/held/no_verdict", save_on_train_epoch_end=True, filename="{step}")
    # Six steps an epoch. The untrained judge says no verdict, the trained one always does.
    callbacks = [JudgeEvaluation(at_epoch_end=True), stop, best]
    trainer = bench.trainer(callbacks, max_steps=-1, max_epochs=20)
    trainer.fit(bench.module(), bench.data())
    ends = sorted(int(name.removeprefix("held-step").removesuffix(".jsonl")) for name in bench.judged())
    assert ends == list(range(0, trainer.global_step + 1, 6)) and trainer.global_step < 120
    shares = [
        PAIRS.estimates(HELD_OUT, bench.judgments(f"judgments/held-step{end}.jsonl"))["no_verdict"].value
        for end in ends[1:]
    ]
    assert stop.best_score == best.best_model_score == min(shares)
    assert best.best_model_path.endswith(f"step={ends[1 + shares.index(min(shares))]}.ckpt")
    # It stops at the first epoch that is not better than those before.
    assert [share >= min(shares[:at]) for at, share in enumerate(shares) if at] == [False] * (len(shares) - 2) + [True]


def test_an_epoch_that_ends_early_is_judged_before_its_checkpoint(bench: Bench) -> None:
    best = ModelCheckpoint(bench.root, monitor="judge/held/no_verdict", save_on_train_epoch_end=True, filename="{step}")
    evaluation = JudgeEvaluation(at_start=False, at_end=False, at_epoch_end=True)
    bench.trainer([evaluation, best], max_steps=8).fit(bench.module(), bench.data())
    assert bench.judged() == {"held-step6.jsonl", "held-step8.jsonl"}
    assert {path.name for path in bench.root.glob("*.ckpt")} <= {"step=6.ckpt", "step=8.ckpt"}


@pytest.mark.parametrize(("saved", "again"), [(6, {8}), (5, {6, 8})], ids=["at-the-epoch-end", "before-it"])
def test_a_killed_run_judges_what_its_checkpoint_does_not_know(bench: Bench, saved: int, again: set[int]) -> None:
    class Killed(Callback):
        def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
            if trainer.global_step == 7:
                raise ZeroDivisionError

    def callbacks() -> list[Callback]:
        last = ModelCheckpoint(bench.root, every_n_train_steps=saved, save_top_k=-1, filename="{step}")
        return [JudgeEvaluation(at_epoch_end=True), last]

    with pytest.raises(ZeroDivisionError):
        bench.trainer([*callbacks(), Killed()], max_steps=8).fit(bench.module(), bench.data())
    assert bench.judged() == {"held-step0.jsonl", "held-step6.jsonl"}
    for path in bench.root.glob("judgments/*"):
        path.unlink()
    trainer = bench.trainer(callbacks(), max_steps=8)
    path = str(bench.root / f"step={saved}.ckpt")
    trainer.fit(bench.module(), bench.data(), ckpt_path=path, weights_only=False)
    assert bench.judged() == {f"held-step{step}.jsonl" for step in again}


def test_a_time_budget_ends_a_measurement_after_whole_pairs(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = [make_pair(number, "AB"[number % 2]) for number in range(9)]
    write_records(bench.folder / "pairs.jsonl", pairs)
    sets = {name: str(bench.folder / "pairs.jsonl") for name in ("one", "two")}
    bench.judge = replace(bench.judge, sets=sets, batch_size=3)
    trainer = bench.trainer([JudgeEvaluation(max_seconds=1e-9)], max_steps=1)
    trainer.fit(bench.module(), bench.data())
    files = [bench.judgments(f"judgments/{name}-step{step}.jsonl") for name in sets for step in (0, 1)]
    asked = [[(one.pair_id, one.order) for one in judgments] for judgments in files]
    # One batch of each set: two pairs, the same ones each time, and not simply the first.
    assert asked[0] == asked[1] == asked[2] == asked[3]
    assert sorted(asked[0]) == sorted((key, order) for key in {key for key, _ in asked[0]} for order in ("ab", "ba"))
    assert len(asked[0]) == 4 and {key for key, _ in asked[0]} != {"p0", "p1"}
    assert trainer.callback_metrics["judge/two/judged"].item() == pytest.approx(2 / 9)
    judged = [pair for pair in pairs if pair.id in {key for key, _ in asked[0]}]
    wanted = PAIRS.estimates(judged, files[1])["accuracy"].value
    assert trainer.callback_metrics["judge/one/accuracy"].item() == wanted
    assert "; 2 of 9 judged before max_seconds was over" in capsys.readouterr().out

    trainer = bench.trainer([JudgeEvaluation(max_seconds=1000)], max_steps=1)
    trainer.fit(bench.module(), bench.data())
    assert trainer.callback_metrics["judge/one/judged"] == 1
    assert len(bench.judgments("judgments/one-step1.jsonl")) == 18
    assert "max_seconds" not in capsys.readouterr().out
    with pytest.raises(UserError, match="max_seconds: found 0, expected more than 0"):
        JudgeEvaluation(max_seconds=0)


def test_a_time_budget_leaves_no_question_half_judged(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A best-of-N set is won if its best answer wins all pairs, so a part of its pairs says nothing."""
    turn = {"role": "user", "content": "", "language": "English"}
    losers = [{"llm_name": "m", "answer": text} for text in ("fine", "fine too", "cheat")]
    rows = [
        {
            "bon_uid": f"s{number}",
            "conversation_input": [{**turn, "content": f"Ask {number}."}],
            "bon_best": {"llm_name": "m", "answer": "best"},
            "loser_list": losers,
            "category_path": "BoN_set/Helpfulness/S1",
        }
        for number in range(6)
    ]
    (bench.folder / "sets.json").write_text(json.dumps(rows))
    bench.judge = replace(bench.judge, sets={"n": str(bench.folder / "sets.json")}, batch_size=2)

    def falls_for_cheating(engine: Any, prompts: Any, sampling: Any, **_: Any) -> list[Judgment]:
        def verdict(shown: PreferencePair) -> Label:
            return "A" if shown.answer_a == "cheat" or "cheat" != shown.answer_b != "best" else "B"

        return [make_judgment(one.item.id, one.order, verdict(one.item.in_order(one.order))) for one in prompts]

    monkeypatch.setattr("judgelit.evaluation.callbacks.judge", falls_for_cheating)
    evaluation = JudgeEvaluation(max_seconds=1e-9, benchmark="rmb-bestofn", at_end=False)
    trainer = bench.trainer([evaluation], max_steps=1, enable_checkpointing=False)
    trainer.fit(bench.module(), bench.data())
    judged = {one.pair_id for one in bench.judgments("judgments/n-step0.jsonl")}
    assert len(judged) == 3 and len({key.split("/")[0] for key in judged}) == 1
    assert trainer.callback_metrics["judge/n/judged"].item() == pytest.approx(1 / 6)
    assert trainer.callback_metrics["judge/n/helpfulness"] == 0
    assert trainer.callback_metrics["judge/n/accuracy"].item() == pytest.approx(2 / 3)


def test_only_benchmarks_of_the_usual_verdict_stop_at_it(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(protocols.BENCHMARKS, "ranks", RANKING)
    write_records(tmp_path / "ranks.jsonl", ANSWERS)
    bench.judge = replace(bench.judge, sets={**bench.judge.sets, "hard": str(tmp_path / "ranks.jsonl")})
    evaluation = JudgeEvaluation(at_end=False, benchmark={"hard": "ranks"})
    asked: list[bool] = []
    monkeypatch.setattr(
        "judgelit.evaluation.callbacks.judge",
        lambda engine, prompts, sampling, **_: asked.append(sampling.stop_at_verdict) or [],
    )
    bench.trainer([evaluation], max_steps=1, enable_checkpointing=False).fit(bench.module(), bench.data())
    assert asked == [True, False]
    data = JudgeDataModule(bench.model, bench.judge)
    trainer = bench.trainer([evaluation, JudgmentWriter()])
    trainer.predict(bench.module(), data, return_predictions=False)
    ends = [next(iter(loader)).ends for loader in data.predict_dataloader()]
    assert ends[0] is not None and ends[1] is None


RANK = """
import sys
import torch.distributed as dist
from judgelit import BenchmarkMetric
from judgelit.evaluation.periodic import gather
from tests.support import make_judgment, make_pair

rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
mine = [make_judgment(f"p{number}", "ab", "A") for number in range(3 - 2 * rank)]
of_rank_0_alone = mine if rank == 0 else []
for judgments in (mine, of_rank_0_alone):
    print([judgment.pair_id for judgment in gather(judgments)])

pairs = [make_pair(number) for number in range(3)]
both = [make_judgment(pair.id, order, "A") for pair in pairs for order in ("ab", "ba")]
# p0 is on both ranks, as if a sampler had repeated it to fill an epoch.
for mine in ([both[:2] + both[3:], both[:3]][rank], [both, None][rank]):
    metric = BenchmarkMetric("pairs", pairs)
    if mine is not None:
        metric.update(mine[:1])
        metric.update(mine[1:])
    print({name: (one.value, one.n) for name, one in metric.compute().items() if one.n})
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_judgments_of_all_ranks_are_gathered(tmp_path: Path) -> None:
    script = tmp_path / "rank.py"
    script.write_text(RANK, encoding="utf-8")
    command = [sys.executable, str(script)]
    ranks = [subprocess.Popen([*command, str(rank), str(tmp_path)], stdout=subprocess.PIPE) for rank in (0, 1)]
    said = [process.communicate(timeout=120)[0].decode().splitlines() for process in ranks]
    pairs = [make_pair(number) for number in range(3)]
    judgments = [make_judgment(pair.id, order, "A") for pair in pairs for order in ("ab", "ba")]
    one_rank = PAIRS.estimates(pairs, judgments)
    found = str({name: (one.value, one.n) for name, one in one_rank.items() if one.n})
    assert said == [["['p0', 'p1', 'p2', 'p0']", "['p0', 'p1', 'p2']", found, found]] * 2


@pytest.mark.parametrize("stop", [True, False])
def test_judgments_stop_at_their_verdict_by_default(bench: Bench, stop: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.judge = replace(bench.judge, stop_at_verdict=stop)
    asked: list[Sampling] = []
    monkeypatch.setattr(
        "judgelit.evaluation.callbacks.judge", lambda engine, prompts, sampling, **_: asked.append(sampling) or []
    )
    bench.trainer([JudgeEvaluation()], max_steps=1, enable_checkpointing=False).fit(bench.module(), bench.data())
    assert asked == [Sampling(max_new_tokens=6, stop_at_verdict=stop)] * 2


@pytest.mark.parametrize("stop", [True, False])
def test_predictions_stop_at_their_verdict_by_default(bench: Bench, stop: bool) -> None:
    judge = replace(bench.judge, sets={"one": str(bench.folder / "pairs.jsonl")}, max_new_tokens=60, batch_size=6)
    data = JudgeDataModule(bench.model, replace(judge, stop_at_verdict=stop))
    said = "It is 12.\n[[A]]\nSo I think."
    script = [*data.tokenizer.text_ids(said), data.tokenizer.end_of_turn_id]
    module = bench.module()
    module.configure_model()
    model: Any = module.model
    # The first batch also tests what the model supports.
    bench.trainer([]).predict(module, data, return_predictions=False)
    steps = iter(script)

    def speak(head: Any, args: Any, logits: torch.Tensor) -> torch.Tensor:
        return torch.full_like(logits, -torch.inf).index_fill_(-1, torch.tensor(next(steps)), 0.0)

    model.lm_head.register_forward_hook(speak)
    bench.trainer([JudgmentWriter()]).predict(module, data, return_predictions=False)
    texts = {judgment.text for judgment in bench.judgments("predictions/one.jsonl")}
    assert texts == {"It is 12.\n[[A]]\n" if stop else said}


@pytest.mark.parametrize("sets", [1, 2])
def test_predictions_are_written_as_judgments(bench: Bench, sets: int) -> None:
    pairs = {f"set{number}": str(bench.folder / "pairs.jsonl") for number in range(sets)}
    judge = JudgeData(pairs, bench.judge.templates, max_new_tokens=5, batch_size=4)
    data = JudgeDataModule(bench.model, judge)
    bench.trainer([JudgmentWriter()]).predict(bench.module(), data, return_predictions=False)
    for name in pairs:
        judgments = bench.judgments(f"predictions/{name}.jsonl")
        assert [(j.pair_id, j.order) for j in judgments] == [
            (pair.id, order) for pair in HELD_OUT for order in ("ab", "ba")
        ]
        assert {judgment.engine for judgment in judgments} == {bench.model}
    assert {path.name for path in bench.root.glob("predictions/*")} == {f"{name}.jsonl" for name in pairs}


@pytest.mark.parametrize("command", ["predict", "validate"])
def test_judgments_that_find_no_room_in_the_run_are_kept_elsewhere(
    bench: Bench, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(elsewhere))
    sets = {name: str(bench.folder / "pairs.jsonl") for name in ("one", "two")}
    data = JudgeDataModule(bench.model, JudgeData(sets, bench.judge.templates, max_new_tokens=5, batch_size=4))
    folder = bench.root / ("predictions" if command == "predict" else "judgments")
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.write_text("a file where a folder should be")
    with pytest.raises(UserError, match=rf"cannot be written: .*; the judgments are in {elsewhere}/judgelit-"):
        if command == "predict":
            bench.trainer([JudgmentWriter()]).predict(bench.module(), data, return_predictions=False)
        else:
            bench.trainer([JudgeEvaluation()]).validate(bench.module(), bench.data(), verbose=False)
    kept = list(elsewhere.rglob("*.jsonl"))
    assert len(kept) == (2 if command == "predict" else 1)
    assert all(len(list(read_rows(str(path)))) == 2 * len(HELD_OUT) for path in kept)
