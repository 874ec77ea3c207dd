"""The sets that `judgelit evaluate` judges, from its options."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from judgelit.atomic import check_file_names
from judgelit.errors import UserError
from judgelit.evaluation.judged_folder import BenchmarkSet
from judgelit.evaluation.protocols import find_benchmark, name_of_set
from judgelit.records.public_sources import find_set
from judgelit.records.public_sources.source import named_source
from judgelit.records.shards import Shard
from judgelit.records.sources import Source, Sources


def read_sets(
    benchmark: str | list[str],
    pairs: Sources | None,
    source: str | None,
    sets: dict[str, Sources] | None,
    limit: int | None,
    shard: str | None,
) -> dict[str, BenchmarkSet]:
    """The sets by name, with their items; the arguments are those of `evaluate`.

    Raises:
        UserError: The options do not fit together, a name cannot be part of a file's name, or a set has no items.
    """
    if limit is not None and limit < 1:
        raise UserError(f"limit: found {limit}, expected 1 or more")
    part = None if shard is None else Shard.parse(shard)
    chosen = _choose(benchmark, pairs, source, sets)
    return {name: BenchmarkSet(of, _read(of, name, where, limit, part)) for name, (of, where) in chosen.items()}


def _read(benchmark: str, name: str, where: Sources, limit: int | None, part: Shard | None) -> Sequence[Any]:
    """The items of a set: the first ones, and of them those of this machine's part."""
    items = find_benchmark(benchmark).read(where, limit)
    if part is None:
        return items
    if not (mine := part.part(items)):
        raise UserError(f"shard: {part} has none of the {len(items)} pairs of {name}; use fewer parts")
    return mine


def _choose(
    benchmark: str | list[str], pairs: Sources | None, source: str | None, sets: dict[str, Sources] | None
) -> dict[str, tuple[str, Sources]]:
    """The benchmark and the source of each set, by the set's name.

    Raises:
        UserError: The options do not fit together, or a name cannot be part of a file's name.
    """
    if isinstance(benchmark, str) and benchmark == "pairs":
        return {name: (benchmark, where) for name, where in _named_sets(pairs, source, sets).items()}
    names = [benchmark] if isinstance(benchmark, str) else benchmark
    if not names:
        raise UserError("benchmark: found an empty list, expected names; `judgelit evaluate --list` shows all")
    found = {name_of_set(name): find_benchmark(name) for name in names}
    by_set = {name_of_set(name): name for name in names}
    check_file_names("benchmark", found)
    if source is not None:
        raise UserError("source: has no meaning with a benchmark, which has its own place on the hub")
    if pairs is not None and (sets is not None or len(found) > 1):
        raise UserError("pairs: found beside several sets or benchmarks; name the files of each with --sets.NAME FILES")
    if sets is not None and isinstance(benchmark, str):
        check_file_names("sets", sets)
        return {name: (benchmark, where) for name, where in sets.items()}
    for name in sets or {}:
        if name not in found:
            raise UserError(f"sets: found {name!r}, expected names of the benchmarks: {', '.join(found)}")
    places = {name: (sets or {}).get(name) or pairs or one.hub for name, one in found.items()}
    for name, where in places.items():
        if where is None:
            option = "--pairs" if len(found) == 1 else f"--sets.{name}"
            raise UserError(f"{name}: is not on the hub; give its files with {option}")
    return {name: (by_set[name], where) for name, where in places.items() if where is not None}


def _named_sets(pairs: Sources | None, source: str | None, sets: dict[str, Sources] | None) -> dict[str, Sources]:
    """The sets by name; the set `pairs` gets the name of its file, and a public data set its own.

    Raises:
        UserError: Both are given or none, or a name cannot be part of a file's name.
    """
    if source is not None and sets is None:
        return {find_set(source).name: named_source(source, pairs)}
    if isinstance(pairs, Source) and sets is None:
        return {"pairs": pairs}
    if isinstance(pairs, str) and sets is None:
        # A glob pattern has characters that do not belong in a file's name.
        return {re.sub(r"[^\w-]+", "-", Path(pairs).name.split(".")[0])[:50].strip("-") or "pairs": pairs}
    if (pairs, source, sets) == (None, None, None):
        raise UserError(
            "pairs: found nothing to judge, expected labelled pairs; give --pairs FILES, or the name of a "
            "benchmark with --benchmark, or of a public data set with --source"
        )
    if sets is None or pairs is not None or source is not None:
        raise UserError(
            "pairs, sets: expected one of them, and not both; source goes with pairs, and sets takes public data sets "
            "by class_path judgelit.PublicSource"
        )
    check_file_names("sets", sets)
    return sets
