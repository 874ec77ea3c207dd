"""Accuracy, consistency and bias of a judge.

Pairs with the label tie have no right winner. They are left out of accuracy, consistent_accuracy and length_bias, and
`ties` says how many they are. A verdict "tie" about a pair with a winner is wrong.

To add a metric, write a function from `Verdicts` to a `Metric` and add it to `METRICS`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from judgelit.evaluation.agreement import cohens_kappa
from judgelit.evaluation.intervals import Mean, Metric
from judgelit.records.records import AnswerSet, Finish, Judgment, PreferencePair

A, B, TIE, NO_VERDICT = range(4)
_LABELS = {"A": A, "B": B, "tie": TIE, None: NO_VERDICT}
_ORDERS = {"ab": 0, "ba": 1}
_CUT: dict[Finish | None, int] = {"stop": 0, "verdict": 0, "length": 1, None: -1}


@dataclass(frozen=True)
class Verdicts:
    """The verdicts of n judgments beside what is known of their pairs; each field is [n] int64."""

    pair: np.ndarray
    """Index of the pair; equal numbers stand side by side."""
    question: np.ndarray
    """Index of the pair's question."""
    order: np.ndarray
    """0 for ab, 1 for ba."""
    verdict: np.ndarray
    """A, B, TIE or NO_VERDICT, as the judge saw the answers."""
    label: np.ndarray
    """A, B or TIE, in the order ab."""
    longer: np.ndarray
    """The longer answer in the order ab: A, B, or TIE if both have the same number of characters."""
    cut: np.ndarray
    """1 if the limit of tokens ended the text, 0 if not, -1 if that is unknown."""

    @classmethod
    def of(cls, pairs: Sequence[PreferencePair], judgments: Sequence[Judgment]) -> "Verdicts":
        """Verdicts of `judgments`; a judgment that is there twice counts once.

        Args:
            pairs: The judged pairs, in the order ab; others do not matter.
            judgments: Judgments of these pairs.
        """
        questions = question_numbers(pairs)
        known: dict[str, tuple[int, int, int, int]] = {}
        for index, pair in enumerate(pairs):
            length_a, length_b = len(pair.answer_a), len(pair.answer_b)
            longer = TIE if length_a == length_b else (A if length_a > length_b else B)
            known[pair.id] = (index, questions[pair.id], _LABELS[pair.label], longer)
        rows = []
        for judgment in judgments:
            index, question, label, longer = known[judgment.pair_id]
            order, said, cut = _ORDERS[judgment.order], _LABELS[judgment.verdict], _CUT[judgment.finish]
            rows.append((index, question, order, said, label, longer, cut))
        return cls(*np.unique(np.array(rows, dtype=np.int64).reshape(-1, 7), axis=0).T)

    @cached_property
    def winner(self) -> np.ndarray:
        """The verdict as it reads in the order ab."""
        return self._turned(self.verdict)

    @cached_property
    def label_shown(self) -> np.ndarray:
        """The label as the judge saw the answers."""
        return self._turned(self.label)

    def _turned(self, values: np.ndarray) -> np.ndarray:
        """A and B swapped in the order ba."""
        return np.where((self.order == 1) & (values < TIE), 1 - values, values)

    @cached_property
    def right(self) -> np.ndarray:
        """Whether the winner is the label, [n] bool."""
        return self.winner == self.label

    @cached_property
    def has_winner(self) -> np.ndarray:
        """Whether the label is A or B, [n] bool."""
        return self.label < TIE

    @cached_property
    def both_orders(self) -> tuple[np.ndarray, np.ndarray]:
        """Places of the two judgments of each pair that was judged in both orders, two arrays of [P] int64."""
        first = np.flatnonzero((self.pair[:-1] == self.pair[1:]) & (self.order[:-1] != self.order[1:]))
        return first, first + 1


def accuracy(verdicts: Verdicts) -> Metric:
    """Share of judgments that are right, of the pairs whose label is not a tie."""
    known = verdicts.has_winner
    return [Mean(verdicts.right[known], verdicts.question[known])]


def consistent_accuracy(verdicts: Verdicts) -> Metric:
    """Share of pairs whose judgments are right in both orders, of the pairs whose label is not a tie."""
    ab, ba = verdicts.both_orders
    known = verdicts.has_winner[ab]
    return [Mean((verdicts.right[ab] & verdicts.right[ba])[known], verdicts.question[ab][known])]


def consistency(verdicts: Verdicts) -> Metric:
    """Share of pairs whose judgments name the same winner in both orders."""
    ab, ba = verdicts.both_orders
    winner = verdicts.winner
    return [Mean((winner[ab] == winner[ba]) & (winner[ab] != NO_VERDICT), verdicts.question[ab])]


def no_verdict(verdicts: Verdicts) -> Metric:
    """Share of judgments without a verdict."""
    return [Mean(verdicts.verdict == NO_VERDICT, verdicts.question)]


def cut_by_length(verdicts: Verdicts) -> Metric:
    """Share of judgments that the limit of tokens ended, of those whose end is known."""
    known = verdicts.cut >= 0
    return [Mean(verdicts.cut[known] == 1, verdicts.question[known])]


def share_a(verdicts: Verdicts) -> Metric:
    """Share of verdicts that say A; above one half the judge favours the answer that stands first."""
    given = verdicts.verdict != NO_VERDICT
    return [Mean(verdicts.verdict[given] == A, verdicts.question[given])]


def length_bias(verdicts: Verdicts) -> Metric:
    """Accuracy where the longer answer is better minus accuracy where the shorter one is; pairs with a winner only."""
    comparable = verdicts.has_winner & (verdicts.longer < TIE)
    longer_better = comparable & (verdicts.label == verdicts.longer)
    shorter_better = comparable & (verdicts.label != verdicts.longer)
    return [
        Mean(verdicts.right[longer_better], verdicts.question[longer_better]),
        Mean(verdicts.right[shorter_better], verdicts.question[shorter_better], weight=-1.0),
    ]


def kappa(verdicts: Verdicts) -> Metric:
    """Cohen's kappa of verdict and label, over A, B, tie and no verdict; pairs labelled tie count too.

    Both are taken as the judge saw the answers. In both orders, A and B then have equal shares of the labels, wherever
    a file of pairs puts the better answer.
    """
    return cohens_kappa(verdicts.verdict, verdicts.label_shown, len(_LABELS), verdicts.question)


def ties(verdicts: Verdicts) -> Metric:
    """Share of pairs whose label is a tie."""
    first = np.unique(verdicts.pair, return_index=True)[1]
    return [Mean(~verdicts.has_winner[first], verdicts.question[first])]


METRICS: dict[str, Callable[[Verdicts], Metric]] = {
    "accuracy": accuracy,
    "consistent_accuracy": consistent_accuracy,
    "consistency": consistency,
    "no_verdict": no_verdict,
    "cut_by_length": cut_by_length,
    "share_a": share_a,
    "length_bias": length_bias,
    "kappa": kappa,
    "ties": ties,
}


def pair_metrics(pairs: Sequence[PreferencePair], judgments: Sequence[Judgment]) -> dict[str, Metric]:
    """All METRICS of a judge's verdicts on labelled pairs."""
    verdicts = Verdicts.of(pairs, judgments)
    return {name: metric(verdicts) for name, metric in METRICS.items()}


def question_numbers(items: Sequence[PreferencePair | AnswerSet]) -> dict[str, int]:
    """The number of the question of each item, by the item's id. Items about the same question have the same."""
    numbers: dict[str, int] = {}
    return {item.id: numbers.setdefault(item.question_key, len(numbers)) for item in items}
