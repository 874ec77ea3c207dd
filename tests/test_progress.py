import sys
import time

import pytest

from judgelit.progress import track


def test_without_a_terminal_there_is_a_line_every_30_seconds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    assert not sys.stderr.isatty()
    seen = []
    for item in track(iter(range(12)), "judging", total=12):
        seen.append(item)
        now[0] += 10.0
    assert seen == list(range(12))
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "judging: 3 of 12, 1.5 min left",
        "judging: 6 of 12, 1.0 min left",
        "judging: 9 of 12, 0.5 min left",
    ]


def test_a_list_knows_its_length_and_a_short_task_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track([1, 2, 3], "counting")) == [1, 2, 3]
    assert capsys.readouterr().err == ""
