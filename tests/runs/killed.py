"""Callbacks that kill, interrupt or stop a run at a step."""

import os
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

from judgelit.evaluation.periodic import PeriodicMeasurement


class Kill(Checkpoint):
    """Sends a signal to the process in a hook of a step, if the environment has KILL.

    As a `Checkpoint` it keeps its place among the callbacks that save.
    """

    def __init__(self, hook: str, step: int, number: int = 9) -> None:
        self.step = step
        self.number = number
        setattr(self, hook, self.kill)

    def kill(self, trainer: L.Trainer, *_: Any) -> None:
        if "KILL" in os.environ and trainer.global_step == self.step:
            os.kill(os.getpid(), self.number)


class CountSteps(PeriodicMeasurement):
    """Measures the step itself after every four steps and at the end.

    If the environment has KILL, it raises KeyboardInterrupt in one measurement.
    """

    def __init__(self, interrupted: int) -> None:
        super().__init__(4, at_start=False, at_end=True, at_epoch_end=False)
        self.interrupted = interrupted

    def measure(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if "KILL" in os.environ and trainer.global_step == self.interrupted:
            raise KeyboardInterrupt
        self.log_metrics(trainer, {"judge/step": float(trainer.global_step)})


class StopAt(L.Callback):
    """Asks the trainer to stop after a step, as a callback of a user may."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.should_stop = True
