"""Figures of a report: tables, and rows of intervals on an axis."""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from judgelit.evaluation.intervals import Estimate, Gain, Mean, estimates
from judgelit.evaluation.metrics import METRICS, question_numbers
from judgelit.evaluation.protocols import find_benchmark
from judgelit.evaluation.saved import SavedSet
from judgelit.evaluation.tables import GENERAL_HEADINGS, show_gain, show_general
from judgelit.records.records import Judgment
from judgelit.report.sources import Figures, Judge

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


@dataclass(frozen=True)
class Table:
    """The figures of all sets of a benchmark."""

    title: str
    convention: str
    columns: Sequence[tuple[str, str]]
    """Heading and meaning of each column."""
    rows: Sequence[Row]
    notes: Sequence[str]


@dataclass(frozen=True)
class Panel:
    """Rows of intervals on one axis, in groups with a heading."""

    title: str
    meaning: str
    low_end: float
    groups: Sequence[tuple[str, Sequence[tuple[int, Figure]]]]
    """Heading, and the figure of each judge by its number."""

    @property
    def marks(self) -> list[tuple[int, str]]:
        """Marks of the axis: place in percent of its length, and text."""
        if self.low_end < 0:
            return [(0, "−100%"), (50, "0"), (100, "+100%")]
        return [(0, "0"), (50, "50%"), (100, "100%")]


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
                [(headings[one], meaning(one)) for one in shown],
                [Row(name, number, [figure(one, row.get(one, _NONE)) for one in shown]) for name, number, row in rows],
                list(_tie_notes(rows)),
            )
        )
    return found


def set_names(judges: Sequence[Judge]) -> list[str]:
    """The names of all sets, each once."""
    return list(dict.fromkeys(name for judge in judges for name in judge.sets))


def main_metric(judges: Sequence[Judge], name: str) -> tuple[str, str]:
    """The metric of a set's benchmark that it publishes, and its heading."""
    of_set = next(judge.sets[name] for judge in judges if name in judge.sets)
    return next(iter(of_set.benchmark.shown.items()))


def main_panels(judges: Sequence[Judge]) -> list[Panel]:
    """The published figure of each set, judge by judge."""
    found = []
    for name in set_names(judges):
        metric, heading = main_metric(judges, name)
        rows = [(number, figure(metric, judge.figures[name][metric])) for number, judge in _with_set(judges, name)]
        found.append(Panel(name, heading, 0.0, [("", rows)]))
    return found


def group_panels(judges: Sequence[Judge]) -> list[Panel]:
    """The published figure of each category and subset, where a set has several."""
    found = []
    for name in set_names(judges):
        metric, heading = main_metric(judges, name)
        of_set = [(number, judge.groups.get(name, {})) for number, judge in _with_set(judges, name)]
        for field in dict.fromkeys(field for _, groups in of_set for field in groups):
            names = dict.fromkeys(group for _, groups in of_set for group in groups.get(field, {}))
            by_group = [
                (
                    group,
                    [
                        (number, figure(metric, groups[field][group][metric]))
                        for number, groups in of_set
                        if metric in groups.get(field, {}).get(group, {})
                    ],
                )
                for group in names
            ]
            if len(by_group) > 1:
                found.append(Panel(f"{name}, by {field}", heading, 0.0, by_group))
    return found


def bias_panels(judges: Sequence[Judge]) -> list[Panel]:
    """Consistency, position bias and length bias of each set; those without a value are left out."""
    titles = {"consistency": "Consistency", "share_a": "Position: how often A", "length_bias": "Length"}
    found = []
    for metric, title in titles.items():
        groups = [
            (
                name,
                [
                    (number, figure(metric, judge.figures[name][metric]))
                    for number, judge in _with_set(judges, name)
                    if metric in judge.figures[name]
                ],
            )
            for name in set_names(judges)
        ]
        groups = [(name, rows) for name, rows in groups if any(one.known for _, one in rows)]
        if groups:
            found.append(Panel(title, meaning(metric), _low_end(metric), groups))
    return found


def attack_panels(judges: Sequence[Judge]) -> list[Panel]:
    """The figures of each attack, by set; a metric of an attack's form is left to the files."""
    found = []
    for name in dict.fromkeys(name for judge in judges for name in judge.attacks):
        of_set = [(number, judge.attacks.get(name, {})) for number, judge in enumerate(judges)]
        for attack in dict.fromkeys(attack for _, attacks in of_set for attack in attacks):
            metrics = dict.fromkeys(metric for _, attacks in of_set for metric in attacks.get(attack, {}))
            plain = [metric for metric in metrics if "/" not in metric]
            groups = [
                (
                    _words(metric),
                    [
                        (number, Figure(attacks[attack][metric], low_end))
                        for number, attacks in of_set
                        if metric in attacks.get(attack, {})
                    ],
                )
                for low_end in [-1.0 if _SIGNED & set(plain) else 0.0]
                for metric in plain
            ]
            found.append(Panel(f"{_words(attack)}, {name}", "", -1.0 if _SIGNED & set(plain) else 0.0, groups))
    return found


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
    return Figure(estimate, _low_end(metric))


def meaning(metric: str) -> str:
    """What a metric is, in a sentence; empty if only its benchmark knows."""
    of_pairs = METRICS.get(metric)
    return " ".join((inspect.getdoc(of_pairs) or "").split("\n\n")[0].split()) if of_pairs else ""


def _low_end(metric: str) -> float:
    return -1.0 if metric in _SIGNED else 0.0


def _words(name: str) -> str:
    return name.replace("_", " ").capitalize()


def _percent(value: float, signed: bool) -> str:
    text = f"{100 * value:+.1f}" if signed else f"{100 * value:.1f}"
    return text.replace("-", "−")


def _with_set(judges: Sequence[Judge], name: str) -> Iterator[tuple[int, Judge]]:
    return ((number, judge) for number, judge in enumerate(judges) if name in judge.sets)


def _with_shares(figures: Figures, of_set: SavedSet) -> dict[str, Estimate]:
    """The figures of a set; the shares of judgments that they lack are computed from the judgments."""
    questions = question_numbers(of_set.items)
    missing = {}
    for name, holds in _ALWAYS.items():
        known = [(found, questions[one.pair_id]) for one in of_set.judgments if (found := holds(one)) is not None]
        if name not in figures and known:
            values, about = zip(*known, strict=True)
            missing[name] = [Mean(np.array(values, bool), np.array(about, int))]
    return {**figures, **estimates(missing)} if missing else dict(figures)


def _tie_notes(rows: Sequence[tuple[str, int, Figures]]) -> Iterator[str]:
    found = {name: figures["ties"] for name, _, figures in rows if "ties" in figures}
    for name, ties in found.items():
        if ties.value > 0:
            yield f"{name}: {round(ties.value * ties.n)} of {ties.n} pairs are labelled tie; accuracy leaves them out."
