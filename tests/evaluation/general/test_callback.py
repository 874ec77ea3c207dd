import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

import judgelit
from judgelit.batches.datamodules import SFTDataModule
from judgelit.errors import UserError
from judgelit.evaluation.general.callback import GeneralAbility
from judgelit.evaluation.general.measure import measure_general
from judgelit.evaluation.general.settings import General
from judgelit.models.backbone import Backbone
from judgelit.models.lora import LoRA
from judgelit.records.files import write_records
from judgelit.training.sft import SFTModule
from tests.evaluation.general.ranks import run
from tests.support import make_pair, short_templates

SCRIPT = Path(__file__).with_name("ranks.py")


class Bench:
    """A tiny model, and general examples on which it is trained and measured."""

    def __init__(self, folder: Path, model: str, examples: str) -> None:
        self.root, self.model, self.examples = folder / "run", model, examples

    def fit(self, *callbacks: Callback, ckpt_path: str | None = None, lora: LoRA | None = None, **more: Any) -> Any:
        torch.manual_seed(0)
        settings: dict[str, Any] = {"logger": False, "max_steps": 4, "enable_checkpointing": False, **more}
        trainer = L.Trainer(
            default_root_dir=self.root,
            accelerator="cpu",
            callbacks=list(callbacks),
            use_distributed_sampler=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            **settings,
        )
        self.module = SFTModule(Backbone(self.model, lora=lora), lambda weights: torch.optim.AdamW(weights, lr=1e-2))
        data = SFTDataModule(self.model, self.examples, batch_size=3, cache=str(self.root / "cache"))
        trainer.fit(self.module, data, ckpt_path=ckpt_path, weights_only=False if ckpt_path else None)
        return trainer


@pytest.fixture
def bench(tmp_path: Path, llama: str, examples: str) -> Bench:
    return Bench(tmp_path, llama, examples)


class Steps(GeneralAbility):
    """Notes at which steps it measures, and what."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.seen: dict[int, dict[str, float]] = {}

    @property
    def state_key(self) -> str:
        return "steps"

    def log_metrics(self, trainer: L.Trainer, values: Any) -> None:
        self.seen[trainer.global_step] = dict(values)
        super().log_metrics(trainer, values)


def test_it_measures_at_the_start_every_n_steps_and_at_the_end(
    bench: Bench, engine: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = Steps(bench.examples, "builtin", limit=3, max_new_tokens=4, every_n_steps=2)
    trainer = bench.fit(steps, max_steps=5, logger=CSVLogger(bench.root, name="csv"))
    assert list(steps.seen) == [0, 2, 4, 5]
    # The same figures as `judgelit evaluate --general` has of the starting model.
    wanted = measure_general(engine, General(bench.examples, limit=3, max_new_tokens=4), tmp_path)
    assert steps.seen[0] == pytest.approx({f"general/{name}": one.value for name, one in wanted.items()}, rel=1e-6)
    losses = [values["general/general_loss"] for values in steps.seen.values()]
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0] - 1
    assert trainer.callback_metrics["general/general_loss"].item() == pytest.approx(losses[-1])
    rows = list(csv.DictReader((bench.root / "csv/version_0/metrics.csv").open()))
    logged = {int(row["step"]): float(row["general/general_loss"]) for row in rows if row.get("general/general_loss")}
    assert logged == pytest.approx(dict(zip(steps.seen, losses, strict=True)))
    assert {path.name for path in bench.root.glob("general/*")} == {f"step{step}.jsonl" for step in (0, 2, 4, 5)}
    rows = [json.loads(line) for line in (bench.root / "general/step5.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [f"instructions-{number}" for number in range(3)]
    assert {row["engine"] for row in rows} == {"step-5"}
    said = capsys.readouterr().out
    assert f"step5, general: general_loss {losses[-1]:.3f} [" in said and "instructions " in said


def test_other_callbacks_use_its_metrics(bench: Bench) -> None:
    best = ModelCheckpoint(bench.root, monitor="general/general_loss", every_n_train_steps=1, save_top_k=1)
    stop = EarlyStopping("general/general_loss", patience=1, check_on_train_epoch_end=True)
    steps = Steps(bench.examples, every_n_steps=1)
    bench.fit(steps, stop, best, enable_checkpointing=True)
    losses = [values["general/general_loss"] for step, values in steps.seen.items() if step]
    assert best.best_model_score is not None and float(best.best_model_score) == pytest.approx(min(losses))
    assert float(stop.best_score) == pytest.approx(min(losses))


def test_a_continued_run_measures_nothing_again(bench: Bench) -> None:
    def callbacks() -> tuple[Steps, ModelCheckpoint]:
        last = ModelCheckpoint(bench.root, save_last=True, every_n_train_steps=2)
        return Steps(bench.examples, every_n_steps=2), last

    first, last = callbacks()
    bench.fit(first, last, enable_checkpointing=True)
    assert list(first.seen) == [0, 2, 4]
    again, last = callbacks()
    path = str(bench.root / "last.ckpt")
    trainer = bench.fit(again, last, ckpt_path=path, max_steps=7, enable_checkpointing=True)
    assert list(again.seen) == [6, 7]
    assert trainer.callback_metrics["general/general_loss"].item() == pytest.approx(
        again.seen[7]["general/general_loss"]
    )


@pytest.mark.parametrize("lora", [None, LoRA(r=2, dropout=0.5)], ids=["full", "lora-with-dropout"])
def test_measuring_does_not_change_training(bench: Bench, lora: LoRA | None) -> None:
    ends = []
    for callbacks in ([], [GeneralAbility(bench.examples, "builtin", 2, 4, every_n_steps=1)]):
        torch.manual_seed(1)
        bench.fit(*callbacks, lora=lora, max_steps=3)
        ends.append({name: weight.detach().clone() for name, weight in bench.module.named_parameters()})
    assert all(torch.equal(weight, ends[1][name]) for name, weight in ends[0].items())


def test_mistakes_are_found_before_training(bench: Bench) -> None:
    for arguments, line in [
        ({}, "general: found nothing to measure"),
        ({"examples": "x.jsonl", "every_n_steps": 0}, "every_n_steps: found 0"),
        ({"examples": "x.jsonl", "batch_size": 0}, "batch_size: found 0"),
    ]:
        with pytest.raises(UserError, match=line):
            GeneralAbility(**arguments)
    with pytest.raises(UserError, match="no such file"):
        bench.fit(GeneralAbility("/nowhere/x.jsonl"))
    with pytest.raises(UserError, match=r"general\.max_new_tokens: found 5000"):
        bench.fit(GeneralAbility(instructions="builtin", max_new_tokens=5000))


def test_its_public_name() -> None:
    assert judgelit.GeneralAbility is GeneralAbility


@pytest.mark.slow
def test_each_example_counts_once_on_two_ranks(bench: Bench, tmp_path: Path) -> None:
    short_templates(tmp_path / "judge")
    pairs = str(tmp_path / "judge/pairs.jsonl")
    write_records(pairs, [make_pair(number, "AB"[number % 2]) for number in range(12)])
    one = run("auto", 1, str(tmp_path / "one"), bench.model, bench.examples, pairs)
    # The time of a measurement is over after four batches of two pairs.
    assert len(one["judgments"]) == 16 and one["judged"]["judge/held/judged"] == pytest.approx(8 / 12)
    assert len(one["seen"]) == 2 and set(one["answers"]) == {"step0.jsonl", "step2.jsonl"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    arguments = [str(tmp_path / "two"), bench.model, bench.examples, pairs, str(tmp_path / "found.json")]
    done = subprocess.run(
        [*launch, str(SCRIPT), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    for strategy in ("ddp", "fsdp"):
        assert [found[strategy]["seen"][at] for at in (0, 1)] == [
            pytest.approx(values, rel=1e-4) for values in one["seen"]
        ]
        assert found[strategy]["answers"] == one["answers"]
        assert found[strategy]["judgments"] == one["judgments"]
        assert found[strategy]["judged"] == pytest.approx(one["judged"], nan_ok=True)
