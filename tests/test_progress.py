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


def test_answers_of_a_journal_do_not_make_the_rest_look_fast(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    for item in track(iter(range(104)), "judging", total=104):
        now[0] += 0.001 if item < 100 else 20.0
    # 2 of the 4 new ones took 40 seconds.
    assert capsys.readouterr().err.splitlines() == ["judging: 102 of 104, 0.7 min left"]


def test_a_name_in_it_is_no_command_to_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    for _ in track(iter(range(3)), "asking \x1b[2Jm", total=3):
        now[0] += 40.0
    assert "\\x1b[2Jm: 1 of 3" in capsys.readouterr().err


def test_a_list_knows_its_length_and_a_short_task_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track([1, 2, 3], "counting")) == [1, 2, 3]
    assert capsys.readouterr().err == ""
