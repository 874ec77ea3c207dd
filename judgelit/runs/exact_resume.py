"""Exact resume: a run that is stopped and continued ends as it would have ended without the stop, to the last bit.

Lightning's checkpoint holds weights, optimizer, schedule and the counters of its loops. That is not enough:

- A checkpoint can be asked for in the middle of a global batch. The weights are then still those of the last optimizer
  step, but the counters are not. So `ExactResume` notes the state of loops and data at the end of each optimizer step
  (`on_train_batch_end`) and saves that (`on_save_checkpoint`). The global batch is done again.
- In the middle of an optimizer step some weights are new and some old. No checkpoint is written then.
- Random numbers: each micro-batch is seeded from the seed of the run and its own number (`on_train_batch_start`). So
  no generator's state has to be saved, and validation, loader workers or a stop cannot change the numbers.
- Lightning saves before it logs the step and before it validates. So a checkpoint also says how many rows the log had,
  which row was about to be logged, in which hook it was saved, and whether a validation was about to come. A continued
  run cuts its logs back to that point, adds the row, and does what comes after: the saves of other callbacks, the
  validation, the end of the epoch (`on_train_start`, `catch_up`; see `missed_hooks`).
- Callbacks that save or stop by a metric read the last value of it, so the metrics are kept too, and whether a callback
  has stopped the run.
- A run that is killed after its last step, but before its end, must enter the training loop once more, so that it
  validates and ends (`_keep_loop_open`).

A checkpoint also holds the settings that decide the run, and a run with others does not continue from it.

This needs attributes of Lightning's loops that are not public, so pyproject.toml bounds Lightning's version.
"""

import copy
import hashlib
import random
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import GradientAccumulationScheduler, Timer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info

from judgelit.errors import UserError
from judgelit.runs.checkpoints import NOT_SAVED
from judgelit.runs.csv_log import RunLog
from judgelit.runs.missed_hooks import (
    count_epoch,
    end_epoch,
    epoch_ends,
    restore_saved_steps,
    save_again,
    saved_steps,
    set_epoch,
    validate,
)
from judgelit.runs.resume_position import convert_position, correct_total
from judgelit.runs.run_settings import refuse_changes

_KEY = "judgelit"
"""Key of a checkpoint under which `ExactResume` keeps its part."""


class ExactResume(Callback):
    """Saves what an exact resume needs, and restores it.

    It must be the first callback, and its `CatchUp` the last: seeds and notes come before the work of other callbacks,
    and the validation after they have started.
    """

    def __init__(self, settings: Mapping[str, Any] | None = None) -> None:
        """Start with nothing.

        Args:
            settings: The settings that decide the run: see `run_settings`.
        """
        self._settings = dict(settings or {})
        self._seed = 0
        self._last_step: dict[str, Any] = {}  # states of loops and data, and the epoch, after the last optimizer step
        self._in_global_batch = False
        self._in_optimizer_step = False
        self._row_pending = False  # Lightning has not yet logged the last step
        self._validation_pending = False
        self._hook = ""  # the hook after the last optimizer step in which callbacks save, until the next step begins
        self._ended = False
        self._rows = 0  # rows logged before the global batch
        self._pending: list[dict[str, float]] = []  # row of the last step that a continued run is to log
        self._loaded: dict[str, Any] | None = None
        self._loaded_from: str | Path | None = None
        self._max_steps: int | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Note the seed of the process."""
        self._seed = torch.initial_seed()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Cut the logs back to the checkpoint, and restore what callbacks know beside their states."""
        self._ended, self._hook = False, ""
        if self._max_steps is not None:
            _epoch_loop(trainer).max_steps, self._max_steps = self._max_steps, None
        saved, self._loaded = self._loaded, None
        if saved is None:
            _rewind_logs(trainer, 0, 0)
            return
        self._pending = saved["row"]
        _rewind_logs(trainer, saved["rows"], trainer.global_step + 1)
        if saved["ranks"] != trainer.world_size:
            correct_total(trainer, self._last_step["data"])
        self._validation_pending, self._hook = saved["validate"], saved["hook"]
        trainer.callback_metrics.update(saved.get("metrics", {}))
        trainer.should_stop = trainer.should_stop or saved["stopped"]
        restore_saved_steps(trainer, saved["saved_steps"], self._loaded_from, self._hook)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seed the micro-batch; at the start of a global batch, note the length of the log."""
        if not self._in_global_batch:
            self._in_global_batch, self._row_pending, self._rows = True, False, _rows(trainer)
            self._hook = ""
        done: int = _epoch_loop(trainer).batch_progress.total.processed
        seed_all(f"{self._seed}/{done * trainer.world_size + trainer.global_rank}")

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Note that no checkpoint must be written until the batch ends."""
        self._in_optimizer_step = True

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After an optimizer step, note the state of loops and data."""
        loop = _epoch_loop(trainer)
        if loop._should_accumulate():
            return
        self._in_global_batch = self._in_optimizer_step = False
        self._row_pending = True
        self._validation_pending = loop._should_check_val_fx(trainer.fit_loop._data_fetcher)
        self._hook = "on_train_batch_end"
        self._last_step = {
            "loop": trainer.fit_loop.state_dict(),
            "data": trainer.datamodule.state_dict(),  # type: ignore[attr-defined]
            "epoch": trainer.current_epoch,
        }

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note that Lightning has logged the step."""
        self._row_pending = False

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note that the validation is done."""
        self._validation_pending = False
        self._hook = "" if self._in_global_batch else "on_validation_end"

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note that Lightning has logged the step."""
        self._row_pending, self._hook = False, "on_train_epoch_end"

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note that the last epoch is over."""
        self._hook = ""

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note that the training has ended: a checkpoint from now on leaves nothing to do."""
        self._row_pending, self._hook, self._ended = False, "", True

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Note that the training has not ended, even if another callback was stopped while it ended it."""
        self._ended = False

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say why a continued run has done nothing, if a callback had stopped it."""
        if self._loaded and self._loaded["stopped"] and trainer.is_global_zero:
            print(
                f"a callback such as EarlyStopping has ended this run at step {trainer.global_step}, so it does not "
                "train on; to do so, remove EarlyStopping from trainer.callbacks or set a higher trainer.min_steps",
                flush=True,
            )

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save the state after the last optimizer step."""
        if self._in_optimizer_step or not self._last_step:
            why = "stopped in an optimizer step" if self._in_optimizer_step else "no step is done yet"
            checkpoint[NOT_SAVED] = f"{why}; an earlier one is kept"
            return
        loop = _epoch_loop(trainer)
        if self._hook == "on_train_batch_end" and loop._should_check_val_fx(trainer.fit_loop._data_fetcher):
            # A callback may have stopped the run since.
            self._validation_pending = True
        # Lightning counts the batch before it logs the step.
        is_logged = loop.batch_progress.current.completed == loop.batch_progress.current.ready
        row = self._row_pending and not is_logged and trainer._logger_connector.should_update_logs
        epoch_is_over = trainer.fit_loop.epoch_progress.current.completed > self._last_step["epoch"]
        checkpoint["loops"]["fit_loop"] = copy.deepcopy(self._last_step["loop"])
        checkpoint[type(trainer.datamodule).__qualname__] = self._last_step["data"]  # type: ignore[attr-defined]
        for logger in trainer.loggers:
            if isinstance(logger, RunLog):
                # The rows that the checkpoint counts must be on the disk when it is.
                logger.sync()
        checkpoint[_KEY] = {
            "seed": self._seed,
            "ranks": trainer.world_size,
            "epoch": self._last_step["epoch"],
            "rows": self._rows if self._in_global_batch else _rows(trainer),
            "row": [_pending_row(trainer)] if row else [],
            "validate": self._validation_pending,
            "hook": "" if epoch_is_over else self._hook,
            "ended": self._ended,
            "stopped": trainer.should_stop and not _is_time_over(trainer),
            "saved_steps": saved_steps(trainer),
            "settings": self._of_all_ranks(trainer),
            "metrics": {name: value.detach().cpu() for name, value in trainer.callback_metrics.items()},
        }

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Restore from a checkpoint; if the number of ranks has changed, convert the position in the data.

        Raises:
            UserError: The checkpoint is not of `judgelit fit`, or of a run with other settings or another kind of data.
        """
        if trainer.state.fn != TrainerFn.FITTING:
            return
        if _KEY not in checkpoint:
            raise UserError(
                f"the checkpoint has no entry {_KEY!r}, so it does not say where its run was; expected one that "
                "`judgelit fit` has saved"
            )
        self.refuse_other_settings(trainer, checkpoint)
        # The last three are not in checkpoints of earlier versions.
        saved = self._loaded = {**checkpoint[_KEY]}
        for name, default in (("hook", ""), ("saved_steps", {}), ("stopped", False)):
            saved.setdefault(name, default)
        here = {callback.state_key for callback in trainer.callbacks}  # type: ignore[attr-defined]
        if any(key.startswith("EarlyStopping") and key not in here for key in checkpoint["callbacks"]):
            saved["stopped"] = False  # The user wants to train on.
        if saved["ended"] and saved["stopped"]:
            trainer.should_stop = True
        self._loaded_from = trainer.ckpt_path
        self._seed = saved["seed"]
        kind = type(trainer.datamodule).__qualname__  # type: ignore[attr-defined]
        if kind not in checkpoint:
            raise UserError(f"the checkpoint is of a run on other data than a {kind}; expected one of the same run")
        data = checkpoint[kind]
        if saved["ranks"] != trainer.world_size:
            rank_zero_info(
                f"the checkpoint is of {saved['ranks']} processes and there are {trainer.world_size} now: the run "
                "continues at the same place in the data, but no longer equal to the last bit"
            )
            data = convert_position(trainer, checkpoint["loops"]["fit_loop"], data, saved["ranks"])
        loop = copy.deepcopy(checkpoint["loops"]["fit_loop"])
        self._last_step = {"loop": loop, "data": data, "epoch": saved["epoch"]}
        self._keep_loop_open(trainer)

    def refuse_other_settings(self, trainer: L.Trainer, checkpoint: Mapping[str, Any]) -> None:
        """Compare the settings of a checkpoint with those of this run.

        Raises:
            UserError: One that decides what the run computes differs.
        """
        saved = checkpoint.get(_KEY, {}).get("settings")
        if saved and self._settings:
            refuse_changes(saved, self._of_all_ranks(trainer))

    def _of_all_ranks(self, trainer: L.Trainer) -> dict[str, Any]:
        """The settings, with numbers of batches counted over all ranks: the number of ranks may change."""
        ranks = trainer.world_size
        counted = {"trainer.limit_train_batches", "trainer.overfit_batches"}
        return {
            name: value * ranks if name in counted and isinstance(value, int) else value
            for name, value in self._settings.items()
        }

    def catch_up(self, trainer: L.Trainer) -> None:
        """Do what Lightning skips where a run continues within an epoch or at its end."""
        rows, self._pending = self._pending, []
        for logger in trainer.loggers:
            if isinstance(logger, RunLog):
                for row in rows:
                    logger.log_metrics(row, int(row["step"]))
        # Lightning does not change rates that follow a metric at the end of the epoch in which it has restarted.
        trainer.fit_loop._restarting = False
        if self._last_step:
            set_epoch(trainer, self._last_step["epoch"])
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, GradientAccumulationScheduler):
                # Lightning calls the hook only where an epoch begins.
                callback.on_train_epoch_start(trainer, trainer.lightning_module)
        if self._hook in ("on_train_batch_end", "on_validation_end"):
            save_again(trainer, self._hook)
        if self._validation_pending:
            validate(trainer)
        if self._hook and epoch_ends(trainer):
            end_epoch(trainer, hooks=self._hook != "on_train_epoch_end")
        elif self._last_step and _epoch_loop(trainer)._num_ready_batches_reached():
            count_epoch(trainer)

    def _keep_loop_open(self, trainer: L.Trainer) -> None:
        """Raise `max_steps` until training starts, if the last step is done but the run has not ended.

        Lightning would skip the training loop, and with it the last validation and the end of the run.
        """
        loop = _epoch_loop(trainer)
        if self._loaded and not self._loaded["ended"] and loop.max_steps > 0:
            self._max_steps = loop.max_steps
            loop.max_steps = sys.maxsize


class CatchUp(Callback):
    """The last callback: validates before the first step of a continued run, if that was pending."""

    def __init__(self, resume: ExactResume) -> None:
        self.resume = resume

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Catch up with the run of the checkpoint."""
        self.resume.catch_up(trainer)


def seed_all(key: str) -> None:
    """Seed Python, numpy and torch, on every device, from a text."""
    seed = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") >> 1
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _epoch_loop(trainer: L.Trainer) -> Any:
    return trainer.fit_loop.epoch_loop


def _rows(trainer: L.Trainer) -> int:
    """Number of rows in the CSV log."""
    return next((logger.rows for logger in trainer.loggers if isinstance(logger, RunLog)), 0)


def _is_time_over(trainer: L.Trainer) -> bool:
    """Whether a Timer has stopped the run. A continued run asks it again: it may have more time then."""
    timers = [one for one in trainer.callbacks if isinstance(one, Timer)]  # type: ignore[attr-defined]
    return any((timer.time_remaining() or 0) <= 0 for timer in timers if timer.time_remaining() is not None)


def _pending_row(trainer: L.Trainer) -> dict[str, float]:
    """The row that Lightning will log next."""
    metrics = trainer._logger_connector.metrics["log"]
    values = {name: value.item() if isinstance(value, torch.Tensor) else value for name, value in metrics.items()}
    return {**values, "epoch": trainer.current_epoch, "step": _epoch_loop(trainer)._batches_that_stepped}


def _rewind_logs(trainer: L.Trainer, rows: int, step: int) -> None:
    """Drop what was logged after a checkpoint: all but `rows` rows of the CSV log, TensorBoard's events from `step`."""
    for logger in trainer.loggers:
        if isinstance(logger, RunLog):
            logger.rewind(rows)
        elif isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
            # A new event file tells TensorBoard from which step on older files are void.
            logger.experiment.close()
            logger.experiment.purge_step = step
