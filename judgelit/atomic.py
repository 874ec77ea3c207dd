"""Write files and folders that appear complete or not at all, even if the process is killed.

The content is written under another name in the same folder, forced to the disk, and renamed. A reader finds the old
content or the new.
"""

import glob
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

from judgelit.errors import UserError, name_file

PART = ".part"
"""Suffix of the name during writing."""
_LONGEST_NAME = 100
"""Longest name that a user may choose. File systems allow 255 bytes, and judgelit adds to names."""


def check_file_names(key: str, names: Iterable[str], taken: Iterable[str] = ()) -> None:
    """Check names that become parts of files' names.

    Args:
        key: The setting that holds them, for messages.
        names: The names.
        taken: Names that judgelit uses itself in the same place.

    Raises:
        UserError: A name is not plain (letters, digits, `_`, `-`, `.` and blanks inside), is too long or is taken; or
            two of them differ in upper and lower case alone, which not all file systems distinguish.
    """
    seen = {name.casefold(): name for name in taken}
    for name in names:
        if not re.fullmatch(r"\w([\w .-]*[\w-])?", name) or len(name.encode()) > _LONGEST_NAME:
            raise UserError(
                f"{key}: found the name {name[:_LONGEST_NAME]!r}, expected at most {_LONGEST_NAME} letters, digits, "
                "`_`, `-`, `.` and blanks, since it becomes part of a file's name; rename it"
            )
        if name.casefold() in seen:
            other = seen[name.casefold()]
            why = f"beside {other!r}, which differs in case alone" if other != name else "which judgelit uses itself"
            raise UserError(f"{key}: found the name {name!r}, {why}; rename it")
        seen[name.casefold()] = name


@contextmanager
def atomic_file(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a file for writing. It replaces `path` when the block ends, and is removed if the block raises.

    Args:
        path: Path of the file. Its folder is made if needed.
        mode: "wb", or "w" for UTF-8 text whose newlines are not translated. An unpaired surrogate, as in the name of a
            file that is not UTF-8, is written as an escape.

    Raises:
        OSError: The file cannot be written. `path` is unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = _part(path)
    text: dict[str, str] = {} if "b" in mode else {"encoding": "utf-8", "newline": "", "errors": "backslashreplace"}
    try:
        with part.open(mode, **text) as file:  # type: ignore[call-overload]
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except Exception as error:
        name_file(error, path)
        raise
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
    part = _part(path)
    part.mkdir()
    try:
        yield part
        sync_tree(part)
        part.replace(path)
    except Exception as error:
        name_file(error, path)
        raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    sync(path.parent)


def remove_parts(path: Path) -> None:
    """Remove what killed processes have left of writing `path`. No process may be writing it now."""
    # Exactly the names that `_part` makes: not those of another file `NAME.x`, nor files of the user.
    for part in path.parent.glob(f".{glob.escape(path.name)}.{_HEX}{PART}"):
        remove(part)


_HEX = "[0-9a-f]" * 8


def _part(path: Path) -> Path:
    """Name of a file or folder during writing. It is unique, since two processes may write the same file at once."""
    return path.with_name(f".{path.name}.{uuid4().hex[:8]}{PART}")


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
