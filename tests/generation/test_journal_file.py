import threading
from pathlib import Path

import pytest

from judgelit.errors import UserError
from judgelit.generation.engine import Generated
from judgelit.generation.journal_file import Journal


def answer(text: str) -> list[Generated]:
    return [Generated(text, "length", 0.25, 7, 3), Generated(text + "!", "verdict")]


def test_a_journal_takes_the_answers_and_settings_of_others(tmp_path: Path) -> None:
    one, other, joined = (Journal(tmp_path / name / "journal.sqlite") for name in ("one", "other", "joined"))
    one.write("a", answer("one"))
    one.keep_settings("judge", {"engine": "e", "seed": 0})
    other.write("b", answer("two"))
    other.write("a", answer("one"))
    other.keep_settings("judge", {"engine": "e", "seed": 0})
    other.keep_settings("teacher", {"engine": "t"})
    joined.take(one.path)
    joined.take(other.path)
    joined.take(one.path)
    assert (joined.read("a"), joined.read("b"), len(joined)) == (answer("one"), answer("two"), 2)
    assert joined.settings("judge") == {"engine": "e", "seed": 0} and joined.settings("teacher") == {"engine": "t"}
    assert joined.settings("hint") == {} and joined.read("c") is None
    # What was taken is in the file, and the others are unchanged.
    assert len(Journal(joined.path)) == 2 and len(Journal(one.path)) == 1 and one.settings("teacher") == {}


def test_a_journal_for_other_settings_is_not_taken(tmp_path: Path) -> None:
    one, other = (Journal(tmp_path / f"{name}.sqlite") for name in ("one", "other"))
    one.keep_settings("judge", {"engine": "e", "seed": 0})
    other.keep_settings("judge", {"engine": "e", "seed": 1})
    other.write("a", answer("x"))
    with pytest.raises(
        UserError, match=r"other\.sqlite: judge: seed: found answers for 1, expected 0 as in .*one\.sqlite"
    ):
        one.take(other.path)
    assert len(one) == 0
    with pytest.raises(UserError, match=r"nowhere\.sqlite: no such file"):
        one.take(tmp_path / "nowhere.sqlite")
    (tmp_path / "text.sqlite").write_text("hello " * 100)
    with pytest.raises(UserError, match="not a journal of judgelit"):
        one.take(tmp_path / "text.sqlite")


def test_two_answers_to_one_prompt_are_not_joined(tmp_path: Path) -> None:
    one, other = (Journal(tmp_path / f"{name}.sqlite") for name in ("one", "other"))
    one.write("a", answer("one"))
    other.write("b", answer("two"))
    other.write("a", answer("another"))
    with pytest.raises(UserError, match=r"other\.sqlite: found another answer than .*one\.sqlite to the same prompt"):
        one.take(other.path)
    assert len(Journal(one.path)) == 1, "nothing of the other journal is kept"


def test_a_new_journal_is_opened_by_several_at_once(tmp_path: Path) -> None:
    failed: list[BaseException] = []

    def open_journal(path: Path, together: threading.Barrier) -> None:
        together.wait()
        try:
            assert len(Journal(path)) == 0
        except BaseException as error:
            failed.append(error)

    for number in range(40):
        together = threading.Barrier(6)
        threads = [
            threading.Thread(target=open_journal, args=(tmp_path / f"{number}.sqlite", together)) for _ in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failed
