import json
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest

from judgelit.errors import UserError
from judgelit.records.records import PreferencePair, SFTExample
from judgelit.synthesis.tasks.kinds import KINDS, Kind, Problem
from judgelit.synthesis.tasks.pairs import TaskPairs, make_pair, worked_judgment

ALL_KINDS = ["arithmetic", "constraints", "counting", "dates", "facts", "sorting", "strings", "tracing"]


def verdict(judgment: str) -> str:
    return re.findall(r"\[\[([AB])\]\]", judgment)[-1]


def test_a_pair_has_id_category_subset_and_source():
    pair = make_pair("sorting", 2, 7, 13)
    assert (pair.id, pair.category, pair.subset, pair.source) == (
        "sorting-d2-s7-13",
        "sorting",
        "difficulty-2",
        "judgelit-tasks",
    )
    assert pair == make_pair("sorting", 2, 7, 13)
    assert PreferencePair.from_dict(json.loads(json.dumps(pair.to_dict())), "here") == pair


def test_seed_index_and_difficulty_each_make_another_pair():
    made = [make_pair("dates", *numbers) for numbers in ((1, 0, 0), (2, 0, 0), (1, 1, 0), (1, 0, 1), (1, -1, 0))]
    assert len({pair.question for pair in made}) == len(made)


def test_the_right_answer_is_first_as_often_as_second():
    labels = [make_pair(kind, 2, 0, index).label for kind in ALL_KINDS for index in range(150)]
    assert abs(labels.count("A") / len(labels) - 0.5) < 0.05


def test_pairs_are_the_same_in_every_process():
    code = (
        "from judgelit.synthesis.tasks.pairs import TaskPairs, worked_judgment\n"
        "from judgelit.records.records import PreferencePair\n"
        f"pairs = TaskPairs(kinds={ALL_KINDS}, difficulties=[1, 4], count=28, seed=3).read(PreferencePair)\n"
        "print([(pair, worked_judgment(pair)) for pair in pairs])"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(outputs) == 1
    pairs = TaskPairs(kinds=ALL_KINDS, difficulties=[1, 4], count=28, seed=3).read(PreferencePair)
    assert outputs == {f"{[(pair, worked_judgment(pair)) for pair in pairs]}\n"}


@pytest.mark.parametrize("short", [False, True])
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_the_verdict_is_the_label_in_both_orders(kind, short):
    for difficulty in KINDS[kind].difficulties:
        for index in range(30):
            pair = make_pair(kind, difficulty, 1, index)
            for given in (pair, pair.swapped()):
                judgment = worked_judgment(given, short)
                assert verdict(judgment) == given.label
                assert judgment.endswith(f"[[{given.label}]]")
                assert judgment.count("[[A]]") + judgment.count("[[B]]") == 1


def test_a_swapped_pair_swaps_the_checks_and_nothing_else():
    pair = next(pair for pair in (make_pair("arithmetic", 1, 0, index) for index in range(9)) if pair.label == "A")
    ab, ba = worked_judgment(pair).split("\n\n"), worked_judgment(pair.swapped()).split("\n\n")
    assert ab[0] == ba[0]
    assert ab[1].removeprefix("Answer A") == ba[2].removeprefix("Answer B")
    assert ab[2].removeprefix("Answer B") == ba[1].removeprefix("Answer A")
    assert ab[1].endswith("It is correct.")
    assert ab[2].endswith("It is wrong.")


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_a_short_judgment_has_the_same_working_and_says_of_each_answer_whether_it_is_right(kind):
    for index in range(30):
        pair = make_pair(kind, 1, 1, index)
        long, short = worked_judgment(pair), worked_judgment(pair, short=True)
        assert len(short) < 0.9 * len(long) or kind == "sums"  # its only form is short
        said = {line[0]: line.rsplit(None, 2) for line in short.splitlines() if line[:2] in ("A:", "B:")}
        if kind == "sums":
            assert short == long
            continue
        working = short.partition("\nA:")[0]
        assert working in long
        words = {answer: rest[-1] for answer, rest in said.items()}
        assert words == {pair.label: "right", "B" if pair.label == "A" else "A": "wrong"}


def test_a_changed_pair_or_one_of_another_source_has_no_worked_judgment():
    pair = make_pair("sorting", 1, 0, 0)
    with pytest.raises(UserError, match="'mine-1': found an id that is not the id of a task"):
        worked_judgment(replace(pair, id="mine-1"))
    for changed in (
        replace(pair, question="What?"),
        replace(pair, answer_b="1, 2"),
        replace(pair, label="tie"),
        replace(pair.swapped(), label=pair.label),
    ):
        with pytest.raises(UserError, match="not those that its id makes"):
            worked_judgment(changed)
    with pytest.raises(UserError, match="there is no kind 'cooking'"):
        worked_judgment(replace(pair, id="cooking-d1-s0-0"))


@pytest.mark.parametrize("count", [1, 34, 35, 73, 200])
@pytest.mark.parametrize("difficulties", [[2], [1, 3], [1, 3, 5]])
def test_a_source_is_balanced(count, difficulties):
    kinds = ["dates", "counting", "arithmetic"]
    pairs = TaskPairs(kinds=kinds, difficulties=difficulties, count=count, seed=5).read(PreferencePair)
    assert len(pairs) == count
    assert len({pair.question_key for pair in pairs}) == count
    assert len({pair.id for pair in pairs}) == count
    assert abs(sum(1 if pair.label == "A" else -1 for pair in pairs)) <= 1
    cells = Counter((pair.category, pair.subset) for pair in pairs)
    sizes = [cells[kind, f"difficulty-{difficulty}"] for kind in kinds for difficulty in difficulties]
    assert max(sizes) - min(sizes) <= 1
    for cell in cells:
        labels = [pair.label for pair in pairs if (pair.category, pair.subset) == cell]
        assert abs(labels.count("A") - labels.count("B")) <= 1
    assert [verdict(worked_judgment(pair)) for pair in pairs[:40]] == [pair.label for pair in pairs[:40]]


def test_train_and_held_out_share_no_question_for_any_seeds():
    def keys(part, seed):
        source = TaskPairs(["strings", "tracing"], [1], 400, seed=seed, part=part, held_out_share=0.3)
        return {pair.question_key for pair in source.read(PreferencePair)}

    train, held_out = keys("train", 0) | keys("train", 1), keys("held_out", 0) | keys("held_out", 2)
    assert train and held_out
    assert not train & held_out
    both = keys("all", 3)
    share = len(both & keys("held_out", 3)) / len(both)
    assert 0.2 < share < 0.4


def test_a_source_makes_only_pairs():
    with pytest.raises(UserError, match="read as PreferencePair, not as SFTExample"):
        TaskPairs(["dates"], [1], 4).read(SFTExample)


def test_a_kind_with_too_few_questions_is_refused(monkeypatch):
    def few(rng, difficulty):
        number = rng.randrange(5)
        return Problem(f"{number}?", "yes", "no", "", "It is correct.", "It is wrong.")

    monkeypatch.setitem(KINDS, "few", Kind("five questions", few, range(1, 2)))
    assert len(TaskPairs(["few"], [1], 5).read(PreferencePair)) == 5
    with pytest.raises(UserError, match="few of difficulty 1 has only 5 different questions"):
        TaskPairs(["few"], [1], 6).read(PreferencePair)
    # Questions may repeat, but this part has none of the five.
    assert len(TaskPairs(["few"], [1], 6, distinct=False).read(PreferencePair)) == 6
    with pytest.raises(UserError, match="has only 0 different questions in part 'held_out'"):
        TaskPairs(["few"], [1], 6, part="held_out", held_out_share=1e-9, distinct=False).read(PreferencePair)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"kinds": ["cooking"]}, "there is no kind 'cooking'"),
        ({"kinds": []}, "kinds is"),
        ({"kinds": ["dates", "dates"]}, "none twice"),
        ({"difficulties": [6]}, "dates has no difficulty 6; expected 1 to 5"),
        ({"count": 0}, "count is 0"),
        ({"count": 10**12}, "count is 1000000000000; expected 1 to 10000000"),
        ({"part": "test"}, "part is 'test'"),
        ({"held_out_share": 1.0}, "between 0 and 1"),
    ],
)
def test_invalid_settings_are_refused(change, complaint):
    with pytest.raises(UserError, match=complaint):
        TaskPairs(**{"kinds": ["dates"], "difficulties": [1], "count": 1, **change})
