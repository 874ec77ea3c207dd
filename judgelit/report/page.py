"""The page of a report: one HTML file with all its styles, scripts and data, which loads nothing."""

import base64
import hashlib
from collections.abc import Collection, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from judgelit.atomic import write_text
from judgelit.report import figures, panels
from judgelit.report.browser import browser_data, script_json
from judgelit.report.sources import Judge, Reported, name_apart, name_sets_apart, read_reported

_HERE = Path(__file__).parent
_STYLES = ("vendor/uplot/uPlot.min.css", "page.css")
_LIBRARY = "vendor/uplot/uPlot.iife.min.js"
_SCRIPTS = ("state.js", "list.js", "detail.js", "charts.js", "page.js")
"""The page's own scripts, which share one scope, in this sequence."""
_CONFIDENCE = {
    "log-probabilities": "confidence: the probability of the verdict, of A and B",
    "votes": "confidence: the share of votes for the verdict",
}
"""What a judge's confidence is, by `confidence_from` of its calibration."""
_COLOURS = 8
"""Number of judges' colours in `page.css`; further judges take them again."""


def write_report(sources: Sequence[Path], output: Path, benchmarks: Collection[str] = ()) -> None:
    """Write the report of one or several folders.

    Args:
        sources: Folders that `judgelit run` or `judgelit evaluate` has written. The judges of all stand side by side.
        output: The HTML file.
        benchmarks: The benchmarks of the form `FILE.py:NAME` whose code the user wants to run.

    Raises:
        UserError: A folder has no results, or a file is damaged.
    """
    write_text(output, page([read_reported(path, benchmarks) for path in sources]))


def page(found: Sequence[Reported]) -> str:
    """The report of these folders as HTML."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    found = name_sets_apart(found)
    judges = name_apart(found)
    data = {
        "judges": [judge.name for judge in judges],
        **browser_data(judges),
        "fits": [
            {"name": fit.name, "charts": [chart.to_dict() for chart in fit.charts]} for one in found for fit in one.fits
        ],
        "calibration": _calibration(judges),
    }
    style = "\n".join(_read(name) for name in _STYLES)
    own = "\n".join(['(() => {\n"use strict";', *(_read(name) for name in _SCRIPTS), "})();"])
    scripts = [_read(_LIBRARY), own]
    policy = "; ".join(
        [
            "default-src 'none'",
            f"script-src {' '.join(map(_hash, scripts))}",
            f"style-src {_hash(style)}",
            "img-src data:",
            "connect-src 'none'",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    # Jinja escapes every other text. These three are files of judgelit, and JSON without any `<`.
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.jinja").render(
        policy=policy,
        style=Markup(style),
        scripts=[Markup(script) for script in scripts],
        data=Markup(script_json(data)),
        title=" · ".join(one.name for one in found),
        found=found,
        judges=[(judge.name, _colour(number, judges)) for number, judge in enumerate(judges)],
        counts=_counts(data) | {"sets": len(figures.set_names(judges))},
        written=date.today().isoformat(),
        main=panels.main_panels(judges),
        gains=_gains(found, judges),
        tables=figures.tables(judges),
        groups=panels.group_panels(judges),
        biases=panels.bias_panels(judges),
        successes=panels.success_panels(judges),
        attacks=panels.attack_panels(judges),
        comparisons=figures.comparisons(judges),
        general=figures.general_rows(judges),
        calibration=data["calibration"],
        selective=panels.selective_panels(judges),
        fits=data["fits"],
    )


def _counts(data: Mapping[str, Any]) -> dict[str, int]:
    """Numbers of pairs and judgments; those of attacked pairs are counted apart."""
    attacked = sum("of" in data["items"][row[1]] for row in data["judgments"])
    return {
        "judgments": len(data["judgments"]) - attacked,
        "attacked": attacked,
        "left_out": data["left_out"],
        "pairs": sum("of" not in item for item in data["items"]),
        "majorities": len(data["majorities"]),
    }


def _colour(number: int, judges: Sequence[Judge]) -> int:
    """The number of a judge's colour. A judge alone is not grey, the first colour."""
    return (number + (len(judges) == 1) * 2) % _COLOURS


def _gains(found: Sequence[Reported], judges: Sequence[Judge]) -> dict[str, list[tuple[str, str, str]]]:
    """By set, the gains in its published figure: which judges, the gain and its interval in points."""
    gains: dict[str, list[tuple[str, str, str]]] = {}
    for one in found:
        for gain in one.gains:
            name = gain["set"]
            if gain["value"] is None or gain["metric"] != figures.main_metric(judges, name)[0]:
                continue
            prefix = f"{one.name}: " if len(found) > 1 else ""
            low, high = (_points(gain[end]) for end in ("low", "high"))
            interval = "one question" if gain["low"] is None else f"{low} to {high}"
            gains.setdefault(name, []).append(
                (f"{prefix}{gain['from']} to {gain['to']}", _points(gain["value"]), interval)
            )
    return gains


def _points(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:+.1f}".replace("-", "−")


def _calibration(judges: Sequence[Judge]) -> list[dict[str, Any]]:
    """The reliability curve of each judge, by set."""
    by_set = []
    for name in figures.set_names(judges):
        curves = [
            {
                "judge": number,
                "ece": _ece(found),
                "from": _CONFIDENCE.get(found.get("confidence_from", ""), ""),
                "unknown": found.get("unknown", 0),
                "bins": [one for one in found["bins"] if one["n"]],
            }
            for number, judge in enumerate(judges)
            if (found := judge.calibration.get(name)) is not None
        ]
        if curves:
            by_set.append({"set": name, "curves": curves})
    return by_set


def _ece(found: Mapping[str, Any]) -> str:
    estimate = figures.Estimate.from_dict(found["ece"])
    shown = figures.Figure(estimate)
    return f"{shown.text} ({shown.interval})" if shown.known else "unknown"


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _read(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")
