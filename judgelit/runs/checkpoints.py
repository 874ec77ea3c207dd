"""Checkpoints that are either complete or absent, whenever the process is killed.

A checkpoint is a file or, of a sharded run, a folder. Both are written under another name, forced to the disk and then
moved to their place. A file replaces the old one in one step. A folder cannot: the old folder is first moved away, and
`mend` moves it back if a kill came in between.
"""

import pickle
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_info

from judgelit.atomic import PART, atomic_file, remove, sync, sync_tree
from judgelit.errors import UserError

NOT_SAVED = "not saved"
"""Key of a checkpoint that must not be written; its value says why."""
META = "meta.pt"
"""File of a sharded checkpoint that holds all that is no tensor. Lightning writes it last."""
_OLD = ".old"


UNREADABLE = (
    *(OSError, RuntimeError, ValueError, EOFError, KeyError, IndexError, TypeError, AttributeError),
    *(AssertionError, pickle.UnpicklingError),
)
"""What PyTorch and pickle raise for a file that is no checkpoint; its bytes are taken for instructions."""


class AtomicCheckpoints(TorchCheckpointIO):
    """Writes checkpoint files atomically.

    Lightning's own plugin writes to the folder for temporary files. A kill can cut the move from one file system to
    another in half.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Save a checkpoint, unless it says that it must not be saved.

        Args:
            checkpoint: The checkpoint.
            path: The file, or an address with `://`, which Lightning writes.
            storage_options: Passed to Lightning for an address.
        """
        if _must_not_be_saved(checkpoint):
            return
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        place = Path(path)
        old = _old(place)
        with atomic_file(place) as file:
            torch.save(checkpoint, file)
            if place.is_dir() and not place.is_symlink():
                # A sharded checkpoint stands there; a file cannot replace a folder.
                place.rename(old)
        remove(old)

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any | None = lambda storage, _: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Load a checkpoint.

        Raises:
            UserError: The file is damaged, or is no checkpoint.
        """
        is_here = "://" not in str(path)
        try:
            if is_here and (damage := damage_in(Path(path))):
                raise OSError(damage)
            found = super().load_checkpoint(path, map_location, weights_only)
        except UNREADABLE as error:
            what = " ".join(str(error).split())[:200] or "it is empty"
            usable = usable_instead(Path(path)) if is_here else ""
            raise UserError(
                f"{path} cannot be read as a checkpoint ({what}); expected a complete one: name another with "
                f"--ckpt_path{usable}"
            ) from error
        if not isinstance(found, dict) or "state_dict" not in found:
            raise UserError(f"{path} is no checkpoint of a run: it holds no state_dict; name another with --ckpt_path")
        return found


def damage_in(file: Path | IO[bytes]) -> str:
    """What is damaged in a file that PyTorch has saved: its records have checksums, which PyTorch does not check.

    Args:
        file: A path or an open file.

    Returns:
        The damage; "" if there is none, or if the file has another form.
    """
    try:
        if not zipfile.is_zipfile(file):
            return ""
        with zipfile.ZipFile(file) as records:
            broken = records.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        return str(error) or type(error).__name__
    return "" if broken is None else f"the checksum of its record {broken} is wrong"


def read_meta(path: Path) -> dict[str, Any]:
    """What a checkpoint holds beside tensors, which stay on the disk; empty if it cannot be read."""
    try:
        found = torch.load(path / META if path.is_dir() else path, map_location="cpu", weights_only=True, mmap=True)
    except UNREADABLE:
        return {}
    return found if isinstance(found, dict) else {}


def usable_instead(broken: Path) -> str:
    """The end of the error about a broken checkpoint: the newest one beside it that is whole, or nothing."""
    others = []
    for path in broken.parent.glob("*.ckpt"):
        file = path / META if path.is_dir() else path
        if path != broken and file.is_file():
            others.append((file.stat().st_mtime_ns, file, path))
    for _, file, path in sorted(others, reverse=True):
        if zipfile.is_zipfile(file) and not damage_in(file):
            return f"; the newest usable one is {path}"
    return ""


def swap_folders(strategy: ModelParallelStrategy) -> None:
    """Make a strategy write sharded checkpoints under another name and then swap the new folder for the old one."""
    write: Callable[..., None] = strategy.save_checkpoint

    def save(checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None) -> None:
        if _must_not_be_saved(checkpoint):
            return
        if not strategy._save_distributed_checkpoint:
            write(checkpoint, filepath, storage_options)
            return
        place = Path(strategy.broadcast(str(filepath)))
        # All ranks write to this folder, so its name has no random part.
        part, old = place.with_name(place.name + PART), _old(place)
        if strategy.is_global_zero:
            remove(part)
        strategy.barrier()
        write(checkpoint, part, storage_options)
        strategy.barrier()
        if strategy.is_global_zero:
            sync_tree(part)
            remove(old)
            if place.exists():
                place.rename(old)
            part.rename(place)
            sync(place.parent)
            remove(old)
        strategy.barrier()

    strategy.save_checkpoint = save  # type: ignore[method-assign]


def mend(folders: Iterable[str | Path]) -> None:
    """Tidy folders of checkpoints after a kill: remove incomplete checkpoints, move back those that were moved away."""
    for folder in map(Path, folders):
        for old in folder.glob(f"*.ckpt{_OLD}"):
            place = old.with_name(old.name.removesuffix(_OLD))
            if place.exists():
                remove(old)
            else:
                old.rename(place)
        for part in folder.glob(f"*.ckpt*{PART}"):
            remove(part)


def newest(folders: Iterable[str | Path]) -> Path | None:
    """The complete checkpoint that was written last in these folders, or None.

    It is `last.ckpt`, unless a kill came between the two files that Lightning writes at one step. A run cannot continue
    from weights alone, which a ModelCheckpoint may save beside it, so these count only if there is nothing else. All
    ranks find the same one, before and after the first rank has called `mend`.
    """
    found = [
        (path.stat().st_mtime_ns, checkpoint.with_name(checkpoint.name.removesuffix(_OLD)), path)
        for folder in folders
        for checkpoint in (*Path(folder).glob("*.ckpt"), *Path(folder).glob(f"*.ckpt{_OLD}"))
        for path in [checkpoint / META if checkpoint.is_dir() else checkpoint]
        if path.exists()
    ]
    latest = [(name, path) for _, name, path in sorted(found, reverse=True)]
    return next((name for name, path in latest if not _is_weights_alone(path)), latest[0][0] if latest else None)


def _is_weights_alone(file: Path) -> bool:
    meta = read_meta(file)
    return "state_dict" in meta and "callbacks" not in meta


def _must_not_be_saved(checkpoint: dict[str, Any]) -> bool:
    reason = checkpoint.get(NOT_SAVED)
    if reason:
        rank_zero_info(f"no checkpoint: {reason}")
    return bool(reason)


def _old(place: Path) -> Path:
    """Name under which a folder stands while another takes its place."""
    return place.with_name(place.name + _OLD)
