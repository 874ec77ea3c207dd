"""`judgelit answer`: answers sampled from a policy, in the sequence of the prompts, each asked for once."""

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest

from judgelit.errors import UserError
from judgelit.generation import answers
from judgelit.generation.answers import answer, answer_prompts, main
from judgelit.generation.engine import Generated
from judgelit.generation.journal import JournaledEngine
from judgelit.generation.local import LocalEngine
from judgelit.generation.sampling import Sampling
from judgelit.records.records import AnswerSet, Prompt
from judgelit.records.sources import FileSource

HOT = Sampling(max_new_tokens=8, temperature=1.0, stop_at_verdict=False)


class Policy:
    """An engine whose prompts have as many tokens as words. It answers the last prompt first."""

    name = "policy"
    identity = "one"
    made_from: ClassVar[dict[str, str]] = {}
    context = 12

    def __init__(self, dies_after: int | None = None, **says: list[Generated]) -> None:
        self.tokenizer = self
        self.dies_after = dies_after
        self.says = says
        self.asked: list[str] = []

    def count(self, messages: Any) -> int:
        return sum(len(turn["content"].split()) for turn in messages)

    def answer(self, conversations: Any, sampling: Sampling, *, samples: int = 1, seed: int = 0, done: Any = ()) -> Any:
        for index in reversed(range(len(conversations))):
            if index in done:
                continue
            if len(self.asked) == self.dies_after:
                raise KeyboardInterrupt
            question = conversations[index][-1]["content"]
            self.asked.append(question)
            yield index, self.says.get(question) or [Generated(f"{question} {n}", "stop") for n in range(samples)]


def test_answers_come_in_the_sequence_of_the_prompts() -> None:
    system = {"role": "system", "content": "S"}
    sets, _ = answer_prompts(Policy(), [Prompt("1", "q"), Prompt("2", "r", (system,))], HOT, samples=2)
    assert [(one.id, one.question, one.answers, one.context) for one in sets] == [
        ("1", "q", ("q 0", "q 1"), ()),
        ("2", "r", ("r 0", "r 1"), (system,)),
    ]
    assert sets[0].meta == {"policy": "policy", "finish": ["stop", "stop"]}


def test_what_cannot_be_compared_is_counted() -> None:
    policy = Policy(
        same=[Generated("x", "stop"), Generated(" x\n", "stop")],
        blank=[Generated("", "stop"), Generated("x", "length")],
    )
    prompts = [Prompt(str(n), text) for n, text in enumerate(["same", "blank", "a b c d", "a b c d e"])]
    sets, report = answer_prompts(policy, prompts, HOT, samples=2)
    assert [one.question for one in sets] == ["same", "blank", "a b c d"], "8 of 12 tokens are the answer's"
    assert (report.prompts, report.answers, report.too_long) == (3, 6, 1)
    assert (report.alike, report.blank, report.cut) == (1, 1, 1)
    assert str(report).splitlines() == [
        "6 answers to 3 prompts",
        "prompts left out as too long: 1",
        "prompts with nothing to compare, since all answers are equal: 1",
        "blank answers: 1",
        "answers cut off at max_new_tokens: 1",
    ]


def test_a_killed_run_continues_and_asks_nothing_twice(tmp_path: Path) -> None:
    prompts = [Prompt(str(n), f"q{n}") for n in range(5)]
    dying, fresh = Policy(dies_after=3), Policy()
    with pytest.raises(KeyboardInterrupt):
        answer_prompts(JournaledEngine(dying, tmp_path / "j.sqlite", "policy"), prompts, HOT, samples=2)
    continued, _ = answer_prompts(JournaledEngine(fresh, tmp_path / "j.sqlite", "policy"), prompts, HOT, samples=2)
    assert sorted(dying.asked + fresh.asked) == [f"q{n}" for n in range(5)]
    assert continued == answer_prompts(Policy(), prompts, HOT, samples=2)[0]


def test_no_room_for_an_answer_is_refused() -> None:
    with pytest.raises(UserError, match="max_new_tokens: found 12, expected less than the context of 12"):
        answer_prompts(Policy(), [Prompt("1", "q")], Sampling(12))
    with pytest.raises(UserError, match="none of 1 fits the 4 tokens"):
        answer_prompts(Policy(), [Prompt("1", "a b c d e")], HOT)


@pytest.fixture
def questions(tmp_path: Path) -> str:
    rows = [{"id": str(n), "question": f"{n} + {n} = ?"} for n in range(4)] + [{"id": "5", "question": "1 + 1 = ?"}]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(tmp_path / "questions.jsonl")


def read(path: str) -> list[AnswerSet]:
    return FileSource(path).read(AnswerSet)


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_from_the_command_line(
    tmp_path: Path, llama: str, questions: str, suffix: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    output = f"{tmp_path}/answers.{suffix}"
    command = [f"--model={llama}", f"--prompts={questions}", f"--output={output}", "--max_new_tokens=4", "--samples=3"]
    main([*command, "--limit=2"])
    assert "6 answers to 2 prompts" in capsys.readouterr().out
    first = read(output)
    main(command)
    said = capsys.readouterr().out
    assert "12 answers to 4 prompts\nrows left out because they repeat a prompt: 1\n" in said
    assert f"written to {output}" in said
    found = read(output)
    assert found[:2] == first, "the same seed gives the same answers"
    assert [one.id for one in found] == ["0", "1", "2", "3"] and all(len(one.answers) == 3 for one in found)
    monkeypatch.setattr(LocalEngine, "answer", None)
    main(command)
    assert read(output) == found, "all was in the journal"
    with pytest.raises(UserError, match=r"policy: seed: found answers for 0, expected 1; choose another output"):
        main([*command, "--seed=1"])
    assert read(output) == found


def test_an_answer_does_not_end_at_a_verdict(tmp_path: Path, questions: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Sampling] = []

    class Watched(Policy):
        def answer(self, conversations: Any, sampling: Sampling, **more: Any) -> Any:
            seen.append(sampling)
            return super().answer(conversations, sampling, **more)

    monkeypatch.setattr(answers, "load_engine", lambda spec: Watched())
    answer(questions, f"{tmp_path}/a.jsonl", max_new_tokens=4, model="policy")
    assert seen == [Sampling(4, 1.0, 1.0, stop_at_verdict=False)]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"samples": 0}, "samples: found 0, expected 1 or more"),
        ({"limit": 0}, "limit: found 0, expected 1 or more"),
        ({"temperature": 0.0}, "temperature: found 0 with 4 samples"),
        ({"max_new_tokens": 2000}, "less than the context of 1024"),
        ({"output": "answers.txt"}, "unknown suffix for writing"),
        ({"prompts": "nothing.jsonl"}, "nothing.jsonl: no such file"),
        ({"model": "./nowhere"}, "nowhere"),
    ],
)
def test_wrong_input_is_one_line(
    tmp_path: Path, llama: str, questions: str, change: dict[str, Any], complaint: str
) -> None:
    settings = {"prompts": questions, "output": f"{tmp_path}/answers.jsonl", "model": llama, "max_new_tokens": 4}
    with pytest.raises(UserError) as error:
        answer(**{**settings, **change})
    assert complaint in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "answers.jsonl").exists()
