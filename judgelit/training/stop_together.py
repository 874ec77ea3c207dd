"""Ending several processes together when any of them is told to end."""

import signal
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException


class StopTogether(Callback):
    """Ends a run of several processes before the same micro-batch on all of them, whichever got SIGTERM.

    Lightning's own handler broadcasts from within the signal, amid whatever the processes exchange just then, and they
    may wait for each other until they time out.
    """

    def __init__(self) -> None:
        self._told = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the signal from Lightning, which gives it back when the run is over."""
        if trainer.world_size > 1:
            signal.signal(signal.SIGTERM, self._tell)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """End, if any process was told to."""
        if trainer.world_size > 1 and trainer.strategy.reduce_boolean_decision(self._told, all=False):
            raise SIGTERMException

    def _tell(self, *_: Any) -> None:
        self._told = True
