"""Callback that measures a model at chosen steps of `fit`, and in `validate` and `test`."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, TypeVar

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch import Callback
from lightning.pytorch.trainer.states import TrainerFn

from judgelit.errors import UserError

T = TypeVar("T")


class PeriodicMeasurement(Callback, ABC):
    """Measures a model at chosen steps. A subclass implements `measure`.

    A continued run does not measure the start or the step of its checkpoint again, unless that measurement was
    interrupted; its metrics come with the checkpoint.
    """

    def __init__(self, every_n_steps: int | None, at_start: bool, at_end: bool, at_epoch_end: bool) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise UserError(f"every_n_steps: found {every_n_steps}, expected 1 or more, or null")
        self.every_n_steps = every_n_steps
        self.at_start = at_start
        self.at_end = at_end
        self.at_epoch_end = at_epoch_end
        self._last_step = -1
        self._metrics: dict[str, float] = {}

    @abstractmethod
    def measure(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure the model and call `log_metrics`. All ranks call it at the same step."""

    def state_dict(self) -> dict[str, Any]:
        """The last step that was measured, so that a continued run does not measure it again, and its metrics."""
        return {"last_step": self._last_step, "metrics": self._metrics}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from the state of a checkpoint."""
        self._last_step, self._metrics = state_dict["last_step"], state_dict.get("metrics", {})

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure the starting model; of a continued run, give callbacks the earlier metrics."""
        trainer.callback_metrics.update({key: torch.tensor(value) for key, value in self._metrics.items()})
        if self.at_start and trainer.global_step == 0 and self._last_step != 0:
            self._measure(trainer, pl_module)
        self._measure_if_due(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure after every `every_n_steps` optimizer steps, and after an epoch's last one."""
        self._measure_if_due(trainer, pl_module)

    def _measure_if_due(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        step = trainer.global_step
        # The last step of an epoch is measured here, so that a checkpoint of this step knows that it was measured.
        due = (self.every_n_steps and step % self.every_n_steps == 0) or (self.at_epoch_end and trainer.is_last_batch)
        if due and step not in (0, self._last_step):
            self._measure(trainer, pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure where training ends within an epoch, before callbacks that watch a metric read it."""
        if self.at_epoch_end and trainer.global_step not in (0, self._last_step):
            self._measure(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure the trained model."""
        if self.at_end and trainer.global_step != self._last_step:
            self._measure(trainer, pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure in the command `validate`; the validation epochs of `fit` do not measure."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._measure(trainer, pl_module)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure in the command `test`."""
        self._measure(trainer, pl_module)

    def _measure(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.measure(trainer, pl_module)
        # An interrupted measurement is made again when the run continues.
        self._last_step = trainer.global_step

    def log_metrics(self, trainer: L.Trainer, values: Mapping[str, float]) -> None:
        """Give metrics to the loggers and to other callbacks, such as ModelCheckpoint; loggers get no NaN."""
        # `log` is not allowed in hooks at the start and end of training; callback_metrics and loggers always are.
        trainer.callback_metrics.update({key: torch.tensor(value) for key, value in values.items()})
        self._metrics |= values
        for logger in trainer.loggers:
            known = {key: value for key, value in values.items() if not math.isnan(value)}
            logger.log_metrics(known, step=trainer.global_step)


def gather(items: list[T]) -> list[T]:
    """The items of all ranks, on every rank; all ranks must call it."""
    if not (dist.is_available() and dist.is_initialized()):
        return items
    of_ranks: list[list[T]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(of_ranks, items)
    return [item for of_rank in of_ranks for item in of_rank]


def moment(trainer: L.Trainer) -> str:
    """The step during `fit`, else the command; part of file names."""
    command = trainer.state.fn
    return f"step{trainer.global_step}" if command in (None, TrainerFn.FITTING) else str(command.value)


def model_name(trainer: L.Trainer, pl_module: L.LightningModule) -> str:
    """The model's name in what it has said: the step during `fit`, else the checkpoint or the model."""
    if trainer.state.fn == TrainerFn.FITTING:
        return f"step-{trainer.global_step}"
    backbone = pl_module.backbone
    return str(trainer.ckpt_path or backbone.adapter or backbone.name_or_path)  # type: ignore[union-attr]
