"""Estimates as text: in percent, and in a table of sets and judges."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from judgelit.console import printable
from judgelit.evaluation.intervals import Estimate, Gain

if TYPE_CHECKING:
    from rich.table import Table

_NAME_WIDTH = 32
"""Columns of a terminal for the name of a set or of a judge."""
_UNKNOWN_WIDTH = 140
"""Width of the table where the output is no terminal."""
_UNLIMITED = 10_000
"""Width in which every table is measured whole."""

Results = Mapping[str, Mapping[str, Mapping[str, Estimate]]]
"""{judge: {set: {metric: estimate}}}; in a run of the recipe a judge is a stage."""


def show(estimate: Estimate) -> str:
    """An estimate in percent with its interval; `-` if it is undefined."""
    if estimate.value != estimate.value:
        return "-"
    if estimate.low != estimate.low:
        return f"{100 * estimate.value:.1f}% [one question]"
    return f"{100 * estimate.value:.1f}% [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"


def show_gain(gain: Gain) -> str:
    """A gain in points with its interval; `-` if it is undefined."""
    if gain.value != gain.value:
        return "-"
    # A zero has no sign.
    value, low, high = (
        f"{100 * one:+.1f}".replace("-0.0", "0.0").replace("+0.0", "0.0") for one in (gain.value, gain.low, gain.high)
    )
    return f"{value} points [one question]" if gain.low != gain.low else f"{value} points [{low}, {high}]"


def table_rows(results: Results, metrics: Mapping[str, str]) -> Iterator[tuple[str, ...]]:
    """Rows of the table, set by set: set, judge, then each of `metrics`."""
    for name in dict.fromkeys(name for by_set in results.values() for name in by_set):
        for judge, by_set in results.items():
            if name in by_set:
                yield (name, judge, *(show(by_set[name][metric]) for metric in metrics))


def print_table(results: Results, metrics: Mapping[str, str]) -> None:
    """Print a table of the estimates. A narrow terminal gets one line for each figure.

    If accuracy is shown, which leaves ties out, their number stands below the table.

    Args:
        results: The estimates.
        metrics: The metrics to show and their column headings; see `Benchmark.shown`.
    """
    from rich.markup import escape
    from rich.table import Table

    table = Table()
    table.add_column("set", max_width=_NAME_WIDTH)
    table.add_column("judge", overflow="fold", max_width=_NAME_WIDTH)
    for heading in metrics.values():
        table.add_column(heading, no_wrap=True)
    previous = None
    for row in table_rows(results, metrics):
        if previous not in (None, row[0]):
            table.add_section()
        previous = row[0]
        table.add_row(*map(escape, map(printable, row)))
    _print_fitting(table, _narrow_lines(results, metrics))
    if "accuracy" in metrics:
        for line in _tie_lines(results):
            print(line)


def print_rows(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under headings, with a line between rows whose first cells differ.

    A narrow terminal gets the first two cells of a row on one line and each other cell on a line below.
    """
    from rich.markup import escape
    from rich.table import Table

    table = Table()
    for heading in headings:
        table.add_column(escape(heading))
    previous = None
    lines = []
    for row in ([printable(cell) for cell in row] for row in rows):
        if previous not in (None, row[0]):
            table.add_section()
        previous = row[0]
        table.add_row(*map(escape, row))
        lines.append(", ".join(row[:2]))
        lines += [f"  {heading}: {cell}" for heading, cell in zip(headings[2:], row[2:], strict=True) if cell]
    _print_fitting(table, lines)


def print_general(general: Mapping[str, Mapping[str, Estimate]], judged: Results | None = None) -> None:
    """Print a table of general ability, with a column for each model and a row for each metric.

    Args:
        general: {model: {metric: estimate}}, as `measure_general` returns them; in a run of the recipe a model is a
            stage.
        judged: Judges' metrics of these models. Their accuracy on each set then stands in rows of the same table.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table()
    table.add_column("ability", overflow="fold")
    for model in general:
        table.add_column(escape(printable(model)), overflow="fold")
    for row in general_rows(general, judged or {}):
        table.add_row(*map(escape, map(printable, row)))
    Console(width=None if Console().is_terminal else _UNKNOWN_WIDTH).print(table)


def general_rows(general: Mapping[str, Mapping[str, Estimate]], judged: Results) -> Iterator[tuple[str, ...]]:
    """Rows of the table of `print_general`: the name, then the figure of each model; `-` where one has none."""
    sets = dict.fromkeys(name for model in general for name in judged.get(model, {}))
    for name in sets:
        of_models = [judged.get(model, {}).get(name, {}).get("accuracy") for model in general]
        if any(of_models):
            yield (f"judge accuracy, {name}", *("-" if found is None else show(found) for found in of_models))
    for metric in dict.fromkeys(metric for of_model in general.values() for metric in of_model):
        of_models = [of_model.get(metric) for of_model in general.values()]
        figures = ("-" if found is None else show_general(metric, found) for found in of_models)
        yield (GENERAL_HEADINGS.get(metric, metric), *figures)


GENERAL_HEADINGS = {
    "general_loss": "general loss, nats a token",
    "instructions": "prompts followed",
    "instructions_loose": "prompts followed, loosely",
    "each_instruction": "instructions followed",
    "each_instruction_loose": "instructions followed, loosely",
    "instructions_cut": "answers cut by length",
}
"""Headings of metrics of general ability. Those of the harness's tasks have none: their units are the task's."""


def show_general(metric: str, found: Estimate) -> str:
    """A figure of general ability: shares in percent, others as numbers."""
    if metric in GENERAL_HEADINGS and metric != "general_loss":
        return show(found)
    if found.value != found.value:
        return "-"
    interval = "" if found.low != found.low else f" [{found.low:.3f}, {found.high:.3f}]"
    return f"{found.value:.3f}{interval}"


def _print_fitting(table: "Table", lines: Iterable[str]) -> None:
    """Print a table, or the lines if the terminal is too narrow for it."""
    from rich.console import Console

    # Where the output is no terminal, its width is unknown, and rich would take 80 columns.
    console = Console(width=None if Console().is_terminal else _UNKNOWN_WIDTH)
    if console.measure(table, options=console.options.update(width=_UNLIMITED)).maximum <= console.width:
        console.print(table)
    else:
        print("\n".join(lines))


def _narrow_lines(results: Results, metrics: Mapping[str, str]) -> Iterator[str]:
    width = max(map(len, metrics.values()))
    for name, judge, *figures in table_rows(results, metrics):
        yield printable(f"{name}, {judge}")
        yield from (f"  {heading:<{width}}  {text}" for heading, text in zip(metrics.values(), figures, strict=True))


def _tie_lines(results: Results) -> Iterator[str]:
    """A line for each set that has pairs labelled tie."""
    found = {name: by["ties"] for by_set in results.values() for name, by in by_set.items() if "ties" in by}
    for name, ties in found.items():
        if ties.value > 0:
            number = f"{round(ties.value * ties.n)} of {ties.n} pairs"
            yield f"{printable(name)}: {number} are labelled tie; accuracy leaves them out"
