"""SIGTERM on several processes: they stop before the same micro-batch."""

import signal
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException


class StopTogether(Callback):
    """Stops a run of several processes before the same micro-batch on all of them when any of them gets SIGTERM.

    Lightning's own handler broadcasts inside the signal handler, possibly in the middle of another exchange; then the
    processes wait for each other until they time out.
    """

    def __init__(self) -> None:
        self._told = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Replace Lightning's signal handler; Lightning restores the handlers when the run ends."""
        if trainer.world_size > 1:
            signal.signal(signal.SIGTERM, self._tell)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Stop if any process got the signal."""
        if trainer.world_size > 1 and trainer.strategy.reduce_boolean_decision(self._told, all=False):
            raise SIGTERMException

    def _tell(self, *_: Any) -> None:
        self._told = True
