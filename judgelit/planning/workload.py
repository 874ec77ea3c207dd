"""What a run has to compute: the batches of its data as the loader makes them, or batches of assumed lengths."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from judgelit.batches.flat_batch import (
    Batch,
    Segment,
    TokenizedCompletion,
    TokenizedPreference,
    flatten_completions,
    flatten_preferences,
)
from judgelit.errors import UserError
from judgelit.likelihood.flops import forward_flops, passes
from judgelit.likelihood.layouts import Layout
from judgelit.planning.estimate import Run, outline, scoring_of

Row = TokenizedCompletion | TokenizedPreference
_READ = 1000
"""Batches that are made to count what an epoch computes; it has the rest in proportion."""
_CANDIDATES = 8
"""Of the batches with most tokens, how many are made to find the one that takes most memory."""


@dataclass(frozen=True)
class Assumed:
    """Lengths in place of data: tokens of a prompt and of each completion, examples of an epoch."""

    prompt: int
    completion: int
    examples: int


@dataclass(frozen=True)
class Workload:
    """An epoch, and the largest of its micro-batches.

    rows: those of the largest micro-batch, of one rank.
    batches: micro-batches of an epoch, over all ranks.
    tokens: of an epoch's examples, each prompt with each of its completions.
    flops: operations of an epoch, forward, backward and the reference's.
    reference_flops: those of the pass before training.
    notes: what the reader of these figures should know.
    """

    collate: Callable[[Sequence[Any]], Batch]
    rows: tuple[Row, ...]
    batches: int
    examples: int
    tokens: float
    flops: float
    reference_flops: float
    notes: tuple[str, ...]


def read_workload(data: Any, run: Run, assumed: Assumed | None = None) -> Workload:
    """The workload of a data module, read and tokenised as training would; or of assumed lengths.

    Raises:
        UserError: The data cannot be read.
    """
    model = outline(run)
    scoring = scoring_of(run, model)
    collate: Any = flatten_completions if run.reference is None else flatten_preferences
    if assumed is not None:
        rows, count = _assumed_rows(data, run, assumed), assumed.examples
        batches = -(-count // len(rows))
        read, share = [collate(rows)], count / len(rows)
        note = f"data: not read; prompts of {assumed.prompt} and completions of {assumed.completion} tokens assumed"
        notes: tuple[str, ...] = (note,)
    else:
        try:
            data.setup("fit")
            loader = data.train_dataloader()
        except UserError as error:
            raise UserError(f"{error}; or give --prompt-tokens and --completion-tokens to plan without data") from error
        numbers = list(loader.batch_sampler)
        lengths = data.rows("train").lengths
        longest = sorted(numbers, key=lambda batch: -int(lengths[batch].sum()))[:_CANDIDATES]
        made = [[loader.dataset[number] for number in batch] for batch in longest]
        rows = max(made, key=lambda rows: places(collate(rows), scoring))
        read = [collate([loader.dataset[number] for number in batch]) for batch in numbers[:_READ]]
        batches, count, share = len(numbers), sum(map(len, numbers)), len(numbers) / len(read)
        notes = (f"data: {_READ} of {batches} batches counted",) if batches > _READ else ()
    forward = forward_flops(model, _joined(read)) * share
    tokens = sum(batch.tokens for batch in read) * share
    before = forward if run.kind == "precomputed" else 0.0
    return Workload(
        collate,
        tuple(rows),
        batches,
        count,
        tokens,
        forward * passes(run.backbone.uses_lora, run.kind in ("adapter", "frozen")),
        before,
        notes,
    )


def places(batch: Batch, scoring: Layout) -> int:
    """Places of a batch that the model computes, padding included."""
    return len(batch.input_ids) if scoring.rows == "shared_prefix" else batch.padded_tokens


def _assumed_rows(data: Any, run: Run, assumed: Assumed) -> list[Row]:
    completions = 1 if run.reference is None else 2
    length = assumed.prompt + completions * assumed.completion
    count = data.batch_size if data.tokens_per_batch is None else max(1, data.tokens_per_batch // length)
    rows: list[Row] = []
    for number in range(count):
        prompt = [number] * assumed.prompt
        own = [[side] * assumed.completion for side in range(completions)]
        one = TokenizedCompletion if completions == 1 else TokenizedPreference
        rows.append(one(str(number), prompt, *own))
    return rows


def _joined(batches: Sequence[Batch]) -> Batch:
    """One batch of the sizes of all, without contents."""
    starts = itertools.accumulate((len(batch.segments) for batch in batches), initial=0)
    segments = [
        Segment(one.start, one.length, None if one.prompt is None else one.prompt + start)
        for start, batch in zip(starts, batches, strict=False)
        for one in batch.segments
    ]
    own = {item.name: getattr(batches[0], item.name) for item in fields(Batch)}
    sizes = {name: sum(len(getattr(batch, name)) for batch in batches) for name in ("input_ids", "targets")}
    empty = {name: torch.empty(size, dtype=torch.long, device="meta") for name, size in sizes.items()}
    return replace(Batch(**own), **empty, segments=tuple(segments))  # type: ignore[arg-type]
