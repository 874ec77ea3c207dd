"""The loss on held-out general examples: the mean of -log p(completion token), in nats a token."""

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only

from judgelit.batches.flat_batch import TokenizedCompletion, flatten_completions
from judgelit.batches.tokenizer import ChatTokenizer
from judgelit.errors import UserError
from judgelit.evaluation.intervals import Estimate, Mean, estimates
from judgelit.generation.generate import evaluating
from judgelit.generation.local import LocalEngine
from judgelit.likelihood.logprobs import Scorer
from judgelit.progress import track
from judgelit.records.records import SFTExample
from judgelit.records.sources import Sources, as_sources

_TOKENS_AT_ONCE = 4096
"""Tokens of the padded rows of a batch. A longer example is a batch by itself."""


@dataclass(frozen=True)
class ExampleLoss:
    """The loss of one example."""

    key: str
    """A hash of its ids."""
    nll: float
    """-log p(completion | prompt) in nats, summed in float32."""
    tokens: int
    """Completion tokens that are scored, with the end-of-turn token."""


def read_examples(sources: Sources, limit: int | None) -> list[SFTExample]:
    """The first general examples of some sources.

    Raises:
        UserError: There is none, or one cannot be read.
    """
    examples = [example for source in as_sources(sources) for example in source.read(SFTExample)]
    if not examples:
        raise UserError("general.examples: found no example, expected prompts with their completions")
    return examples[:limit]


def tokenize_examples(examples: Sequence[SFTExample], tokenizer: ChatTokenizer) -> list[TokenizedCompletion]:
    """The examples that fit the model's context, as ids. Equal examples count once; a line says how many are left out.

    Raises:
        UserError: None fits.
    """
    rows: dict[str, TokenizedCompletion] = {}
    too_long = 0
    for example in examples:
        prompt, completion = tokenizer.prompt_ids(example.messages), tokenizer.completion_ids(example.completion)
        key = hashlib.sha256(json.dumps([prompt, completion]).encode()).hexdigest()[:16]
        if len(prompt) + len(completion) > tokenizer.context:
            too_long += 1
        else:
            rows[key] = TokenizedCompletion(key, prompt, completion)
    if not rows:
        raise UserError(
            f"general.examples: found {len(examples)} examples that are all longer than the {tokenizer.context} tokens "
            "that the model takes, expected shorter ones"
        )
    equal = len(examples) - too_long - len(rows)
    for count, why in ((too_long, f"are longer than {tokenizer.context} tokens"), (equal, "repeat another one")):
        if count:
            rank_zero_only(print)(f"general examples: {count} of {len(examples)} {why} and are left out")
    return list(rows.values())


def in_batches(rows: Sequence[TokenizedCompletion]) -> list[list[TokenizedCompletion]]:
    """The rows in batches of similar length; they do not depend on which rows are scored before."""
    batches: list[list[TokenizedCompletion]] = []
    for row in sorted(rows, key=lambda row: (len(row), row.id)):
        # The row is the longest of its batch.
        if not batches or (len(batches[-1]) + 1) * len(row) > _TOKENS_AT_ONCE:
            batches.append([])
        batches[-1].append(row)
    return batches


def score_batches(
    scorer: Scorer, batches: Sequence[Sequence[TokenizedCompletion]], device: torch.device
) -> Iterator[list[ExampleLoss]]:
    """Yield the losses of each batch, without gradient and without dropout.

    Args:
        scorer: The model; the same function as in training gives its log-probabilities.
        batches: The examples.
        device: The model's.
    """
    for rows in batches:
        with evaluating(scorer.model), torch.no_grad():
            batch = flatten_completions(rows).to(device)
            found = scorer.logprobs(batch)
        # The completions of one prompt stand together in the batch, so its sequence may differ from that of the rows.
        by_prompt: dict[tuple[int, ...], list[TokenizedCompletion]] = {}
        for row in rows:
            by_prompt.setdefault(tuple(row.prompt), []).append(row)
        in_row = [row for of_prompt in by_prompt.values() for row in of_prompt]
        counts = torch.bincount(found.rows, minlength=len(in_row))
        yield [
            ExampleLoss(row.id, -total, count)
            for row, total, count in zip(in_row, found.sums.tolist(), counts.tolist(), strict=True)
        ]


def examples_loss(engine: LocalEngine, rows: Sequence[TokenizedCompletion], path: Path) -> list[ExampleLoss]:
    """The loss of each row, in their sequence. Each batch is written to a file before the next one is computed.

    After a kill, the same call computes only the batches that the file lacks. The lines of other weights or other
    examples do not matter.

    Args:
        engine: The model.
        rows: The examples as ids.
        path: The JSONL file: one line for each example.
    """
    known = _read_losses(path, engine.identity)
    missing = [batch for batch in in_batches(rows) if any(row.id not in known for row in batch)]
    device = next(engine.model.parameters()).device
    losses = score_batches(Scorer(engine.model), missing, device)
    for found in track(losses, "general loss, batches", total=len(missing)):
        new = {one.key: one for one in found if one.key not in known}
        _append(path, engine.identity, new.values())
        known.update(new)
    return [known[row.id] for row in rows]


def general_loss(losses: Collection[ExampleLoss]) -> Estimate:
    """Mean of -log p over all completion tokens, with an interval over examples; `n` is the number of examples."""
    tokens = np.array([one.tokens for one in losses], dtype=int)
    means = np.array([one.nll for one in losses]) / np.maximum(tokens, 1)
    found = estimates({"loss": [Mean(np.repeat(means, tokens), np.repeat(np.arange(len(tokens)), tokens))]})["loss"]
    return found._replace(n=len(losses))


def _read_losses(path: Path, identity: str) -> dict[str, ExampleLoss]:
    """The losses that a file has for a model. A line that was cut by a kill counts as missing."""
    found = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); move it away") from error
    for line in lines:
        try:
            row = json.loads(line)
            if row.pop("engine") == identity:
                one = ExampleLoss(**row)
                found[one.key] = one
        except (ValueError, TypeError, KeyError, AttributeError):
            continue
    return found


def _append(path: Path, identity: str, losses: Iterable[ExampleLoss]) -> None:
    """Add lines to the file and wait until they are on the disk."""
    lines = [json.dumps({**vars(one), "engine": identity}) for one in losses]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as file:
            # A kill may have cut the last line.
            if file.tell() and not _ends_with_line(path):
                file.write(b"\n")
            file.write(("\n".join(lines) + "\n").encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise UserError(f"{path}: cannot be written to: {error.strerror or error}; make room there") from error


def _ends_with_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
