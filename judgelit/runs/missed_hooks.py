"""Hooks that a kill cut off, and that Lightning skips where a run continues within an epoch or at its end.

Checkpoints are written in the hooks `on_train_batch_end`, `on_validation_end` and `on_train_epoch_end`, by one
ModelCheckpoint after another. A kill may come before the next one has saved, and before the hooks that follow. What a
ModelCheckpoint knows of its last save, and of one that waits for a validation, Lightning does not save.
"""

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint


def saved_steps(trainer: L.Trainer) -> dict[str, list[Any]]:
    """Of each ModelCheckpoint the step it has saved last, and whether a save waits for a validation."""
    return {
        callback.state_key: [callback._last_global_step_saved, callback._defer_save_until_validation]
        for callback in _model_checkpoints(trainer)
    }


def restore_saved_steps(trainer: L.Trainer, saved: dict[str, list[Any]], written: str | Path | None, hook: str) -> None:
    """Restore what `saved_steps` has returned.

    Args:
        trainer: The trainer, with the other states of the checkpoint.
        saved: What `saved_steps` returned when the checkpoint was written.
        written: The checkpoint. The ModelCheckpoint that was writing it counts as having saved.
        hook: The hook in which it was written, or "".
    """
    for callback in _model_checkpoints(trainer):
        last, waits = saved.get(callback.state_key, [0, False])
        paths = {callback.last_model_path, callback.best_model_path, *callback.best_k_models} - {""}
        if written and Path(written).resolve() in {Path(path).resolve() for path in paths}:
            last, waits = trainer.global_step, waits and hook != "on_validation_end"
        callback._last_global_step_saved, callback._defer_save_until_validation = last, waits


def save_again(trainer: L.Trainer, hook: str) -> None:
    """Call a hook of all ModelCheckpoints; those that have saved this step do nothing."""
    of_batch = (None, None, trainer.fit_loop.epoch_loop.batch_idx) if hook == "on_train_batch_end" else ()
    for callback in _model_checkpoints(trainer):
        getattr(callback, hook)(trainer, trainer.lightning_module, *of_batch)


def set_epoch(trainer: L.Trainer, epoch: int) -> None:
    """Set Lightning's counters to within `epoch`: it counts an epoch as over where it continues after its last step."""
    progress: Any = trainer.fit_loop.epoch_progress
    for counts in (progress.total, progress.current):
        counts.ready = counts.started = epoch + 1
        counts.processed = counts.completed = epoch


def validate(trainer: L.Trainer) -> None:
    """Run a validation as after a step."""
    connector = trainer._logger_connector
    first = connector._first_loop_iter
    loop = trainer.fit_loop.epoch_loop.val_loop
    loop.restarting = False
    trainer.validating = True
    loop.run()
    trainer.training = True
    connector._first_loop_iter = first


def epoch_ends(trainer: L.Trainer) -> bool:
    """Whether Lightning ends the epoch after the present step."""
    loop = trainer.fit_loop
    return bool(loop.epoch_loop._is_training_done or (trainer.should_stop and loop._can_stop_early))


def end_epoch(trainer: L.Trainer, hooks: bool) -> None:
    """End the epoch as Lightning does: hooks, learning rates that follow a metric, counters.

    Args:
        trainer: The trainer.
        hooks: Whether to call all hooks `on_train_epoch_end`; otherwise, those of ModelCheckpoints alone.
    """
    loop = trainer.fit_loop
    if hooks:
        # Lightning has not yet counted the step.
        loop.epoch_loop._batches_that_stepped += 1
        loop.on_advance_end()
        loop.epoch_loop._batches_that_stepped -= 1
        loop.reset_restart_stage()
    else:
        save_again(trainer, "on_train_epoch_end")
        if loop.epoch_loop._num_ready_batches_reached():
            loop.epoch_loop.update_lr_schedulers("epoch", update_plateau_schedulers=True)
        count_epoch(trainer)


def count_epoch(trainer: L.Trainer) -> None:
    """Count the present epoch as over, so that the next one begins with its hooks and is counted itself.

    Otherwise Lightning takes a checkpoint of the next epoch for one of its end, and loses the position in it.
    """
    trainer.fit_loop.epoch_progress.increment_processed()
    trainer.fit_loop.epoch_progress.increment_completed()
    trainer.fit_loop.reset_restart_stage()


def _model_checkpoints(trainer: L.Trainer) -> list[ModelCheckpoint]:
    return [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
