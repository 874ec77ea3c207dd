"""Work of a training run: batches of its data as the loader makes them, or batches of assumed lengths."""

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
from judgelit.planning.estimate import PlannedRun, meta_model, scoring_of

Example = TokenizedCompletion | TokenizedPreference
_MOST_COUNTED = 1000
"""Batches of an epoch of which operations are counted; further batches count in proportion."""
_CANDIDATES = 8
"""Batches with most tokens that are made to find the one with the largest memory."""


@dataclass(frozen=True)
class AssumedLengths:
    """Lengths to plan without data: tokens of a prompt and of each completion, examples of an epoch."""

    prompt: int
    completion: int
    examples: int


@dataclass(frozen=True)
class Workload:
    """Sizes of an epoch, and its largest micro-batch.

    collate: makes a batch of tokenised examples.
    largest: examples of the largest micro-batch of one rank.
    batches: micro-batches of an epoch, over all ranks.
    examples: examples of an epoch.
    tokens: tokens of these examples; a prompt counts once for each of its completions.
    flops: operations of an epoch: forward pass, backward pass and reference.
    reference_flops: operations that precompute the reference before training.
    notes: remarks to print with the figures.
    """

    collate: Callable[[Sequence[Any]], Batch]
    largest: tuple[Example, ...]
    batches: int
    examples: int
    tokens: float
    flops: float
    reference_flops: float
    notes: tuple[str, ...]


def read_workload(data: Any, run: PlannedRun, assumed: AssumedLengths | None = None) -> Workload:
    """Read and tokenise the data as training does, or assume lengths.

    Raises:
        UserError: The data cannot be read.
    """
    model = meta_model(run)
    scoring = scoring_of(run, model)
    collate: Any = flatten_completions if run.reference is None else flatten_preferences
    if assumed is not None:
        largest, count = _assumed_examples(data, run, assumed), assumed.examples
        batches = -(-count // len(largest))
        counted, scale = [collate(largest)], count / len(largest)
        note = f"data: not read; assumed prompts of {assumed.prompt} and completions of {assumed.completion} tokens"
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
        largest = max(made, key=lambda examples: computed_tokens(collate(examples), scoring))
        counted = [collate([loader.dataset[number] for number in batch]) for batch in numbers[:_MOST_COUNTED]]
        batches, count, scale = len(numbers), sum(map(len, numbers)), len(numbers) / len(counted)
        notes = (
            (f"data: operations of {_MOST_COUNTED} of {batches} batches counted",) if batches > _MOST_COUNTED else ()
        )
    forward = forward_flops(model, _concatenate(counted)) * scale
    step = forward * passes(run.backbone.uses_lora, run.kind in ("adapter", "frozen"))
    tokens = sum(batch.tokens for batch in counted) * scale
    precomputed = forward if run.kind == "precomputed" else 0.0
    return Workload(collate, tuple(largest), batches, count, tokens, step, precomputed, notes)


def computed_tokens(batch: Batch, scoring: Layout) -> int:
    """Tokens of a batch that the model computes, padding included."""
    return len(batch.input_ids) if scoring.rows == "shared_prefix" else batch.padded_tokens


def _assumed_examples(data: Any, run: PlannedRun, assumed: AssumedLengths) -> list[Example]:
    completions = 1 if run.reference is None else 2
    length = assumed.prompt + completions * assumed.completion
    count = data.batch_size if data.tokens_per_batch is None else max(1, data.tokens_per_batch // length)
    examples: list[Example] = []
    for number in range(count):
        prompt = [number] * assumed.prompt
        sides = [[side] * assumed.completion for side in range(completions)]
        if completions == 1:
            examples.append(TokenizedCompletion(str(number), prompt, sides[0]))
        else:
            examples.append(TokenizedPreference(str(number), prompt, sides[0], sides[1]))
    return examples


def _concatenate(batches: Sequence[Batch]) -> Batch:
    """Concatenate batches into one on the meta device."""
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
