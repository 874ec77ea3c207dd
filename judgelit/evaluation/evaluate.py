"""`judgelit evaluate`: a judge on labelled pairs, in both orders, with every judgment kept."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any, Literal

import numpy as np

from judgelit.atomic import write_json
from judgelit.batches.tokenizer import ChatTokenizer
from judgelit.errors import UserError
from judgelit.evaluation.judgments import judge, table_rows
from judgelit.evaluation.metrics import Estimate, estimates, outcomes
from judgelit.generation.engine import Engine
from judgelit.generation.journal import JournaledEngine
from judgelit.generation.local import LocalEngine
from judgelit.generation.sampling import Sampling
from judgelit.judging.prompts import JudgePrompt, Templates, judge_prompts
from judgelit.models.backbone import trained_folder
from judgelit.parsing import call
from judgelit.records.files import write_records
from judgelit.records.records import Judgment, PreferencePair
from judgelit.records.sources import Sources, read_pairs


@dataclass(frozen=True)
class Measured:
    """A judge on one set: what it said, as rows for the metrics, and the metrics."""

    judgments: list[Judgment]
    rows: np.ndarray
    metrics: dict[str, Estimate]


def measure(
    engine: Engine,
    tokenizer: ChatTokenizer,
    name: str,
    pairs: Sequence[PreferencePair],
    templates: Templates,
    max_new_tokens: int,
    seed: int = 0,
    stop_at_verdict: bool = True,
) -> Measured:
    """Judge `pairs` greedily in both orders.

    Raises:
        UserError: No pair leaves room for a judgment in the model's context.
    """
    prompts = prompts_for(pairs, name, tokenizer, templates, max_new_tokens)
    sampling = Sampling(max_new_tokens, stop_at_verdict=stop_at_verdict)
    judgments = judge(engine, prompts, sampling, seed, f"judging {name}")
    rows = outcomes(pairs, judgments).numpy()
    return Measured(judgments, rows, estimates(rows))


def prompts_for(
    pairs: Sequence[PreferencePair], name: str, tokenizer: ChatTokenizer, templates: Templates, max_new_tokens: int
) -> list[JudgePrompt]:
    """Prompts for `pairs` in both orders that leave `max_new_tokens` of the model's context for the judgment.

    Raises:
        UserError: There is no such room, or no pair fits it.
    """
    room = tokenizer.context - max_new_tokens
    if max_new_tokens < 1 or room < 1:
        raise UserError(
            f"max_new_tokens: found {max_new_tokens}, expected 1 or more and less than the context of "
            f"{tokenizer.context}"
        )
    prompts, report = judge_prompts(pairs, templates.load(), tokenizer, room, seed=templates.seed)
    if not prompts:
        raise UserError(f"{name}: no pair fits the {room} tokens left for a judge prompt ({report})")
    if report.skipped or report.shortened:
        print(f"{name}: {report}")
    return prompts


def evaluate(
    model: str,
    output: str,
    pairs: str | None = None,
    sets: dict[str, Sources] | None = None,
    templates: Templates = Templates(),  # noqa: B008 (frozen, so sharing the default is safe)
    max_new_tokens: int = 1024,
    stop_at_verdict: bool = True,
    batch_size: int = 16,
    limit: int | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    seed: int = 0,
) -> None:
    """Measure a judge on labelled pairs, in both orders, greedily.

    Writes OUTPUT/results.json and one JSONL line a judgment, from which every figure can be recomputed. Killed and
    started again, it goes on where it was.

    Args:
        model: Hub name, a Hugging Face folder (of a model or of a LoRA adapter), or `nano`.
        output: Folder to write to.
        pairs: Labelled pairs: a file, folder, glob or hub name.
        sets: Several sets of pairs by name, best given in a `--config` file; in place of `pairs`.
        templates: Judge prompts to ask with.
        max_new_tokens: Longest judgment, in tokens.
        stop_at_verdict: End a judgment with the line that says its verdict: what a model writes after it takes time and
            is not read, unless it goes on to another verdict.
        batch_size: Judgments generated at once.
        limit: Judge only the first pairs of each set, this many.
        dtype: The weights' dtype.
        seed: Seed of the engine.
    """
    if limit is not None and limit < 1:
        raise UserError(f"limit: found {limit}, expected 1 or more")
    if (pairs is None) == (sets is None):
        raise UserError("pairs, sets: expected one of them, and not both")
    folder = Path(output)
    named = named_sets(sets or pairs or [])
    to_judge = {name: read_pairs(value)[:limit] for name, value in named.items()}
    settings = {
        "templates": asdict(templates),
        "max_new_tokens": max_new_tokens,
        "stop_at_verdict": stop_at_verdict,
        "limit": limit,
        "dtype": dtype,
        "seed": seed,
    }
    _refuse_other_results(folder / "results.json", {"model": model, "sets": sorted(to_judge), **settings})
    local = LocalEngine.load(trained_folder(model, dtype), batch_size)
    engine = JournaledEngine(local, folder / "journal.sqlite")
    results: dict[str, dict[str, Estimate]] = {}
    for name, of_set in to_judge.items():
        measured = measure(engine, local.tokenizer, name, of_set, templates, max_new_tokens, seed, stop_at_verdict)
        write_records(folder / f"{name}.judgments.jsonl", measured.judgments)
        results[name] = measured.metrics
    written = {name: {metric: value.to_dict() for metric, value in by.items()} for name, by in results.items()}
    write_json(folder / "results.json", {"model": model, "settings": settings, "sets": written})
    print_table({model: results})
    print(f"judgments and results.json are in {folder}")


def named_sets(pairs: str | Sequence[str] | Mapping[str, Sources]) -> dict[str, Sources]:
    """Sets by name; a file without one goes by its own.

    Raises:
        UserError: A name cannot stand in a file's name.
    """
    if isinstance(pairs, Mapping):
        for name in pairs:
            if not name or "/" in name or name.startswith("."):
                raise UserError(f"pairs: found the name {name!r}, expected one that can stand in a file's name")
        return dict(pairs)
    named: dict[str, Sources] = {}
    for path in [pairs] if isinstance(pairs, str) else pairs:
        own = _file_name(Path(path).name.split(".")[0])
        # Benchmarks often call every file dataset.json; the folder tells them apart.
        longer = f"{_file_name(Path(path).parent.name)}-{own}"
        candidates = chain([own, longer], (f"{longer}-{number}" for number in count(2)))
        named[next(name for name in candidates if name not in named)] = path
    return named


def _file_name(text: str) -> str:
    """`text` without what a shell or a folder might misread, as a glob pattern has it."""
    return re.sub(r"[^\w-]+", "-", text).strip("-") or "pairs"


def _refuse_other_results(path: Path, asked: Mapping[str, Any]) -> None:
    """Refuse to overwrite results that came about in another way than `asked`."""
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
    for name, value in _flat(asked).items():
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


def print_table(results: Mapping[str, Mapping[str, Mapping[str, Estimate]]]) -> None:
    """Print {stage: {set: metrics}} as people read it."""
    from rich.console import Console
    from rich.table import Table

    table = Table()
    table.add_column("set", max_width=32)
    table.add_column("judge", overflow="fold", max_width=32)
    for column in ("accuracy", "right in both orders", "consistent", "no verdict"):
        table.add_column(column, no_wrap=True)
    last = None
    for row in table_rows(results):
        if last not in (None, row[0]):
            table.add_section()
        last = row[0]
        table.add_row(*row)
    Console(width=None if Console().is_terminal else 140).print(table)


def main(argv: list[str]) -> None:
    """Run `judgelit evaluate`."""
    call(evaluate, argv, "judgelit evaluate")
