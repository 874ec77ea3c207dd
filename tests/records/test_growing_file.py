"""Files that are read while they grow."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from judgelit.records.growing_file import GrowingFile


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_lines_are_there_at_once_and_sorted_when_complete(tmp_path: Path) -> None:
    with GrowingFile(tmp_path / "out.jsonl") as file:
        file.add(2, [{"text": "é\u2028"}, {"text": "d"}])
        file.add(0, [])
        file.add(1, [{"text": "b"}])
        assert lines(tmp_path / "out.partial.jsonl")[2] == {"text": "b"}
        assert not (tmp_path / "out.jsonl").exists()
        file.complete()
    assert [line["text"] for line in lines(tmp_path / "out.jsonl")] == ["b", "é\u2028", "d"]
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


def test_what_was_added_before_an_error_stays_and_is_begun_anew(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), GrowingFile(tmp_path / "out.jsonl") as file:
        file.add(0, [{"a": 1}])
        raise KeyboardInterrupt
    assert lines(tmp_path / "out.partial.jsonl") == [{"a": 1}]
    with GrowingFile(tmp_path / "out.jsonl") as file:
        file.complete()
    assert (tmp_path / "out.jsonl").read_text() == ""


@given(st.permutations(range(8)))
def test_the_complete_file_does_not_depend_on_the_sequence_of_work(
    tmp_path_factory: pytest.TempPathFactory, order: list[int]
) -> None:
    path = tmp_path_factory.mktemp("growing") / "out.jsonl"
    with GrowingFile(path) as file:
        for place in order:
            file.add(place, [{"place": place, "row": row} for row in range(place % 3)])
        file.complete()
    assert lines(path) == [{"place": place, "row": row} for place in range(8) for row in range(place % 3)]
