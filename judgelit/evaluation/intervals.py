"""Bootstrap intervals: each metric with a 95% interval over questions, and the paired gain between two judges."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

RESAMPLES = 2000
DRAWS_AT_ONCE = 4_000_000
"""Draws held in memory at once: 32 MB."""


class Mean(NamedTuple):
    """The mean of n values, for example of the correctness of n judgments."""

    values: np.ndarray
    """[n] bool or float."""
    questions: np.ndarray
    """[n] int: the number of the question that each value is about."""
    weight: float = 1.0
    """The factor of this mean in its metric."""


@dataclass(frozen=True)
class Statistic:
    """A function of totals over questions, such as F1 or Cohen's kappa, of n judgments or pairs."""

    columns: np.ndarray
    """[n, K] float: what is summed, such as the cells of a table of labels and verdicts."""
    questions: np.ndarray
    """[n] int: the number of the question that each row is about."""
    value: Callable[[np.ndarray], np.ndarray]
    """Computes the metric from R rows of totals, [R, K] to [R]; NaN where it is undefined."""


Metric = Sequence[Mean] | Statistic
"""A weighted sum of means (most metrics are one mean of weight 1), or another function of totals."""


class Estimate(NamedTuple):
    """The value of a metric, its 95% interval, and the number of judgments or pairs that it was computed from.

    The interval of a metric that is about a single question is unknown: its ends are NaN.
    """

    value: float
    low: float
    high: float
    n: int

    def to_dict(self) -> dict[str, float | int | None]:
        """Fields as JSON values; NaN (the metric is undefined) becomes null."""
        return {name: _null_for_nan(value) for name, value in self._asdict().items()}

    @classmethod
    def from_dict(cls, fields: Mapping[str, float | int | None]) -> "Estimate":
        """The estimate that `to_dict` has written."""
        return cls(**{name: float("nan") if value is None else value for name, value in fields.items()})  # type: ignore[arg-type]


@dataclass(frozen=True)
class Gain:
    """The difference of a metric between two judges of the same pairs, its 95% interval and its p-value.

    If the metric is about a single question, interval and p-value are unknown: NaN.
    """

    value: float
    low: float
    high: float
    p: float
    """Two-sided: twice the share of resamples in which the difference is zero or has the other sign."""

    def to_dict(self) -> dict[str, float | None]:
        """Fields as JSON values; NaN (the metric is undefined) becomes null."""
        return {name: _null_for_nan(value) for name, value in vars(self).items()}

    @classmethod
    def from_dict(cls, fields: Mapping[str, float | None]) -> "Gain":
        """The gain that `to_dict` has written."""
        return cls(**{name: float("nan") if value is None else value for name, value in fields.items()})


def as_json(nested: Mapping[str, Any]) -> dict[str, Any]:
    """The same nested mappings with each estimate as a JSON object."""
    return {name: value.to_dict() if isinstance(value, Estimate) else as_json(value) for name, value in nested.items()}


def estimates(metrics: Mapping[str, Metric], seed: int = 0) -> dict[str, Estimate]:
    """Value and interval of each metric; the bootstrap resamples questions."""
    sums = _sums_by_question(metrics, _questions(metrics))
    values = _values(metrics, sums.sum(axis=0, keepdims=True))
    resampled = _values(metrics, _resample(sums, seed))
    found = {}
    for name, metric in metrics.items():
        parts = _parts(metric)
        several = len(_questions({name: metric})) > 1
        interval = _interval(resampled[name]) if several else (float("nan"), float("nan"))
        found[name] = Estimate(float(values[name][0]), *interval, sum(len(columns) for columns, _ in parts))
    return found


def gains(before: Mapping[str, Metric], after: Mapping[str, Metric], seed: int = 0) -> dict[str, Gain]:
    """Gain of each metric from one judge to another on the same pairs; each resample takes the same questions of both.

    Args:
        before: The metrics of the first judge.
        after: The metrics of the second judge, about the same questions.
        seed: Seed of the bootstrap.
    """
    questions = np.union1d(_questions(before), _questions(after))
    sums = np.hstack([_sums_by_question(before, questions), _sums_by_question(after, questions)])

    def differences(totals: np.ndarray) -> dict[str, np.ndarray]:
        first, second = np.hsplit(totals, 2)
        old, new = _values(before, first), _values(after, second)
        return {name: new[name] - old[name] for name in before}

    values, resampled = differences(sums.sum(axis=0, keepdims=True)), differences(_resample(sums, seed))
    found = {}
    for name in before:
        value = float(values[name][0])
        if len(_questions({"before": before[name], "after": after[name]})) > 1:
            found[name] = Gain(value, *_interval(resampled[name]), _p_value(value, resampled[name]))
        else:
            found[name] = Gain(value, *[float("nan")] * 3)
    return found


def _parts(metric: Metric) -> list[tuple[np.ndarray, np.ndarray]]:
    """The summed columns of a metric, [n, K] each, with the questions of their rows; a mean has sum and number."""
    if isinstance(metric, Statistic):
        return [(metric.columns.astype(float), metric.questions)]
    return [(np.stack([mean.values.astype(float), np.ones(len(mean.values))], 1), mean.questions) for mean in metric]


def _value(metric: Metric, totals: np.ndarray) -> np.ndarray:
    """The value of a metric for R rows of the totals of its columns, [R, K] to [R]; NaN where it is undefined."""
    if isinstance(metric, Statistic):
        return metric.value(totals)
    sums, counts = totals[:, ::2], totals[:, 1::2]
    means = np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)
    return means @ np.array([mean.weight for mean in metric])


def _questions(metrics: Mapping[str, Metric]) -> np.ndarray:
    """The numbers of all questions, ascending, [Q] int."""
    parts = [questions for metric in metrics.values() for _, questions in _parts(metric)]
    return np.unique(np.concatenate([np.zeros(0, dtype=int), *parts]))


def _sums_by_question(metrics: Mapping[str, Metric], questions: np.ndarray) -> np.ndarray:
    """The totals of the columns of all metrics by question, [Q, C] float64."""
    size = len(questions)
    sums = [np.zeros((size, 0))]
    for metric in metrics.values():
        for columns, about in _parts(metric):
            places = np.searchsorted(questions, about)
            by_column = [np.bincount(places, column, size) for column in columns.T]
            sums.append(np.stack(by_column, axis=1) if by_column else np.zeros((size, 0)))
    return np.hstack(sums)


def _values(metrics: Mapping[str, Metric], totals: np.ndarray) -> dict[str, np.ndarray]:
    """The value of each metric for R rows of totals, [R, C] to [R]."""
    found, start = {}, 0
    for name, metric in metrics.items():
        end = start + sum(columns.shape[1] for columns, _ in _parts(metric))
        found[name] = _value(metric, totals[:, start:end])
        start = end
    return found


def _resample(sums: np.ndarray, seed: int) -> np.ndarray:
    """Totals over bootstrap samples of the questions, [Q, C] to [RESAMPLES, C]."""
    questions = len(sums)
    if questions == 0:
        return np.zeros((RESAMPLES, sums.shape[1]))
    rng = np.random.default_rng(seed)
    uniform = np.full(questions, 1 / questions)
    step = max(1, DRAWS_AT_ONCE // questions)
    sizes = [min(step, RESAMPLES - start) for start in range(0, RESAMPLES, step)]
    return np.vstack([rng.multinomial(questions, uniform, size=size) @ sums for size in sizes])


def _interval(resampled: np.ndarray) -> tuple[float, float]:
    known = resampled[~np.isnan(resampled)]
    if len(known) == 0:
        return float("nan"), float("nan")
    low, high = np.percentile(known, [2.5, 97.5])
    return float(low), float(high)


def _p_value(value: float, resampled: np.ndarray) -> float:
    if np.isnan(value):
        return float("nan")
    known = resampled[~np.isnan(resampled)]
    beyond = min((known <= 0).sum(), (known >= 0).sum())
    return float(min(1.0, 2 * (beyond + 1) / (len(known) + 1)))


def _null_for_nan(value: Any) -> Any:
    return None if isinstance(value, float) and np.isnan(value) else value
