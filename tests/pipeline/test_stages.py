"""The end of a stage of `judgelit run`."""

from pathlib import Path

import pytest

from judgelit.errors import UserError
from judgelit.pipeline.stages import end_stage, ended_stage


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
