"""`judgelit evaluate`: measure a judge on labelled pairs, in both orders, and keep every judgment."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from judgelit.atomic import check_file_names, write_json
from judgelit.errors import UserError
from judgelit.evaluation.intervals import Estimate
from judgelit.evaluation.judgments import judge_pairs
from judgelit.evaluation.protocols import find_benchmark
from judgelit.evaluation.tables import print_table
from judgelit.generation.engine import EngineSpec, load_engine
from judgelit.generation.journal import JournaledEngine
from judgelit.judging.prompts import Templates
from judgelit.parsing import call
from judgelit.records.files import write_records
from judgelit.records.sources import Sources


def evaluate(
    output: str,
    pairs: str | None = None,
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
    a kill, the same command continues.

    Args:
        output: Folder to write to.
        pairs: Labelled pairs: a file, folder, glob or hub name.
        sets: Several sets of pairs by name, usually in a `--config` file; in place of `pairs`.
        benchmark: How the pairs are read, asked and scored: `pairs` for labelled pairs of any source.
        templates: Judge prompts to ask with.
        max_new_tokens: Longest judgment, in tokens.
        stop_at_verdict: End a judgment with the line that says its verdict. Text after it takes time and is not read,
            unless it holds another verdict.
        limit: Judge only the first pairs of each set, this many.
        seed: Seed of the engine.
        engine: The fields of `EngineSpec`.
    """
    if limit is not None and limit < 1:
        raise UserError(f"limit: found {limit}, expected 1 or more")
    spec, protocol = EngineSpec(**engine), find_benchmark(benchmark)
    pairs_of = {name: protocol.read(source)[:limit] for name, source in _named_sets(pairs, sets).items()}
    folder = Path(output)
    settings = {
        "benchmark": benchmark,
        "templates": asdict(templates),
        "max_new_tokens": max_new_tokens,
        "stop_at_verdict": stop_at_verdict,
        "limit": limit,
        "seed": seed,
        **spec.result_settings(),
    }
    _refuse_other_results(folder / "results.json", {"model": spec.model, "sets": sorted(pairs_of), **settings})
    judge = JournaledEngine(load_engine(spec), folder / "journal.sqlite")
    results: dict[str, dict[str, Estimate]] = {}
    for name, of_set in pairs_of.items():
        judgments = judge_pairs(judge, protocol, name, of_set, templates, max_new_tokens, seed, stop_at_verdict)
        write_records(folder / f"{name}.judgments.jsonl", judgments)
        results[name] = protocol.estimates(of_set, judgments)
    written = {name: {metric: value.to_dict() for metric, value in by.items()} for name, by in results.items()}
    write_json(folder / "results.json", {"model": spec.model, "settings": settings, "sets": written})
    print_table({spec.model: results}, protocol.shown)
    print(f"judgments and results.json are in {folder}")


def _named_sets(pairs: str | None, sets: dict[str, Sources] | None) -> dict[str, Sources]:
    """The sets by name; the set `pairs` gets the name of its file.

    Raises:
        UserError: Both are given or none, or a name cannot be part of a file's name.
    """
    if pairs is not None and sets is None:
        # A glob pattern has characters that do not belong in a file's name.
        return {re.sub(r"[^\w-]+", "-", Path(pairs).name.split(".")[0])[:50].strip("-") or "pairs": pairs}
    if sets is None or pairs is not None:
        raise UserError("pairs, sets: expected one of them, and not both")
    check_file_names("sets", sets)
    return sets


def _refuse_other_results(path: Path, expected: Mapping[str, Any]) -> None:
    """Refuse to overwrite the results of another model, other sets or other settings."""
    if not path.exists():
        return
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        there = _flat({**found.get("settings", {}), "model": found.get("model"), "sets": sorted(found.get("sets", ()))})
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: found no results as JSON, expected those of an evaluation; move it away or choose another folder "
            "with --output"
        ) from error
    for name, value in _flat(expected).items():
        if name not in there or there[name] != value:
            raise UserError(
                f"{path}: {name}: found {there.get(name, 'nothing')!r}, expected {value!r}; choose another folder with "
                "--output"
            )


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted names."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def main(argv: list[str]) -> None:
    """Run `judgelit evaluate`."""
    call(evaluate, argv, "judgelit evaluate")
