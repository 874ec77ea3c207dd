"""SIGINT and SIGTERM on several processes: they end at once before training, and together while they train."""

import ctypes
import os
import signal
import sys
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_FIRST = "JUDGELIT_FIRST_RANK"
"""Environment variable: the process that has started the other ranks of its node."""
_PR_SET_PDEATHSIG = 1


class StopTogether(Callback):
    """Stops a run of several processes before the same micro-batch on all of them when any of them gets a signal.

    Lightning's own handler broadcasts inside the signal handler, possibly in the middle of another exchange; then the
    processes wait for each other until they time out. Before training there is nothing to save, so the system ends the
    process, even while it waits for another rank: Python's handlers would wait too.
    """

    def __init__(self) -> None:
        self._told: int | None = None  # the signal

    def end_at_once(self, trainer: L.Trainer) -> None:
        """Until training starts, let signals end this process, and end it when the first rank of its node ends."""
        if trainer.world_size == 1:
            return
        _handle(signal.SIG_DFL)
        first = os.environ.setdefault(_FIRST, str(os.getpid()))
        if first != str(os.getpid()):
            _end_with_parent(signal.SIGKILL)
            if os.getppid() != int(first):
                os._exit(1)

    def on_sanity_check_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Replace the handler that Lightning has just set."""
        if trainer.world_size > 1:
            _handle(signal.SIG_DFL)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop between micro-batches from now on."""
        if trainer.world_size > 1:
            _handle(self._tell)
            _end_with_parent(0)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Stop if any process got a signal."""
        strategy = trainer.strategy
        if trainer.world_size == 1 or not strategy.reduce_boolean_decision(self._told is not None, all=False):
            return
        interrupted = strategy.reduce_boolean_decision(self._told == signal.SIGINT, all=False)
        if processes := getattr(strategy.launcher, "procs", None):
            # Lightning watches this list, and kills the first rank when another one has left before it.
            processes.clear()
        raise KeyboardInterrupt if interrupted else SIGTERMException

    def _tell(self, number: int, _: Any) -> None:
        self._told = number


def _handle(handler: Any) -> None:
    for number in _SIGNALS:
        # A signal that is ignored, as under nohup, stays ignored.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def _end_with_parent(number: int) -> None:
    """Get a signal when the process that has started this one ends; 0 for none."""
    if sys.platform == "linux" and os.environ.get(_FIRST) not in (None, str(os.getpid())):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
