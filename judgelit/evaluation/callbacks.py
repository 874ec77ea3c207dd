"""Callbacks that judge held-out sets during training and write judgments to files."""

import random
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import BasePredictionWriter

from judgelit.batches.judge_datamodule import JudgeDataModule, JudgeSet
from judgelit.errors import UserError
from judgelit.evaluation.benchmark_metric import BenchmarkMetric
from judgelit.evaluation.judgments import judge, make_judgment
from judgelit.evaluation.periodic import PeriodicMeasurement, model_name, moment
from judgelit.evaluation.protocols import find_benchmark
from judgelit.evaluation.sample_texts import log_texts
from judgelit.evaluation.tables import show
from judgelit.generation.local import LocalEngine, read_generated
from judgelit.generation.sampling import Sampling
from judgelit.judging import verdict
from judgelit.judging.prompts import Asked
from judgelit.models.lockstep import in_lockstep
from judgelit.models.lora import without_adapter
from judgelit.progress import track
from judgelit.records.files import write_records
from judgelit.records.records import Judgment


class JudgeEvaluation(PeriodicMeasurement):
    """Judges the held-out sets of `data.judge` by generation, in all orders of the answers, by any benchmark.

    Metrics are logged as `judge/<set>/<metric>`, so ModelCheckpoint and EarlyStopping can watch them. Judgments are
    written to `judgments/` in the run's folder: `<set>-step<N>.jsonl` during `fit`, `<set>-validate.jsonl` or
    `<set>-test.jsonl` by the other commands. TensorBoard and W&B also get some judgments as text.

    This keeps the best judge, and stops when two epochs have not made it better:

        trainer:
          callbacks:
            - class_path: judgelit.JudgeEvaluation
              init_args: {at_epoch_end: true, max_seconds: 600}
            - class_path: lightning.pytorch.callbacks.ModelCheckpoint
              init_args: {monitor: judge/held_out/accuracy, mode: max, save_on_train_epoch_end: true}
            - class_path: lightning.pytorch.callbacks.EarlyStopping
              init_args:
                monitor: judge/held_out/accuracy
                mode: max
                patience: 2
                check_on_train_epoch_end: true
    """

    def __init__(
        self,
        every_n_steps: int | None = None,
        at_start: bool = True,
        at_end: bool = True,
        samples_logged: int = 3,
        benchmark: str | dict[str, str] = "pairs",
        at_epoch_end: bool = False,
        max_seconds: float | None = None,
    ) -> None:
        """Choose when to judge, by which benchmark, and for how long.

        Args:
            every_n_steps: Judge each time this many optimizer steps have been made.
            at_start: Judge before the first step.
            at_end: Judge after the last step.
            samples_logged: Judgments of each set that are logged as text.
            benchmark: How a set is read, asked and scored: `pairs` for labelled pairs of any source, or the name of a
                benchmark. Several: the name of each set's benchmark, such as `{hard: judgebench}`; other sets are
                `pairs`.
            at_epoch_end: Judge after the last step of each epoch.
            max_seconds: Longest time of one measurement. Each set gets an equal part of what is left, and at least one
                batch. The metrics are of what was judged by then: all pairs, in all orders, of questions drawn at
                random, the same ones each time. `judge/<set>/judged` is their share.
        """
        super().__init__(every_n_steps, at_start, at_end, at_epoch_end)
        if max_seconds is not None and not max_seconds > 0:
            raise UserError(f"max_seconds: found {max_seconds}, expected more than 0, or null")
        self.samples_logged = samples_logged
        self.benchmark = benchmark
        for name in benchmark.values() if isinstance(benchmark, dict) else [benchmark]:
            find_benchmark(name)
        self.max_seconds = max_seconds
        self._sets: dict[str, JudgeSet] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Read the sets before training begins, so that a mistake in them is found early."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, JudgeDataModule):
            if stage == "predict":
                return
            raise UserError(
                "JudgeEvaluation: found a Trainer without one of judgelit's data modules, expected it, since its "
                "data.judge has the sets"
            )
        sets = data.judge.sets if data.judge else {}
        for name in self.benchmark if isinstance(self.benchmark, dict) else []:
            if name not in sets:
                raise UserError(
                    f"JudgeEvaluation.benchmark: found the set {name!r}, expected sets of data.judge.sets: "
                    f"{', '.join(sets) or 'none'}"
                )
        data.benchmarks = {name: find_benchmark(self._benchmark_of(name)) for name in sets}
        if stage != "predict":
            self._sets = data.judge_sets(data.benchmarks)
            if not self._sets:
                raise UserError("JudgeEvaluation has nothing to judge; set data.judge.sets, or remove the callback")

    def measure(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Judge all sets and write the judgments."""
        began = time.monotonic()
        for number, (name, of_set) in enumerate(self._sets.items()):
            seconds = None
            if self.max_seconds is not None:
                left = self.max_seconds - (time.monotonic() - began)
                seconds = left / (len(self._sets) - number)
            asked, judgments = self._judge(trainer, pl_module, name, of_set.prompts, seconds)
            write_or_rescue({_file(trainer, "judgments", f"{name}-{moment(trainer)}"): judgments})
            # All items, also those that were not asked about: some figures need all pairs of a question.
            metric = BenchmarkMetric(self._benchmark_of(name), of_set.items).to(pl_module.device)
            metric.update(judgments)
            estimates = metric.compute()
            logged = {f"judge/{name}/{metric}": found.value for metric, found in estimates.items()}
            judged, total = (len({prompt.item.id for prompt in some}) for some in (asked, of_set.prompts))
            if self.max_seconds is not None:
                logged[f"judge/{name}/judged"] = judged / total
            self.log_metrics(trainer, logged)
            if trainer.is_global_zero:
                shown = ", ".join(f"{key} {show(estimates[key])}" for key in metric.benchmark.shown)
                part = "" if judged == total else f"; {judged} of {total} judged before max_seconds was over"
                print(f"{moment(trainer)}, {name}: {shown}{part}")
                log_texts(trainer, name, judgments[: self.samples_logged])

    def _benchmark_of(self, name: str) -> str:
        """The name of the benchmark of a set."""
        return self.benchmark.get(name, "pairs") if isinstance(self.benchmark, dict) else self.benchmark

    def _judge(
        self, trainer: L.Trainer, pl_module: L.LightningModule, name: str, prompts: list[Asked], seconds: float | None
    ) -> tuple[list[Asked], list[Judgment]]:
        """The prompts that all ranks have asked in the given time, and the judgments of this rank."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        model: Any = pl_module.model
        engine = LocalEngine(model, data.tokenizer, model_name(trainer, pl_module), data.judge.batch_size)
        sampling = Sampling(data.judge.max_new_tokens, stop_at_verdict=data.stops_at_verdict(name))
        parse = find_benchmark(self._benchmark_of(name)).verdict
        rounds: list[list[Asked]] = [prompts]
        words: str | None = f"judging {name}"
        if seconds is not None:
            rounds, words = in_rounds(prompts, data.judge.batch_size * trainer.world_size), None
        end = time.monotonic() + (seconds or 0)
        asked: list[Asked] = []
        judgments: list[Judgment] = []
        for part in rounds if seconds is None else track(rounds, f"judging {name}, batches"):
            of_rank = part[trainer.global_rank :: trainer.world_size]
            with in_lockstep(without_adapter(model)):
                judgments += judge(engine, of_rank, sampling, description=words, parse=parse)
            asked += part
            # Clocks of ranks differ, and all must stop after the same round.
            if seconds is not None and trainer.strategy.reduce_boolean_decision(time.monotonic() >= end, all=False):
                break
        return asked, judgments


def in_rounds(prompts: Sequence[Asked], size: int) -> list[list[Asked]]:
    """Prompts in rounds of at least `size`, the last one excepted. All prompts of a question are in the same round.

    The questions are in a random sequence that depends on nothing but themselves, since files often have one category
    after another.
    """
    by_question: dict[str, list[Asked]] = {}
    for prompt in prompts:
        by_question.setdefault(prompt.item.question_key, []).append(prompt)
    questions = list(by_question.values())
    random.Random(0).shuffle(questions)
    rounds: list[list[Asked]] = [[]]
    for of_question in questions:
        if len(rounds[-1]) >= size:
            rounds.append([])
        rounds[-1] += of_question
    return rounds


class JudgmentWriter(BasePredictionWriter):
    """Writes what `judgelit predict` generates to `predictions/<set>.jsonl` in the run's folder.

    A set is read, asked and parsed by the benchmark that a `JudgeEvaluation` beside it names; otherwise it has labelled
    pairs.
    """

    def __init__(self) -> None:
        super().__init__(write_interval="epoch")

    def write_on_epoch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        predictions: Any,
        batch_indices: Any,
    ) -> None:
        """Write the judgments of all sets."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        by_set = predictions if len(data.predict_sets) > 1 else [predictions]
        engine = model_name(trainer, pl_module)
        files: dict[Path, list[Judgment]] = {}
        for (name, prompts), batches in zip(data.predict_sets.items(), by_set, strict=True):
            of_rank = prompts[trainer.global_rank :: trainer.world_size]
            ends = data.verdict_end(name)
            answers = [read_generated(ids, data.tokenizer, ends) for batch in batches for ids in batch]
            parse = data.benchmarks[name].verdict if name in data.benchmarks else verdict.parse
            files[_file(trainer, "predictions", name)] = [
                make_judgment(prompt, answer, engine, 0, parse) for prompt, answer in zip(of_rank, answers, strict=True)
            ]
        write_or_rescue(files)
        for path, judgments in files.items():
            print(f"{path.stem}: {len(judgments)} judgments written to {path}")


def write_or_rescue(files: Mapping[Path, list[Judgment]]) -> None:
    """Write judgments to files. If one cannot be written, all go to the system's folder for temporary files.

    Raises:
        UserError: One cannot be written; the message says where the judgments are.
    """
    try:
        for path, judgments in files.items():
            write_records(path, judgments)
    except UserError as error:
        rescue = Path(tempfile.mkdtemp(prefix="judgelit-"))
        for path, judgments in files.items():
            write_records(rescue / path.name, judgments)
        raise UserError(f"{error}; the judgments are in {rescue}") from error


def _file(trainer: L.Trainer, folder: str, name: str) -> Path:
    """A file in the run's folder; each rank has its own."""
    rank = f"-rank{trainer.global_rank}" if trainer.world_size > 1 else ""
    return Path(trainer.default_root_dir) / folder / f"{name}{rank}.jsonl"
