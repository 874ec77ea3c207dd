"""Public data sets as sources of pairs: `--source NAME` on the command line, `judgelit.PublicSource` in YAML."""

import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from judgelit.errors import UserError
from judgelit.records.files import BrokenRow, data_files, looks_like_file
from judgelit.records.public_sources import find_set
from judgelit.records.public_sources.pairing import answer_set_of, group_by_question, pairs_of
from judgelit.records.public_sources.public_set import Rated, WrongColumnsError
from judgelit.records.public_sources.rows import rows_of
from judgelit.records.reading import R, read_record, text_hash, without_skip_advice
from judgelit.records.records import AnswerSet, PreferenceExample, PreferencePair
from judgelit.records.sources import Source, Sources, report_once


@dataclass(frozen=True)
class PublicSource(Source):
    """A public data set of preferences, from the hub or from files in its own form."""

    name: str
    """Name of the data set, such as helpsteer2. `judgelit evaluate --help` lists the names."""
    path: str | None = None
    """Files in the data set's own form: a file, folder or glob pattern; or another data set of the hub with the same
    columns. Default: the data set on the hub."""
    split: str | None = None
    """Split. Default: the training split on the hub, and all rows of files."""
    weight: float = 1.0
    """Passes over this source in one epoch: 0.5 is half of it, 2 is twice."""
    limit: int | None = None
    """Most rows to read, from the first."""
    per_question: int | None = None
    """Most pairs of one question, drawn at random; for rankings and for right and wrong solutions. Default: all."""
    skip_invalid: bool = True
    """Leave out rows that cannot be read, and say how many. Otherwise the first such row is an error."""

    def __post_init__(self) -> None:
        find_set(self.name)
        if not 0 < self.weight < math.inf:
            raise UserError(f"{self.name}: weight: found {self.weight}, expected more than 0")
        for key, value in (("limit", self.limit), ("per_question", self.per_question)):
            if value is not None and value < 1:
                raise UserError(f"{self.name}: {key}: found {value}, expected 1 or more")

    def read(self, kind: type[R]) -> list[R]:
        """All pairs; as PreferenceExample all but the ties; as AnswerSet the questions with all their answers."""
        return [record for _, record in self.stream(kind)]

    def stream(self, kind: type[R]) -> Iterator[tuple[str, R]]:
        """Yield the records one at a time, each with its place.

        Raises:
            UserError: The rows have other columns, none of them gives a record, or the set has no such records.
        """
        if kind not in _MADE:
            raise UserError(
                f"source {self.name}: found pairs for a judge, expected examples to train on; make them with "
                "`judgelit synthesize`"
            )
        noun, make = _MADE[kind]
        reading = _Reading(self, noun)
        count = 0
        try:
            for at, record in make(reading):
                count += 1
                yield at, record
        except GeneratorExit:
            reading.report(count)
            raise
        reading.report(count)
        if not count:
            raise UserError(f"{reading.label}: found {reading.numbers(0)}; expected at least one{reading.first()}")


def named_source(name: str | None, pairs: Sources | None) -> Sources:
    """The pairs of a command with `--source` and `--pairs`.

    Args:
        name: Name of a public data set, or None.
        pairs: Files in the form of that data set; None: it is read from the hub. Without a name, the pairs themselves.

    Raises:
        UserError: Neither is given, or pairs is a source by class_path beside a name.
    """
    if name is None:
        if pairs is None:
            raise UserError("missing --pairs or --source")
        return pairs
    if isinstance(pairs, Source):
        found = type(pairs).__name__
        raise UserError(f"pairs: found a {found} beside --source {name}, expected files of that source, or none")
    return PublicSource(name, pairs)


class _Reading:
    """One pass over the rows of a source: what they are, and what is left out."""

    def __init__(self, source: PublicSource, noun: str) -> None:
        self.source, self.noun = source, noun
        self.public = find_set(source.name)
        self.label = source.name if source.path is None else f"{source.name}: {source.path}"
        self.left_out: Counter[str] = Counter()
        self._rows = 0
        self._first: UserError | None = None

    def rated(self) -> Iterator[tuple[str, str, Rated]]:
        """Yield the questions with rated answers, each with its place for messages and for ids."""
        found = ((at, place, one) for at, place, one in self.records() if isinstance(one, Rated))
        if self.public.grouped:
            for at, one in group_by_question(((at, one) for at, _, one in found), self.public.name):
                yield at, "", one
        else:
            yield from found

    def records(self) -> Iterator[tuple[str, str, Rated | PreferencePair]]:
        """Yield what the rows are, each with its place for messages and for ids."""
        source, known = self.source, False
        base = _base(source.path)
        rows = rows_of(self.public, source.path, source.split, source.skip_invalid)
        for at, row in islice(rows, source.limit):
            self._rows += 1
            place = at.removeprefix(base)
            try:
                found = self._read(row, at, place)
            except UserError as error:
                # A file without the right columns is the wrong file, not a file with invalid rows.
                if not source.skip_invalid or (isinstance(error, WrongColumnsError) and not known):
                    raise
                self._first = self._first or error
                self.left_out["invalid rows"] += 1
                continue
            known = True
            if isinstance(found, str):
                self.left_out[found] += 1
                continue
            if isinstance(found, Rated):
                self.left_out.update(found.left_out)
            yield at, place, found

    def _read(self, row: dict[str, Any], at: str, place: str) -> Rated | PreferencePair | str:
        public = self.public
        if isinstance(row, BrokenRow):
            raise row.error
        if not set(public.columns) <= row.keys():
            raise WrongColumnsError(at, row, public.name, public.form)
        found = public.read(row, at) if public.read is not None else row
        if isinstance(found, str):
            return found
        if isinstance(found, Rated):
            return found._replace(kept={"source": public.name, **found.kept})
        pair = read_record(found, at, PreferencePair, place)
        return replace(pair, source=pair.source or public.name)

    def report(self, count: int) -> None:
        """Say what is left out, if anything is."""
        if count and any(self.left_out.values()):
            report_once(f"{self.label}: {self.numbers(count)}{self.first()}")

    def numbers(self, count: int) -> str:
        """How many records the rows gave, and what is left out."""
        reasons = ", ".join(f"{number} {reason}" for reason, number in self.left_out.items() if number)
        split = f" of split {self.source.split!r}" if self.source.split is not None else ""
        return f"{count} {self.noun} in {self._rows} rows{split}" + (f"; left out: {reasons}" if reasons else "")

    def first(self) -> str:
        """The error of the first invalid row, to be put after a message."""
        return f"; the first invalid row: {without_skip_advice(self._first)}" if self._first is not None else ""


def _pairs(reading: _Reading) -> Iterator[tuple[str, PreferencePair]]:
    if reading.public.grouped:
        for at, place, rated in reading.rated():
            for pair in pairs_of(rated, place, reading.source.per_question, reading.left_out):
                yield at, pair
        return
    seen: dict[str, str] = {}
    for at, place, found in reading.records():
        if isinstance(found, Rated):
            for pair in pairs_of(found, place, reading.source.per_question, reading.left_out):
                yield at, pair
            continue
        content = text_hash(json.dumps([found.question, *sorted([found.answer_a, found.answer_b])]))
        if seen.get(found.id, content) != content:
            # Several pairs of one prompt may have the prompt's id.
            found = replace(found, id=f"{found.id}#{content[:8]}")
        if found.id in seen:
            reading.left_out["repeated pairs"] += 1
            continue
        seen[found.id] = content
        yield at, found


def _examples(reading: _Reading) -> Iterator[tuple[str, PreferenceExample]]:
    for at, pair in _pairs(reading):
        if pair.label == "tie":
            reading.left_out["ties"] += 1
            continue
        chosen, rejected = (pair.answer_a, pair.answer_b)[:: 1 if pair.label == "A" else -1]
        messages = (*pair.context, {"role": "user", "content": pair.question})
        meta = {"pair_id": pair.id, "source": pair.source, "category": pair.category, "subset": pair.subset}
        yield at, PreferenceExample(messages, chosen, rejected, {name: text for name, text in meta.items() if text})


def _answer_sets(reading: _Reading) -> Iterator[tuple[str, AnswerSet]]:
    for at, place, rated in reading.rated():
        yield at, answer_set_of(rated, place)


_MADE: dict[type, tuple[str, Callable[[_Reading], Iterator[tuple[str, Any]]]]] = {
    PreferencePair: ("pairs", _pairs),
    PreferenceExample: ("preferences", _examples),
    AnswerSet: ("lists of answers", _answer_sets),
}
"""What each kind of record is called, and the function that makes it."""


def _base(path: str | None) -> str:
    """What is left out of the places of rows in their ids, so that ids stay the same if a folder is moved."""
    return f"{data_files(path)[0]}{os.sep}" if path is not None and looks_like_file(path) else ""
