"""Sources of records, and the split into training and held-out records."""

import hashlib
import logging
import math
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from judgelit.console import printable
from judgelit.errors import UserError
from judgelit.records.files import data_files, looks_like_file, read_rows
from judgelit.records.reading import LossOn, R, read_records, without_skip_advice
from judgelit.records.records import AnswerSet, PreferencePair, SFTExample
from judgelit.records.table_values import plain

_READING = 4
"""Version of the readers. Raise it when the same rows would give other records."""
_TAG = re.compile(r"[\w.-]+")


class Source(ABC):
    """A source of records. Subclasses implement `read`."""

    weight: float = 1.0
    """Passes over this source in one epoch: 0.5 is half of it, 2 is twice."""
    tag: str = ""
    """Name under which training logs the loss of this source's examples apart, as loss/TAG."""

    @abstractmethod
    def read(self, kind: type[R]) -> list[R]:
        """All records.

        Args:
            kind: PreferencePair, AnswerSet, SFTExample or PreferenceExample.

        Raises:
            UserError: The source has no such records, or one of them is invalid.
        """

    def stream(self, kind: type[R]) -> Iterator[tuple[str, R]]:
        """Yield the records of `read` one at a time, each with its place for error messages."""
        for number, record in enumerate(self.read(kind), 1):
            yield f"{type(self).__name__}: record {number}", record

    def fingerprint(self) -> str | None:
        """A hash that changes whenever the records change.

        None if it is unknown without reading; the caller then hashes the records.
        """
        return None


@dataclass(frozen=True)
class FileSource(Source):
    """Files or a data set of the hub, in a public form or judgelit's."""

    path: str
    """A file (.jsonl, .json, .parquet, or .jsonl.gz, .json.gz), a folder, a glob pattern, or a data set of the hub."""
    split: str = "train"
    """Split, for a data set of the hub."""
    name: str | None = None
    """Configuration, for a data set of the hub."""
    weight: float = 1.0
    """Passes over this source in one epoch: 0.5 is half of it, 2 is twice."""
    limit: int | None = None
    """Most rows to read, from the first."""
    skip_invalid: bool = False
    """Leave out rows that cannot be read, and say how many. Otherwise the first such row is an error."""
    tag: str = ""
    """Name under which training logs the loss of this source's examples apart, as loss/TAG."""
    loss_on: LossOn = "last"
    """Answers of a conversation to train on, for SFT: its last or all. With all, each answer is an example whose prompt
    is all turns before it, so a conversation of k answers costs up to k times as much as its last answer. Where turns
    have a `weight` of 0 or 1 in the data, the weights decide."""

    def __post_init__(self) -> None:
        if self.tag and not _TAG.fullmatch(self.tag):
            raise UserError(f"{self.path}: tag: found {self.tag!r}, expected letters, digits, '-', '_' and '.'")
        if not 0 < self.weight < math.inf:
            raise UserError(f"{self.path}: weight: found {self.weight}, expected more than 0")
        if self.limit is not None and self.limit < 1:
            raise UserError(f"{self.path}: limit: found {self.limit}, expected 1 or more")

    def read(self, kind: type[R]) -> list[R]:
        """All records. An error names the file, line and field."""
        return [record for _, record in self.stream(kind)]

    def stream(self, kind: type[R]) -> Iterator[tuple[str, R]]:
        """Yield the records one at a time, each with its file and line."""
        if self.loss_on != "last" and kind is not SFTExample:
            raise UserError(f"{self.path}: loss_on: found {self.loss_on!r}, expected it only for SFT examples")
        # Ids contain the place relative to the folder, so they stay the same if the folder is moved.
        base = f"{self._files()[0]}{os.sep}" if looks_like_file(self.path) else ""
        first: UserError | None = None
        number = invalid = 0
        for at, row in islice(self.rows(), self.limit):
            number += 1
            try:
                records = read_records(row, at, kind, at.removeprefix(base), self.loss_on)
            except UserError as error:
                if not self.skip_invalid:
                    raise
                first = first or error
                invalid += 1
                continue
            yield from ((at, record) for record in records)
        if first is not None and invalid == number:
            raise UserError(f"{self.path}: none of the {number} rows is valid; the first: {without_skip_advice(first)}")
        if first is not None:
            said = without_skip_advice(first)
            report_once(f"{self.path}: {invalid} of {number} rows are invalid and left out; the first: {said}")

    def rows(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the rows of the files or of the hub's data set, each with its place."""
        return read_rows(self.path, self.skip_invalid) if looks_like_file(self.path) else self._hub_rows()

    def fingerprint(self) -> str | None:
        """A hash of the settings and of the files' names and contents, or of the fingerprint of the hub's data set."""
        if type(self) is not FileSource:
            return None  # A subclass may read other records from the same files.
        settings = (_READING, self.split, self.name, self.limit, self.skip_invalid, self.loss_on)
        content = xxhash.xxh3_128(repr(settings).encode())
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
            raise UserError(
                f"{self.path}: found split or name for a file, expected them only for a data set of the hub"
            )
        return data_files(self.path)

    def _hub_rows(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for number, row in enumerate(self._hub_dataset(), 1):
            yield f"{self.path}[{self.split}]: row {number}", {name: plain(value) for name, value in row.items()}

    def _hub_dataset(self) -> Any:
        import datasets

        try:
            return datasets.load_dataset(self.path, self.name, split=self.split)
        except datasets.exceptions.DatasetNotFoundError as error:
            raise UserError(
                f"{self.path}: no such file, and the hub has no data set of that name that you can access"
            ) from error
        except ConnectionError as error:
            raise UserError(f"{self.path}: no such file, and the hub could not be reached") from error
        except Exception as error:
            # The loader runs code for many file formats, which raise many kinds of exception.
            why = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(f"{self.path}: no such file, and loading it from the hub failed: {why}") from error


@dataclass(frozen=True)
class Mixture(Source):
    """Several sources read as one, each with its weight."""

    sources: list[str | Source]
    """Files, folders, glob patterns, data sets of the hub, or sources by class_path."""

    def read(self, kind: type[R]) -> list[R]:
        """All records of all sources."""
        return [record for source in as_sources(self) for record in source.read(kind)]


# Not a list: jsonargparse would open a file that is given for a list, and read the list from its lines.
Sources = str | Source
"""A file, folder, glob pattern or data set of the hub, or a source by class_path, such as a Mixture of several."""


def as_sources(value: Sources | Sequence[Sources]) -> list[Source]:
    """The sources that a value of a configuration names. A Mixture is taken apart."""
    if isinstance(value, str):
        return [FileSource(value)]
    if isinstance(value, Mixture):
        return as_sources(value.sources)
    if isinstance(value, Source):
        return [value]
    return [source for item in value for source in as_sources(item)]


def read_pairs(value: Sources | Sequence[Sources], limit: int | None = None) -> list[PreferencePair]:
    """All pairs of some sources, or the first `limit` of them. A pair that occurs in both orders is read once.

    Raises:
        UserError: Two different pairs have the same id.
    """
    seen: dict[str, PreferencePair] = {}
    repeated = 0
    for pair in (pair for source in as_sources(value) for _, pair in source.stream(PreferencePair)):
        if limit is not None and len(seen) >= limit and pair.id not in seen:
            break
        first = seen.setdefault(pair.id, pair)
        if pair not in (first, first.swapped()):
            raise UserError(f"pair id {pair.id!r}: found two different pairs with this id, expected different ids")
        repeated += pair is not first
    if repeated:
        named = f"{value}: " if isinstance(value, str) else ""
        report_once(f"{named}{repeated} pairs repeat an earlier one, as it was or swapped; each pair is used once")
    return list(seen.values())


def split_by_group(records: Sequence[R], fraction: float, seed: int) -> tuple[list[R], list[R]]:
    """Split records into training and held-out records, with all records of one question on one side.

    The side is a hash of the question and the seed, so it does not depend on the other records. If one side would be
    empty, one question changes sides, unless there is only one question.

    Args:
        records: Records to split. Both sides keep their sequence.
        fraction: Expected share of held-out questions, 0 to 1.
        seed: Another seed holds out other questions.
    """
    groups = map(_group, records)
    held_out = held_out_rows(np.array([group_score(group, seed) for group in groups]), fraction)
    sides: tuple[list[R], list[R]] = ([], [])
    for record, side in zip(records, held_out.tolist(), strict=True):
        sides[side].append(record)
    return sides


def held_out_rows(scores: np.ndarray, fraction: float) -> np.ndarray:
    """Whether each of R rows is held out: [R] bool. `scores` [R] float64 has the `group_score` of each row."""
    held_out = scores < fraction
    if fraction > 0 and len(scores):
        if not held_out.any():
            held_out = scores == scores.min()
        if held_out.all():
            held_out = scores != scores.max()
    return held_out


def group_score(group: str, seed: int) -> float:
    """A pseudo-random number in [0, 1) from a question and a seed. Scores below the fraction are held out."""
    digest = hashlib.sha256(f"{seed}/{group}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


@cache
def report_once(line: str) -> None:
    """Print a line to stderr, once in a process, since a source may be read several times."""
    logging.getLogger("judgelit.records").warning("%s", printable(line))


def _group(record: Any) -> str:
    return record.question_key if isinstance(record, PreferencePair | AnswerSet) else str(record.group)
