"""Learning-rate schedules: linear warm-up with a half cosine, and the length of the run that schedules are told."""

import math
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.cli import ReduceLROnPlateau
from torch.optim import Optimizer, lr_scheduler

from judgelit.errors import UserError


def total_steps(trainer: L.Trainer) -> int | None:
    """Number of optimizer steps of a run that is about to start or to continue; None if the run has no end.

    A continued run may accumulate more or fewer micro-batches than before, and `GradientAccumulationScheduler` changes
    the accumulation from epoch to epoch. So these are the steps that are done, and those that the rest takes.
    """
    loop = trainer.fit_loop
    phases = [one for one in trainer.callbacks if isinstance(one, GradientAccumulationScheduler)]  # type: ignore[attr-defined]

    def accumulated(epoch: int) -> int:
        return phases[0].get_accumulate_grad_batches(epoch) if phases else trainer.accumulate_grad_batches

    limits = [] if trainer.max_steps == -1 else [trainer.max_steps]
    if trainer.max_epochs not in (None, -1) and not math.isinf(loop.max_batches):
        batches = int(loop.max_batches)
        processed: int = loop.epoch_loop.batch_progress.total.processed  # type: ignore[attr-defined]
        epoch, done = divmod(processed, batches)
        # Each epoch ends with a step.
        to_come = sum(math.ceil(batches / accumulated(later)) for later in range(epoch, trainer.max_epochs or 0))
        limits.append(trainer.global_step + to_come - done // accumulated(epoch))
    return min(limits, default=None)


def scheduler_config(scheduler: Any) -> dict[str, Any]:
    """Return what Lightning must know of a scheduler: it steps with the optimizer, or with each epoch by a metric.

    Raises:
        UserError: It follows a metric and does not say which.
    """
    if not isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
        return {"scheduler": scheduler, "interval": "step"}
    if not isinstance(scheduler, ReduceLROnPlateau):
        raise UserError(
            "model.lr_scheduler: found torch's ReduceLROnPlateau, which has no metric; give class_path "
            "lightning.pytorch.cli.ReduceLROnPlateau with init_args monitor: val/loss"
        )
    return {"scheduler": scheduler, "interval": "epoch", "monitor": scheduler.monitor}


def fit_to_run(scheduler: Any, steps: int | None) -> None:
    """Tell a schedule the length of the run.

    Args:
        scheduler: The learning-rate scheduler.
        steps: Optimizer steps of the run; None if it has no end.

    Raises:
        UserError: The schedule needs an end and the run has none, or the schedule is shorter than the run.
    """
    if isinstance(scheduler, WarmupCosine):
        if steps is None:
            raise UserError(
                "trainer.max_epochs: found -1 and no trainer.max_steps, expected one of them, since WarmupCosine needs "
                "the number of steps"
            )
        scheduler.set_total_steps(steps)
    if isinstance(scheduler, lr_scheduler.OneCycleLR) and scheduler.total_steps < (steps or math.inf):
        raise UserError(
            f"lr_scheduler.total_steps: found {scheduler.total_steps}, expected at least the {steps or 'endless'} "
            "optimizer steps of the run"
        )


class WarmupCosine(lr_scheduler.LambdaLR):
    """Linear warm-up, then a half cosine down to `floor` at the last step.

    The module sets the number of steps (`set_total_steps`), so one configuration serves runs of any length.
    """

    def __init__(self, optimizer: Optimizer, warmup: float = 0.03, floor: float = 0.0) -> None:
        """Set the shape.

        Args:
            optimizer: The optimizer.
            warmup: Share of all steps that the warm-up takes, below 1.
            floor: Learning rate at the end, as a share of the highest one.
        """
        if not 0 <= warmup < 1:
            raise UserError(f"warmup: found {warmup}, expected 0 <= warmup < 1")
        self.warmup = warmup
        self.floor = floor
        self.total_steps = 1
        super().__init__(optimizer, self.factor)

    def set_total_steps(self, total_steps: int) -> None:
        """Set the number of optimizer steps."""
        self.total_steps = max(1, total_steps)
        for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = base * self.factor(self.last_epoch)

    def state_dict(self) -> dict[str, Any]:
        """The state without the number of steps, which a continued run may change."""
        return {name: value for name, value in super().state_dict().items() if name != "total_steps"}

    def factor(self, step: int) -> float:
        """The learning rate at `step`, counted from 0, as a share of the highest one."""
        rising = int(self.warmup * self.total_steps)
        if step < rising:
            return (step + 1) / (rising + 1)
        progress = min(1.0, (step - rising) / (self.total_steps - rising))
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * progress))
