"""The journal: each answer is written before it is used, and nothing is asked twice."""

import sqlite3
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from judgelit.errors import UserError
from judgelit.generation.journal import JournaledEngine
from judgelit.generation.sampling import Sampling
from judgelit.records.records import Message

GREEDY = Sampling(max_new_tokens=8)


def ask(*questions: str) -> list[list[Message]]:
    return [[{"role": "user", "content": question}] for question in questions]


class Counting:
    """An engine that answers in batches of two, each time differently, and notes what it was asked."""

    name = "counting"
    tokenizer: Any = "a tokenizer"

    def __init__(self, identity: str = "one", dies_after: int | None = None) -> None:
        self.identity = identity
        self.dies_after = dies_after
        self.asked: list[str] = []

    def answer(
        self,
        conversations: Sequence[Sequence[Message]],
        sampling: Sampling,
        *,
        samples: int = 1,
        seed: int = 0,
        done: Collection[int] = (),
    ) -> Iterator[tuple[int, list[str]]]:
        for start in range(0, len(conversations), 2):
            batch = range(start, min(start + 2, len(conversations)))
            if all(index in done for index in batch):
                continue
            for index in batch:
                if len(self.asked) == self.dies_after:
                    raise KeyboardInterrupt
                self.asked.append(conversations[index][-1]["content"])
                count = len(self.asked)
                yield index, [f"{conversations[index][-1]['content']} ❤ {count}.{sample}" for sample in range(samples)]


def answers(journaled: JournaledEngine, questions: list[list[Message]], **settings: object) -> dict[int, list[str]]:
    got = list(journaled.answer(questions, GREEDY, **settings))  # type: ignore[arg-type]
    assert len(got) == len(dict(got)), "an index was answered twice"
    return dict(got)


def test_nothing_is_asked_twice(tmp_path: Path) -> None:
    engine = Counting()
    journaled = JournaledEngine(engine, tmp_path / "folder" / "journal.sqlite")
    first = answers(journaled, ask("a", "b", "c"), samples=2)
    assert first == {0: ["a ❤ 1.0", "a ❤ 1.1"], 1: ["b ❤ 2.0", "b ❤ 2.1"], 2: ["c ❤ 3.0", "c ❤ 3.1"]}
    assert answers(journaled, ask("a", "b", "c"), samples=2) == first
    # In another sequence and with other questions too. The new question shares a batch with an old one, whose first
    # answer is kept.
    more = answers(journaled, ask("c", "a", "d", "b"), samples=2)
    assert more[0] == first[2] and more[1] == first[0] and more[3] == first[1]
    assert answers(journaled, ask("a", "b", "c"), samples=2) == first


def test_a_reopened_journal_has_its_answers(tmp_path: Path) -> None:
    first = answers(JournaledEngine(Counting(), tmp_path / "journal.sqlite"), ask("a", "b"))
    second = Counting()
    assert answers(JournaledEngine(second, tmp_path / "journal.sqlite"), ask("a", "b")) == first
    assert second.asked == []


def test_a_killed_run_continues(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    got = {}
    with pytest.raises(KeyboardInterrupt):
        for index, texts in JournaledEngine(Counting(dies_after=3), path).answer(ask(*"abcdef"), GREEDY):
            got[index] = texts
    assert got.keys() == {0, 1, 2}
    engine = Counting()
    whole = answers(JournaledEngine(engine, path), ask(*"abcdef"))
    assert {index: whole[index] for index in got} == got
    assert whole.keys() == set(range(6))
    assert not {"a", "b"} & set(engine.asked)


def test_an_answer_is_written_before_it_is_used(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    for index, texts in JournaledEngine(Counting(), path).answer(ask("a", "b"), GREEDY):
        # A second connection finds the answer now.
        other = Counting()
        assert next(iter(JournaledEngine(other, path).answer(ask("ab"[index]), GREEDY))) == (0, texts)
        assert other.asked == []


def test_equal_conversations_share_one_answer(tmp_path: Path) -> None:
    engine = Counting()
    journaled = JournaledEngine(engine, tmp_path / "journal.sqlite")
    first = answers(journaled, ask("a", "b", "a", "a"))
    assert first[0] == first[2] == first[3]
    assert first.keys() == {0, 1, 2, 3}
    assert answers(journaled, ask("a", "b", "a", "a")) == first
    assert engine.asked.count("a") == 1


def test_done_conversations_are_left_out(tmp_path: Path) -> None:
    journaled = JournaledEngine(Counting(), tmp_path / "journal.sqlite")
    assert answers(journaled, ask("a", "b", "c"), done={0, 2}).keys() == {1}
    assert answers(journaled, ask("a", "b", "c"), done={0, 1, 2}) == {}


@pytest.mark.parametrize(
    "other",
    [
        {"engine": Counting("two")},
        {"seed": 1},
        {"samples": 2},
        {"sampling": Sampling(max_new_tokens=9)},
        {"sampling": Sampling(max_new_tokens=8, temperature=0.5)},
        {"conversations": [[{"role": "system", "content": "Judge."}, {"role": "user", "content": "a"}]]},
    ],
)
def test_a_change_that_could_change_answers_asks_again(tmp_path: Path, other: dict) -> None:
    path = tmp_path / "journal.sqlite"
    answers(JournaledEngine(Counting(), path), ask("a"))
    engine = Counting(getattr(other.get("engine"), "identity", "one"))
    settings = {"samples": 1, "seed": 0, **{key: other[key] for key in ("samples", "seed") if key in other}}
    conversations = other.get("conversations", ask("a"))
    got = list(JournaledEngine(engine, path).answer(conversations, other.get("sampling", GREEDY), **settings))
    assert len(got) == 1
    assert engine.asked == ["a"]


def test_it_has_the_name_identity_and_tokenizer_of_its_engine(tmp_path: Path) -> None:
    journaled = JournaledEngine(Counting("weights"), tmp_path / "journal.sqlite")
    assert (journaled.name, journaled.identity, journaled.tokenizer) == ("counting", "weights", "a tokenizer")


def test_a_file_that_is_not_a_journal_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a data base, " * 100, encoding="utf-8")
    with pytest.raises(UserError, match="not a journal"):
        JournaledEngine(Counting(), path)
    assert path.read_text(encoding="utf-8").startswith("not a data base")


@pytest.mark.parametrize("inside", ["journal.sqlite", "deeper/journal.sqlite"])
def test_a_folder_that_is_a_file_is_refused(tmp_path: Path, inside: str) -> None:
    (tmp_path / "out").write_text("a file", encoding="utf-8")
    with pytest.raises(UserError, match=r"cannot be written to: ") as error:
        JournaledEngine(Counting(), tmp_path / "out" / inside)
    assert "\n" not in str(error.value) and (tmp_path / "out").read_text(encoding="utf-8") == "a file"


def test_a_journal_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    (tmp_path / "journal.sqlite").mkdir()
    with pytest.raises(UserError, match=r"cannot be written to: unable to open"):
        JournaledEngine(Counting(), tmp_path / "journal.sqlite")


def test_a_database_of_another_program_is_refused_and_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    for statement in ("CREATE TABLE answers (id INTEGER, text TEXT)", "CREATE TABLE songs (name TEXT)"):
        path.unlink(missing_ok=True)
        with sqlite3.connect(path) as other:
            other.execute(statement)
        other.close()
        before = path.read_bytes()
        with pytest.raises(UserError, match="database of another program"):
            JournaledEngine(Counting(), path)
        assert path.read_bytes() == before


def test_a_damaged_journal_is_refused_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    questions = ask(*(f"question {number} " * 40 for number in range(100)))
    answers(JournaledEngine(Counting(), path), questions)
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    content = bytearray(path.read_bytes())
    content[4096:] = b"\x13" * (len(content) - 4096)
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"not a journal of judgelit, or a damaged one .* move it away"):
        answers(JournaledEngine(Counting(), path), questions)


@pytest.mark.parametrize("texts", ["[1]", "{", "null", '"a"'])
def test_an_answer_that_is_no_list_of_texts_is_refused(tmp_path: Path, texts: str) -> None:
    path = tmp_path / "journal.sqlite"
    answers(JournaledEngine(Counting(), path), ask("a"))
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE answers SET texts = ?", (texts,))
    connection.close()
    with pytest.raises(UserError, match="no list of texts"):
        answers(JournaledEngine(Counting(), path), ask("a"))


def test_a_journal_that_another_process_has_locked_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("judgelit.generation.journal._PATIENCE", 0.1)
    path = tmp_path / "journal.sqlite"
    journaled = JournaledEngine(Counting(), path)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(UserError, match="another process has locked it"):
        answers(journaled, ask("a"))
    holder.execute("COMMIT")
    assert answers(journaled, ask("a"))
