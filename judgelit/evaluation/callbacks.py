"""Judging held-out pairs while training, and writing down what a judge said."""

import math
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn

from judgelit.errors import UserError
from judgelit.evaluation.judgments import SHOWN, as_judgment, judge, judged_pairs, show
from judgelit.evaluation.metrics import Estimate, JudgeMetrics, outcomes
from judgelit.generation.local import LocalEngine
from judgelit.generation.sampling import Sampling
from judgelit.judging.prompts import JudgePrompt
from judgelit.models.lockstep import in_lockstep
from judgelit.models.lora import without_adapter
from judgelit.records.files import write_records
from judgelit.records.records import Judgment


class JudgeEvaluation(Callback):
    """Judges the held-out pairs of `data.judge` by generation, in both orders.

    Metrics are logged as `judge/<set>/<metric>`, so `ModelCheckpoint(monitor="judge/<set>/consistent_accuracy")` can
    keep the best judge. Judgments are written to `judgments/` in the run's folder: `<set>-step<N>.jsonl` during `fit`,
    `<set>-validate.jsonl` or `<set>-test.jsonl` by the other commands.
    """

    def __init__(
        self, every_n_steps: int | None = None, at_start: bool = True, at_end: bool = True, samples_logged: int = 3
    ) -> None:
        """Say when to judge.

        Args:
            every_n_steps: Judge after every so many optimizer steps; none: only at the start and the end.
            at_start: Judge before the first step.
            at_end: Judge after the last step.
            samples_logged: Judgments of each set that are logged as text.
        """
        if every_n_steps is not None and every_n_steps < 1:
            raise UserError(f"every_n_steps: found {every_n_steps}, expected 1 or more, or null")
        self.every_n_steps = every_n_steps
        self.at_start = at_start
        self.at_end = at_end
        self.samples_logged = samples_logged
        self._sets: dict[str, list[JudgePrompt]] = {}
        self._last_step = -1

    def state_dict(self) -> dict[str, int]:
        """The step last judged, so that a continued run does not judge it again."""
        return {"last_step": self._last_step}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Continue from such a state."""
        self._last_step = state_dict["last_step"]

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Read the pairs early, so that a mistake in them costs no training."""
        if stage != "predict":
            self._sets = trainer.datamodule.judge_sets()  # type: ignore[attr-defined]
            if not self._sets:
                raise UserError("JudgeEvaluation has nothing to judge; set data.judge.sets, or remove the callback")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Judge the starting model, unless the run is a continued one."""
        if self.at_start and trainer.global_step == 0 and self._last_step != 0:
            self._evaluate(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Judge every so many optimizer steps."""
        step = trainer.global_step
        if self.every_n_steps and step % self.every_n_steps == 0 and step not in (0, self._last_step):
            self._evaluate(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Judge the trained model."""
        if self.at_end and trainer.global_step != self._last_step:
            self._evaluate(trainer, pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Judge in `validate`; during `fit` validation has its own rhythm."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._evaluate(trainer, pl_module)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Judge in `test`."""
        self._evaluate(trainer, pl_module)

    def _evaluate(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        self._last_step = trainer.global_step
        engine = LocalEngine(pl_module.model, data.tokenizer, _judge_name(trainer, pl_module), data.judge.batch_size)  # type: ignore[arg-type]
        sampling = Sampling(data.judge.max_new_tokens, stop_at_verdict=data.judge.stop_at_verdict)
        for name, prompts in self._sets.items():
            mine = prompts[trainer.global_rank :: trainer.world_size]
            with in_lockstep(without_adapter(pl_module.model)):  # type: ignore[arg-type]
                judgments = judge(engine, mine, sampling, description=f"judging {name}")
            metrics = JudgeMetrics().to(pl_module.device)
            metrics.update(outcomes(judged_pairs(prompts), judgments).to(pl_module.device))
            found: dict[str, Estimate] = metrics.compute()
            self._log(trainer, name, found, judgments)

    def _log(self, trainer: L.Trainer, name: str, found: dict[str, Estimate], judgments: list[Judgment]) -> None:
        values = {f"judge/{name}/{metric}": estimate.value for metric, estimate in found.items()}
        # Hooks at the start and end of training may not `log`; the callbacks' metrics and the loggers always may.
        trainer.callback_metrics.update({key: torch.tensor(value) for key, value in values.items()})
        for logger in trainer.loggers:
            known = {key: value for key, value in values.items() if not math.isnan(value)}
            logger.log_metrics(known, step=trainer.global_step)
        folder = Path(trainer.default_root_dir) / "judgments"
        write_records(folder / f"{name}-{_moment(trainer)}{_rank(trainer)}.jsonl", judgments)
        if not trainer.is_global_zero:
            return
        shown = ", ".join(f"{metric} {show(found[metric])}" for metric in SHOWN)
        print(f"{_moment(trainer)}, {name}: {shown}")
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                for index, judgment in enumerate(judgments[: self.samples_logged]):
                    text = f"{judgment.prompt[-1]['content']}\n\n----\n\n{judgment.text}"
                    fenced = "    " + text.replace("\n", "\n    ")
                    logger.experiment.add_text(f"judge/{name}/{index}", fenced, trainer.global_step)


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
        """Write all sets."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        by_set = predictions if len(data.predict_sets) > 1 else [predictions]
        for (name, prompts), batches in zip(data.predict_sets.items(), by_set, strict=True):
            mine = prompts[trainer.global_rank :: trainer.world_size]
            texts = [data.tokenizer.decode(ids) for batch in batches for ids in batch]
            engine = _judge_name(trainer, pl_module)
            judgments = [as_judgment(prompt, text, engine, 0) for prompt, text in zip(mine, texts, strict=True)]
            path = Path(trainer.default_root_dir) / "predictions" / f"{name}{_rank(trainer)}.jsonl"
            write_records(path, judgments)
            print(f"{name}: {len(judgments)} judgments written to {path}")


def _moment(trainer: L.Trainer) -> str:
    """When a judgment was made, for the names of files."""
    command = trainer.state.fn
    return f"step{trainer.global_step}" if command in (None, TrainerFn.FITTING) else str(command.value)


def _judge_name(trainer: L.Trainer, pl_module: L.LightningModule) -> str:
    """How judgments name the judge: its step in a run, else its checkpoint or its own name."""
    if trainer.state.fn == TrainerFn.FITTING:
        return f"step-{trainer.global_step}"
    backbone = pl_module.backbone
    return str(trainer.ckpt_path or backbone.adapter or backbone.name_or_path)  # type: ignore[union-attr]


def _rank(trainer: L.Trainer) -> str:
    return f"-rank{trainer.global_rank}" if trainer.world_size > 1 else ""
