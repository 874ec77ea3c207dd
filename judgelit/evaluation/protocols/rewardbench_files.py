"""The rows of RewardBench 1 and 2, and of their result files."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from judgelit.errors import UserError
from judgelit.evaluation.protocols.native import id_field, own_rows
from judgelit.records.files import looks_like_file
from judgelit.records.records import AnswerSet, PreferencePair
from judgelit.records.row_fields import Row
from judgelit.records.sources import FileSource, Sources

Item = TypeVar("Item", PreferencePair, AnswerSet)


def native_rows(where: Sources, hub: FileSource, columns: Sequence[str]) -> Iterator[tuple[str, Row]]:
    """Yield the rows of a benchmark, each with its place.

    Args:
        where: Files or a data set of the hub.
        hub: The benchmark on the hub. Its name alone means its split too.
        columns: Columns that each row must have.

    Raises:
        UserError: A row has no such columns, or the source is none of files.
    """
    is_hub = where == hub.path and not looks_like_file(hub.path)
    for at, row in own_rows(hub if is_hub else where):
        if missing := [name for name in columns if row.get(name) is None]:
            raise UserError(
                f"{at}: found the fields {', '.join(row) or 'none'} without {', '.join(missing)}; expected a row "
                f"of {hub.path} with {', '.join(columns)}"
            )
        yield at, row


def distinct_ids(rows: Sequence[tuple[str, Row]]) -> list[str]:
    """An id for each row of its place and fields: its own, with the subset before it if several rows have the same.

    Raises:
        UserError: An id is not a text or a whole number, or two rows of one subset have the same.
    """
    named = [(name := id_field(row, "id", at), f"{row['subset']}/{name}") for at, row in rows]
    counts = Counter(name for name, _ in named)
    names = [name if counts[name] == 1 else longer for name, longer in named]
    seen: set[str] = set()
    for (at, row), name in zip(rows, names, strict=True):
        if name in seen:
            raise UserError(f"{at}: found id {row['id']} a second time in {row['subset']}, expected different ids")
        seen.add(name)
    return names


def result_rows(row: Row, at: str, items: Mapping[str, Item]) -> Iterator[tuple[str, dict[str, Any], Item]]:
    """Yield the results of a row of RewardBench's result files: place, fields, and the item with that id.

    These files hold one object with a list in each field, one value a question. Rows of single values are read too.

    Args:
        row: A row.
        at: Its place.
        items: The items of the benchmark by the id of `distinct_ids`.

    Raises:
        UserError: A row has no id, a list has another length, or an item is not among those that were read.
    """
    ids = row.get("id")
    if ids is None:
        raise UserError(
            f"{at}: found the fields {', '.join(list(row)[:6])} without id, expected the result of each question; "
            "RewardBench saves them in the folder eval-set-scores"
        )
    lists = {name: values for name, values in row.items() if isinstance(values, list)} if isinstance(ids, list) else {}
    number = len(ids) if isinstance(ids, list) else 1
    for name, values in lists.items():
        if len(values) != number:
            raise UserError(f"{at}: field {name!r}: found {len(values)} values, expected {number}, one for each id")
    for index in range(number):
        one = {name: values[index] for name, values in lists.items()} if lists else dict(row)
        place = f"{at}: id {one['id']}"
        named = [str(one["id"]), f"{one.get('subset')}/{one['id']}"]
        item = next((items[name] for name in named if name in items), None)
        if item is None:
            raise UserError(f"{place}: is not among the {len(items)} questions that were read")
        yield place, {**one, "model": row.get("model")}, item
