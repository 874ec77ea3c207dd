"""What a checkpoint must hold, beyond what Lightning keeps, for a run to go on to the last bit."""

import copy
import hashlib
import random
import sys
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info

from judgelit.errors import UserError
from judgelit.runs.checkpoints import NOT_SAVED
from judgelit.runs.csv_log import RunLog

_KEY = "judgelit"


class ExactResume(Callback):
    """Makes a stopped run go on exactly; it must come before all other callbacks, its `CatchUp` after them.

    - Every checkpoint is of the end of an optimizer step, whenever it is asked for. Inside an accumulation window the
      weights are still those of the step before, so the checkpoint says that the window is to be done again. Amid an
      update there is nothing that could be continued, and no checkpoint is written.
    - Random numbers are drawn anew for each micro-batch, from the run's seed and the micro-batch's number alone.
      So there is no state to restore, and validation, workers or a stop cannot change them.
    - Lightning logs a step and validates after it saves. What a kill took away of that is made up for, and what the
      killed run logged after its checkpoint is dropped.
    """

    def __init__(self) -> None:
        self._seed = 0
        self._boundary: dict[str, Any] = {}  # where the last whole optimizer step left loops and data
        self._in_window = False
        self._updating = False
        self._row_due = False
        self._validation_due = False
        self._ended = False
        self._rows = 0  # logged before the window
        self._loaded: dict[str, Any] | None = None
        self._max_steps: int | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Note the seed that the process was given."""
        self._seed = torch.initial_seed()

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Let a run that was killed at its last step come to its end."""
        self._hold_open(trainer)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the logs back to the checkpoint."""
        self._ended = False
        if self._max_steps is not None:
            _epoch_loop(trainer).max_steps, self._max_steps = self._max_steps, None
        saved, self._loaded = self._loaded, None
        if saved is None:
            _rewind(trainer, 0, [], 0)
            return
        _rewind(trainer, saved["rows"], saved["row"], trainer.global_step + 1)
        if saved["ranks"] != trainer.world_size:
            _recount(trainer, self._boundary["data"])
        self._validation_due = saved["validate"]

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seed the micro-batch."""
        if not self._in_window:
            self._in_window, self._row_due, self._rows = True, False, _rows(trainer)
        done: int = _epoch_loop(trainer).batch_progress.total.processed
        seed_all(f"{self._seed}/{done * trainer.world_size + trainer.global_rank}")

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """From here on the weights are of no step, until the batch has ended."""
        self._updating = True

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note where the run is, if an optimizer step is done."""
        loop = _epoch_loop(trainer)
        if loop._should_accumulate():
            return
        self._in_window = self._updating = False
        self._row_due = trainer._logger_connector.should_update_logs
        self._validation_due = loop._should_check_val_fx(trainer.fit_loop._data_fetcher)
        self._boundary = {
            "loop": trainer.fit_loop.state_dict(),
            "data": trainer.datamodule.state_dict(),  # type: ignore[attr-defined]
            "epoch": trainer.current_epoch,
        }

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Lightning has logged the step."""
        self._row_due = False

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """And validated."""
        self._validation_due = False

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Lightning has logged the step."""
        self._row_due = False

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """What is saved now needs nothing made up for."""
        self._row_due, self._ended = False, True

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save the end of the last optimizer step."""
        if self._updating or not self._boundary:
            why = "stopped amid an update" if self._updating else "no step is done yet"
            checkpoint[NOT_SAVED] = f"{why}; the last one stays as it is"
            return
        checkpoint["loops"]["fit_loop"] = copy.deepcopy(self._boundary["loop"])
        checkpoint[type(trainer.datamodule).__qualname__] = self._boundary["data"]  # type: ignore[attr-defined]
        for logger in trainer.loggers:
            if isinstance(logger, RunLog):
                logger.sync()
        checkpoint[_KEY] = {
            "seed": self._seed,
            "ranks": trainer.world_size,
            "epoch": self._boundary["epoch"],
            "rows": self._rows if self._in_window else _rows(trainer),
            "row": [_due_row(trainer)] if self._row_due else [],
            "validate": self._validation_due,
            "ended": self._ended,
        }

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Go on from a checkpoint, on as many processes as there are now."""
        if trainer.state.fn != TrainerFn.FITTING:
            return
        if _KEY not in checkpoint:
            raise UserError("the checkpoint does not say where its run was; expected one that `judgelit fit` has made")
        saved = self._loaded = checkpoint[_KEY]
        self._seed = saved["seed"]
        kind = type(trainer.datamodule).__qualname__  # type: ignore[attr-defined]
        if kind not in checkpoint:
            raise UserError(f"the checkpoint is of a run on other data than a {kind}; expected one of the same run")
        data = checkpoint[kind]
        if saved["ranks"] != trainer.world_size:
            rank_zero_info(
                f"the checkpoint is of {saved['ranks']} processes and there are {trainer.world_size} now: the data "
                "goes on where it was, but the run is no longer the same to the last bit"
            )
            data = _deal_out(trainer, checkpoint["loops"]["fit_loop"], data, saved["ranks"])
        loop = copy.deepcopy(checkpoint["loops"]["fit_loop"])
        self._boundary = {"loop": loop, "data": data, "epoch": saved["epoch"]}
        self._hold_open(trainer)

    def catch_up(self, trainer: L.Trainer) -> None:
        """Validate if the checkpoint was made just before that."""
        if self._validation_due:
            _validate(trainer, self._boundary["epoch"])

    def _hold_open(self, trainer: L.Trainer) -> None:
        """Have Lightning enter the loop of a run whose last step is done but whose end is not: it would skip both.

        This has to wait for the optimizers, whose schedules ask how many steps there are.
        """
        loop = _epoch_loop(trainer)
        if self._loaded and not self._loaded["ended"] and trainer.optimizers and loop.max_steps > 0:
            self._max_steps = loop.max_steps
            loop.max_steps = sys.maxsize


class CatchUp(Callback):
    """Does what a continued run must do before its first step once all other callbacks have begun."""

    def __init__(self, resume: ExactResume) -> None:
        self.resume = resume

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Validate if the checkpoint was made just before that."""
        self.resume.catch_up(trainer)


def seed_all(key: str) -> None:
    """Seed Python, numpy and torch on every device from a text."""
    seed = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") >> 1
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _epoch_loop(trainer: L.Trainer) -> Any:
    return trainer.fit_loop.epoch_loop


def _rows(trainer: L.Trainer) -> int:
    return next((logger.rows for logger in trainer.loggers if isinstance(logger, RunLog)), 0)


def _due_row(trainer: L.Trainer) -> dict[str, float]:
    """The row that Lightning is about to log."""
    metrics = trainer._logger_connector.metrics["log"]
    values = {name: value.item() if isinstance(value, torch.Tensor) else value for name, value in metrics.items()}
    return {**values, "epoch": trainer.current_epoch, "step": _epoch_loop(trainer)._batches_that_stepped}


def _rewind(trainer: L.Trainer, rows: int, more: list[dict[str, float]], step: int) -> None:
    """Drop what was logged after a checkpoint: from the CSV file exactly, from TensorBoard all from `step` on."""
    for logger in trainer.loggers:
        if isinstance(logger, RunLog):
            logger.rewind(rows, more)
        elif isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
            # A writer that opens its file says from which step on earlier files no longer count.
            logger.experiment.close()
            logger.experiment.purge_step = step


def _validate(trainer: L.Trainer, epoch: int) -> None:
    """Validate as at the end of a step of `epoch`, which Lightning believes is over."""
    progress, connector = trainer.fit_loop.epoch_progress.current, trainer._logger_connector
    now, first = progress.completed, connector._first_loop_iter
    progress.completed = epoch
    loop = _epoch_loop(trainer).val_loop
    loop.restarting = False
    trainer.validating = True
    loop.run()
    trainer.training = True
    progress.completed, connector._first_loop_iter = now, first


def _deal_out(trainer: L.Trainer, loop: dict[str, Any], data: dict[str, Any], ranks: int) -> dict[str, Any]:
    """Change a checkpoint's place in the data, counted in batches of one of `ranks` processes, to this number of them.

    What is left over after a whole turn of all processes is done once more.
    """
    data = {**data, "batches": data["batches"] * ranks // trainer.world_size}
    trainer.datamodule.load_state_dict(data)  # type: ignore[attr-defined]
    progress = loop["epoch_loop.batch_progress"]
    batches = progress["current"]["ready"] * ranks / trainer.world_size
    # The last batch of an epoch stays its last.
    batches = int(np.ceil(batches) if progress["is_last_batch"] else batches)
    for counts in (progress["total"], progress["current"]):
        counts.update(ready=batches, started=batches, processed=batches, completed=batches - 1)
    return data


def _recount(trainer: L.Trainer, data: dict[str, Any]) -> None:
    """Count all batches as if the run had had this many processes from its beginning."""
    missing = data["epoch"] * int(trainer.fit_loop.max_batches) + data["batches"]
    total = _epoch_loop(trainer).batch_progress.total
    missing -= total.processed
    for name in ("ready", "started", "processed", "completed"):
        setattr(total, name, getattr(total, name) + missing)
