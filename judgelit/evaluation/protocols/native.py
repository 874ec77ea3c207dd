"""Pairs from a benchmark's own rows."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from judgelit.errors import UserError
from judgelit.records.files import BrokenRow
from judgelit.records.records import PreferencePair
from judgelit.records.row_fields import Row, text_field
from judgelit.records.sources import FileSource, Sources, as_sources, report_once

ReadRow = Callable[[Row, str], Sequence[PreferencePair] | str]
"""Reads a row, with its place for error messages, as its pairs; or says why the row is left out."""
OWN = {"id", "question", "answer_a", "answer_b", "label"}
"""Fields of a pair in judgelit's form."""


def read_native(value: Sources, limit: int | None, read: ReadRow) -> list[PreferencePair]:
    """The pairs of a benchmark's own rows, or of pairs in judgelit's form. A pair that is there twice is read once.

    Rows that are left out are counted on stderr. A row that cannot be read is an error: without it, the figure would be
    that of another set.

    Args:
        value: Files, or data sets of the hub.
        limit: Most pairs. A row is read whole or not at all, but the first row is always read.
        read: Reads a row.

    Raises:
        UserError: A source has no rows, a row cannot be read, two different pairs have the same id, or there are none.
    """
    found: dict[str, PreferencePair] = {}
    left_out: Counter[str] = Counter()
    for at, row in own_rows(value):
        made = [PreferencePair.from_dict(row, at)] if row.keys() >= OWN else read(row, at)
        if isinstance(made, str):
            left_out[made] += 1
            continue
        if limit is not None and found and len(found.keys() | {pair.id for pair in made}) > limit:
            break
        for pair in made:
            first = found.setdefault(pair.id, pair)
            if _content(pair) not in (_content(first), _content(first.swapped())):
                raise UserError(f"{at}: found another pair with the id {pair.id!r}, expected different ids")
    for reason, number in left_out.items():
        report_once(f"{number} rows are left out, since they have {reason}")
    if not found:
        raise UserError("pairs: found only rows that are left out, expected at least one pair")
    return list(found.values())


def id_field(row: Row, name: str, at: str) -> str:
    """`row[name]`, a text or a whole number, as text."""
    value = row.get(name)
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else text_field(row, name, at)


def own_rows(value: Sources) -> Iterator[tuple[str, Row]]:
    """Yield the rows of files or of data sets of the hub, each with its place.

    Raises:
        UserError: A source has no rows, or a row is not an object.
    """
    for source in as_sources(value):
        if not isinstance(source, FileSource):
            raise UserError(
                f"pairs: found a {type(source).__name__}, expected files or a data set of the hub in the benchmark's "
                "own form"
            )
        for at, row in islice(source.rows(), source.limit):
            if isinstance(row, BrokenRow):
                raise row.error
            yield at, row


def _content(pair: PreferencePair) -> tuple[object, ...]:
    return pair.question, pair.context, pair.answer_a, pair.answer_b, pair.label
