"""Fields of benchmarks' own rows that hold codes, and the numbers of rows in their files."""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from judgelit.records.records import Label
from judgelit.records.row_fields import Row, bad_field

_PLACE = re.compile(r"(?P<file>.*)(?::(?P<line>\d+)|: (?:item|row) (?P<number>\d+)(?: of '(?P<list>.*)')?)", re.S)
_SPLIT = re.compile(r".*\[(?P<split>[^\[\]]+)\]", re.S)


def coded_label(row: Row, name: str, at: str, codes: Mapping[str, Label]) -> Label:
    """The label that stands in a field as a number or a text, such as 1 or "1".

    Raises:
        UserError: The value is none of the codes.
    """
    value = row.get(name)
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # Tables store whole numbers as floats if the column has missing values.
    label = codes.get(str(value).strip().lower())
    if label is None:
        raise bad_field(at, name, value, "one of " + ", ".join(codes))
    return label


def file_of(at: str) -> Path:
    """The file in the place of a row; of a data set of the hub `NAME[SPLIT]`, NAME/SPLIT."""
    found = _PLACE.fullmatch(at)
    file = found["file"] if found else at
    split = _SPLIT.fullmatch(file)
    if split is None or Path(file).exists():
        return Path(file)
    return Path(file.removesuffix(f"[{split['split']}]")) / split["split"]


def list_of(at: str) -> str:
    """The name of the list in the place of a row, `file: item 3 of 'name'`; otherwise empty."""
    found = _PLACE.fullmatch(at)
    return (found["list"] or "") if found else ""


def number_of(at: str) -> int:
    """The number in the place of a row: its line, or its number in a list or a table, from 1. 0 if there is none."""
    found = _PLACE.fullmatch(at)
    return int(found["line"] or found["number"]) if found else 0


class RowNumbers:
    """Numbers the rows of each file, and of each list in a file, from 1, however many lines a row takes."""

    def __init__(self) -> None:
        self._rows: Counter[tuple[Path, str]] = Counter()

    def next(self, at: str) -> int:
        """The number of the row at this place; called once for each row, in their sequence."""
        within = file_of(at), list_of(at)
        self._rows[within] += 1
        return self._rows[within]
