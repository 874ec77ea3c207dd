"""The table of `judgelit evaluate --list`."""

import textwrap

from judgelit.evaluation.protocols import BENCHMARKS
from judgelit.evaluation.protocols.benchmark import Benchmark
from judgelit.records.sources import FileSource, as_sources

_WIDTH = 112


def describe_benchmarks() -> str:
    """All benchmarks with size, licence, convention, place, and the published figures of other judges."""
    return "\n\n".join(_describe(name, benchmark) for name, benchmark in BENCHMARKS.items())


def _describe(name: str, benchmark: Benchmark) -> str:
    figure = next(iter(benchmark.shown.values()))
    lines = [
        f"{name}: {benchmark.title}",
        f"size: {benchmark.size}; licence: {benchmark.licence}",
        f"figure: {figure}. {benchmark.convention}",
        f"read from: {_place(benchmark)}",
    ]
    if benchmark.published:
        lines.append("published figures of other judges:")
    for one in benchmark.published:
        lines.append(f"  {one.model}: {one.figure}" + (f" ({one.convention})" if one.convention else ""))
    head, *rest = lines
    wrapped = [textwrap.wrap(line, _WIDTH, initial_indent="  ", subsequent_indent="    ") for line in rest]
    return "\n".join([head, *(line for part in wrapped for line in part)])


def _place(benchmark: Benchmark) -> str:
    if benchmark.hub is None:
        return "files that you give with --pairs"
    sources = [source for source in as_sources(benchmark.hub) if isinstance(source, FileSource)]
    names = ", ".join(dict.fromkeys(source.path for source in sources))
    return f"the hub ({names}), or files that you give with --pairs"
