"""Cost and end of a stage: `done.json` says what the stage cost and which data files it has left."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any

from judgelit.atomic import write_json
from judgelit.errors import UserError
from judgelit.runs.peak_memory import peak_memory, reset_peak_memory

Cost = dict[str, Any]
"""What a stage reports: `tokens`, and `peak_memory_bytes` if the work was done in another process."""
DONE = "done.json"
"""File that says that a stage has ended."""
_FILES = "files"
"""Its key for the hashes of the stage's data files."""
NOTED_EVERY = 10.0
"""Seconds between two notes of what a stage has cost so far. A call that is killed loses at most so many."""
_SPENT = "spent.json"
"""File of these notes. It stays, so that a stage that is done again from its journal or checkpoint counts both."""


@contextmanager
def count_cost(folder: Path) -> Iterator[Callable[[], Cost]]:
    """Count the cost of a stage inside the `with` block, on top of that of earlier calls that did not end the stage.

    Yields:
        A function that returns the `seconds` of all calls so far, and the highest `peak_memory_bytes` of them.
    """
    seconds, peak = _spent(folder)
    reset_peak_memory()
    began = time.monotonic()
    over = Event()

    def so_far() -> Cost:
        now = round(seconds + time.monotonic() - began, 2)
        return {"seconds": now, "peak_memory_bytes": max(peak, peak_memory())}

    def note() -> None:
        # The stage matters more than its time.
        with suppress(OSError):
            write_json(folder / _SPENT, so_far())

    def keep_noting() -> None:
        while not over.wait(NOTED_EVERY):
            note()

    noting = Thread(target=keep_noting, daemon=True)
    noting.start()
    try:
        yield so_far
    finally:
        over.set()
        noting.join()
        note()


def _spent(folder: Path) -> tuple[float, int]:
    """Seconds and highest peak memory in bytes of earlier calls; zeros if they have left no readable note."""
    try:
        spent = json.loads((folder / _SPENT).read_text(encoding="utf-8"))
        return float(spent["seconds"]), int(spent["peak_memory_bytes"])
    except (OSError, ValueError, LookupError, TypeError):
        return 0.0, 0


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
