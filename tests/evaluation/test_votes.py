"""Verdicts of several judgments: majorities, orders, probabilities."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from judgelit.evaluation.votes import vote
from judgelit.records.records import Judgment, Label, Order, swap_label
from tests.support import make_judgment

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
