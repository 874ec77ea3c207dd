"""Training curves: the metrics that `judgelit fit` has logged, as charts of a few lines each."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from judgelit.runs.csv_log import read_log

MOST_POINTS = 1500
"""Most points of a line; of more, every second, third, ... one is shown."""


@dataclass(frozen=True)
class Line:
    """A metric over the optimizer's steps."""

    name: str
    steps: Sequence[int]
    values: Sequence[float]

    def to_dict(self) -> dict[str, Any]:
        """Fields as JSON values."""
        return {"name": self.name, "x": list(self.steps), "y": list(self.values)}


@dataclass(frozen=True)
class Chart:
    """Lines that share one vertical axis."""

    title: str
    unit: str
    """`share`, `number`, or `count` for large numbers."""
    lines: Sequence[Line]

    def to_dict(self) -> dict[str, Any]:
        """Fields as JSON values."""
        return {"title": self.title, "unit": self.unit, "lines": [line.to_dict() for line in self.lines]}


@dataclass(frozen=True)
class Fit:
    """A training with its charts."""

    name: str
    charts: Sequence[Chart]


_CHARTS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "Loss": ("number", {"train/loss": "training", "val/loss": "held out"}),
    "Reward margin": ("number", {"train/rewards/margin": "training", "val/rewards/margin": "held out"}),
    "Reward accuracy": ("share", {"train/rewards/accuracy": "training", "val/rewards/accuracy": "held out"}),
    "Throughput, tokens a second": ("count", {"train/device/items_per_sec": "training"}),
}
"""Charts with their unit and the metrics of their lines."""
_JUDGED = {"accuracy": "Accuracy of held-out judgments", "consistency": "Consistency of held-out judgments"}
"""Charts of the metrics `judge/SET/METRIC`, which have a line for each set."""


def read_fits(stages: Path) -> list[Fit]:
    """The trainings among the stages of a run, in their sequence."""
    found = [(log.parents[2].name, read_log(log)) for log in sorted(stages.glob("*/csv/version_0/metrics.csv"))]
    fits = [Fit(name, charts_of(rows)) for name, rows in found]
    return [fit for fit in fits if fit.charts]


def charts_of(rows: Sequence[Mapping[str, str]]) -> list[Chart]:
    """The charts of a CSV log; those without a value are left out."""
    return [chart for chart in _all_charts(rows) if chart.lines]


def _all_charts(rows: Sequence[Mapping[str, str]]) -> Iterator[Chart]:
    for title, (unit, names) in _CHARTS.items():
        yield Chart(title, unit, [line for name, label in names.items() if (line := _line(rows, name, label))])
    columns = dict.fromkeys(name for row in rows for name in row)
    for metric, title in _JUDGED.items():
        names = {name: name.split("/")[1] for name in columns if name.startswith("judge/") and name.endswith(metric)}
        exact = {name: label for name, label in names.items() if name == f"judge/{label}/{metric}"}
        yield Chart(title, "share", [line for name, label in exact.items() if (line := _line(rows, name, label))])


def _line(rows: Sequence[Mapping[str, str]], name: str, label: str) -> Line | None:
    """The line of a column, or None if it has no value."""
    points = [(int(float(row["step"])), float(row[name])) for row in rows if row.get(name)]
    points = [(step, value) for step, value in points if abs(value) < float("inf")]
    if not points:
        return None
    every = -(-len(points) // MOST_POINTS)
    shown = points[::-1][::every][::-1]  # the last point is always there
    return Line(label, [step for step, _ in shown], [value for _, value in shown])
