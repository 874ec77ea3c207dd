"""Who sees whom in the flat row of a batch, prepared for attention kernels.

A prompt and its first completion are one causal stretch of the row. Each further completion of the prompt is a branch:
its queries see the prompt's keys and their own. Stretches of similar length are padded to one another and computed by
one call.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

    from judgelit.batches.flat_batch import Segment

_SIMILAR = 0.8
_CLOSE = 32
"""Stretches are padded to one another if the shorter has this share of the longer's tokens, or this few tokens less."""


@dataclass(frozen=True)
class Group:
    """S stretches of similar length that one call computes.

    size: S.
    queries: [S * L] int64, places in the row, padded.
    keys: [S * M] int64, places in the row, padded.
    mask: [S, 1, L, M] bool, true where a query sees a key; None if the stretches are causal (then L = M).
    """

    size: int
    queries: Tensor
    keys: Tensor
    mask: Tensor | None

    def to(self, device: torch.device) -> Self:
        """Return the group on another device."""
        mask = None if self.mask is None else self.mask.to(device)
        return type(self)(self.size, self.queries.to(device), self.keys.to(device), mask)


@dataclass(frozen=True)
class AttentionPlan:
    """The attention of a flat row of T tokens, the same for every layer.

    groups: the stretches to compute.
    inverse: [T] int64, the place of each token among the queries of all groups, one group after the other.
    segments: [T] int64, the segment of each token.
    prompts: [T] int64, the segment of each token's prompt (its own segment for a token of a prompt).
    """

    groups: tuple[Group, ...]
    inverse: Tensor
    segments: Tensor
    prompts: Tensor

    @classmethod
    def of(cls, segments: Sequence["Segment"], device: torch.device) -> Self:
        """Plan the attention of a row that consists of these segments.

        No query meets a key that it may not see, except by causality and by padding to a similar length.
        """
        trunks: list[range] = []
        branches: list[tuple[Segment, Segment]] = []
        for index, segment in enumerate(segments):
            if segment.prompt is None:
                first = segments[index + 1] if index + 1 < len(segments) else segment
                trunks.append(range(segment.start, first.stop if first.prompt == index else segment.stop))
            elif segment.prompt != index - 1 and segment.length:
                branches.append((segments[segment.prompt], segment))
        groups = [_causal([trunks[i] for i in chosen]) for chosen in _similar([len(trunk) for trunk in trunks])]
        sizes = [prompt.length + own.length for prompt, own in branches]
        groups += [_branching([branches[i] for i in chosen]) for chosen in _similar(sizes)]
        counts = torch.tensor([segment.length for segment in segments])
        # Padding repeats a place that stands before it in the same stretch, so the first mention of a place counts.
        queries = torch.cat([group.queries for group in groups])
        inverse = torch.full((int(counts.sum()),), len(queries))
        inverse.scatter_reduce_(0, queries, torch.arange(len(queries)), "amin")
        prompts = torch.tensor([index if one.prompt is None else one.prompt for index, one in enumerate(segments)])
        numbers = torch.arange(len(segments)).repeat_interleave(counts)
        return cls(
            tuple(group.to(device) for group in groups),
            *(tensor.to(device) for tensor in (inverse, numbers, prompts[numbers])),
        )

    @cached_property
    def block_mask(self) -> "BlockMask":
        """FlexAttention's block mask of the same attention, [1, 1, T, T]."""
        segments, prompts, length = self.segments, self.prompts, len(self.segments)

        def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (key <= query) & ((segments[key] == segments[query]) | (segments[key] == prompts[query]))

        create = _create_block_mask(compiled=segments.is_cuda)
        return create(sees, None, None, length, length, device=segments.device)


@cache
def _create_block_mask(compiled: bool) -> Any:
    """PyTorch's function; compiled, it does not store whether each of T x T pairs of tokens see each other."""
    from torch.nn.attention.flex_attention import create_block_mask

    return torch.compile(create_block_mask, dynamic=True) if compiled else create_block_mask


def _causal(stretches: Sequence[range]) -> Group:
    width = max(map(len, stretches))
    places = torch.tensor([[*stretch, *[stretch[-1]] * (width - len(stretch))] for stretch in stretches])
    return Group(len(stretches), places.flatten(), places.flatten(), None)


def _branching(branches: Sequence[tuple["Segment", "Segment"]]) -> Group:
    above = max(prompt.length for prompt, _ in branches)
    width = max(own.length for _, own in branches)
    queries, keys = [], []
    mask = torch.zeros(len(branches), 1, width, above + width, dtype=torch.bool)
    mask[..., above:] = torch.ones(width, width, dtype=torch.bool).tril()
    for index, (prompt, own) in enumerate(branches):
        padding = [own.stop - 1] * (width - own.length)
        queries.append([*range(own.start, own.stop), *padding])
        filled = [*range(prompt.start, prompt.stop), *[own.start] * (above - prompt.length)]
        keys.append([*filled, *range(own.start, own.stop), *padding])
        mask[index, ..., : prompt.length] = True
    return Group(len(branches), torch.tensor(queries).flatten(), torch.tensor(keys).flatten(), mask)


def _similar(lengths: Sequence[int]) -> list[list[int]]:
    """Indices of the lengths above 0, longest first, in groups of similar length."""
    groups: list[list[int]] = []
    longest = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if lengths[index] == 0:
            break
        if not groups or lengths[index] < min(_SIMILAR * longest, longest - _CLOSE):
            groups.append([])
            longest = lengths[index]
        groups[-1].append(index)
    return groups
