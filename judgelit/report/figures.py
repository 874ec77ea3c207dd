"""Figures of a report, and its tables."""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from judgelit.evaluation.intervals import Estimate, Gain, Mean, estimates
from judgelit.evaluation.metrics import METRICS, question_numbers
from judgelit.evaluation.protocols import find_benchmark
from judgelit.evaluation.protocols.benchmark import Benchmark
from judgelit.evaluation.saved import SavedSet
from judgelit.evaluation.tables import GENERAL_HEADINGS, show_gain, show_general
from judgelit.evaluation.votes import describe_votes, majorities
from judgelit.records.records import Judgment
from judgelit.report.sources import Figures, Judge, votes_of

HEADINGS = {
    "accuracy": "accuracy",
    "consistent_accuracy": "right in both orders",
    "consistency": "consistent",
    "no_verdict": "no verdict",
    "cut_by_length": "cut by length",
    "share_a": "says A",
    "length_bias": "length bias",
    "ties": "ties",
}
_ALWAYS: Mapping[str, Callable[[Judgment], bool | None]] = {
    "no_verdict": lambda one: one.verdict is None,
    "cut_by_length": lambda one: None if one.finish is None else one.finish == "length",
}
"""Shares of the judgments that every table has; they are computed where the results lack them."""
_BIASES = ("share_a", "length_bias")
_SIGNED = {"length_bias", "self_preference", "kappa"}
"""Metrics that may be negative."""
_NONE = Estimate(math.nan, math.nan, math.nan, 0)


@dataclass(frozen=True)
class Figure:
    """A figure as the page shows it, with its place on an axis from `low_end` to 1."""

    estimate: Estimate
    low_end: float = 0.0

    @property
    def known(self) -> bool:
        """Whether the figure is defined."""
        return not math.isnan(self.estimate.value)

    @property
    def text(self) -> str:
        """The value in percent."""
        return _percent(self.estimate.value, self.low_end < 0) + "%" if self.known else "–"

    @property
    def interval(self) -> str:
        """The 95% interval in percent."""
        low, high = self.estimate.low, self.estimate.high
        if not self.known:
            return ""
        if math.isnan(low):
            return "one question"
        return f"{_percent(low, self.low_end < 0)} to {_percent(high, self.low_end < 0)}"

    @property
    def count(self) -> str:
        """What the figure was computed from."""
        return f"of {self.estimate.n:,} judgments or pairs"

    @property
    def at(self) -> tuple[float, float, float]:
        """Places of the lower end, the value and the upper end on the axis, in percent of its length."""
        value = self.estimate.value
        ends = [value if math.isnan(end) else end for end in (self.estimate.low, self.estimate.high)]
        low, middle, high = (
            round(100 * min(1.0, max(0.0, (one - self.low_end) / (1 - self.low_end))), 2)
            for one in (ends[0], value, ends[1])
        )
        return low, middle, high


@dataclass(frozen=True)
class Row:
    """The figures of a judge, one for each column of a table."""

    set_name: str
    judge: int
    """The judge's number."""
    cells: Sequence[Figure]
    votes: int = 1
    """Number of judgments of each prompt, whose majority counts."""


@dataclass(frozen=True)
class Table:
    """The figures of all sets of a benchmark."""

    title: str
    convention: str
    columns: Sequence[tuple[str, str]]
    """Heading and meaning of each column."""
    rows: Sequence[Row]
    notes: Sequence[str]


def tables(judges: Sequence[Judge]) -> list[Table]:
    """A table for each benchmark, with a row for each set and judge."""
    found = []
    for benchmark in dict.fromkeys(one.name for judge in judges for one in judge.sets.values()):
        of = find_benchmark(benchmark)
        rows = [
            (name, number, _with_shares(judge.figures[name], judge.sets[name]))
            for name in set_names(judges)
            for number, judge in enumerate(judges)
            if name in judge.sets and judge.sets[name].name == benchmark
        ]
        metrics = [*dict.fromkeys([*of.shown, *_ALWAYS, *_BIASES])]
        # A figure that no judge has would be an empty column.
        shown = [one for one in metrics if one in _ALWAYS or any(one in row and row[one].n for _, _, row in rows)]
        headings = {**HEADINGS, **of.shown}
        found.append(
            Table(
                of.title,
                of.convention,
                [(headings[one], meaning(one, of)) for one in shown],
                [
                    Row(
                        name,
                        number,
                        [figure(one, row.get(one, _NONE)) for one in shown],
                        votes_of(judges[number].sets[name]),
                    )
                    for name, number, row in rows
                ],
                [*(_tie_notes(rows) if "accuracy" in of.shown else ()), *_vote_notes(judges, benchmark)],
            )
        )
    return found


def set_names(judges: Sequence[Judge]) -> list[str]:
    """The names of all sets, each once."""
    return list(dict.fromkeys(name for judge in judges for name in judge.sets))


def main_metric(judges: Sequence[Judge], name: str, of_groups: bool = False) -> tuple[str, str]:
    """The metric that a set's benchmark publishes, or the one of its categories and subsets, and its heading."""
    benchmark = next(judge.sets[name] for judge in judges if name in judge.sets).benchmark
    shown = benchmark.shown_groups if of_groups and benchmark.shown_groups else benchmark.shown
    return next(iter(shown.items()))


@dataclass(frozen=True)
class Comparison:
    """A judge compared with another one, set by set."""

    judge: int
    """The judge's number."""
    other: str
    rows: Sequence[tuple[str, ...]]
    """Set; gain in its published figure, in points, with interval; judgments with another verdict; kappa of the
    verdicts; McNemar's p of right judgments."""


def comparisons(judges: Sequence[Judge]) -> list[Comparison]:
    """The comparisons that `--against` has made."""
    found = []
    for number, judge in enumerate(judges):
        rows = []
        for name, one in judge.against.get("sets", {}).items():
            gain = Gain.from_dict(one["gains"][main_metric(judges, name)[0]])
            kappa = Estimate.from_dict(one["kappa"]) if "kappa" in one else _NONE
            flips = Figure(Estimate.from_dict(one["flip_rate"]))
            rows.append(
                (
                    name,
                    show_gain(gain).replace("-", "−"),
                    f"{flips.text} of {one['judgments']:,}",
                    "–" if math.isnan(kappa.value) else f"{kappa.value:.2f}",
                    f"{one['mcnemar']['judgments']['p']:.2g}",
                )
            )
        if rows:
            found.append(Comparison(number, str(judge.against["model"]), rows))
    return found


def general_rows(judges: Sequence[Judge]) -> list[tuple[str, list[str]]]:
    """The general ability of the judges: name of each metric, and its figure for each judge."""
    metrics = dict.fromkeys(metric for judge in judges for metric in judge.general)
    return [
        (
            GENERAL_HEADINGS.get(metric, metric),
            [show_general(metric, judge.general[metric]) if metric in judge.general else "–" for judge in judges],
        )
        for metric in metrics
    ]


def figure(metric: str, estimate: Estimate) -> Figure:
    """An estimate of this metric as the page shows it."""
    return Figure(estimate, low_end(metric))


def meaning(metric: str, benchmark: Benchmark[Any] | None = None) -> str:
    """What a metric means, in a sentence: what its benchmark says of it, else what it is for labelled pairs."""
    if benchmark is not None and metric in benchmark.meanings:
        return benchmark.meanings[metric]
    of_pairs = METRICS.get(metric)
    return " ".join((inspect.getdoc(of_pairs) or "").split("\n\n")[0].split()) if of_pairs else ""


def low_end(metric: str) -> float:
    """Lower end of a metric's axis: -1 if it may be negative, else 0."""
    return -1.0 if metric in _SIGNED else 0.0


def _percent(value: float, signed: bool) -> str:
    text = f"{100 * value:+.1f}" if signed else f"{100 * value:.1f}"
    return text.replace("-", "−")


def _with_shares(figures: Figures, of_set: SavedSet) -> dict[str, Estimate]:
    """The figures of a set; the shares of judgments that they lack are computed from the judgments."""
    questions = question_numbers(of_set.items)
    missing = {}
    for name, holds in _ALWAYS.items():
        known = [
            (found, questions[one.pair_id]) for one in majorities(of_set.judgments) if (found := holds(one)) is not None
        ]
        if name not in figures and known:
            values, about = zip(*known, strict=True)
            missing[name] = [Mean(np.array(values, bool), np.array(about, int))]
    return {**figures, **estimates(missing)} if missing else dict(figures)


def _tie_notes(rows: Sequence[tuple[str, int, Figures]]) -> Iterator[str]:
    found = {name: figures["ties"] for name, _, figures in rows if "ties" in figures}
    for name, ties in found.items():
        if ties.value > 0:
            yield f"{name}: {round(ties.value * ties.n)} of {ties.n} pairs are labelled tie; accuracy leaves them out."


def _vote_notes(judges: Sequence[Judge], benchmark: str) -> Iterator[str]:
    """What is known of the votes about each set of a benchmark."""
    for judge in judges:
        for name, shares in judge.votes.items():
            if judge.sets[name].name == benchmark:
                of_judge = f"{judge.name}, {name}" if len(judges) > 1 else name
                yield f"{of_judge}: {describe_votes(shares)}."
