"""The journal: each answer is written before it is used, and nothing is asked twice."""

import sqlite3
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from judgelit.errors import UserError
from judgelit.generation.engine import Generated
from judgelit.generation.journal import JournaledEngine
from judgelit.generation.sampling import Sampling
from judgelit.records.row_fields import Message

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
    ) -> Iterator[tuple[int, list[Generated]]]:
        for start in range(0, len(conversations), 2):
            batch = range(start, min(start + 2, len(conversations)))
            if all(index in done for index in batch):
                continue
            for index in batch:
                if len(self.asked) == self.dies_after:
                    raise KeyboardInterrupt
                self.asked.append(conversations[index][-1]["content"])
                count = len(self.asked)
                said = conversations[index][-1]["content"]
                yield (
                    index,
                    [
                        Generated(f"{said} ❤ {count}.{sample}", "stop", 0.5, 0 if sample else 7, 3)
                        for sample in range(samples)
                    ],
                )


def answers(journaled: JournaledEngine, questions: list[list[Message]], **settings: object) -> dict[int, list[str]]:
    got = list(journaled.answer(questions, GREEDY, **settings))  # type: ignore[arg-type]
    assert len(got) == len(dict(got)), "an index was answered twice"
    assert all(answer.finish == "stop" and answer.margin == 0.5 for _, of_prompt in got for answer in of_prompt)
    return {index: [answer.text for answer in of_prompt] for index, of_prompt in got}


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
            got[index] = [answer.text for answer in texts]
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


def test_the_tokens_of_a_shared_answer_count_once(tmp_path: Path) -> None:
    journaled = JournaledEngine(Counting(), tmp_path / "journal.sqlite")
    for _ in ("asked", "read from the journal"):
        tokens = {
            index: sum(one.prompt_tokens + one.new_tokens for one in of_prompt)
            for index, of_prompt in journaled.answer(ask("a", "b", "a", "a"), GREEDY, samples=2)
        }
        assert tokens == {0: 13, 1: 13, 2: 0, 3: 0}
    # A conversation that has its answer already leaves the count to the next one.
    done = dict(journaled.answer(ask("a", "b", "a", "a"), GREEDY, samples=2, done={0}))
    assert {index: of_prompt[0].prompt_tokens for index, of_prompt in done.items()} == {1: 7, 2: 7, 3: 0}


def test_done_conversations_are_left_out(tmp_path: Path) -> None:
    journaled = JournaledEngine(Counting(), tmp_path / "journal.sqlite")
    assert answers(journaled, ask("a", "b", "c"), done={0, 2}).keys() == {1}
    assert answers(journaled, ask("a", "b", "c"), done={0, 1, 2}) == {}


def test_another_conversation_is_asked(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    answers(JournaledEngine(Counting(), path), ask("a"))
    engine = Counting()
    answers(JournaledEngine(engine, path), [[{"role": "system", "content": "Judge."}, *ask("a")[0]]])
    assert engine.asked == ["a"]


@pytest.mark.parametrize(
    ("other", "found"),
    [
        ({"identity": "two"}, "engine: found answers for 'one', expected 'two'"),
        ({"seed": 1}, "seed: found answers for 0, expected 1"),
        ({"samples": 2}, "samples: found answers for 1, expected 2"),
        ({"sampling": Sampling(max_new_tokens=9)}, "max_new_tokens: found answers for 8, expected 9"),
        ({"sampling": Sampling(8, temperature=0.5)}, "temperature: found answers for 0.0, expected 0.5"),
    ],
)
def test_settings_that_would_ask_everything_again_are_refused(tmp_path: Path, other: dict, found: str) -> None:
    path = tmp_path / "journal.sqlite"
    first = answers(JournaledEngine(Counting(), path), ask("a"))
    settings = {"sampling": GREEDY, **other}
    engine = Counting(settings.pop("identity", "one"))
    with pytest.raises(UserError, match=f"judge: {found}; choose another output"):
        list(JournaledEngine(engine, path).answer(ask("a"), **settings))
    assert engine.asked == [] and answers(JournaledEngine(Counting(), path), ask("a")) == first
    # Each purpose has its own settings.
    assert list(JournaledEngine(engine, path, "teacher").answer(ask("a"), **settings))


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


@pytest.mark.parametrize("version", [1, 3])
def test_a_journal_of_another_version_is_refused_and_unchanged(tmp_path: Path, version: int) -> None:
    path = tmp_path / "journal.sqlite"
    if version == 3:
        answers(JournaledEngine(Counting(), path), ask("a"))
    with sqlite3.connect(path) as other:
        if version == 3:
            other.execute("PRAGMA user_version = 3")
        else:
            other.execute("CREATE TABLE answers (key TEXT PRIMARY KEY, texts TEXT NOT NULL)")
    other.close()
    before = path.read_bytes()
    with pytest.raises(UserError, match=f"found a journal of format {version}, expected 2; .* move the file away"):
        JournaledEngine(Counting(), path)
    assert path.read_bytes() == before


TWO_PROCESSES = """
import sys, time
from pathlib import Path
from judgelit.generation.engine import Generated
from judgelit.generation.journal import JournaledEngine
from judgelit.generation.sampling import Sampling

class Slow:
    name = identity = tokenizer = "slow"
    def answer(self, conversations, sampling, *, samples=1, seed=0, done=()):
        for index in range(len(conversations)):
            if index not in done:
                with open(sys.argv[2], "a") as asked:
                    asked.write(f"{index}\\n")
                time.sleep(0.05)
                yield index, [Generated(f"answer {index}", "stop")]

questions = [[{"role": "user", "content": str(number)}] for number in range(20)]
journaled = JournaledEngine(Slow(), Path(sys.argv[1]))
print(sorted((index, answer.text) for index, (answer,) in journaled.answer(questions, Sampling())))
"""


def test_two_processes_ask_nothing_twice(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TWO_PROCESSES, str(tmp_path / "journal.sqlite"), str(tmp_path / "asked")]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = [process.communicate()[0].splitlines() for process in processes]
    assert {lines[-1] for lines in said} == {str([(index, f"answer {index}") for index in range(20)])}
    assert sorted((tmp_path / "asked").read_text().split(), key=int) == list(map(str, range(20)))
    assert sum("waiting until it has ended" in lines[0] for lines in said) <= 2


def test_a_killed_process_leaves_the_journal_to_others(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TWO_PROCESSES, str(tmp_path / "journal.sqlite"), str(tmp_path / "asked")]
    killed = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while not (tmp_path / "asked").exists() or len((tmp_path / "asked").read_text().split()) < 5:
        assert killed.poll() is None
        time.sleep(0.01)
    killed.kill()
    killed.wait()
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "answer 19" in said
    asked = (tmp_path / "asked").read_text().split()
    # The answer that the killed process had asked for, but not yet written, is asked again.
    assert len(asked) <= 21 and set(asked) == set(map(str, range(20)))


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


@pytest.mark.parametrize("texts", ["[1]", "{", "null", '"a"', '[{"text": "a"}]', '[{"words": "a", "finish": "stop"}]'])
def test_an_answer_that_is_no_list_of_texts_is_refused(tmp_path: Path, texts: str) -> None:
    path = tmp_path / "journal.sqlite"
    answers(JournaledEngine(Counting(), path), ask("a"))
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE answers SET generated = ?", (texts,))
    connection.close()
    with pytest.raises(UserError, match="no list of texts"):
        answers(JournaledEngine(Counting(), path), ask("a"))


def test_a_journal_that_another_process_has_locked_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("judgelit.generation.journal_file._PATIENCE", 0.1)
    path = tmp_path / "journal.sqlite"
    journaled = JournaledEngine(Counting(), path)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(UserError, match="another process has locked it"):
        answers(journaled, ask("a"))
    holder.execute("COMMIT")
    assert answers(journaled, ask("a"))
