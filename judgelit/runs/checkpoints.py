"""Checkpoints that are there whole or not at all, whenever the process is killed."""

import os
import pickle
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_info

from judgelit.errors import UserError

NOT_SAVED = "not saved"
"""Key of a checkpoint that must not be written; its value says why."""
META = "meta.pt"
"""What Lightning calls the part of a sharded checkpoint that is no tensor, and writes last; the others are shards."""
_PART, _OLD = ".part", ".old"


class AtomicCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside its place, to the disk, and then moves it there.

    Lightning's own goes through the folder for temporary files, and a move between file systems can be cut in half.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Put a whole checkpoint in the place of `path`, or leave what is there."""
        if _refused(checkpoint):
            return
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        place = Path(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        part = place.with_name(place.name + _PART)
        with part.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        old = place.with_name(place.name + _OLD)
        if place.is_dir() and not place.is_symlink():
            place.rename(old)
        part.replace(place)
        _sync(place.parent)
        _remove(old)

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any | None = lambda storage, _: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read a checkpoint.

        Raises:
            UserError: The file is cut off, or is no checkpoint.
        """
        try:
            found = super().load_checkpoint(path, map_location, weights_only)
        except (RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
            what = " ".join(str(error).split())[:200] or "it is empty"
            raise UserError(
                f"{path} cannot be read as a checkpoint ({what}); expected a whole one: name another with --ckpt_path"
            ) from error
        if not isinstance(found, dict) or "state_dict" not in found:
            raise UserError(f"{path} is no checkpoint of a run: it holds no state_dict; name another with --ckpt_path")
        return found


def swap_folders(strategy: ModelParallelStrategy) -> None:
    """Let a strategy that writes a checkpoint as a folder write it beside its place and then swap the two.

    A process that is killed between the swap's two moves leaves the old folder under another name: see `mend`.
    """
    write: Callable[..., None] = strategy.save_checkpoint

    def save(checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None) -> None:
        if _refused(checkpoint):
            return
        if not strategy._save_distributed_checkpoint:
            write(checkpoint, filepath, storage_options)
            return
        place = Path(strategy.broadcast(str(filepath)))
        part, old = place.with_name(place.name + _PART), place.with_name(place.name + _OLD)
        if strategy.is_global_zero:
            _remove(part)
        strategy.barrier()
        write(checkpoint, part, storage_options)
        strategy.barrier()
        if strategy.is_global_zero:
            _sync_all(part)
            _remove(old)
            if place.exists():
                place.rename(old)
            part.rename(place)
            _sync(place.parent)
            _remove(old)
        strategy.barrier()

    strategy.save_checkpoint = save  # type: ignore[method-assign]


def mend(folders: Iterable[str | Path]) -> None:
    """Tidy folders of checkpoints after a kill: what was half written goes, what was half moved comes back."""
    for folder in map(Path, folders):
        for old in folder.glob("*.ckpt" + _OLD):
            place = old.with_name(old.name.removesuffix(_OLD))
            if place.exists():
                _remove(old)
            else:
                old.rename(place)
        for part in folder.glob("*.ckpt" + _PART):
            _remove(part)


def newest(folders: Iterable[str | Path]) -> Path | None:
    """The checkpoint written last in these folders, if there is one.

    That is `last.ckpt`, unless a kill came between the two files that Lightning writes of one step. All ranks find the
    same, whether or not the first has mended the folders by then.
    """
    found = [
        (path.stat().st_mtime_ns, checkpoint.with_name(checkpoint.name.removesuffix(_OLD)))
        for folder in folders
        for checkpoint in (*Path(folder).glob("*.ckpt"), *Path(folder).glob("*.ckpt" + _OLD))
        for path in [checkpoint / META if checkpoint.is_dir() else checkpoint]
        if path.exists()
    ]
    return max(found)[1] if found else None


def _refused(checkpoint: dict[str, Any]) -> bool:
    reason = checkpoint.get(NOT_SAVED)
    if reason:
        rank_zero_info(f"no checkpoint: {reason}")
    return bool(reason)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync_all(folder: Path) -> None:
    for path in (*folder.iterdir(), folder):
        _sync(path)


def _sync(path: Path) -> None:
    """Have the disk hold what was written to a file, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
