"""Progress: a bar in a terminal, otherwise lines."""

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from judgelit.console import printable

T = TypeVar("T")
_SECONDS = 30.0
"""Seconds between two lines."""
_KNOWN_SECONDS = 1.0
"""Items of the first second are those that a journal holds; the time left is computed from the others."""


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yield `items` and count them on stderr: in a bar if it is a terminal, otherwise in a line every 30 seconds."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    description = printable(description)
    if not sys.stderr.isatty():
        yield from _with_lines(items, description, total)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(description, total=total)
        for item in items:
            yield item
            progress.advance(task)


def _with_lines(items: Iterable[T], description: str, total: int | None) -> Iterator[T]:
    began = said = time.monotonic()
    known = 0
    for count, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - began < _KNOWN_SECONDS:
            known = count
        if now - said >= _SECONDS and count != total:
            said = now
            minutes = (now - began) / (count - known) / 60
            left = "" if total is None else f" of {total}, {(total - count) * minutes:.1f} min left"
            print(f"{description}: {count}{left}", file=sys.stderr, flush=True)
