from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from judgelit.batches.tokenizer import ChatTokenizer
from judgelit.errors import UserError
from judgelit.generation.engine import Generated
from judgelit.generation.sampling import Sampling
from judgelit.judging.prompts import JudgePrompt
from judgelit.judging.verdict import parse
from judgelit.records.records import PreferencePair, swap_label
from judgelit.synthesis.enhancement import Enhancement, synthesize_enhancement
from judgelit.synthesis.teachers import Teacher
from tests.support import ScriptedEngine, make_pair, short_templates

HOT = {"max_new_tokens": 20, "temperature": 1.0, "top_p": 1.0}


class Knows(Teacher):
    """A teacher that is right about the questions with these numbers, and wrong about all others."""

    name = "knows"

    def __init__(self, *numbers: int) -> None:
        self.numbers = numbers
        self.asked: list[JudgePrompt] = []

    def judgments(self, prompts, templates, journal, seed):
        self.asked += prompts
        for index, prompt in enumerate(prompts):
            label = prompt.pair.label if number_of(prompt.pair) in self.numbers else swap_label(prompt.pair.label)
            yield index, Generated(f"The teacher says [[{label}]]\n", "stop")


def number_of(pair: PreferencePair) -> int:
    return int(pair.id[1:])


def judge_by(rule: Callable[[int, int], bool | None], **more: Any) -> ScriptedEngine:
    """A judge with a rule: whether it is right in a sample of a question; None for a text without verdict."""

    def say(prompt: str, sample: int) -> str:
        number = int(prompt.split("question ")[1].split("?")[0])
        correct = "A" if "A: yes" in prompt else "B"
        right = rule(number, sample)
        return f"hm {sample}" if right is None else f"thought {sample} [[{correct if right else swap_label(correct)}]]"

    return ScriptedEngine(say, **more)


PAIRS = [make_pair(number, "AB"[number % 2]) for number in range(8)]
# 0, 1: always right; 2, 3: never; 4, 5: half of the time; 6, 7: right half of the time, else without verdict.
MIXED = {
    0: [True],
    1: [True],
    2: [False],
    3: [False],
    4: [True, False],
    5: [False, True],
    6: [True, None],
    7: [None, True],
}


def mixed(number: int, sample: int) -> bool | None:
    return MIXED[number][sample % len(MIXED[number])]


@pytest.fixture
def make(chatml: ChatTokenizer, tmp_path: Path) -> Callable[..., Any]:
    def synthesize(
        judge: ScriptedEngine, pairs=PAIRS, teacher=None, journal: str = "j.sqlite", seed: int = 0, **more: Any
    ):
        judge.tokenizer = chatml
        return synthesize_enhancement(
            pairs,
            judge,
            short_templates(tmp_path / "templates"),
            tmp_path / journal,
            max_prompt_tokens=400,
            settings=Enhancement(**{"samples": 4, **HOT, **more}),
            teacher=teacher,
            seed=seed,
        )

    return synthesize


def test_a_right_judgment_is_preferred_to_a_wrong_one_of_the_same_prompt(make):
    examples, _ = make(judge_by(mixed))
    pairs = {pair.id: pair for pair in PAIRS}
    assert examples
    for example in examples:
        pair = pairs[example.meta["pair_id"]].in_order(example.meta["order"])
        assert f"A: {pair.answer_a}\nB: {pair.answer_b}" in example.messages[-1]["content"]
        assert parse(example.chosen) == pair.label == example.meta["verdict"]
        assert parse(example.rejected) != pair.label
        assert example.group == pair.question_key and example.meta["judge"] == "scripted"


def test_prompts_without_a_right_and_a_wrong_judgment_are_counted(make):
    examples, report = make(judge_by(mixed))
    prompts = {(example.meta["pair_id"], example.meta["order"]) for example in examples}
    assert prompts == {(f"p{number}", order) for number in (4, 5, 6, 7) for order in ("ab", "ba")}
    assert (report.prompts, report.sampled, report.right, report.without_verdict) == (16, 64, 32, 8)
    assert report.dropped == {"ties": 0, "too long": 0, "always right": 4, "never right": 4}
    assert report.prompts == len(prompts) + report.dropped["always right"] + report.dropped["never right"]
    assert report.kept == len(examples)
    assert "dropped: 4 always right, 4 never right" in str(report)


def test_whether_a_judgment_without_verdict_may_be_the_wrong_one(make):
    rejected = {parse(example.rejected) for example in make(judge_by(mixed))[0]}
    assert None in rejected
    examples, report = make(judge_by(mixed), unparsed_as_rejected=False)
    assert {example.meta["pair_id"] for example in examples} == {"p4", "p5"}
    assert all(parse(example.rejected) is not None for example in examples)
    assert report.dropped["always right"] == 4 and report.dropped["without a wrong one to use"] == 4


def test_an_unparsed_judgment_that_names_the_right_answer_is_not_rejected(make):
    def say(prompt: str, sample: int) -> str:
        right = "A" if "A: yes" in prompt else "B"
        wrong = swap_label(right)
        texts = [f"[[{right}]]", f"Answer {right} is better.", f"[{right}]", f"[[{right}]] or [[{wrong}]]", "hm"]
        return texts[sample % len(texts)]

    examples, _ = make(ScriptedEngine(say), samples=5)
    assert {example.rejected for example in examples} == {"hm"}


def test_samples_and_teachers_stop_at_the_verdict_as_evaluation_does():
    assert Enhancement().sampling().stop_at_verdict and Sampling().stop_at_verdict


def test_a_prompt_without_any_verdict_is_not_called_always_right(make):
    rule = {**MIXED, 0: [None]}
    _, report = make(
        judge_by(lambda number, sample: rule[number][sample % len(rule[number])]), unparsed_as_rejected=False
    )
    assert (report.dropped["always right"], report.dropped["never right"]) == (2, 6)


def test_the_teacher_helps_where_the_judge_is_never_right(make):
    teacher = Knows(2)
    examples, report = make(judge_by(mixed), teacher=teacher)
    assert {number_of(prompt.pair) for prompt in teacher.asked} == {2, 3}
    taught = [example for example in examples if example.meta["pair_id"] == "p2"]
    assert taught and all(example.chosen.startswith("The teacher says") for example in taught)
    assert all(parse(example.chosen) == example.meta["verdict"] != parse(example.rejected) for example in taught)
    assert {example.meta["judge"] for example in taught} == {"scripted, right one by knows"}
    assert not any("teacher" in example.chosen for example in examples if example.meta["pair_id"] != "p2")
    assert report.dropped["never right"] == 2, "the teacher was wrong about question 3"


def test_pairs_of_a_prompt_are_distinct_and_at_most_as_many_as_set(make):
    half = judge_by(lambda number, sample: sample % 2 == 0)
    for most in (1, 3, 100):
        examples, _ = make(half, samples=8, pairs_per_prompt=most)
        counts = Counter((example.meta["pair_id"], example.meta["order"]) for example in examples)
        assert set(counts.values()) == {min(most, 16)}
        assert len({(e.messages[-1]["content"], e.chosen, e.rejected) for e in examples}) == len(examples)
    same = ScriptedEngine(lambda prompt, sample: "[[A]]" if sample % 2 else "[[B]]")
    assert len(make(same, samples=8, journal="same.sqlite")[0]) == 16, "equal texts make one pair"


def test_one_drawn_order_of_each_pair(make):
    examples, report = make(judge_by(lambda number, sample: sample == 0), both_orders=False)
    assert report.prompts == len(PAIRS)
    orders = {example.meta["pair_id"]: example.meta["order"] for example in examples}
    assert set(orders.values()) == {"ab", "ba"} and len({(e.meta["pair_id"], e.meta["order"]) for e in examples}) == 8


def test_ties_and_too_long_pairs_are_counted(make):
    others = [make_pair(10, "tie"), make_pair(11, question="question 11? " * 100)]
    _, report = make(judge_by(lambda number, sample: sample == 0), [*PAIRS, *others])
    assert (report.prompts, report.dropped["ties"], report.dropped["too long"]) == (16, 1, 1)


def test_the_seed_decides(make):
    half = judge_by(lambda number, sample: sample % 2 == 0)
    first = make(half, samples=8, journal="1")[0]
    assert make(half, samples=8, journal="2")[0] == first
    assert make(half, samples=8, journal="3", seed=1)[0] != first


def test_a_judge_without_verdicts_is_an_error_early(make):
    silent = judge_by(lambda number, sample: None)
    many = [make_pair(number) for number in range(200)]
    with pytest.raises(UserError, match="none of the first 64 sampled judgments ends in a verdict") as error:
        make(silent, many)
    assert len(silent.asked) == 16 and "\n" not in str(error.value)
    few = judge_by(lambda number, sample: None)
    with pytest.raises(UserError, match="none of the first 8 sampled"):
        make(few, [PAIRS[0]], journal="few.sqlite")


def test_a_judge_that_is_never_wrong_is_an_error(make):
    with pytest.raises(UserError, match=r"both a right and a wrong judgment \([^{}]*\d+ always right\)$") as error:
        make(judge_by(lambda number, sample: True))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"temperature": 0.0}, "temperature above 0"),
        ({"samples": 1}, "samples of 2 or more"),
        ({"pairs_per_prompt": 0}, "pairs_per_prompt: found 0"),
    ],
)
def test_settings_without_effect_are_refused(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        Enhancement(**settings)


def test_after_a_kill_it_asks_nothing_twice_and_gives_the_same_set(make):
    whole = judge_by(mixed)
    expected = make(whole, journal="whole.sqlite")
    killed = judge_by(mixed, fails_after=7)
    with pytest.raises(KeyboardInterrupt):
        make(killed)
    continued = judge_by(mixed)
    assert make(continued) == expected
    assert sorted(killed.asked + continued.asked) == sorted(whole.asked)
    again = judge_by(mixed)
    assert make(again) == expected and again.asked == []
