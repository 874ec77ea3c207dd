from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from judgelit.batches.tokenizer import ChatTokenizer
from judgelit.errors import UserError
from judgelit.generation.engine import Generated
from judgelit.judging.prompts import Templates, drawn_order
from judgelit.judging.verdict import parse
from judgelit.records.records import PreferencePair
from judgelit.synthesis.tasks.pairs import TaskPairs
from judgelit.synthesis.teachers import TaskTeacher, Teacher
from judgelit.synthesis.warmup import synthesize_warmup
from tests.support import make_pair, short_templates


class Says(Teacher):
    """A teacher whose text is a function of the prompt."""

    name = "says"

    def __init__(self, say: Callable[[Any], str]) -> None:
        self.say = say

    def judgments(self, prompts, templates, journal, seed):
        for index in reversed(range(len(prompts))):
            yield index, Generated(self.say(prompts[index]), "stop")


RIGHT = Says(lambda prompt: f" It is [[{prompt.pair.label}]]\n")


def some_pairs(count: int = 60) -> list[PreferencePair]:
    """Pairs whose better answer is longer in two of three, and A in three of four."""
    return [
        make_pair(n, "B" if n % 4 == 3 else "A", "right" if n % 3 else "ok", "nope") for n in range(count)
    ]  # fmt: skip


@pytest.fixture
def make(chatml: ChatTokenizer, tmp_path: Path) -> Callable[..., Any]:
    templates = short_templates(tmp_path / "templates", {"one": "careful", "two": "brief"})

    def synthesize(
        pairs: list[PreferencePair], teacher: Teacher = RIGHT, templates: Templates = templates, **more: Any
    ):
        settings = {"max_prompt_tokens": 400, **more}
        return synthesize_warmup(pairs, teacher, templates, chatml, tmp_path / "journal.sqlite", **settings)

    return synthesize


def test_kept_judgments_are_right_and_record_their_origin(make):
    pairs = {pair.id: pair for pair in some_pairs()}
    examples, _ = make(list(pairs.values()), Says(lambda p: f"[[{'A' if int(p.pair.id[1:]) % 5 else p.pair.label}]]"))
    assert examples
    for example in examples:
        pair = pairs[example.pair_id].in_order(example.meta["order"])
        assert parse(example.completion) == pair.label == example.meta["verdict"]
        assert f"A: {pair.answer_a}\nB: {pair.answer_b}" in example.messages[-1]["content"]
        assert example.meta["teacher"] == "says"
        assert example.meta["order"] == drawn_order(pair.id, 0)
        assert example.group == pair.question_key


def test_labels_and_longer_answers_are_exactly_balanced(make):
    pairs = {pair.id: pair for pair in some_pairs()}
    examples, report = make(list(pairs.values()))
    cells = Counter()
    for example in examples:
        pair = pairs[example.pair_id].in_order(example.meta["order"])
        better, worse = (pair.answer_a, pair.answer_b) if pair.label == "A" else (pair.answer_b, pair.answer_a)
        cells[pair.label, len(better) > len(worse)] += 1
    assert len(cells) == 4 and len(set(cells.values())) == 1
    assert report.kept == len(examples) == len({example.pair_id for example in examples}) >= 20


def test_answers_of_equal_length_are_balanced_apart(make):
    examples, report = make([make_pair(n, "A", "abc", "xyz") for n in range(40)])
    labels = Counter(example.meta["verdict"] for example in examples)
    assert labels["A"] == labels["B"] >= 10
    assert report.dropped["for balance of A and B"] == 40 - len(examples)


def test_each_balance_can_be_switched_off_and_says_what_it_dropped(make):
    def count(examples):
        return Counter(example.meta["verdict"] for example in examples)

    neither, report = make(some_pairs(), balance_labels=False, balance_length=False)
    assert (report.kept, sum(report.dropped.values())) == (60, 0)
    labels, of_labels = make(some_pairs(), balance_length=False)
    assert count(labels)["A"] == count(labels)["B"]
    assert of_labels.dropped["for balance of length"] == 0
    assert of_labels.dropped["for balance of A and B"] == 60 - len(labels)
    length, of_length = make(some_pairs(), balance_labels=False)
    # The better answer is longer in 40 of 60 pairs.
    assert (len(length), of_length.dropped["for balance of length"]) == (40, 20)
    assert of_length.dropped["for balance of A and B"] == 0
    both, report = make(some_pairs())
    assert report.dropped["for balance of A and B"] == of_labels.dropped["for balance of A and B"]
    assert len(both) == 60 - sum(report.dropped.values())
    assert "for balance of length" in str(report)
    assert len(neither) > len(labels) > len(both)


def test_each_pair_is_kept_or_counted(make):
    endless = [make_pair(n, question="why? " * 200) for n in range(200, 203)]
    ties = [make_pair(n, "tie") for n in range(300, 304)]

    def say(prompt):
        number = int(prompt.pair.id[1:])
        wrong = "B" if prompt.pair.label == "A" else "A"
        return {0: "no idea", 1: f"[[{wrong}]]"}.get(number % 10, f"[[{prompt.pair.label}]]")

    examples, report = make([*some_pairs(), *endless, *ties], Says(say))
    assert report.pairs == 67 and report.kept == len(examples)
    assert {k: report.dropped[k] for k in ("ties", "too long", "without verdict", "wrong")} == {
        "ties": 4,
        "too long": 3,
        "without verdict": 6,
        "wrong": 6,
    }
    assert report.kept + sum(report.dropped.values()) == report.pairs
    assert sum(report.templates.values()) == report.kept
    assert f"67 pairs: {report.kept} judgments kept; dropped: 4 ties, 3 too long" in str(report)
    assert not {int(example.pair_id[1:]) % 10 for example in examples} & {0, 1}


def test_with_both_orders_a_teacher_must_be_right_in_both(make):
    # Right in the drawn order of all pairs; in the other order of pairs with even numbers only.
    def say(prompt):
        drawn = prompt.order == drawn_order(prompt.pair.id, 0)
        right = drawn or int(prompt.pair.id[1:]) % 2 == 0
        return f"[[{prompt.pair.label if right else 'tie'}]]"

    pairs = some_pairs()
    lenient, _ = make(pairs, Says(say))
    strict, report = make(pairs, Says(say), both_orders=True)
    assert any(int(example.pair_id[1:]) % 2 for example in lenient)
    assert not any(int(example.pair_id[1:]) % 2 for example in strict)
    assert report.dropped["wrong in the other order"] == 30
    assert report.kept + sum(report.dropped.values()) == report.pairs
    assert all(example.meta["order"] == drawn_order(example.pair_id, 0) for example in strict)


def test_the_seed_decides(make):
    assert make(some_pairs()) == make(some_pairs())
    assert make(some_pairs(), seed=1)[0] != make(some_pairs())[0]


def test_an_empty_set_is_a_one_line_error(make):
    with pytest.raises(
        UserError, match=r"no judgment of says was kept, of 60 pairs \(\d+ [^{}]*without verdict[^{}]*\)$"
    ) as error:
        make(some_pairs(), Says(lambda prompt: "no idea"))
    assert "\n" not in str(error.value)


def test_glances_are_kept_if_they_happen_to_be_right(make):
    pairs = TaskPairs(kinds=["sorting", "counting"], difficulties=[1], count=200).read(PreferencePair)
    careful, _ = make(pairs, TaskTeacher(), max_prompt_tokens=1000)
    hurried, report = make(pairs, TaskTeacher(glance_rate=1.0), max_prompt_tokens=1000)
    glances = {id: e.completion for e in hurried if "glance" in e.completion for id in [e.pair_id]}
    assert all("glance" not in example.completion for example in careful)
    assert {e.meta["template"] for e in hurried if e.pair_id in glances} == {"two"}
    assert all("glance" in example.completion for example in hurried if example.meta["template"] == "two")
    brief = sum(example.meta["template"] == "two" for example in careful)
    assert 0.25 * brief < report.dropped["wrong"] < 0.75 * 200, "a coin is wrong half of the time"
    assert all(parse(example.completion) == example.meta["verdict"] for example in hurried)
