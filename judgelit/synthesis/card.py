"""Data card of a training set: Markdown with all its numbers as YAML on top, beside the data file.

All numbers under `data` are computed from the rows of the data file, so that anybody can compute them again. The
others, what was dropped and what it cost, are of the command that made the file.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from judgelit import __version__
from judgelit.atomic import write_text
from judgelit.batches.tokenizer import ChatTokenizer
from judgelit.generation.endpoint_tokens import EstimatedCounter, ExactCounter
from judgelit.judging.token_ids import PromptCounter
from judgelit.records.records import PreferenceExample, SFTExample
from judgelit.records.row_fields import Message

COUNTED = (
    *("kind", "verdict", "order", "language", "template", "rewrite", "role", "criteria", "format"),
    *("teacher", "judge", "category", "subset"),
)
"""Fields of `meta` whose values are counted."""
ESTIMATED = "none; tokens are estimated from characters, as in judgelit/generation/endpoint_tokens.py"
"""Tokenizer of a card whose tokens are counted without one, since the model is at an endpoint."""
_PERCENTILES = (5, 50, 95, 100)
_MOST_LINES = 30
"""Most lines of a table in the Markdown part; the YAML part has all."""
_RECOMPUTE = """\
Every number under *Data* is computed from the rows of the data file: counts from the fields of `meta`, pairs from
`pair_id`, questions from `meta.question`, and which answer is longer from `meta.better_characters` and
`meta.worse_characters`. Tokens of a prompt are those of its conversation up to the assistant's turn, tokens of a
completion those of its text without the token that ends it; the tokenizer is the one named there. A text that spells
a control token, such as <|im_end|>, is counted as the ordinary text that training makes of it. Percentiles are
interpolated linearly. `share` is the share of examples whose better answer is the longer one, among those whose answers
differ in length. What was dropped and the cost are of the whole command: the same command computes them again from the
journal, without asking anything anew."""


def card_path(output: Path) -> Path:
    """The file of the card of a data file."""
    return output.with_name(output.name + ".card.md")


def write_card(
    path: Path,
    title: str,
    examples: Sequence[SFTExample] | Sequence[PreferenceExample],
    counter: PromptCounter,
    *,
    tokenizer: str,
    summary: str,
    dropped: Mapping[str, int],
    cost: Mapping[str, float],
    settings: Mapping[str, Any],
    **more: Mapping[str, Any],
) -> None:
    """Write the card of a training set.

    Args:
        path: File to write.
        title: First heading.
        examples: The examples of the data file.
        counter: Counts the tokens.
        tokenizer: Name of the tokenizer or model that counts the tokens.
        summary: Report of the command, in a sentence.
        dropped: What was dropped, by reason.
        cost: Tokens and other cost of all answers that were asked for.
        settings: Settings of the command.
        more: Other sections by name, with numbers of the command that do not follow from the data file.
    """
    counted_by = ESTIMATED if isinstance(counter, EstimatedCounter) else tokenizer
    data = {"tokenizer": counted_by, **describe(examples, counter)}
    sections = {"data": data, "dropped": dict(dropped), "cost": dict(cost), **more, "settings": dict(settings)}
    content = {"version": __version__, **_plain(sections)}
    metadata: dict[str, Any] = {"tags": ["llm-as-a-judge", "judgelit"], "judgelit": content}
    if languages := sorted(name for name in data.get("language", {}) if name):
        metadata = {"language": languages, **metadata}
    front = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True, width=120)
    lines = [f"---\n{front}---\n", f"# {title}\n", f"Made by judgelit {__version__}. {summary}\n", _RECOMPUTE + "\n"]
    for name, section in sections.items():
        if section:
            lines += [f"## {name.replace('_', ' ').capitalize()}\n", *_tables(section)]
    write_text(path, "\n".join(lines))


def describe(examples: Sequence[SFTExample] | Sequence[PreferenceExample], counter: PromptCounter) -> dict[str, Any]:
    """Sizes, balance, counts and lengths of a training set, from its examples alone.

    Args:
        examples: Examples of one kind.
        counter: Counts the tokens.
    """
    found: dict[str, Any] = {
        "examples": len(examples),
        "pairs": len({str(_pair_id(example)) for example in examples}),
        "questions": len({example.group for example in examples}),
        "longer_answer": _longer_answer([example.meta for example in examples]),
    }
    for field in COUNTED:
        counts = Counter(str(example.meta[field]) for example in examples if example.meta.get(field))
        if counts:
            found[field] = dict(sorted(counts.items()))
    tokens = {"prompt": [counter.count(example.messages) for example in examples]}
    for name in ("completion", "chosen", "rejected"):
        texts = [getattr(example, name) for example in examples if hasattr(example, name)]
        if texts:
            tokens[name] = [_text_tokens(text, counter) for text in texts]
    found["tokens"] = {name: _distribution(lengths) for name, lengths in tokens.items()}
    if "chosen" in tokens:
        differences = [one - other for one, other in zip(tokens["chosen"], tokens["rejected"], strict=True)]
        found["longer_completion"] = _sides(differences, ("chosen", "rejected"))
    return found


def _pair_id(example: SFTExample | PreferenceExample) -> str:
    return example.pair_id if isinstance(example, SFTExample) else example.meta.get("pair_id", "")


def _longer_answer(metas: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How often the better answer is the longer one, in characters."""
    known = [meta for meta in metas if "better_characters" in meta]
    return _sides([meta["better_characters"] - meta["worse_characters"] for meta in known], ("better", "worse"))


def _sides(differences: Sequence[int], names: tuple[str, str]) -> dict[str, Any]:
    """How many differences are positive, negative and zero, and the share of positive ones among the first two."""
    more, less = sum(one > 0 for one in differences), sum(one < 0 for one in differences)
    counts: dict[str, Any] = {names[0]: more, names[1]: less, "equal": len(differences) - more - less}
    return {**counts, "share": round(more / (more + less), 4)} if more + less else counts


def _text_tokens(text: str, counter: PromptCounter) -> int:
    """Tokens of a text; with a counter of prompts alone, those that a user's turn gains by it."""
    tokenizer = counter.tokenizer if isinstance(counter, ExactCounter) else counter
    if isinstance(tokenizer, ChatTokenizer):
        return len(tokenizer.text_ids(text))

    def turn(content: str) -> list[Message]:
        return [{"role": "user", "content": content}]

    return counter.count(turn(text)) - counter.count(turn(""))


def _distribution(lengths: Sequence[int]) -> dict[str, float]:
    """Sum, mean and percentiles."""
    if not lengths:
        return {}
    values = np.percentile(lengths, _PERCENTILES)
    names = ("p5", "median", "p95", "longest")
    percentiles = {name: round(float(value), 1) for name, value in zip(names, values, strict=True)}
    return {"sum": sum(lengths), "mean": round(sum(lengths) / len(lengths), 1), **percentiles}


def _plain(value: Any) -> Any:
    """The value with nothing in it that YAML has no plain form for."""
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _tables(section: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """A table of the single values of a section, then one of each value that has several."""
    single = [(name, value) for name, value in section.items() if not isinstance(value, Mapping)]
    if single:
        yield f"| {above} | |"
        yield "|---|---|"
        for name, value in single[:_MOST_LINES]:
            yield f"| {_cell(name)} | {_cell(value)} |"
        if len(single) > _MOST_LINES:
            yield f"| and {len(single) - _MOST_LINES} more | |"
        yield ""
    for name, value in section.items():
        if isinstance(value, Mapping) and value:
            yield from _tables(value, f"{above} {name}".strip().replace("_", " "))


def _cell(value: Any) -> str:
    """A value as the text of a cell: a name in it can hold Markdown or HTML, which must not become a link or a tag."""
    return " ".join(re.sub(r"([\\`*\[\]<>|&])", r"\\\1", str(value)).split()) if value is not None else "none"
