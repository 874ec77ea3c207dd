"""The folder of a run: it belongs to one run, and one process at a time writes to it."""

import errno
import fcntl
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from judgelit.atomic import write_text
from judgelit.errors import UserError
from judgelit.yaml_files import read_mapping

_ADVICE = "choose another folder with --output"
_LOCK = ".lock"
"""File in a folder that a process locks while it writes there."""
_locks: set[int] = set()
"""Descriptors of the locks that this process holds."""


def _close_locks() -> None:
    for descriptor in _locks:
        os.close(descriptor)
    _locks.clear()


# A loader's worker may outlive its parent by seconds, and would keep the lock of a killed run.
os.register_at_fork(after_in_child=_close_locks)


@contextmanager
def locked(folder: Path, option: str = "--output") -> Iterator[None]:
    """Lock a folder while this process writes to it. The system drops the lock of a process that dies.

    Args:
        folder: The folder. It is made if there is none, and removed again if it stays empty.
        option: The option that chooses another folder, for the error.

    Raises:
        UserError: Another process has locked it, or it cannot be written to.
    """
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = _lock(folder, option)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written to ({error.strerror or error}); choose another folder with {option}"
        ) from error
    _locks.add(descriptor)
    try:
        yield
    finally:
        # The file goes before the lock does: see `_lock`.
        with suppress(OSError):
            (folder / _LOCK).unlink()
        if descriptor in _locks:
            _locks.remove(descriptor)
            os.close(descriptor)
        if is_new:
            with suppress(OSError):
                folder.rmdir()


def _lock(folder: Path, option: str) -> int:
    """Lock the file in a folder, and return its descriptor."""
    path = folder / _LOCK
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            raise UserError(f"{path}: found a link, expected a file of judgelit; remove it") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            process = os.read(descriptor, 20).decode("ascii", "replace").strip()
            os.close(descriptor)
            raise UserError(
                f"{folder}: found process {process} writing to it, expected no other; wait until it has ended, or "
                f"choose another folder with {option}"
            ) from None
        except OSError:
            print(f"{folder}: its file system has no locks; start no second process there", flush=True)
            return descriptor
        # The process that held the lock may have removed the file after this one had opened it.
        with suppress(FileNotFoundError):
            if os.fstat(descriptor).st_ino == path.stat().st_ino:
                # The number is for the message alone; a full disk has no room for it.
                with suppress(OSError):
                    os.truncate(descriptor, 0)
                    os.write(descriptor, f"{os.getpid()}\n".encode())
                return descriptor
        os.close(descriptor)


def refuse_used_folder(root: Path, advice: str) -> None:
    """Refuse a folder that holds the checkpoints, model or results of another run.

    Args:
        root: The folder.
        advice: What the user can do; the end of the error.

    Raises:
        UserError: It does.
    """
    for name in ("checkpoints", "model", "results.json"):
        if (root / name).exists():
            raise UserError(f"{root} holds another run ({name} is there); {advice}")


def holds_something(path: Path) -> bool:
    """Whether there is something at `path`, other than an empty folder."""
    return path.exists() and not (path.is_dir() and not any(path.iterdir()))


def claim_folder(
    folder: Path,
    files: Mapping[str, str],
    decides: Mapping[str, Path],
    deciding: Callable[[Mapping[str, Any]], dict[str, Any]] = dict,
) -> None:
    """Write a run's configuration into its folder, or find that the same one is there, whatever its comments.

    A setting may differ as long as nothing has been made with it.

    Args:
        folder: The folder. It is made if there is none.
        files: Texts of the configuration by file name; one of the names is `config.yaml`.
        decides: The first stage that a setting of `config.yaml`, or all of another file, decides: its folder. One that
            is not named here decides all stages, and `output` none.
        deciding: Returns the settings of `config.yaml` that must be the same; by default all of them.

    Raises:
        UserError: The folder holds another run.
    """
    if not (folder / "config.yaml").exists():
        refuse_used_folder(folder, _ADVICE)
        for name in ("stages", "export"):
            if holds_something(folder / name):
                raise UserError(f"{folder / name}: found files that are not of this run, expected none; {_ADVICE}")
    for name, text in files.items():
        if (folder / name).exists():
            old, new = read_mapping(folder / name), yaml.safe_load(text)
            if name == "config.yaml":
                old, new = deciding(old), deciding(new)
            for key in (one for one in [*old, *new] if one != "output" and old.get(one) != new.get(one)):
                advice = _ADVICE
                if (first := decides.get(key if name == "config.yaml" else name)) is not None:
                    made = sorted(path for path in first.parent.glob("*") if path.name >= first.name)
                    if not made:
                        continue
                    advice += f", or move {made[0]} and all later stages away to have them done anew"
                difference = _first_difference(old.get(key), new.get(key), str(key))
                raise UserError(f"{folder} holds another run ({name}: {difference}); {advice}")
    for name, text in files.items():
        write_text(folder / name, text)


def _first_difference(old: Any, new: Any, key: str) -> str:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in [*old, *new]:
            if old.get(name) != new.get(name):
                return _first_difference(old.get(name), new.get(name), f"{key}.{name}")
    return f"{key}: found {old!r} there and {new!r} here"
