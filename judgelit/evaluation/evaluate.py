"""`judgelit evaluate`: measure a judge on labelled pairs, in both orders, and keep every judgment."""

import re
from pathlib import Path
from typing import Any

from judgelit.atomic import check_file_names, write_json
from judgelit.errors import UserError
from judgelit.evaluation.intervals import as_json
from judgelit.evaluation.judged_folder import Questions, judge_into
from judgelit.evaluation.protocols import find_benchmark
from judgelit.evaluation.protocols.benchmark import GROUPS
from judgelit.evaluation.tables import print_table
from judgelit.generation.engine import EngineSpec
from judgelit.judging.prompts import Templates
from judgelit.parsing import call
from judgelit.records.public_sources import describe_sets, find_set
from judgelit.records.public_sources.source import named_source
from judgelit.records.sources import Source, Sources
from judgelit.runs.folder import locked


def evaluate(
    output: str,
    pairs: Sources | None = None,
    source: str | None = None,
    sets: dict[str, Sources] | None = None,
    benchmark: str = "pairs",
    templates: Templates = Templates(),  # noqa: B008 (frozen, so sharing the default is safe)
    max_new_tokens: int = 1024,
    stop_at_verdict: bool = True,
    limit: int | None = None,
    seed: int = 0,
    **engine: Any,
) -> None:
    """Measure a judge on labelled pairs, in both orders, greedily.

    Writes OUTPUT/results.json and one JSONL line for each judgment, from which every number can be recomputed. After
    a kill, the same command continues. A folder with results of another model, other pairs or other settings is
    refused. Pairs labelled tie are left out of accuracy and counted as `ties`.

    Args:
        output: Folder to write to.
        pairs: Labelled pairs: a file, folder, glob or hub name, or a source by class_path.
        source: Name of a public data set, which is read from the hub, or from `pairs` in its own form. The names are
            listed below.
        sets: Several sets of pairs by name, usually in a `--config` file; in place of `pairs`.
        benchmark: How the pairs are read, asked and scored: `pairs` for labelled pairs of any source.
        templates: Judge prompts to ask with. Default: those that the judge's folder keeps, or `rise`.
        max_new_tokens: Longest judgment, in tokens.
        stop_at_verdict: End a judgment with the line that says its verdict. Text after it takes time and is not read,
            unless it holds another verdict.
        limit: Judge only the first pairs of each set, this many.
        seed: Seed of the engine.
        engine: The fields of `EngineSpec`.
    """
    if limit is not None and limit < 1:
        raise UserError(f"limit: found {limit}, expected 1 or more")
    spec, protocol, folder = EngineSpec(**engine), find_benchmark(benchmark), Path(output)
    pairs_of = {name: protocol.read(one, limit) for name, one in _named_sets(pairs, source, sets).items()}
    with locked(folder):
        judgments, settings = judge_into(
            folder,
            spec,
            pairs_of,
            Questions(protocol, templates, max_new_tokens, stop_at_verdict, seed),
            {"command": "evaluate", "benchmark": benchmark, "sets": sorted(pairs_of), "limit": limit},
            results={name: f"{name}.judgments.jsonl" for name in pairs_of},
            last="results.json",
        )
        results = {name: protocol.estimates(of_set, judgments[name]) for name, of_set in pairs_of.items()}
        groups = {name: protocol.estimates_by_group(of_set, judgments[name]) for name, of_set in pairs_of.items()}
        content = {"model": spec.model, "settings": settings, "sets": as_json(results), "groups": as_json(groups)}
        write_json(folder / "results.json", content)
    print_table({spec.model: results}, protocol.shown)
    for field in GROUPS:
        by_group = {
            f"{name}, {group}": found for name, of in groups.items() for group, found in of.get(field, {}).items()
        }
        if len(by_group) > len(groups):
            print(f"by {field}:")
            print_table({spec.model: by_group}, protocol.shown)
    print(f"judgments and results.json are in {folder}")


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
    if sets is None or pairs is not None or source is not None:
        raise UserError(
            "pairs, sets: expected one of them, and not both; source goes with pairs, and sets takes public data sets "
            "by class_path judgelit.PublicSource"
        )
    check_file_names("sets", sets)
    return sets


def main(argv: list[str]) -> None:
    """Run `judgelit evaluate`."""
    call(evaluate, argv, "judgelit evaluate", {"source": describe_sets()})
