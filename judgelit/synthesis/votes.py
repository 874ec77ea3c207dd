"""What the judgments of one pair say together: verdict, consistency, probability, votes."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal, cast

from judgelit.records.records import Judgment, Label, Order, swap_label

ORDERS: tuple[Order, ...] = ("ab", "ba")
DIGITS = 6
"""Decimals of probabilities in files."""


@dataclass(frozen=True)
class PairVerdict:
    """The verdict of all judgments of a pair, in the pair's own order: A means that `answer_a` is better."""

    verdict: Label | None
    """The label with the largest share of votes, mean of the orders; a tie if several have the largest share. None if
    no judgment has a verdict."""
    consistent: bool | None
    """Whether the majorities of both orders agree; None if the pair was judged in one order."""
    probability_a: float | None
    """Probability that `answer_a` is better: the mean over the orders of the mean over the votes. A vote counts
    as sigmoid(margin), or as 1 (A), 0 (B) or 0.5 (tie) where the margin is unknown."""
    confidence: float | None
    """Probability of the verdict; None if that is a tie or None."""
    confidence_from: Literal["log-probabilities", "votes"] | None
    """`votes` if the margin of a vote for A or B is unknown."""
    votes: dict[str, int]
    """Number of judgments that say A, B, tie or none."""
    split: int
    """Number of orders in which several labels have the most votes."""

    @property
    def winner(self) -> Literal["A", "B"] | None:
        """A or B if the verdict is that and the orders, if both were asked, agree."""
        return self.verdict if self.verdict in ("A", "B") and self.consistent is not False else None


def winner_of(judgment: Judgment) -> Label | None:
    """The verdict of a judgment in its pair's own order."""
    verdict = cast(Label | None, judgment.verdict)
    return verdict if judgment.order == "ab" or verdict is None else swap_label(verdict)


def vote(judgments: Sequence[Judgment], both_orders: bool = True) -> PairVerdict:
    """The verdict of the judgments of one pair.

    Args:
        judgments: Judgments of the pair, any number in each order.
        both_orders: Whether the pair was to be judged in both orders.
    """
    by_order = [[one for one in judgments if one.order == order] for order in ORDERS]
    winners = [[winner for one in of_order if (winner := winner_of(one))] for of_order in by_order]
    tallies = [Counter(of_order) for of_order in winners if of_order]
    majorities = [_largest(tally) for tally in tallies]
    verdict = None
    if tallies:
        shares = {
            label: fmean(tally[label] / tally.total() for tally in tallies) for label in sorted(set().union(*tallies))
        }
        verdict = _largest(shares) or "tie"
    chances = [[chance for one in of_order if (chance := _chance_of_a(one)) is not None] for of_order in by_order]
    known = [fmean(of_order) for of_order in chances if of_order]
    probability_a = round(fmean(known), DIGITS) if known else None
    all_votes = Counter(winner_of(one) or "none" for one in judgments)
    decided = [one for one in judgments if one.verdict in ("A", "B")]
    return PairVerdict(
        verdict=verdict,
        consistent=len(majorities) == len(ORDERS) and len({label or "tie" for label in majorities}) == 1
        if both_orders
        else None,
        probability_a=probability_a,
        confidence=_of_verdict(verdict, probability_a),
        confidence_from=None
        if probability_a is None
        else "log-probabilities"
        if decided and all(one.margin is not None for one in decided)
        else "votes",
        votes={name: all_votes[name] for name in ("A", "B", "tie", "none")},
        split=sum(label is None for label in majorities),
    )


def _largest(shares: "Counter[Label] | dict[Label, float]") -> Label | None:
    """The label with the largest share, None if several have it."""
    largest = max(shares.values())
    labels = [label for label, share in shares.items() if math.isclose(share, largest)]
    return labels[0] if len(labels) == 1 else None


def _chance_of_a(judgment: Judgment) -> float | None:
    """Probability that a judgment gives to `answer_a` of its pair."""
    winner = winner_of(judgment)
    if winner is None:
        return None
    if winner == "tie":
        return 0.5
    if judgment.margin is None:
        return float(winner == "A")
    first = 0.5 * (1 + math.tanh(0.5 * judgment.margin))
    return first if judgment.order == "ab" else 1 - first


def _of_verdict(verdict: Label | None, probability_a: float | None) -> float | None:
    if probability_a is None or verdict not in ("A", "B"):
        return None
    return probability_a if verdict == "A" else round(1 - probability_a, DIGITS)
