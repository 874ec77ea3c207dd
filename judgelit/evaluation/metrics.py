"""Accuracy, consistency and bias of a judge, each with a 95% bootstrap interval over questions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from judgelit.data.records import Judgment, PreferencePair

METRICS = ("accuracy", "consistent_accuracy", "consistency", "no_verdict", "share_a", "length_bias")
_LABELS = {"A": 0, "B": 1, "tie": 2, None: 3}
_ORDERS = {"ab": 0, "ba": 1}
_RESAMPLES = 2000


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
    """The metrics of section METRICS over judgments seen on any rank.

    A judgment is one row of whole numbers: pair, question, order, verdict, label, longer answer; see `outcomes`. Rows
    are gathered over ranks before anything is computed, so a pair's two orders may be judged on different ranks.
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
        rows = torch.cat(self.rows) if isinstance(self.rows, list) else self.rows
        return estimates(rows.cpu().numpy())


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
    table = _by_question(rows)
    weights = _resamples(table, seed)
    result = {}
    for name in METRICS:
        value, n = _value(name, table, np.ones((1, len(table["judged"]))))
        low, high = _interval(_value(name, table, weights)[0])
        result[name] = Estimate(float(value[0]), low, high, n)
    return result


def gains(before: np.ndarray, after: np.ndarray, seed: int = 0) -> dict[str, Gain]:
    """What each metric gained from one judge to another on the same pairs, resampling questions for both at once."""
    first, second = _by_question(before), _by_question(after)
    if len(first["judged"]) != len(second["judged"]):
        raise ValueError("the two judges were not asked the same questions")
    weights = _resamples(first, seed)
    one = np.ones((1, weights.shape[1]))
    result = {}
    for name in METRICS:
        value = _value(name, second, one)[0] - _value(name, first, one)[0]
        differences = _value(name, second, weights)[0] - _value(name, first, weights)[0]
        low, high = _interval(differences)
        known = differences[~np.isnan(differences)]
        beyond = min((known <= 0).sum(), (known >= 0).sum())
        result[name] = Gain(float(value[0]), low, high, min(1.0, 2 * (beyond + 1) / (len(known) + 1)))
    return result


def _by_question(rows: np.ndarray) -> dict[str, np.ndarray]:
    """Counts a question, from which every metric is a ratio of sums."""
    rows = np.unique(rows, axis=0)
    pair, question, order, verdict, label, longer = rows.T
    swapped = np.where(verdict < 2, 1 - verdict, verdict)
    winner = np.where(order == 0, verdict, swapped)
    right = winner == label

    # The same pair in both orders: sorting brings "ab" and "ba" of a pair side by side.
    by_pair = np.lexsort((order, pair))
    first, second = by_pair[:-1], by_pair[1:]
    both = (pair[first] == pair[second]) & (order[first] != order[second])
    first, second = first[both], second[both]
    same = (winner[first] == winner[second]) & (winner[first] != 3)

    size = int(question.max()) + 1 if len(question) else 0

    def count(where: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        return np.bincount(where[chosen], minlength=size).astype(float)

    everything = np.ones(len(rows), dtype=bool)
    decided = (label < 2) & (longer < 2)
    return {
        "judged": count(question, everything),
        "right": count(question, right),
        "none": count(question, verdict == 3),
        "spoken": count(question, verdict != 3),
        "said_a": count(question, verdict == 0),
        "both": count(question[first], np.ones(len(first), dtype=bool)),
        "both_right": count(question[first], right[first] & right[second]),
        "same": count(question[first], same),
        "long": count(question, decided & (label == longer)),
        "long_right": count(question, decided & (label == longer) & right),
        "short": count(question, decided & (label != longer)),
        "short_right": count(question, decided & (label != longer) & right),
    }


_RATIOS = {
    "accuracy": ("right", "judged"),
    "consistent_accuracy": ("both_right", "both"),
    "consistency": ("same", "both"),
    "no_verdict": ("none", "judged"),
    "share_a": ("said_a", "spoken"),
}


def _value(name: str, table: Mapping[str, np.ndarray], weights: np.ndarray) -> tuple[np.ndarray, int]:
    """The metric under each row of question weights [R, Q], and how many judgments or pairs it is over."""
    with np.errstate(invalid="ignore", divide="ignore"):
        if name == "length_bias":
            longer = weights @ table["long_right"] / (weights @ table["long"])
            shorter = weights @ table["short_right"] / (weights @ table["short"])
            return longer - shorter, int((table["long"] + table["short"]).sum())
        part, whole = _RATIOS[name]
        return weights @ table[part] / (weights @ table[whole]), int(table[whole].sum())


def _resamples(table: Mapping[str, np.ndarray], seed: int) -> np.ndarray:
    """How often each question was drawn in each bootstrap sample, [R, Q]."""
    questions = len(table["judged"])
    if questions == 0:
        return np.zeros((_RESAMPLES, 0))
    return np.random.default_rng(seed).multinomial(questions, np.full(questions, 1 / questions), size=_RESAMPLES)


def _interval(values: np.ndarray) -> tuple[float, float]:
    known = values[~np.isnan(values)]
    if len(known) == 0:
        return float("nan"), float("nan")
    low, high = np.percentile(known, [2.5, 97.5])
    return float(low), float(high)


def _jsonable(value: Any) -> Any:
    return None if isinstance(value, float) and np.isnan(value) else value
