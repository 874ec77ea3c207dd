"""Checkpoints that a kill leaves behind: it may come after one is written and before an older one is removed."""

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from judgelit.atomic import remove

_KEY = "dropped checkpoints"


class DroppedCheckpoints(Callback):
    """Notes in each checkpoint which others are about to be removed, and removes them when the run continues."""

    def __init__(self, follows_last: bool) -> None:
        """Start with nothing.

        Args:
            follows_last: Whether the run continues from its newest checkpoint, which may then be removed like others.
        """
        self._follows_last = follows_last
        self._written: set[str] = set()  # checkpoints that the callbacks of the run have kept
        self._dropped: list[str] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remove what the killed run was about to remove."""
        self._written = _kept(trainer)
        if trainer.is_global_zero:
            folders = {
                Path(callback.dirpath).resolve()
                for callback in trainer.checkpoint_callbacks
                if isinstance(callback, ModelCheckpoint) and callback.dirpath is not None
            }
            for path in set(self._dropped) - self._written:
                # The folder of the run may be a copy, and the paths those of the original.
                if Path(path).resolve().parent in folders:
                    remove(Path(path))
        if self._follows_last:
            # ModelCheckpoint would never remove the checkpoint from which a run continues.
            trainer.ckpt_path = None

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Note the checkpoints that no callback keeps any more, but that are still there."""
        kept = _kept(trainer)
        self._written |= kept
        checkpoint[_KEY] = sorted(path for path in self._written - kept if Path(path).exists())

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Read what the run of the checkpoint was about to remove."""
        self._dropped = checkpoint.get(_KEY, [])


def _kept(trainer: L.Trainer) -> set[str]:
    """Checkpoints that callbacks keep until better or newer ones come."""
    found: set[str] = set()
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.save_top_k != -1:
            found |= {*callback.best_k_models, callback.best_model_path, callback.last_model_path}
    return found - {""}
