"""Flat batches: one row without padding in which each prompt stands once.

A batch of two prompts, the first with two completions, is the row

    [ prompt 1 | completion | completion | prompt 2 | completion ]

A completion sees its own prompt and itself, and its positions continue those of the prompt. Judge prompts are long (a
question and two answers) and both judgments of a DPO pair share one, so this is about half the work of a row for each
completion. `Batch.padded` gives separate rows, for models whose attention does not support a block mask.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor

from judgelit.batches.attention_plan import AttentionPlan


@dataclass(frozen=True)
class TokenizedCompletion:
    """A prompt and one completion as ids; `id` names the record in messages about it, `tag` is that of its source."""

    id: str
    prompt: Sequence[int]
    completion: Sequence[int]
    tag: str = ""

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)


@dataclass(frozen=True)
class TokenizedPreference:
    """A prompt and its two completions as ids.

    `reference` holds the reference's log-probability of each scored token, the chosen completion first, if it is
    precomputed. `tag` is that of its source.
    """

    id: str
    prompt: Sequence[int]
    chosen: Sequence[int]
    rejected: Sequence[int]
    reference: Sequence[float] | None = None
    tag: str = ""

    def __len__(self) -> int:
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))


@dataclass(frozen=True)
class Segment:
    """A stretch of a flat row: a prompt, or a completion of the prompt with the segment number `prompt`."""

    start: int
    length: int
    prompt: int | None = None

    @property
    def stop(self) -> int:
        return self.start + self.length


@dataclass(frozen=True)
class Batch:
    """K completions and their prompts in one flat row of T tokens, of which N are scored.

    The position before a token predicts it; the last position of the prompt predicts the first token of a completion.
    Under an empty prompt nothing predicts that token, so it is not scored.

    input_ids: [T] int64.
    position_ids: [T] int64, from 0 in each prompt; a completion's continue its prompt's.
    predicts: [N] int64, the place in the row that predicts each scored token, completion by completion.
    targets: [N] int64, the scored tokens.
    rows: [N] int64, the completion of each scored token, 0 to K - 1.
    lengths: [K] int64, tokens of each completion.
    segments: the row's prompts and completions, in order; the completions among them are numbers 0 to K - 1.
    ids: names of the examples; none if the batch is a placeholder, which counts nothing.
    tokens: tokens of the examples, each counted with its own prompt.
    tags: the tags of all sources, whose losses are logged apart; the same in each batch of a data set.
    tagged: [E] int64, the number of each example's tag in `tags`, -1 without a tag. The examples are the completions in
        their order; in a `PreferenceBatch` the pairs, then the general examples.
    """

    input_ids: Tensor
    position_ids: Tensor
    predicts: Tensor
    targets: Tensor
    rows: Tensor
    lengths: Tensor
    segments: tuple[Segment, ...]
    ids: tuple[str, ...]
    tokens: int
    tags: tuple[str, ...]
    tagged: Tensor

    @property
    def unpadded_tokens(self) -> int:
        """Tokens of K rows [prompt | completion]."""
        return sum(self._row_lengths)

    @property
    def padded_tokens(self) -> int:
        """Tokens of those rows, padding included."""
        return max(self._row_lengths) * len(self._row_lengths)

    @property
    def _row_lengths(self) -> list[int]:
        return [own.length + self.segments[own.prompt].length for own in self.segments if own.prompt is not None]

    def to(self, device: torch.device | str) -> Self:
        """Return the batch on another device; Lightning calls this for every batch."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True) for name, value in values.items() if isinstance(value, Tensor)
        }
        return replace(self, **moved)

    @cached_property
    def plan(self) -> AttentionPlan:
        """The attention of the flat row, made once and used by the policy and the reference."""
        return AttentionPlan.of(self.segments, self.input_ids.device)

    @cached_property
    def padded(self) -> "PaddedBatch":
        """The same completions as rows [prompt | completion | padding]."""
        owns = [segment for segment in self.segments if segment.prompt is not None]
        spans = []
        for own in owns:
            prompt = self.segments[own.prompt or 0]
            spans.append([*range(prompt.start, prompt.stop), *range(own.start, own.stop)])
        width = max(map(len, spans))
        places = torch.tensor([span + [0] * (width - len(span)) for span in spans])
        mask = torch.tensor([[1] * len(span) + [0] * (width - len(span)) for span in spans])
        # A row's scored tokens are its last ones, each predicted one place before it.
        ends = [row * width + len(span) for row, span in enumerate(spans)]
        scored = torch.bincount(self.rows.cpu(), minlength=len(owns)).tolist()
        predicts = [end - 1 - n for end, count in zip(ends, scored, strict=True) for n in range(count, 0, -1)]
        device = self.input_ids.device
        return PaddedBatch(
            input_ids=self.input_ids[places.to(device)],
            attention_mask=mask.to(device),
            predicts=torch.tensor(predicts, dtype=torch.long, device=device),
        )


@dataclass(frozen=True)
class PaddedBatch:
    """A batch as K rows [prompt | completion | padding] of W tokens.

    input_ids: [K, W] int64; padding repeats some token of the batch.
    attention_mask: [K, W] int64, 1 on real tokens; taken from lengths, never from ids.
    predicts: [N] int64, as in the batch, but into the K * W places of the rows.
    """

    input_ids: Tensor
    attention_mask: Tensor
    predicts: Tensor


@dataclass(frozen=True)
class PreferenceBatch(Batch):
    """P pairs of completions and G general examples. Equal completions of a prompt's pairs stand in the row once.

    chosen, rejected: [P] int64, the number of each pair's completion.
    general: [G] int64, the number of each general example's completion.
    reference: [N] float32, the reference's log-probability of each scored token, 0 for general examples; None if it is
        not precomputed.
    """

    chosen: Tensor
    rejected: Tensor
    general: Tensor
    reference: Tensor | None = None

    @property
    def pairs(self) -> int:
        return len(self.chosen)


def flatten_completions(rows: Sequence[TokenizedCompletion], tags: tuple[str, ...] = ()) -> Batch:
    """Make a batch of examples. Those with one prompt share it.

    `tags` are those of all examples of the data set.

    With prompts [1, 2], [3] and [1, 2] and completions [7, 8], [9] and [5], `input_ids` is [1, 2, 7, 8, 5, 3, 9] and
    `position_ids` is [0, 1, 2, 3, 2, 0, 1].
    """
    tree = _Tree()
    for row in rows:
        tree.add(row.prompt, row.completion)
    return Batch(
        **tree.flat(),
        ids=tuple(row.id for row in rows),
        tokens=sum(map(len, rows)),
        tags=tags,
        tagged=_tagged([rows[handle] for handle in tree.numbers()], tags),
    )


def flatten_preferences(
    rows: Sequence[TokenizedPreference | TokenizedCompletion], tags: tuple[str, ...] = ()
) -> PreferenceBatch:
    """Make a batch of preference pairs: [prompt | chosen | rejected | more where pairs share a prompt].

    A completion that several pairs of a prompt share stands in the row once. Rows with one completion are general
    examples. `tags` are those of all rows of the data set.
    """
    pairs = [row for row in rows if isinstance(row, TokenizedPreference)]
    general = [row for row in rows if isinstance(row, TokenizedCompletion)]
    tree = _Tree()
    places: list[tuple[int, int]] = []
    values: dict[int, Sequence[float]] = {}
    for row in pairs:
        chosen = tree.add(row.prompt, row.chosen, once=True)
        rejected = tree.add(row.prompt, row.rejected, once=True)
        places.append((chosen, rejected))
        if row.reference is not None:
            scored = _scored(row.prompt, row.chosen)
            values[chosen], values[rejected] = row.reference[:scored], row.reference[scored:]
    alone = [tree.add(row.prompt, row.completion) for row in general]
    values |= {handle: [0.0] * _scored(row.prompt, row.completion) for handle, row in zip(alone, general, strict=True)}
    number = tree.numbers()
    reference = None
    if all(row.reference is not None for row in pairs):
        reference = torch.tensor([value for handle in number for value in values[handle]], dtype=torch.float32)
    examples: list[TokenizedPreference | TokenizedCompletion] = [*pairs, *general]
    return PreferenceBatch(
        **tree.flat(),
        ids=tuple(row.id for row in examples),
        tokens=sum(2 * len(row.prompt) + len(row.chosen) + len(row.rejected) for row in pairs) + sum(map(len, general)),
        tags=tags,
        tagged=_tagged(examples, tags),
        chosen=torch.tensor([number[chosen] for chosen, _ in places], dtype=torch.long),
        rejected=torch.tensor([number[rejected] for _, rejected in places], dtype=torch.long),
        general=torch.tensor([number[handle] for handle in alone], dtype=torch.long),
        reference=reference,
    )


def _scored(prompt: Sequence[int], completion: Sequence[int]) -> int:
    """How many tokens of a completion are scored."""
    return len(completion) - (0 if len(prompt) else 1)


def _tagged(rows: Sequence[TokenizedPreference | TokenizedCompletion], tags: tuple[str, ...]) -> Tensor:
    return torch.tensor([tags.index(row.tag) if row.tag in tags else -1 for row in rows], dtype=torch.long)


class _Tree:
    """Prompts and their completions, in the order in which they were added."""

    def __init__(self) -> None:
        self.prompts: dict[tuple[int, ...], list[int]] = {}
        self.completions: list[tuple[int, ...]] = []
        self.known: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}

    def add(self, prompt: Sequence[int], completion: Sequence[int], once: bool = False) -> int:
        """Add a completion of `prompt` and return its handle; with `once`, that of an equal one if there is one."""
        key = (tuple(prompt), tuple(completion))
        handle = len(self.completions)
        if once and self.known.setdefault(key, handle) != handle:
            return self.known[key]
        self.completions.append(key[1])
        self.prompts.setdefault(key[0], []).append(handle)
        return handle

    def numbers(self) -> dict[int, int]:
        """The number in the row of each handle's completion."""
        handles = [handle for of_prompt in self.prompts.values() for handle in of_prompt]
        return {handle: number for number, handle in enumerate(handles)}

    def flat(self) -> dict[str, Any]:
        """The tensors and segments of a batch."""
        ids: list[int] = []
        positions: list[int] = []
        predicts: list[int] = []
        targets: list[int] = []
        rows: list[int] = []
        lengths: list[int] = []
        segments: list[Segment] = []
        for prompt, handles in self.prompts.items():
            above = len(segments)
            segments.append(Segment(len(ids), len(prompt)))
            ids += prompt
            positions += range(len(prompt))
            for completion in (self.completions[handle] for handle in handles):
                own = Segment(len(ids), len(completion), above)
                ids += completion
                positions += range(len(prompt), len(prompt) + len(completion))
                unscored = 0 if prompt else 1
                scored = range(own.start + unscored, own.stop)
                last = segments[above].stop - 1
                predicts += [last if place == own.start else place - 1 for place in scored]
                targets += completion[unscored:]
                rows += [len(lengths)] * len(scored)
                lengths.append(len(completion))
                segments.append(own)
        tensors = {
            "input_ids": ids,
            "position_ids": positions,
            "predicts": predicts,
            "targets": targets,
            "rows": rows,
            "lengths": lengths,
        }
        return {
            **{name: torch.tensor(values, dtype=torch.long) for name, values in tensors.items()},
            "segments": tuple(segments),
        }


def pad_prompts(prompts: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Pad prompts on the left, for generation: `input_ids` and `attention_mask`, [B, T] int64."""
    width = max(len(prompt) for prompt in prompts)
    input_ids = torch.full((len(prompts), width), pad_id, dtype=torch.long)
    attention_mask = torch.zeros((len(prompts), width), dtype=torch.long)
    for index, prompt in enumerate(prompts):
        input_ids[index, width - len(prompt) :] = torch.tensor(prompt, dtype=torch.long)
        attention_mask[index, width - len(prompt) :] = 1
    return input_ids, attention_mask
