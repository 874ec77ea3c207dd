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
        """Read what the run of the checkpoint was about to remove, and name all files as the run's folder is now."""
        self._dropped = checkpoint.get(_KEY, [])
        for callback in trainer.checkpoint_callbacks:
            state = checkpoint["callbacks"].get(callback.state_key)
            if isinstance(callback, ModelCheckpoint) and state and _saved_there(trainer, callback):
                before, now = state.get("dirpath"), Path(str(callback.dirpath))
                self._dropped = [
                    str(now / Path(path).name) if str(Path(path).parent) == str(before) else path
                    for path in self._dropped
                ]
                _follow_folder(callback, state)


def _saved_there(trainer: L.Trainer, callback: ModelCheckpoint) -> bool:
    """Whether the checkpoint that is loaded is of the run in whose folder this callback saves."""
    if callback.dirpath is None or trainer.ckpt_path is None:
        return False
    read_from = Path(trainer.ckpt_path).resolve().parent
    # SLURM's checkpoint lies beside the folder of the others.
    return Path(callback.dirpath).resolve() in (read_from, read_from / "checkpoints")


def _follow_folder(callback: ModelCheckpoint, state: dict[str, Any]) -> None:
    """Name the files in a callback's state as its folder is named now.

    If the name differs, Lightning forgets them: it would write `last-v1.ckpt` beside a `last.ckpt` that stays behind.
    """
    folder = Path(str(callback.dirpath))

    def now(path: str) -> str:
        return str(folder / Path(path).name) if path else path

    for name in ("best_model_path", "kth_best_model_path", "last_model_path"):
        state[name] = now(state.get(name, ""))
    state["best_k_models"] = {now(path): score for path, score in state.get("best_k_models", {}).items()}
    state["dirpath"] = callback.dirpath
    # The first checkpoint of a run is written before the first `last.ckpt`.
    last = folder / f"{callback.CHECKPOINT_NAME_LAST}{callback.FILE_EXTENSION}"
    if callback.save_last and not state["last_model_path"] and last.exists():
        state["last_model_path"] = str(last)


def _kept(trainer: L.Trainer) -> set[str]:
    """Checkpoints that callbacks keep until better or newer ones come."""
    found: set[str] = set()
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.save_top_k != -1:
            found |= {*callback.best_k_models, callback.best_model_path, callback.last_model_path}
    return found - {""}
