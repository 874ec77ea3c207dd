import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
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
from judgelit.records.shards import Shard
from judgelit.synthesis.decontamination import EvaluationSet
from judgelit.synthesis.enhancement import Enhancement, synthesize_enhancement
from judgelit.synthesis.teachers import TaskTeacher, Teacher
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
        judge: ScriptedEngine,
        pairs=PAIRS,
        teacher=None,
        journal: str = "j.sqlite",
        seed: int = 0,
        round: int = 1,
        shard: Shard | None = None,
        decontaminate: Mapping[str, EvaluationSet] | None = None,
        **more: Any,
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
            round=round,
            shard=shard,
            decontaminate=decontaminate,
        )

    return synthesize


def test_pairs_with_shortened_answers_are_counted_once_for_both_orders(make):
    long = [make_pair(number, right="yes " + "x" * 2000 * (number < 5)) for number in range(8)]
    _, report = make(judge_by(mixed), pairs=long)
    assert report.shortened == 5 and str(report).endswith("; 5 pairs asked with shortened answers")


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
    assert {reason: count for reason, count in report.dropped.items() if count} == {"always right": 4, "never right": 4}
    assert report.prompts == len(prompts) + report.dropped["always right"] + report.dropped["never right"]
    assert report.kept == len(examples)
    assert "dropped: 4 always right, 4 never right" in str(report)


def test_whether_a_judgment_without_verdict_may_be_the_wrong_one(make):
    rejected = {parse(example.rejected) for example in make(judge_by(mixed))[0]}
    assert None in rejected
    examples, report = make(judge_by(mixed), unparsed="dropped")
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


class Cut(ScriptedEngine):
    """A judge whose judgments, and those that it writes with a hint, are cut by the limit of tokens if they say so."""

    def answer(self, *args: Any, **more: Any):
        for index, answers in super().answer(*args, **more):
            yield index, [replace(one, finish="length") if "cut" in one.text else one for one in answers]


def test_a_judgment_that_was_cut_is_not_imitated(make):
    def say(prompt: str, sample: int) -> str:
        right = re.search(r"reach the verdict \[\[([AB])]]", prompt) or re.search("([AB]): yes", prompt)
        number = int(prompt.split("question ")[1].split("?")[0])
        whole = sample == 0 and ("reach the verdict" in prompt or number < 4)
        if sample == 3:
            return f"cut [[{swap_label(right[1])}]] and"
        return f"{'whole' if whole else 'cut'} {sample} [[{right[1]}]]" + ("" if whole else " and")

    examples, report = make(Cut(say))
    assert {example.chosen[:7] for example in examples} == {"whole 0"}
    assert {example.rejected[:3] for example in examples} == {"cut"}
    assert {example.meta["pair_id"] for example in examples} == {"p0", "p1", "p2", "p3"}
    assert {example.meta["solve_rate"] for example in examples} == {0.75}, (
        "a cut judgment with the right verdict counts"
    )
    assert report.dropped["cut by the limit of tokens wherever right"] == 8
    written, _ = make(Cut(say), hint="right", journal="hint.sqlite")
    assert len({example.meta["pair_id"] for example in written}) == 8
    assert {example.chosen[:7] for example in written} == {"whole 0"}


def test_samples_and_teachers_stop_at_the_verdict_as_evaluation_does():
    assert Enhancement().sampling().stop_at_verdict and Sampling().stop_at_verdict


def test_a_prompt_without_any_verdict_is_not_called_always_right(make):
    rule = {**MIXED, 0: [None]}
    _, report = make(judge_by(lambda number, sample: rule[number][sample % len(rule[number])]), unparsed="dropped")
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


def test_the_couples_of_a_prompt_are_of_similar_length(make):
    def say(prompt: str, sample: int) -> str:
        right = "A" if "A: yes" in prompt else "B"
        return "x" * (10 * (sample // 2)) + f" [[{right if sample % 2 else swap_label(right)}]]"

    examples, _ = make(ScriptedEngine(say), samples=8, pairs_per_prompt=4)
    assert all(len(example.chosen) == len(example.rejected) for example in examples) and len(examples) == 64
    drawn, _ = make(ScriptedEngine(say), samples=8, pairs_per_prompt=4, similar_length=False, journal="drawn.sqlite")
    assert any(len(example.chosen) != len(example.rejected) for example in drawn)


def test_the_solve_rate_is_kept_in_the_records(make):
    def rule(number: int, sample: int) -> bool:
        return sample < (1 if number % 2 else 3)

    judge = judge_by(rule)
    say = judge.say
    # In order ba question 1 is never right.
    judge.say = lambda prompt, sample: (
        "[[A]]" if "question 1?" in prompt and "A: yes" not in prompt else say(prompt, sample)
    )
    examples, report = make(judge)
    rates = {(e.meta["pair_id"], e.meta["order"]): (e.meta["solve_rate"], e.meta["pair_solve_rate"]) for e in examples}
    assert rates["p0", "ab"] == rates["p0", "ba"] == (0.75, 0.75)
    order = "ba" if PAIRS[1].label == "B" else "ab"
    assert {key: rates[key] for key in rates if key[0] == "p1"} == {("p1", order): (0.25, 0.125)}
    assert report.solve_rates["10-19%"] == 1 and sum(report.solve_rates.values()) == len(PAIRS)
    assert report.solve_rates["70-79%"] == 4 and report.solve_rates["20-29%"] == 3


def test_examples_of_a_pair_do_not_depend_on_other_pairs(make):
    half = judge_by(lambda number, sample: sample % 2 == 0)
    examples, _ = make(half, samples=8)
    alone, _ = make(half, PAIRS[3:5], samples=8, journal="alone.sqlite")
    assert alone == [example for example in examples if example.meta["pair_id"] in ("p3", "p4")]


def test_right_in_both_orders(make):
    def say(prompt: str, sample: int) -> str:
        number = int(prompt.split("question ")[1].split("?")[0])
        right = "A" if "A: yes" in prompt else "B"
        # Even questions: A, whatever the order; but one sample says B. Odd ones: right in every second sample.
        said = ("B" if sample == 0 and right == "A" else "A") if number % 2 == 0 else "AB"[sample % 2]
        return f"thought {sample} [[{said}]]"

    one, _ = make(ScriptedEngine(say))
    assert {example.meta["pair_id"] for example in one} == {pair.id for pair in PAIRS}
    both, report = make(ScriptedEngine(say), right="both_orders")
    assert {number_of(pair) % 2 for pair in PAIRS if pair.id in {e.meta["pair_id"] for e in both}} == {1}
    assert report.dropped["right in one order only"] == 4 and report.dropped["never right"] == 4


class Obeys(ScriptedEngine):
    """A judge that is never right by itself; with a hint it says what the hint says, in the words of `speak`."""

    def __init__(self, speak: Callable[[str, int], str]) -> None:
        super().__init__(self.answer_to)
        self.speak = speak

    def answer_to(self, prompt: str, sample: int) -> str:
        hint = re.search(r"reach the verdict \[\[([AB])]]", prompt)
        wrong = "B" if "A: yes" in prompt else "A"
        return f"thought {sample} [[{wrong}]]" if hint is None else self.speak(hint[1], sample)


def test_a_judge_that_is_shown_the_label_writes_the_right_judgment(make):
    judge = Obeys(lambda label, sample: f"Because {sample}, [[{label}]]")
    examples, report = make(judge, hint="right")
    assert len({(e.meta["pair_id"], e.meta["order"]) for e in examples}) == 16 and report.written == 64
    for example in examples:
        assert example.chosen.startswith("Because") and parse(example.chosen) == example.meta["verdict"]
        assert example.rejected.startswith("thought") and parse(example.rejected) == swap_label(example.meta["verdict"])
        assert "prefer" not in example.messages[-1]["content"], "the example has the prompt without the hint"
        assert (example.meta["hint"], example.meta["solve_rate"]) == ("right", 0.0)
    again = Obeys(judge.speak)
    assert make(again, hint="right") == (examples, report) and again.asked == []


def test_both_judgments_may_be_written_with_a_hint(make):
    examples, _ = make(Obeys(lambda label, sample: f"Because {sample}, [[{label}]]"), hint="both")
    assert examples
    for example in examples:
        assert example.chosen.startswith("Because") and example.rejected.startswith("Because")
        assert parse(example.chosen) == example.meta["verdict"] == swap_label(parse(example.rejected))
    # A writer that knows the label does not write the wrong judgment.
    teacher = Knows(*range(8))
    with pytest.raises(UserError, match="16 no wrong one with the hint"):
        make(judge_by(lambda number, sample: False), teacher=teacher, hint="both", journal="teacher.sqlite")
    with pytest.raises(UserError, match=r"settings.hint: found both, but the teacher of the tasks"):
        make(judge_by(mixed), teacher=TaskTeacher(), hint="both")


def test_a_judgment_that_mentions_the_hint_is_dropped(make):
    def speak(label: str, sample: int) -> str:
        return f"People prefer Answer {label}. [[{label}]]" if sample else f"It is shorter. [[{label}]]"

    examples, _ = make(Obeys(speak), hint="right")
    assert {example.chosen.split("[")[0] for example in examples} == {"It is shorter. "}
    always = Obeys(lambda label, sample: speak(label, 1))
    with pytest.raises(UserError, match="16 mentions the hint"):
        make(always, hint="right", journal="always.sqlite")
    stubborn = Obeys(lambda label, sample: f"No: [[{swap_label(label)}]]")
    with pytest.raises(UserError, match="16 never right"):
        make(stubborn, hint="right", journal="stubborn.sqlite")


def test_a_teacher_is_shown_the_label(make):
    teacher = Knows(2, 3)
    examples, _ = make(judge_by(mixed), teacher=teacher, hint="right")
    for prompt in teacher.asked:
        assert f"reach the verdict [[{prompt.pair.label}]]" in prompt.messages[-1]["content"]
    taught = [example for example in examples if example.meta["hint"] == "right"]
    assert {example.meta["pair_id"] for example in taught} == {"p2", "p3"}
    assert {example.meta["judge"] for example in taught} == {"scripted, right one by knows"}


def test_a_hint_shortens_the_answers_rather_than_the_room(make, chatml: ChatTokenizer):
    long = [make_pair(number, right="yes" + " very" * 150, wrong="no") for number in range(2)]
    judge = Obeys(lambda label, sample: f"Because {sample}, [[{label}]]")
    examples, _ = make(judge, long, hint="right")
    assert {example.meta["pair_id"] for example in examples} == {"p0", "p1"}
    assert max(chatml.count([{"role": "user", "content": prompt}]) for prompt in judge.asked) <= 400


def test_easy_pairs_come_first(make):
    def rule(number: int, sample: int) -> bool:
        return sample < 1 + number % 3

    plain, _ = make(judge_by(rule))
    ordered, _ = make(judge_by(rule), easy_to_hard=True)
    rates = [example.meta["pair_solve_rate"] for example in ordered]
    assert rates == sorted(rates, reverse=True) and len(set(rates)) == 3
    assert ordered != plain and sorted(ordered, key=plain.index) == plain
    assert [e for e in ordered if e.meta["solve_rate"] == 0.5] == [e for e in plain if e.meta["solve_rate"] == 0.5]


def test_another_round_draws_other_samples_and_says_so(make):
    seeds: list[int] = []

    class Noted(ScriptedEngine):
        def answer(self, conversations, sampling, *, samples=1, seed=0, done=()):
            seeds.append(seed)
            return super().answer(conversations, sampling, samples=samples, seed=seed, done=done)

    for number in (1, 2):
        examples, _ = make(Noted(judge_by(mixed).say), journal=f"{number}.sqlite", round=number)
        assert {example.meta["round"] for example in examples} == {number}
    assert len(set(seeds)) == 2 and seeds[0] == 0
    with pytest.raises(UserError, match="round: found 0, expected 1 or more"):
        make(judge_by(mixed), round=0)


def test_shards_together_make_the_whole_set(make):
    pairs = [make_pair(number, "AB"[number % 2]) for number in range(30)]
    # Two pairs of one question are in one shard.
    pairs += [make_pair(100 + number, question=f"question  {number}?") for number in range(5)]
    whole, _ = make(judge_by(mixed_of_many), pairs)
    parts = [
        make(judge_by(mixed_of_many), pairs, shard=Shard(number, 3), journal=f"{number}.sqlite")[0]
        for number in (1, 2, 3)
    ]
    assert all(parts) and sum(map(len, parts)) == len(whole)
    questions = [{example.group for example in part} for part in parts]
    assert all(not one & other for at, one in enumerate(questions) for other in questions[:at])
    places = {(e.meta["pair_id"], e.meta["order"]): at for at, e in enumerate(whole)}
    joined = [example for part in parts for example in part]
    assert sorted(joined, key=lambda e: places[e.meta["pair_id"], e.meta["order"]]) == sorted(
        whole, key=lambda e: places[e.meta["pair_id"], e.meta["order"]]
    )
    # A shard may keep nothing.
    assert make(judge_by(lambda number, sample: True), pairs[:1], shard=Shard(1, 1), journal="none.sqlite")[0] == []


def mixed_of_many(number: int, sample: int) -> bool | None:
    return mixed(number % 8, sample)


def test_one_drawn_order_of_each_pair(make):
    examples, report = make(judge_by(lambda number, sample: sample == 0), both_orders=False)
    assert report.prompts == len(PAIRS)
    orders = {example.meta["pair_id"]: example.meta["order"] for example in examples}
    assert set(orders.values()) == {"ab", "ba"} and len({(e.meta["pair_id"], e.meta["order"]) for e in examples}) == 8


def test_ties_and_too_long_pairs_are_counted(make):
    others = [make_pair(10, "tie"), make_pair(11, question="question 11? " * 100)]
    _, report = make(judge_by(lambda number, sample: sample == 0), [*PAIRS, *others])
    assert (report.prompts, report.dropped["ties"], report.dropped["too long"]) == (16, 1, 1)


def test_questions_of_evaluation_sets_are_not_asked(make):
    half = judge_by(lambda number, sample: sample % 2 == 0)
    sets = {
        "held": EvaluationSet.of(["Question 2", "question 3?", "question 777?"]),
        "other": EvaluationSet.of(["?!x"]),
    }
    examples, report = make(half, decontaminate=sets)
    assert {example.meta["pair_id"] for example in examples} == {"p0", "p1", "p4", "p5", "p6", "p7"}
    assert not any("question 2?" in prompt or "question 3?" in prompt for prompt in half.asked)
    assert report.decontamination == {"held": {"questions": 3, "pairs": 2}, "other": {"questions": 1, "pairs": 0}}
    assert report.dropped["in evaluation sets"] == 2 and "pairs that evaluation sets hold: 2 in held" in str(report)
    with pytest.raises(UserError, match=r"right and a wrong judgment \(8 in evaluation sets\)"):
        make(half, decontaminate={"all": EvaluationSet.of_pairs(PAIRS)}, journal="all.sqlite")


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
    # A small shard may have no verdict by chance; a large one may not.
    assert make(few, [PAIRS[0]], shard=Shard(1, 1), journal="shard.sqlite")[0] == []
    with pytest.raises(UserError, match="none of the first 64 sampled"):
        make(few, many, shard=Shard(1, 1), journal="large.sqlite")


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
        ({"right": "both_orders", "both_orders": False}, "right: found both_orders with both_orders false"),
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
