"""Write files and folders that appear complete or not at all, even if the process is killed.

The content is written under another name in the same folder, forced to the disk, and renamed. A reader finds the old
content or the new.
"""

import glob
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

PART = ".part"
"""Suffix of the name during writing."""


@contextmanager
def atomic_file(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a file for writing. It replaces `path` when the block ends, and is removed if the block raises.

    Args:
        path: Path of the file. Its folder is made if needed.
        mode: "wb", or "w" for UTF-8 text whose newlines are not translated.

    Raises:
        OSError: The file cannot be written. `path` is unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Two processes may write the same file at once, so the name is unique.
    part = path.with_name(f".{path.name}.{uuid4().hex[:8]}{PART}")
    text: dict[str, str] = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
    try:
        with part.open(mode, **text) as file:  # type: ignore[call-overload]
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    sync(path.parent)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Make a folder to write into. It becomes `path` when the block ends, and is removed if the block raises.

    Args:
        path: Path of the folder. It must not exist, or be an empty folder.

    Raises:
        OSError: The folder cannot be made or moved.
    """
    path = path.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid4().hex[:8]}{PART}")
    part.mkdir()
    try:
        yield part
        sync_tree(part)
        part.replace(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    sync(path.parent)


def remove_parts(path: Path) -> None:
    """Remove what killed processes have left of writing `path`. No process may be writing it now."""
    for part in path.parent.glob(f".{glob.escape(path.name)}.*{PART}"):
        remove(part)


def remove(path: Path) -> None:
    """Remove a file, a link or a whole folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text."""
    with atomic_file(path, "w") as file:
        file.write(text)


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def sync(path: Path) -> None:
    """Force the content of a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Force a folder and everything in it to the disk."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            sync(path)
    for path in (*filter(Path.is_dir, folder.rglob("*")), folder):
        sync(path)
