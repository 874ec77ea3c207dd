"""The end of a stage of `judgelit run`."""

import json
import time
from pathlib import Path

import pytest

from judgelit.errors import UserError
from judgelit.pipeline.stages import count_cost, end_stage, ended_stage


def test_an_ended_stage_says_what_it_cost(tmp_path: Path) -> None:
    assert ended_stage(tmp_path) is None
    (tmp_path / "a.jsonl").write_text("1\n2\n")
    end_stage(tmp_path, {"tokens": 3})
    assert ended_stage(tmp_path) == {"tokens": 3}


@pytest.mark.parametrize("content", ["", "{", "[]", "3", '{"files": 3}'])
def test_a_stage_with_a_broken_end_is_done_again(tmp_path: Path, content: str) -> None:
    (tmp_path / "done.json").write_text(content)
    assert ended_stage(tmp_path) is None


@pytest.mark.parametrize("content", [None, "1\n", "1\n3\n", ""])
def test_a_data_file_that_has_changed_is_named(tmp_path: Path, content: str | None) -> None:
    (tmp_path / "a.jsonl").write_text("1\n2\n")
    end_stage(tmp_path, {"tokens": 3})
    (tmp_path / "a.jsonl").unlink()
    if content is not None:
        (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(UserError, match=r"a.jsonl: found .*remove .*done.json to have the stage done again"):
        ended_stage(tmp_path)


def test_an_interrupted_stage_costs_what_all_its_calls_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("judgelit.pipeline.stages.peak_memory", iter([900, 900, 200, 200]).__next__)
    with pytest.raises(KeyboardInterrupt), count_cost(tmp_path) as cost:
        time.sleep(0.2)
        assert 0.2 <= cost()["seconds"] < 5
        raise KeyboardInterrupt
    with count_cost(tmp_path) as cost:
        assert cost()["seconds"] >= 0.2
    assert json.loads((tmp_path / "spent.json").read_text())["peak_memory_bytes"] == 900


def test_a_killed_stage_has_noted_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("judgelit.pipeline.stages.NOTED_EVERY", 0.02)
    with count_cost(tmp_path):
        deadline = time.monotonic() + 20
        while not (tmp_path / "spent.json").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        # What a kill would leave.
        assert json.loads((tmp_path / "spent.json").read_text())["seconds"] > 0


@pytest.mark.parametrize("content", [None, "", "{", "[]", "3", '{"seconds": "x"}', '{"seconds": null}'])
def test_a_stage_without_a_readable_note_counts_from_now(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "spent.json").write_text(content)
    with count_cost(tmp_path) as cost:
        assert 0 <= cost()["seconds"] < 5


def test_a_stage_goes_on_where_its_time_cannot_be_noted(tmp_path: Path) -> None:
    (tmp_path / "spent.json").mkdir()
    with count_cost(tmp_path) as cost:
        assert cost()["seconds"] >= 0
