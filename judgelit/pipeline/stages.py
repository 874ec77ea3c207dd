"""The end of a stage: `done.json` says what the stage cost and which data files it has left."""

import hashlib
import json
from pathlib import Path
from typing import Any

from judgelit.atomic import write_json
from judgelit.errors import UserError

Cost = dict[str, Any]
"""What a stage reports: `tokens`, and `peak_memory_bytes` if the work was done in another process."""
DONE = "done.json"
"""File that says that a stage has ended."""
_FILES = "files"
"""Its key for the hashes of the stage's data files."""


def end_stage(folder: Path, cost: Cost) -> None:
    """Write that the stage in this folder has ended."""
    write_json(folder / DONE, {**cost, _FILES: {path.name: _hash(path) for path in sorted(folder.glob("*.jsonl"))}})


def ended_stage(folder: Path) -> Cost | None:
    """What a stage cost, if it has ended and its data files are unchanged; None if it has not ended.

    If `done.json` is broken, the stage has not ended.

    Raises:
        UserError: A file is missing or has changed since. Later stages may not fit it.
    """
    done = folder / DONE
    if not done.exists():
        return None
    try:
        cost: Cost = json.loads(done.read_text(encoding="utf-8"))
        files = cost.pop(_FILES, {}).items()
    except (ValueError, AttributeError, TypeError):
        print(f"{done} is broken: the stage is done again")
        return None
    for name, value in files:
        file = folder / name
        if not file.is_file() or _hash(file) != value:
            raise UserError(
                f"{file}: found {'other content' if file.is_file() else 'no file'}, expected what the stage has "
                f"written; put it back, or remove {done} to have the stage done again"
            )
    return cost


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
