"""Callbacks that judge held-out pairs during training and write judgments to files."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.loggers import TensorBoardLogger

from judgelit.errors import UserError
from judgelit.evaluation.judgments import judge, judged_items, make_judgment
from judgelit.evaluation.periodic import PeriodicMeasurement, gather, model_name, moment
from judgelit.evaluation.protocols import find_benchmark
from judgelit.evaluation.tables import show
from judgelit.generation.local import LocalEngine, read_generated
from judgelit.generation.sampling import Sampling
from judgelit.judging.finished import VerdictEnd
from judgelit.judging.prompts import JudgePrompt
from judgelit.models.lockstep import in_lockstep
from judgelit.models.lora import without_adapter
from judgelit.records.files import write_records
from judgelit.records.records import Judgment


class JudgeEvaluation(PeriodicMeasurement):
    """Judges the held-out pairs of `data.judge` by generation, in both orders.

    Metrics are logged as `judge/<set>/<metric>`, so `ModelCheckpoint(monitor="judge/<set>/consistent_accuracy")` can
    keep the best judge. Judgments are written to `judgments/` in the run's folder: `<set>-step<N>.jsonl` during `fit`,
    `<set>-validate.jsonl` or `<set>-test.jsonl` by the other commands.
    """

    def __init__(
        self,
        every_n_steps: int | None = None,
        at_start: bool = True,
        at_end: bool = True,
        samples_logged: int = 3,
        benchmark: str = "pairs",
    ) -> None:
        """Choose when to judge, and by which benchmark.

        Args:
            every_n_steps: Judge each time this many optimizer steps have been made; none: only at the start and end.
            at_start: Judge before the first step.
            at_end: Judge after the last step.
            samples_logged: Judgments of each set that are logged as text.
            benchmark: How the pairs are read, asked and scored: `pairs` for labelled pairs of any source.
        """
        super().__init__(every_n_steps, at_start, at_end)
        self.samples_logged = samples_logged
        self.benchmark = find_benchmark(benchmark)
        self._sets: dict[str, list[JudgePrompt]] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Read the pairs before training begins, so that a mistake in them is found early."""
        if stage != "predict":
            data = trainer.datamodule  # type: ignore[attr-defined]
            self._sets = data.judge_sets(self.benchmark.read, self.benchmark.prompts)
            if not self._sets:
                raise UserError("JudgeEvaluation has nothing to judge; set data.judge.sets, or remove the callback")

    def measure(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Judge the pairs of all sets and write the judgments."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        engine = LocalEngine(pl_module.model, data.tokenizer, model_name(trainer, pl_module), data.judge.batch_size)  # type: ignore[arg-type]
        sampling = Sampling(data.judge.max_new_tokens, stop_at_verdict=data.judge.stop_at_verdict)
        for name, prompts in self._sets.items():
            of_rank = prompts[trainer.global_rank :: trainer.world_size]
            with in_lockstep(without_adapter(pl_module.model)):  # type: ignore[arg-type]
                judgments = judge(engine, of_rank, sampling, 0, f"judging {name}", self.benchmark.verdict)
            write_or_rescue({_file(trainer, "judgments", f"{name}-{moment(trainer)}"): judgments})
            estimates = self.benchmark.estimates(judged_items(prompts), gather(judgments))
            self.log_metrics(trainer, {f"judge/{name}/{metric}": found.value for metric, found in estimates.items()})
            if trainer.is_global_zero:
                shown = ", ".join(f"{metric} {show(estimates[metric])}" for metric in self.benchmark.shown)
                print(f"{moment(trainer)}, {name}: {shown}")
                self._log_texts(trainer, name, judgments)

    def _log_texts(self, trainer: L.Trainer, name: str, judgments: list[Judgment]) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                for index, judgment in enumerate(judgments[: self.samples_logged]):
                    text = f"{judgment.prompt[-1]['content']}\n\n----\n\n{judgment.text}"
                    # TensorBoard reads Markdown, in which an indented block is code.
                    indented = "    " + text.replace("\n", "\n    ")
                    logger.experiment.add_text(f"judge/{name}/{index}", indented, trainer.global_step)


class JudgmentWriter(BasePredictionWriter):
    """Writes what `judgelit predict` generates to `predictions/<set>.jsonl` in the run's folder."""

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
        files = {}
        for (name, prompts), batches in zip(data.predict_sets.items(), by_set, strict=True):
            of_rank = prompts[trainer.global_rank :: trainer.world_size]
            ends = VerdictEnd(data.tokenizer) if data.judge.stop_at_verdict else None
            answers = [read_generated(ids, data.tokenizer, ends) for batch in batches for ids in batch]
            judgments = [make_judgment(prompt, text, engine, 0) for prompt, text in zip(of_rank, answers, strict=True)]
            files[_file(trainer, "predictions", name)] = judgments
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
