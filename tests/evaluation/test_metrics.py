import json
import math
import random
import warnings
from collections.abc import Mapping
from dataclasses import replace
from statistics import mean

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from judgelit.evaluation import intervals
from judgelit.evaluation.intervals import Estimate, Gain, Mean, Statistic
from judgelit.evaluation.metrics import METRICS, pair_metrics
from judgelit.evaluation.protocols.pairs import PAIRS
from judgelit.records.records import Judgment, Label, PreferencePair, swap_label
from tests.support import make_judgment, make_pair

Found = Mapping[str, Estimate | Gain]
ENDS = ["stop", "verdict", "length", None]
Judged = tuple[list[PreferencePair], list[Judgment]]


@st.composite
def judged(draw: st.DrawFn, judges: int = 1) -> tuple[list[PreferencePair], list[list[Judgment]]]:
    """Pairs, some of which share a question, and the judgments of several judges, in one order or in both."""
    pairs, said = [], [[] for _ in range(judges)]
    for number in range(draw(st.integers(1, 8))):
        label = draw(st.sampled_from(["A", "B", "tie"]))
        question = draw(st.sampled_from(["one?", "two?", "three?", " ONE?"]))
        right, wrong = (draw(st.text("xy", max_size=3)) for _ in range(2))
        pairs.append(make_pair(number, label, right, wrong, question=question))
        for order in draw(st.sampled_from([("ab", "ba"), ("ba", "ab"), ("ab",), ("ba",), ()])):
            for of_judge in said:
                verdict, finish = draw(st.sampled_from(["A", "B", "tie", None])), draw(st.sampled_from(ENDS))
                of_judge.append(replace(make_judgment(f"p{number}", order, verdict), finish=finish))
    return pairs, [draw(st.permutations(of_judge)) for of_judge in said]


def ratio(hits: list[bool]) -> float:
    return mean(hits) if hits else math.nan


def naive(pairs: list[PreferencePair], judgments: list[Judgment]) -> dict[str, tuple[float, int]]:
    """Each metric by its definition, and the number of judgments or pairs."""
    by_id = {pair.id: pair for pair in pairs}
    right: list[bool] = []
    longer_better: list[bool] = []
    shorter_better: list[bool] = []
    winners: dict[str, dict[str, Label | None]] = {}
    for judgment in judgments:
        pair = by_id[judgment.pair_id]
        winner = judgment.verdict
        if judgment.order == "ba" and winner is not None:
            winner = swap_label(winner)
        winners.setdefault(pair.id, {})[judgment.order] = winner
        if pair.label != "tie":
            right.append(winner == pair.label)
            better, worse = pair.answer_a, pair.answer_b
            if pair.label == "B":
                better, worse = worse, better
            if len(better) > len(worse):
                longer_better.append(winner == pair.label)
            elif len(better) < len(worse):
                shorter_better.append(winner == pair.label)
    both = {id: of for id, of in winners.items() if len(of) == 2}
    comparable = {id: of for id, of in both.items() if by_id[id].label != "tie"}
    spoken = [judgment.verdict for judgment in judgments if judgment.verdict is not None]
    labels_shown = [by_id[judgment.pair_id].in_order(judgment.order).label for judgment in judgments]
    return {
        "accuracy": (ratio(right), len(right)),
        "consistent_accuracy": (
            ratio([of["ab"] == of["ba"] == by_id[id].label for id, of in comparable.items()]),
            len(comparable),
        ),
        "consistency": (ratio([of["ab"] == of["ba"] is not None for of in both.values()]), len(both)),
        "no_verdict": (ratio([judgment.verdict is None for judgment in judgments]), len(judgments)),
        "cut_by_length": (
            ratio([judgment.finish == "length" for judgment in judgments if judgment.finish is not None]),
            sum(judgment.finish is not None for judgment in judgments),
        ),
        "share_a": (ratio([said == "A" for said in spoken]), len(spoken)),
        "length_bias": (ratio(longer_better) - ratio(shorter_better), len(longer_better) + len(shorter_better)),
        "kappa": (naive_kappa(labels_shown, [judgment.verdict for judgment in judgments]), len(judgments)),
        "ties": (ratio([by_id[id].label == "tie" for id in winners]), len(winners)),
    }


def naive_kappa(first: list[Label | None], second: list[Label | None]) -> float:
    agreement = ratio([one == other for one, other in zip(first, second, strict=True)])
    n = len(first)
    chance = sum(first.count(label) / n * second.count(label) / n for label in set(first))
    return math.nan if chance == 1 or n == 0 else (agreement - chance) / (1 - chance)


def plain(found: Found) -> dict[str, dict[str, float | int | None]]:
    """Fields in which an undefined value is None, since NaN is unequal to itself."""
    return {name: figure.to_dict() for name, figure in found.items()}


@given(judged())
@settings(max_examples=150)
def test_each_metric_agrees_with_its_definition(drawn: tuple[list[PreferencePair], list[list[Judgment]]]) -> None:
    pairs, (judgments,) = drawn
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = PAIRS.estimates(pairs, judgments)
    expected = naive(pairs, judgments)
    assert set(found) == set(METRICS) == set(expected)
    for name, estimate in found.items():
        value, n = expected[name]
        assert estimate.value == pytest.approx(value, nan_ok=True), name
        assert estimate.n == n, name
        if math.isnan(value):
            assert estimate.to_dict() == {"value": None, "low": None, "high": None, "n": n}
        elif not math.isnan(estimate.low):  # it is NaN for a metric that is about a single question
            assert estimate.low <= estimate.value <= estimate.high, name


def test_the_interval_of_a_single_question_is_unknown() -> None:
    pairs = [make_pair(1, question="one?"), make_pair(2, question="one?"), make_pair(3, question="other?")]
    judgments = [make_judgment(pair.id, order, "A") for pair in pairs for order in ("ab", "ba")]
    several = PAIRS.estimates(pairs, judgments)["accuracy"]
    one = PAIRS.estimates(pairs[:2], judgments[:4])["accuracy"]
    assert (one.value, one.n, one.to_dict()["low"], one.to_dict()["high"]) == (0.5, 4, None, None)
    assert (several.value, several.low, several.high) == (0.5, 0.5, 0.5)


def cells(totals: np.ndarray) -> np.ndarray:
    """The F1 score of [true positives, predicted, actual]."""
    return 2 * totals[:, 0] / (totals[:, 1] + totals[:, 2])


def test_a_statistic_of_totals_is_resampled_by_question() -> None:
    rng = np.random.default_rng(0)
    predicted, actual = rng.random(400) < 0.5, rng.random(400) < 0.6
    columns = np.stack([predicted & actual, predicted, actual], 1)
    f1 = Statistic(columns, np.arange(400) // 2, cells)
    found = intervals.estimates({"share": [Mean(actual, np.arange(400) // 2)], "f1": f1, "again": f1})
    expected = 2 * (predicted & actual).sum() / (predicted.sum() + actual.sum())
    assert found["f1"].value == pytest.approx(expected) and found["f1"] == found["again"]
    draws = []
    for _ in range(2000):
        at = rng.integers(0, 200, 200)
        rows = np.concatenate([2 * at, 2 * at + 1])
        draws.append(cells(columns[rows].sum(0)[None])[0])
    assert (found["f1"].low, found["f1"].high) == pytest.approx(np.percentile(draws, [2.5, 97.5]), abs=0.01)
    flipped = Statistic(np.stack([predicted & ~actual, predicted, ~actual], 1), np.arange(400) // 2, cells)
    gain = intervals.gains({"f1": f1}, {"f1": flipped})["f1"]
    back = intervals.gains({"f1": flipped}, {"f1": f1})["f1"]
    assert (gain.value, gain.low, gain.high) == pytest.approx((-back.value, -back.high, -back.low))


def test_metrics_computed_by_hand() -> None:
    pairs = [
        make_pair(1, "A", "long answer", "short"),
        make_pair(2, "B", "brief", "a longer one"),
        make_pair(3, "tie"),
        make_pair(4, "A", question="question 1?"),
    ]
    judgments = [
        make_judgment("p1", "ab", "A"),
        make_judgment("p1", "ba", "B"),  # answer_a again: right in both orders
        make_judgment("p2", "ab", "A"),  # wrong
        make_judgment("p2", "ba", "A"),  # answer_b: right
        replace(make_judgment("p3", "ab", "tie"), finish="stop"),
        replace(make_judgment("p3", "ba", None), finish="length"),
        make_judgment("p4", "ba", None),  # one order only
    ]
    found = {name: (estimate.value, estimate.n) for name, estimate in PAIRS.estimates(pairs, judgments).items()}
    assert found == {
        # p3 is labelled a tie, so its judgments are neither right nor wrong.
        "accuracy": (pytest.approx(3 / 5), 5),
        "consistent_accuracy": (pytest.approx(1 / 2), 2),
        "consistency": (pytest.approx(1 / 3), 3),
        "no_verdict": (pytest.approx(2 / 7), 7),
        "cut_by_length": (pytest.approx(1 / 2), 2),
        "share_a": (pytest.approx(3 / 5), 5),
        # The longer answer of p1 and, by one letter, of p4 is better (2 of 3 right), the shorter of p2 (1 of 2).
        "length_bias": (pytest.approx(2 / 3 - 1 / 2), 5),
        # Four of seven agree. As shown, the labels are 2 A, 3 B and 2 tie; the verdicts 3 A, 1 B, 1 tie, 2 none.
        "kappa": (pytest.approx((4 / 7 - 11 / 49) / (1 - 11 / 49)), 7),
        "ties": (pytest.approx(1 / 4), 4),
    }


def test_scores_by_category_and_subset() -> None:
    pairs = [
        make_pair(1, "A", category="math", subset="hard"),
        make_pair(2, "B", category="code"),
        make_pair(3, "A"),
    ]
    judgments = [make_judgment(f"p{n}", order, "A") for n in (1, 2, 3) for order in ("ab", "ba")]
    found = PAIRS.estimates_by_group(pairs, judgments)
    assert {field: list(of) for field, of in found.items()} == {"category": ["code", "math"], "subset": ["hard"]}
    assert intervals.as_json(found["category"]["math"]) == intervals.as_json(PAIRS.estimates(pairs[:1], judgments[:2]))
    assert PAIRS.estimates_by_group([make_pair(1)], judgments[:2]) == {}


def test_without_a_verdict_in_both_orders_nothing_is_consistent() -> None:
    found = PAIRS.estimates([make_pair(1)], [make_judgment("p1", order, None) for order in ("ab", "ba")])
    assert (found["consistency"].value, found["no_verdict"].value) == (0, 1)
    assert math.isnan(found["share_a"].value)


def test_without_judgments_each_metric_is_null() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found, gained = plain(PAIRS.estimates([make_pair(1)], [])), plain(PAIRS.gains([make_pair(1)], [], []))
    assert found == {name: {"value": None, "low": None, "high": None, "n": 0} for name in METRICS}
    assert gained == {name: {"value": None, "low": None, "high": None, "p": None} for name in METRICS}
    json.dumps([found, gained], allow_nan=False)


def simulated(rng: random.Random, questions: int, skill: float, copies: int = 1) -> Judged:
    """A judge that is right with probability `skill`; each question has `copies` pairs with the same outcome."""
    pairs, judgments = [], []
    for question in range(questions):
        right = rng.random() < skill
        for copy in range(copies):
            pair = make_pair(question * copies + copy, question=f"question {question}?")
            pairs.append(pair)
            judgments.append(make_judgment(pair.id, "ab", "A" if right else "B"))
    return pairs, judgments


def test_copies_of_a_question_do_not_narrow_the_interval() -> None:
    once = PAIRS.estimates(*simulated(random.Random(1), 60, 0.7))["accuracy"]
    copied = PAIRS.estimates(*simulated(random.Random(1), 60, 0.7, copies=5))["accuracy"]
    assert (copied.low, copied.high) == pytest.approx((once.low, once.high))
    # If each copy was another question, the interval would be narrower by sqrt(5).
    pairs, judgments = simulated(random.Random(1), 60, 0.7, copies=5)
    apart = [make_pair(number) for number in range(len(pairs))]
    narrow = PAIRS.estimates(apart, judgments)["accuracy"]
    assert 1.8 < (copied.high - copied.low) / (narrow.high - narrow.low) < 2.7


def test_questions_without_judgments_do_not_matter() -> None:
    pairs, judgments = simulated(random.Random(2), 30, 0.7)
    others = [make_pair(number) for number in range(100, 400)]
    assert plain(PAIRS.estimates([*others, *pairs], judgments)) == plain(PAIRS.estimates(pairs, judgments))


def test_95_percent_of_the_intervals_contain_the_true_accuracy() -> None:
    rng = random.Random(0)
    held = 0
    for _ in range(200):
        found = PAIRS.estimates(*simulated(rng, 80, 0.7, copies=2))["accuracy"]
        held += found.low <= 0.7 <= found.high
    assert 0.90 <= held / 200 <= 0.99


@given(judged(judges=2))
@settings(max_examples=60)
def test_gains_are_differences_and_antisymmetric(drawn: tuple[list[PreferencePair], list[list[Judgment]]]) -> None:
    pairs, (one, other) = drawn
    forth, back = PAIRS.gains(pairs, one, other), PAIRS.gains(pairs, other, one)
    first, second = PAIRS.estimates(pairs, one), PAIRS.estimates(pairs, other)
    for name in METRICS:
        assert forth[name].value == pytest.approx(second[name].value - first[name].value, nan_ok=True)
        assert forth[name].value == pytest.approx(-back[name].value, nan_ok=True)
        assert forth[name].low == pytest.approx(-back[name].high, abs=1e-9, nan_ok=True)
        assert forth[name].p == pytest.approx(back[name].p, nan_ok=True)


@given(judged())
@settings(max_examples=40)
def test_a_judge_gains_nothing_over_itself(drawn: tuple[list[PreferencePair], list[list[Judgment]]]) -> None:
    pairs, (judgments,) = drawn
    for gain in PAIRS.gains(pairs, judgments, judgments[::-1]).values():
        if not math.isnan(gain.low):
            assert gain.to_dict() == {"value": 0, "low": 0, "high": 0, "p": 1}
        assert math.isnan(gain.value) or gain.value == 0


def test_gains_are_paired() -> None:
    rng = random.Random(3)
    pairs, before = simulated(rng, 200, 0.5)
    better = set(rng.sample([j.pair_id for j in before if j.verdict == "B"], 20))
    after = [make_judgment(j.pair_id, "ab", "A") if j.pair_id in better else j for j in before]
    gain = PAIRS.gains(pairs, before, after)["accuracy"]
    alone = [PAIRS.estimates(pairs, judgments)["accuracy"] for judgments in (before, after)]
    assert gain.value == pytest.approx(0.1)
    assert alone[0].high > alone[1].low, "unpaired, the two intervals overlap"
    assert gain.low > 0.05
    assert gain.p < 0.01


def test_a_gain_about_one_question_has_no_interval() -> None:
    wrong, right = ([make_judgment("p1", "ab", verdict)] for verdict in ("B", "A"))
    gain = PAIRS.gains([make_pair(1)], wrong, right)["accuracy"]
    assert gain.to_dict() == {"value": 1, "low": None, "high": None, "p": None}


@pytest.mark.parametrize("other", [make_judgment("p2", "ab", "A"), make_judgment("p1", "ba", "A")])
def test_gains_between_judges_of_different_pairs_are_refused(other: Judgment) -> None:
    with pytest.raises(ValueError, match="not asked the same"):
        PAIRS.gains([make_pair(1), make_pair(2)], [make_judgment("p1", "ab", "A")], [other])


def test_the_bootstrap_is_the_same_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs, judgments = simulated(random.Random(5), 40, 0.6)
    _, others = simulated(random.Random(6), 40, 0.8)
    first, gained = plain(PAIRS.estimates(pairs, judgments)), plain(PAIRS.gains(pairs, judgments, others))
    assert plain(PAIRS.estimates(pairs, judgments)) == first
    assert plain(PAIRS.gains(pairs, judgments, others)) == gained
    reseeded = intervals.estimates(pair_metrics(pairs, judgments), seed=1)["accuracy"]
    assert reseeded.value == first["accuracy"]["value"]
    monkeypatch.setattr(intervals, "DRAWS_AT_ONCE", 700)
    assert plain(PAIRS.estimates(pairs, judgments)) == first, "fewer draws at once give the same interval"


def test_a_judgment_that_is_there_twice_counts_once() -> None:
    pairs, judgments = simulated(random.Random(6), 12, 0.6)
    assert plain(PAIRS.estimates(pairs, [*judgments, *judgments[:3]])) == plain(PAIRS.estimates(pairs, judgments))


def test_a_metric_may_be_a_weighted_sum_of_means() -> None:
    questions = np.arange(4)
    sections = [
        Mean(np.array([1, 1, 0, 1]), questions, weight=0.5),
        Mean(np.array([0, 1]), questions[:2], weight=0.5),
    ]
    estimate = intervals.estimates({"mean of sections": sections})["mean of sections"]
    assert (estimate.value, estimate.n) == (0.5 * 0.75 + 0.5 * 0.5, 6)
