import io
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from judgelit.errors import UserError
from judgelit.records.json_values import json_values

PATH = Path("a.json")
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner))
INDENTS = st.sampled_from([None, 0, 2])


def read(text: str, chunk: int) -> Any:
    """What is read with chunks of a size: the values, or the error line."""
    try:
        return list(json_values(io.BytesIO(text.encode()), PATH, chunk)[1])
    except UserError as error:
        return str(error)


@given(st.lists(VALUES, max_size=5), INDENTS, st.integers(1, 7))
@example([12345, -1e300, "\u2028é\U0001f600"], None, 1)
def test_values_do_not_depend_on_where_chunks_end(items: list[Any], indent: int | None, chunk: int) -> None:
    text = json.dumps(items, indent=indent, ensure_ascii=chunk % 2 == 0)
    assert [value for _, value in read(text, chunk)] == items
    rows = [item if isinstance(item, dict) else {"x": item} for item in items]
    text = " \n".join(json.dumps(row, indent=indent) for row in rows)
    assert read(text, chunk) == read(text, 1 << 20)
    assert [value for _, value in read(text, chunk)] == rows


@given(st.lists(VALUES, max_size=4), st.data(), st.integers(1, 7))
def test_an_error_line_does_not_depend_on_where_chunks_end(items: list[Any], data: st.DataObject, chunk: int) -> None:
    text = json.dumps(items, indent=1)
    at = data.draw(st.integers(0, len(text)))
    broken = text[:at] + data.draw(st.sampled_from(["", ",", "]", '"', "{", "x", "\\"])) + text[at + 1 :]
    assert read(broken, chunk) == read(broken, 1 << 20)


@pytest.mark.parametrize("number", [str(2**70), "NaN", "-Infinity", "1e5"])
def test_numbers_of_python_are_read(number: str) -> None:
    [(line, value)] = read(f"[{number}]", 2)
    assert line == 1 and str(value) == str(json.loads(number))


def test_memory_holds_one_row_and_no_more_than_one_chunk() -> None:
    class Rows(io.RawIOBase):
        """A list of 20 MB that exists only while it is read."""

        left = 20_000

        def read(self, size: int = -1) -> bytes:
            self.left -= 1
            row = b'{"x": "' + b"a" * 1000 + b'"}'
            return (
                b"[" + row if self.left == 19_999 else b"," + row if self.left > 0 else b"]" if not self.left else b""
            )

    tracemalloc.start()
    count = sum(1 for _ in json_values(Rows(), PATH)[1])  # type: ignore[arg-type]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 19_999 and peak < 1_000_000
