import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from judgelit.errors import UserError
from judgelit.evaluation.protocols.native import read_native
from judgelit.records.files import write_records
from judgelit.records.public_sources.source import PublicSource
from judgelit.records.records import PreferencePair
from judgelit.records.row_fields import Row
from judgelit.records.sources import FileSource, Mixture
from tests.support import make_pair


def read(row: Row, at: str) -> list[PreferencePair] | str:
    """As many pairs as the row says."""
    numbers = range(row["first"], row["first"] + row["pairs"])
    return [make_pair(n, right=row.get("right", "yes")) for n in numbers] or "no pairs"


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def file(tmp_path: Path) -> str:
    return write(
        tmp_path / "rows.jsonl", [{"first": 0, "pairs": 3}, {"first": 3, "pairs": 2}, {"first": 5, "pairs": 1}]
    )


@pytest.mark.parametrize(("limit", "count"), [(None, 6), (1, 3), (3, 3), (4, 3), (5, 5), (6, 6), (9, 6)])
def test_a_limit_takes_whole_rows(file: str, limit: int | None, count: int) -> None:
    assert [pair.id for pair in read_native(file, limit, read)] == [f"p{n}" for n in range(count)]


def test_a_pair_that_is_there_twice_is_read_once(file: str, tmp_path: Path) -> None:
    again = write(tmp_path / "again.jsonl", [{"first": 2, "pairs": 5}])
    assert [pair.id for pair in read_native(Mixture([file, again]), None, read)] == [f"p{n}" for n in range(7)]


def test_two_pairs_with_one_id_are_refused(file: str, tmp_path: Path) -> None:
    other = write(tmp_path / "other.jsonl", [{"first": 9, "pairs": 1}, {"first": 2, "pairs": 1, "right": "other"}])
    with pytest.raises(UserError, match=r"other\.jsonl:2: found another pair with the id 'p2', expected different ids"):
        read_native(Mixture([file, other]), None, read)


def test_left_out_rows_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"first": 0, "pairs": 0}, {"first": 0, "pairs": 1}, {"first": 1, "pairs": 0}]
    assert len(read_native(write(tmp_path / "some.jsonl", rows), None, read)) == 1
    assert "2 rows are left out, since they have no pairs" in caplog.text
    with pytest.raises(UserError, match="only rows that are left out"):
        read_native(write(tmp_path / "none.jsonl", rows[:1]), None, read)


def test_pairs_in_judgelits_form_are_read_as_they_are(tmp_path: Path) -> None:
    pairs = [replace(make_pair(n, "B"), category="c", subset="s", source="x") for n in range(3)]
    write_records(tmp_path / "set.items.jsonl", pairs)
    assert read_native(str(tmp_path / "set.items.jsonl"), None, read) == pairs


def test_a_source_limit_holds(file: str) -> None:
    assert len(read_native(FileSource(file, limit=2), None, read)) == 5


def test_broken_rows_and_sources_without_rows_are_errors(file: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.jsonl"
    path.write_text('{"first": 0, "pairs": 1}\n[1]\n')
    for source in (str(path), FileSource(str(path), skip_invalid=True)):
        with pytest.raises(UserError, match=r"broken\.jsonl:2: found a list, expected a row"):
            read_native(source, None, read)
    with pytest.raises(UserError, match="found a PublicSource, expected files or a data set of the hub"):
        read_native(PublicSource("helpsteer2", file), None, read)
