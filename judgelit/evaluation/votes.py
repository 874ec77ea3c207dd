"""What several judgments say together: the majority of one prompt; verdict and probability of one pair."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Literal, cast

import numpy as np

from judgelit.errors import UserError
from judgelit.evaluation.intervals import Estimate, Mean, estimates
from judgelit.evaluation.metrics import question_numbers
from judgelit.evaluation.tables import show
from judgelit.records.records import AnswerSet, Judgment, Label, Order, PreferencePair, swap_label

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


def samples_by_prompt(judgments: Sequence[Judgment]) -> dict[tuple[str, str], list[Judgment]]:
    """The samples of each prompt, by the id of its item and its order; a sample that is there twice counts once."""
    found: dict[tuple[str, str], dict[int, Judgment]] = {}
    for one in judgments:
        found.setdefault((one.pair_id, one.order), {}).setdefault(one.sample, one)
    return {prompt: list(samples.values()) for prompt, samples in found.items()}


def has_votes(judgments: Sequence[Judgment]) -> bool:
    """Whether some prompt has several samples."""
    return any(len(samples) > 1 for samples in samples_by_prompt(judgments).values())


def majorities(judgments: Sequence[Judgment]) -> Sequence[Judgment]:
    """One judgment of each prompt, with the verdict that most of its samples have.

    Samples without a verdict do not vote. The verdict is "tie" if several have the most votes, and None if no sample
    has one. The majority of ratings is their mean. The text is that of the first sample with this verdict, and empty if
    equal votes are the tie; if there is no verdict, of the first one that the limit of tokens has cut, if any. The
    margin is None.

    Judgments without several samples are returned as they are.
    """
    if not has_votes(judgments):
        return judgments
    return [_majority(samples) for samples in samples_by_prompt(judgments).values()]


def vote_shares(items: Sequence[PreferencePair | AnswerSet], judgments: Sequence[Judgment]) -> dict[str, Estimate]:
    """Shares of the votes behind majorities.

    Args:
        items: What was judged.
        judgments: Judgments with several samples of each prompt.

    Returns:
        `agreement`: share of the votes with a verdict that say what most votes of their prompt say. `no_verdict` and
        `cut_by_length`: shares of all votes without a verdict, and cut by the limit of tokens where that is known.
        `split`: share of prompts in which several verdicts have the most votes.
    """
    questions, by_prompt = question_numbers(items), samples_by_prompt(judgments)
    found: dict[str, list[tuple[bool, int]]] = {"agreement": [], "no_verdict": [], "cut_by_length": [], "split": []}
    for (item, _), samples in by_prompt.items():
        question, leaders = questions[item], _most_voted([one.verdict for one in samples])
        found["agreement"] += [(one.verdict == leaders[0], question) for one in samples if one.verdict is not None]
        found["no_verdict"] += [(one.verdict is None, question) for one in samples]
        found["cut_by_length"] += [(one.finish == "length", question) for one in samples if one.finish is not None]
        found["split"] += [(len(leaders) > 1, question)]
    columns = {name: np.array(rows, dtype=int).reshape(-1, 2).T for name, rows in found.items()}
    return estimates({name: [Mean(values, about)] for name, (values, about) in columns.items()})


def describe_votes(shares: Mapping[str, Estimate]) -> str:
    """The shares of `vote_shares` in a sentence."""
    votes, prompts = shares["no_verdict"].n, shares["split"].n
    return (
        f"{votes} votes on {prompts} prompts; {show(shares['agreement'])} of the votes with a verdict agree with the "
        f"majority of their prompt, {100 * shares['no_verdict'].value:.1f}% of all have no verdict; "
        f"{round(shares['split'].value * prompts)} prompts have no majority, which counts as the verdict tie"
    )


def refuse_equal_votes(votes: int, temperature: float) -> None:
    """Reject several votes of a greedy judge.

    Raises:
        UserError: There are several at temperature 0, or less than one.
    """
    if votes < 1:
        raise UserError(f"votes: found {votes}, expected 1 or more")
    if votes > 1 and temperature == 0:
        raise UserError(
            f"votes: found {votes} at temperature 0, expected 1, since greedy judgments are all the same; set "
            "--temperature 0.7"
        )


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


def _majority(samples: Sequence[Judgment]) -> Judgment:
    """One judgment in place of the samples of a prompt; see `majorities`."""
    verdicts = [one.verdict for one in samples]
    leaders = _most_voted(verdicts)
    verdict = leaders[0] if len(leaders) == 1 else "tie" if leaders else None
    agreeing = [one for one in samples if one.verdict == verdict]
    if verdict is None:
        agreeing = [one for one in samples if one.finish == "length"]
    first = (agreeing or samples)[0]
    if leaders and len(samples[0].order) == 1:
        verdict = str(fmean(float(rating) for rating in verdicts if rating is not None))
    elif leaders and not agreeing:
        # No sample has said tie, and benchmarks read texts by their own rules.
        first = replace(first, text="")
    return replace(first, verdict=verdict, margin=None, sample=0)


def _most_voted(verdicts: Sequence[str | None]) -> list[str]:
    """The verdicts with the most votes, several if they have equally many; none without a vote."""
    tally = Counter(verdict for verdict in verdicts if verdict is not None)
    return [verdict for verdict, votes in tally.items() if votes == max(tally.values())]


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
