"""Where records come from, and how they are split."""

import hashlib
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from judgelit.errors import UserError
from judgelit.records.files import data_files, looks_like_file, read_rows
from judgelit.records.reading import R, read_record
from judgelit.records.records import PreferencePair


class Source(ABC):
    """Somewhere to read records from."""

    weight: float = 1.0
    """How often an epoch passes over this source: 0.5 means half of it, 2 twice."""

    @abstractmethod
    def read(self, kind: type[R]) -> list[R]:
        """All records, as PreferencePair, SFTExample or PreferenceExample; UserError where they are no such records."""

    def stream(self, kind: type[R]) -> Iterator[tuple[str, R]]:
        """The records of `read` one at a time, each with its place for complaints; a large source holds few at once."""
        for number, record in enumerate(self.read(kind), 1):
            yield f"{type(self).__name__}: record {number}", record

    def fingerprint(self) -> str | None:
        """A hash that changes with anything that `read` gives, where it can be had without reading.

        None: there is no such shortcut, and whoever needs to know reads the records and hashes those.
        """
        return None


@dataclass(frozen=True)
class FileSource(Source):
    """Files, or a data set of the hub, in judgelit's own or a public form."""

    path: str
    """A file (.jsonl, .json, either with .gz, .parquet), a folder of such, a glob pattern, or a hub data set's name."""
    split: str = "train"
    """Split of the hub's data set."""
    name: str | None = None
    """Configuration of the hub's data set."""
    weight: float = 1.0
    """How often an epoch passes over this source: 0.5 means half of it, 2 twice."""
    limit: int | None = None
    """Read only the first rows, this many."""

    def __post_init__(self) -> None:
        if not 0 < self.weight < math.inf:
            raise UserError(f"{self.path}: weight: found {self.weight}, expected more than 0")
        if self.limit is not None and self.limit < 1:
            raise UserError(f"{self.path}: limit: found {self.limit}, expected 1 or more")

    def read(self, kind: type[R]) -> list[R]:
        """All records; UserError names file, line and field where one cannot be read."""
        return [record for _, record in self.stream(kind)]

    def stream(self, kind: type[R]) -> Iterator[tuple[str, R]]:
        """The records one at a time, each with the file and line where it stands."""
        # Ids are made from places within the source, so that they do not change where the source is moved.
        base = f"{self._files()[0]}{os.sep}" if looks_like_file(self.path) else ""
        for at, row in islice(self.rows(), self.limit):
            yield at, read_record(row, at, kind, at.removeprefix(base))

    def rows(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """The rows as they stand in the files or the hub's data set, each with its place."""
        return read_rows(self.path) if looks_like_file(self.path) else self._hub_rows()

    def fingerprint(self) -> str | None:
        """A hash of the files' names and content, or of the hub data set's, and of the settings."""
        if type(self) is not FileSource:
            return None  # A subclass may make other records of the same files.
        content = xxhash.xxh3_128(repr((self.split, self.name, self.limit)).encode())
        if not looks_like_file(self.path):
            content.update(repr((self.path, self._hub_dataset()._fingerprint)).encode())
            return content.hexdigest()
        base, files = self._files()
        for file in files:
            try:
                with file.open("rb") as handle:
                    digest = hashlib.file_digest(handle, xxhash.xxh3_128)
            except OSError as error:
                raise UserError(f"{file}: cannot be read: {error.strerror or error}") from error
            content.update(repr((str(file.relative_to(base)), digest.hexdigest())).encode())
        return content.hexdigest()

    def _files(self) -> tuple[Path, list[Path]]:
        if self.split != "train" or self.name is not None:
            raise UserError(f"{self.path}: found split or name for a file, expected them for a hub data set only")
        return data_files(self.path)

    def _hub_rows(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for number, row in enumerate(self._hub_dataset(), 1):
            yield f"{self.path}[{self.split}]: row {number}", row

    def _hub_dataset(self) -> Any:
        import datasets

        try:
            return datasets.load_dataset(self.path, self.name, split=self.split)
        except datasets.exceptions.DatasetNotFoundError as error:
            raise UserError(
                f"{self.path}: no such file, and the hub has no data set of that name that you may read"
            ) from error
        except ConnectionError as error:
            raise UserError(f"{self.path}: no such file, and the hub could not be reached") from error
        except Exception as error:
            # The loader runs code for any format of file and passes on whatever that raises.
            why = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(f"{self.path}: no such file, and loading it from the hub failed: {why}") from error


@dataclass(frozen=True)
class Mixture(Source):
    """Several sources as one, each with its own weight."""

    sources: list[str | Source]
    """Files, folders, globs, hub names, and sources by class_path."""

    def read(self, kind: type[R]) -> list[R]:
        """All records of all sources."""
        return [record for source in as_sources(self) for record in source.read(kind)]


# No list here: jsonargparse would open a file given for one, and take its lines or its content for the list.
Sources = str | Source
"""A file, folder, glob or hub name; or a source by class_path, such as a Mixture of several."""


def as_sources(value: Sources | Sequence[Sources]) -> list[Source]:
    """The single sources behind what a configuration holds."""
    if isinstance(value, str):
        return [FileSource(value)]
    if isinstance(value, Mixture):
        return as_sources(value.sources)
    if isinstance(value, Source):
        return [value]
    return [source for item in value for source in as_sources(item)]


def read_pairs(value: Sources | Sequence[Sources]) -> list[PreferencePair]:
    """All pairs of some sources; each id once, since a pair is judged in both orders anyway.

    Raises:
        UserError: Two different pairs share an id.
    """
    seen: dict[str, PreferencePair] = {}
    for source in as_sources(value):
        for pair in source.read(PreferencePair):
            first = seen.setdefault(pair.id, pair)
            if pair not in (first, first.swapped()):
                raise UserError(f"pair id {pair.id!r} stands for two different pairs; expected ids that differ")
    return list(seen.values())


def split_by_group(records: Sequence[R], fraction: float, seed: int) -> tuple[list[R], list[R]]:
    """Records to train on and records held out, in their order, with all of a question on one side.

    A hash of the question and the seed gives the side, so that it stays the same whatever rows come or go. Only where
    a side would be empty does a question change sides: no question at all is held out only if there is just one.
    """
    groups = map(_group, records)
    held_out = held_out_rows(np.array([group_score(group, seed) for group in groups]), fraction)
    sides: tuple[list[R], list[R]] = ([], [])
    for record, side in zip(records, held_out.tolist(), strict=True):
        sides[side].append(record)
    return sides


def held_out_rows(scores: np.ndarray, fraction: float) -> np.ndarray:
    """Whether each of R rows is held out: [R] bool, from [R] float64 scores of their questions."""
    held_out = scores < fraction
    if fraction > 0 and len(scores):
        if not held_out.any():
            held_out = scores == scores.min()
        if held_out.all():
            held_out = scores != scores.max()
    return held_out


def group_score(group: str, seed: int) -> float:
    """A number in [0, 1) that looks random, by which `split_by_group` gives a question its side."""
    digest = hashlib.sha256(f"{seed}/{group}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def _group(record: Any) -> str:
    return record.question_key if isinstance(record, PreferencePair) else str(record.group)
