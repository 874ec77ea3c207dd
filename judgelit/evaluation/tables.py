"""Estimates as text: in percent, and in a table of sets and judges."""

from collections.abc import Iterator, Mapping

from judgelit.evaluation.intervals import Estimate

Results = Mapping[str, Mapping[str, Mapping[str, Estimate]]]
"""{judge: {set: {metric: estimate}}}; in a run of the recipe a judge is a stage."""


def show(estimate: Estimate) -> str:
    """An estimate in percent with its interval; `-` if it is undefined."""
    if estimate.value != estimate.value:
        return "-"
    return f"{100 * estimate.value:.1f}% [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"


def table_rows(results: Results, metrics: Mapping[str, str]) -> Iterator[tuple[str, ...]]:
    """Rows of the table, set by set: set, judge, then each of `metrics`."""
    for name in dict.fromkeys(name for by_set in results.values() for name in by_set):
        for judge, by_set in results.items():
            if name in by_set:
                yield (name, judge, *(show(by_set[name][metric]) for metric in metrics))


def print_table(results: Results, metrics: Mapping[str, str]) -> None:
    """Print a table of the estimates.

    Args:
        results: The estimates.
        metrics: The metrics to show and their column headings; see `Benchmark.shown`.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table()
    table.add_column("set", max_width=32)
    table.add_column("judge", overflow="fold", max_width=32)
    for heading in metrics.values():
        table.add_column(heading, no_wrap=True)
    previous = None
    for row in table_rows(results, metrics):
        if previous not in (None, row[0]):
            table.add_section()
        previous = row[0]
        table.add_row(*row)
    # Where the output is no terminal, its width is unknown, and rich would take 80 columns.
    Console(width=None if Console().is_terminal else 140).print(table)
