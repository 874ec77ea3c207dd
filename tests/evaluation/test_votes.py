"""Verdicts of several judgments: majorities of a prompt and of a pair, orders, probabilities."""

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from judgelit.errors import UserError
from judgelit.evaluation.protocols import BENCHMARKS
from judgelit.evaluation.protocols.pairs import PAIRS
from judgelit.evaluation.votes import majorities, refuse_equal_votes, vote, vote_shares
from judgelit.records.records import Judgment, Label, Order, swap_label
from tests.support import make_judgment, make_pair

Said = tuple[Label | None, float | None]


def judgments(ab: list[Said], ba: list[Said]) -> list[Judgment]:
    """Judgments with these verdicts and margins, about the prompt."""
    orders: list[tuple[Order, list[Said]]] = [("ab", ab), ("ba", ba)]
    return [
        replace(make_judgment("p", order, verdict), margin=margin) for order, said in orders for verdict, margin in said
    ]


def plain(*verdicts: Label | None) -> list[Said]:
    return [(verdict, None) for verdict in verdicts]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize(
    ("ab", "ba", "verdict", "consistent"),
    [
        (["A"], ["B"], "A", True),
        (["B"], ["A"], "B", True),
        (["A"], ["A"], "tie", False),
        (["tie"], ["tie"], "tie", True),
        (["A"], ["tie"], "tie", False),
        (["A"], [None], "A", False),
        ([None], [None], None, False),
        (["A", "A", "B"], ["B", "B", "A"], "A", True),
        (["A", "A", "A"], ["A", "A", "B"], "A", False),
        (["A", "A", None], ["A", "A", "B"], "A", False),
        (["A", "B"], ["A", "B"], "tie", True),
        (["A", "A", None, None], ["B", None, None, None], "A", True),
    ],
)
def test_the_majority_of_both_orders(
    ab: list[Label | None], ba: list[Label | None], verdict: Label | None, consistent: bool
) -> None:
    found = vote(judgments(plain(*ab), plain(*ba)))
    assert (found.verdict, found.consistent) == (verdict, consistent)
    assert sum(found.votes.values()) == len(ab) + len(ba)
    assert found.votes["none"] == [*ab, *ba].count(None)


def test_votes_are_counted_in_the_pairs_own_order() -> None:
    found = vote(judgments(plain("A", "A", "tie"), plain("A", "B", None)))
    assert found.votes == {"A": 3, "B": 1, "tie": 1, "none": 1}
    assert found.split == 1, "the second order has one vote for each"


def test_the_probability_is_that_of_the_letters() -> None:
    found = vote(judgments([("A", 2.0)], [("B", -1.0)]))
    assert found.probability_a == pytest.approx((sigmoid(2.0) + sigmoid(1.0)) / 2, abs=1e-6)
    assert (found.confidence, found.confidence_from) == (found.probability_a, "log-probabilities")
    assert vote(judgments([("B", -800.0)], [("A", 800.0)])).confidence == 1.0
    # The orders weigh the same, however many of their judgments have a verdict.
    found = vote(judgments([("A", 2.0), (None, None)], [("B", -1.0), ("A", 3.0)]))
    assert found.probability_a == pytest.approx((sigmoid(2.0) + (sigmoid(1.0) + sigmoid(-3.0)) / 2) / 2, abs=1e-6)


def test_without_margins_the_votes_are_the_probability() -> None:
    found = vote(judgments(plain("A", "A", "B", "A"), plain("B", "tie", None, "B")))
    assert found.probability_a == pytest.approx((3 / 4 + 2.5 / 3) / 2, abs=1e-6)
    assert found.confidence_from == "votes"
    assert vote(judgments([("A", 1.0)], plain("B"))).confidence_from == "votes"
    assert vote(judgments(plain("tie"), plain("tie"))).confidence is None
    nothing = vote([])
    assert (nothing.verdict, nothing.probability_a, nothing.confidence_from) == (None, None, None)


def test_one_order_has_no_consistency() -> None:
    found = vote(judgments([], [("A", 1.5)]), both_orders=False)
    assert (found.verdict, found.consistent) == ("B", None)
    assert found.confidence == pytest.approx(sigmoid(1.5), abs=1e-6)


VERDICTS = st.sampled_from(["A", "B", "tie", None])
SAID = st.lists(
    VERDICTS.flatmap(lambda v: st.tuples(st.just(v), st.floats(-5, 5) if v in ("A", "B") else st.none())), max_size=5
)


@given(SAID, SAID)
def test_swapping_the_answers_swaps_the_verdict(ab: list[Said], ba: list[Said]) -> None:
    found, swapped = vote(judgments(ab, ba)), vote(judgments(ba, ab))
    assert swapped.verdict == (swap_label(found.verdict) if found.verdict else None)
    assert swapped.consistent == found.consistent
    if found.probability_a is not None:
        assert swapped.probability_a == pytest.approx(1 - found.probability_a, abs=2e-6)


def samples(verdicts: Sequence[str | None], order: str = "ab", pair: str = "p1") -> list[Judgment]:
    """The samples of one prompt. Texts without a verdict are cut, the others not."""
    return [
        replace(
            make_judgment(pair, "ab", None),
            order=order,
            verdict=verdict,
            text=f"text {sample}",
            sample=sample,
            margin=1.0,
            finish="stop" if verdict else "length",
        )
        for sample, verdict in enumerate(verdicts)
    ]


@pytest.mark.parametrize(
    ("verdicts", "majority", "text"),
    [
        (["B", "A", "A"], "A", 1),
        (["A", "B"], "tie", None),
        (["A", "B", "tie", "B", "A", "tie"], "tie", 2),
        ([None, None, "B"], "B", 2),
        ([None, None], None, 0),
        (["tie", "tie", "A"], "tie", 0),
    ],
)
def test_the_majority_of_a_prompt(verdicts: list[str | None], majority: str | None, text: int | None) -> None:
    (found,) = majorities(samples(verdicts))
    expected = "" if text is None else f"text {text}"
    assert (found.verdict, found.text, found.margin, found.sample) == (majority, expected, None, 0)
    assert (found.finish == "length") == (majority is None)
    assert majorities([found]) == [found]


def test_equal_votes_are_half_a_point_where_a_benchmark_reads_texts() -> None:
    pair = make_pair(1, "A", subset="alpacaeval-easy")

    def score(ab: list[str | None], ba: list[str | None]) -> float:
        found = [*samples(ab), *samples(ba, "ba")]
        said = [replace(one, text=f"[[{one.verdict}]]", pair_id=pair.id) for one in found]
        return BENCHMARKS["rewardbench"].estimates([pair], said)["weighted_accuracy"].value

    assert score(["A", "B"], ["A", "B"]) == score(["B", "A"], ["B", "A"]) == 0.5
    assert score(["A", "B", "A"], ["A", "B", "B"]) == 1


def test_the_majority_of_answers_is_a_letter_and_that_of_ratings_their_mean() -> None:
    found = majorities([*samples(["C", "D", "C"], "cadb"), *samples(["7", "8", None, "7.5"], "b")])
    assert [(one.order, one.verdict) for one in found] == [("cadb", "C"), ("b", "7.5")]


def test_single_judgments_stay_as_they_are() -> None:
    single = [*samples(["A"]), *samples([None], "ba"), *samples(["B"], pair="p2")]
    assert majorities(single) is single
    # A sample that is there twice counts once.
    assert majorities([*samples(["A", "B", "B"]), *samples(["A"]) * 3])[0].verdict == "B"


TABLE = st.lists(st.lists(st.sampled_from(["A", "B", "tie", None]), min_size=1, max_size=5), min_size=1, max_size=6)


@given(TABLE, st.randoms())
@settings(max_examples=40, deadline=None)
def test_metrics_are_those_of_the_majorities(table: list[list[Label | None]], random: random.Random) -> None:
    pairs = [make_pair(number, "AB"[number % 2]) for number in range(len(table))]  # type: ignore[arg-type]
    everything = [one for number, verdicts in enumerate(table) for one in samples(verdicts, pair=f"p{number}")]
    random.shuffle(everything)
    by_hand: list[Judgment] = []
    for number, verdicts in enumerate(table):
        counts = Counter(verdict for verdict in verdicts if verdict).most_common()
        tied = len(counts) > 1 and counts[0][1] == counts[1][1]
        verdict = None if not counts else "tie" if tied else counts[0][0]
        by_hand.append(make_judgment(f"p{number}", "ab", verdict))
    found, expected = PAIRS.estimates(pairs, everything), PAIRS.estimates(pairs, by_hand)
    for name in ("accuracy", "no_verdict", "share_a", "length_bias", "kappa", "ties"):
        assert found[name].to_dict() == expected[name].to_dict(), name
    by_group = PAIRS.estimates_by_group([replace(pair, category="all") for pair in pairs], everything)
    assert by_group["category"]["all"]["accuracy"].to_dict() == expected["accuracy"].to_dict()
    assert all(
        gain.value == 0
        for gain in PAIRS.gains(pairs, everything, everything).values()
        if gain.value is not None and not math.isnan(gain.value)
    )


def test_shares_of_votes_by_hand() -> None:
    judged = [*samples(["A", "A", "B", None]), *samples(["A", "B", None, None], "ba"), *samples([None] * 4, pair="p2")]
    found = vote_shares([make_pair(1), make_pair(2)], judged)
    # Two of three, one of two, none of none.
    assert (found["agreement"].value, found["agreement"].n) == (pytest.approx(3 / 5), 5)
    assert (found["no_verdict"].value, found["no_verdict"].n) == (pytest.approx(7 / 12), 12)
    assert found["cut_by_length"].value == found["no_verdict"].value
    assert (found["split"].value, found["split"].n) == (pytest.approx(1 / 3), 3)


@pytest.mark.parametrize(("votes", "complaint"), [(0, "found 0, expected 1 or more"), (3, "found 3 at temperature 0")])
def test_votes_that_make_no_sense_are_refused(votes: int, complaint: str) -> None:
    with pytest.raises(UserError, match=f"votes: {complaint}"):
        refuse_equal_votes(votes, 0.0)
    refuse_equal_votes(1, 0.0)
