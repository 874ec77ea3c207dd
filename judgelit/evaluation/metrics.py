"""Accuracy, consistency and bias of a judge, each with a 95% bootstrap interval over questions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from judgelit.records.records import Judgment, PreferencePair

METRICS = ("accuracy", "consistent_accuracy", "consistency", "no_verdict", "share_a", "length_bias")
_LABELS = {"A": 0, "B": 1, "tie": 2, None: 3}
_ORDERS = {"ab": 0, "ba": 1}
_RESAMPLES = 2000
_AT_ONCE = 4_000_000
"""Draws held in memory at once: 32 MB."""


class Estimate(NamedTuple):
    """A figure, its 95% interval, and the number of judgments or pairs behind it."""

    value: float
    low: float
    high: float
    n: int

    def to_dict(self) -> dict[str, float | int | None]:
        """As JSON takes it: a figure that is undefined on this set is null."""
        return {"value": _jsonable(self.value), "low": _jsonable(self.low), "high": _jsonable(self.high), "n": self.n}


@dataclass(frozen=True)
class Gain:
    """A paired difference between two judges on the same questions, its 95% interval and two-sided bootstrap p."""

    value: float
    low: float
    high: float
    p: float

    def to_dict(self) -> dict[str, float | None]:
        """As JSON takes it."""
        return {name: _jsonable(value) for name, value in vars(self).items()}


class JudgeMetrics(Metric):
    """The metrics of METRICS over judgments seen on any rank.

    A judgment is one row of whole numbers: pair, question, order, verdict, label, longer answer; see `outcomes`. Rows
    are gathered over ranks before anything is computed, so a pair's two orders may be judged on different ranks. A
    rank without judgments must be updated with no rows.
    """

    full_state_update = False
    rows: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("rows", default=[], dist_reduce_fx="cat")

    def update(self, rows: Tensor) -> None:
        """Add judgments, [n, 6] int64."""
        self.rows.append(rows)

    def compute(self) -> dict[str, Estimate]:
        """Every metric of METRICS."""
        # A list on one rank, a tensor once gathered from several.
        seen = self.rows if isinstance(self.rows, list) else [self.rows]
        rows = torch.cat([torch.zeros(0, 6, dtype=torch.long), *(part.cpu() for part in seen)])
        return estimates(rows.numpy())


def outcomes(pairs: Sequence[PreferencePair], judgments: Sequence[Judgment]) -> Tensor:
    """Judgments as rows of whole numbers, [n, 6] int64.

    Columns: index of the pair in `pairs`, index of its question, order (0 ab, 1 ba), verdict in the prompt's own terms
    (0 A, 1 B, 2 tie, 3 none), label in the pair's terms (the same code), longer answer in the pair's terms (0, 1, or 2
    for equal length). `pairs` stand in their own order, "ab".
    """
    questions: dict[str, int] = {}
    about: dict[str, list[int]] = {}
    for index, pair in enumerate(pairs):
        question = questions.setdefault(pair.question_key, len(questions))
        longer = 2 if len(pair.answer_a) == len(pair.answer_b) else int(len(pair.answer_b) > len(pair.answer_a))
        about[pair.id] = [index, question, _LABELS[pair.label], longer]
    table = []
    for judgment in judgments:
        index, question, label, longer = about[judgment.pair_id]
        table.append([index, question, _ORDERS[judgment.order], _LABELS[judgment.verdict], label, longer])
    return torch.tensor(table, dtype=torch.long).reshape(-1, 6)


def estimates(rows: np.ndarray, seed: int = 0) -> dict[str, Estimate]:
    """Every metric over judgments as `outcomes` gives them, resampling questions."""
    counts = _by_question(rows)
    totals = counts.sum(axis=0, keepdims=True)
    values, drawn = _values(totals), _values(_resampled(counts, seed))
    sizes = _sizes(totals[0])
    return {name: Estimate(float(values[name][0]), *_interval(drawn[name]), sizes[name]) for name in METRICS}


def gains(before: np.ndarray, after: np.ndarray, seed: int = 0) -> dict[str, Gain]:
    """What each metric gained from one judge to another on the same pairs, resampling questions for both at once.

    p is two-sided: twice the share of resamples in which the gain has the other sign, or none.
    """
    # Pair, question, order, label and longer answer: all but the verdict.
    asked, asked_again = (np.unique(rows[:, [0, 1, 2, 4, 5]], axis=0) for rows in (before, after))
    if not np.array_equal(asked, asked_again):
        raise ValueError("the two judges were not asked the same questions")
    counts = np.hstack([_by_question(before), _by_question(after)])
    width = len(_COUNTS)
    totals, drawn = counts.sum(axis=0, keepdims=True), _resampled(counts, seed)
    first, second = _values(totals[:, :width]), _values(totals[:, width:])
    first_drawn, second_drawn = _values(drawn[:, :width]), _values(drawn[:, width:])
    result = {}
    for name in METRICS:
        differences = second_drawn[name] - first_drawn[name]
        low, high = _interval(differences)
        value = float(second[name][0] - first[name][0])
        result[name] = Gain(value, low, high, float("nan") if np.isnan(value) else _p(differences))
    return result


_COUNTS = (
    "judged",
    "right",
    "none",
    "spoken",
    "said_a",
    "both",
    "both_right",
    "same",
    "long",
    "long_right",
    "short",
    "short_right",
)
_RATIOS = {
    "accuracy": ("right", "judged"),
    "consistent_accuracy": ("both_right", "both"),
    "consistency": ("same", "both"),
    "no_verdict": ("none", "judged"),
    "share_a": ("said_a", "spoken"),
}


def _by_question(rows: np.ndarray) -> np.ndarray:
    """Counts of each question, from which every metric is a ratio of sums, [Q, len(_COUNTS)] float64."""
    rows = np.unique(rows, axis=0)
    pair, question, order, verdict, label, longer = rows.T
    questions, question = np.unique(question, return_inverse=True)
    swapped = np.where(verdict < 2, 1 - verdict, verdict)
    winner = np.where(order == 0, verdict, swapped)
    right = winner == label

    # The same pair in both orders: sorting brings "ab" and "ba" of a pair side by side.
    by_pair = np.lexsort((order, pair))
    first, second = by_pair[:-1], by_pair[1:]
    both = (pair[first] == pair[second]) & (order[first] != order[second])
    first, second = first[both], second[both]

    decided = (label < 2) & (longer < 2)
    chosen = {
        "judged": question,
        "right": question[right],
        "none": question[verdict == 3],
        "spoken": question[verdict != 3],
        "said_a": question[verdict == 0],
        "both": question[first],
        "both_right": question[first[right[first] & right[second]]],
        "same": question[first[(winner[first] == winner[second]) & (winner[first] != 3)]],
        "long": question[decided & (label == longer)],
        "long_right": question[decided & (label == longer) & right],
        "short": question[decided & (label != longer)],
        "short_right": question[decided & (label != longer) & right],
    }
    counts = [np.bincount(chosen[name], minlength=len(questions)) for name in _COUNTS]
    return np.stack(counts, axis=1).astype(float)


def _values(totals: np.ndarray) -> dict[str, np.ndarray]:
    """Every metric of each row of totals, [R, len(_COUNTS)] to [R]; NaN where nothing was counted."""
    of = dict(zip(_COUNTS, totals.T, strict=True))
    values = {name: _ratio(of[part], of[whole]) for name, (part, whole) in _RATIOS.items()}
    values["length_bias"] = _ratio(of["long_right"], of["long"]) - _ratio(of["short_right"], of["short"])
    return values


def _sizes(totals: np.ndarray) -> dict[str, int]:
    """How many judgments or pairs each metric is over."""
    of = dict(zip(_COUNTS, totals, strict=True))
    sizes = {name: int(of[whole]) for name, (_, whole) in _RATIOS.items()}
    return {**sizes, "length_bias": int(of["long"] + of["short"])}


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)


def _resampled(counts: np.ndarray, seed: int) -> np.ndarray:
    """Totals of `counts` over bootstrap samples of its rows, [_RESAMPLES, columns]."""
    questions = len(counts)
    if questions == 0:
        return np.zeros((_RESAMPLES, counts.shape[1]))
    rng = np.random.default_rng(seed)
    even = np.full(questions, 1 / questions)
    step = max(1, _AT_ONCE // questions)
    sizes = [min(step, _RESAMPLES - start) for start in range(0, _RESAMPLES, step)]
    return np.vstack([rng.multinomial(questions, even, size=size) @ counts for size in sizes])


def _p(differences: np.ndarray) -> float:
    known = differences[~np.isnan(differences)]
    beyond = min((known <= 0).sum(), (known >= 0).sum())
    return float(min(1.0, 2 * (beyond + 1) / (len(known) + 1)))


def _interval(values: np.ndarray) -> tuple[float, float]:
    known = values[~np.isnan(values)]
    if len(known) == 0:
        return float("nan"), float("nan")
    low, high = np.percentile(known, [2.5, 97.5])
    return float(low), float(high)


def _jsonable(value: Any) -> Any:
    return None if isinstance(value, float) and np.isnan(value) else value
