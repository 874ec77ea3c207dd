"""JSONL files that can be read while they are written, and have one sequence when they are complete."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from judgelit.atomic import atomic_file
from judgelit.errors import name_file
from judgelit.records.unicode import dump_json

PARTIAL = ".partial.jsonl"
"""End of the file's name while lines are added."""


class GrowingFile:
    """A file to which lines are added as they come. It is kept on the disk; in memory are the places of its lines."""

    def __init__(self, path: Path) -> None:
        """Begin `NAME.partial.jsonl` beside `path`, without lines."""
        self.path = path
        self.partial = path.with_name(path.name.removesuffix(".jsonl") + PARTIAL)
        self._lines: list[tuple[int, int, int]] = []
        self._end = 0
        with self._named():
            self._file = self.partial.open("wb")

    def add(self, place: int, rows: Iterable[dict[str, Any]]) -> None:
        """Add lines, which readers see at once.

        Args:
            place: Where the lines stand in the complete file: before those of greater places, after earlier lines of
                the same place.
            rows: A line each.
        """
        with self._named():
            for row in rows:
                line = dump_json(row).encode() + b"\n"
                self._file.write(line)
                self._lines.append((place, self._end, len(line)))
                self._end += len(line)
            self._file.flush()

    def complete(self) -> None:
        """Write the lines to `path`, sorted by place, and remove the partial file."""
        self._file.close()
        with self._named(), self.partial.open("rb") as lines, atomic_file(self.path) as file:
            for _, start, length in sorted(self._lines):
                lines.seek(start)
                file.write(lines.read(length))
        self.partial.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file. If it is not complete, its lines stay in the partial file."""
        self._file.close()

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Say in the system's errors which file could not be written."""
        try:
            yield
        except OSError as error:
            name_file(error, self.partial)
            raise
