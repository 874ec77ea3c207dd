"""Attention over a flat row of prompts and completions, in which each token sees its own prompt and itself.

Models of transformers take their attention function from a registry and hand it whatever keyword they do not know.
judgelit registers one (`NAME`) which, given a `plan` of the row, computes exactly the attention that a row for each
completion would have, and without a plan is PyTorch's usual one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from judgelit.batches.flat_batch import Batch, Segment

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

NAME = "judgelit"
"""The attention implementation's name, as `attn_implementation` takes it."""

_SIMILAR = 0.8
_CLOSE = 32
"""Stretches are padded to one another if the shorter has this share of the longer's tokens, or this few tokens less."""


class RowAttention(Protocol):
    """What computes the attention of a flat row: a `Plan`, or what keeps keys and values from one row to the next."""

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float | None, dropout: float, module: nn.Module
    ) -> Tensor:
        """[1, H, T, D] and, for G groups of heads, [1, G, T, D] to [1, T, H, D]; `module` is the layer's attention."""
        ...


@dataclass(frozen=True)
class _Group:
    """Stretches of similar length that one call computes, S of them.

    queries: [S * L] int64, places in the row, padded.
    keys: [S * M] int64, the same.
    mask: [S, 1, L, M] bool, true where a query sees a key; None if the stretch is causal by itself (then L = M).
    """

    size: int
    queries: Tensor
    keys: Tensor
    mask: Tensor | None


@dataclass(frozen=True)
class Plan:
    """Who sees whom in the flat row of T tokens, prepared once a batch for all layers.

    groups: what to compute.
    inverse: [T] int64, where each token stands among the groups' queries, one group after the other.
    nodes, parents: [T] int64, the segment of each token and the one above it (its own for a prompt's).
    """

    groups: tuple[_Group, ...]
    inverse: Tensor
    nodes: Tensor
    parents: Tensor

    @classmethod
    def of(cls, batch: Batch) -> "Plan":
        """The plan of a batch, on its device.

        A prompt and its first completion are one causal stretch. A further completion's queries see the prompt's keys
        and its own. So no query meets a key that it may not see but for causality and padding to similar length.
        """
        segments, device = batch.segments, batch.input_ids.device
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
        # Padding repeats a place that stands before it in the same stretch: the first mention counts.
        queries = torch.cat([group.queries for group in groups])
        inverse = torch.full((len(batch.input_ids),), len(queries))
        inverse.scatter_reduce_(0, queries, torch.arange(len(queries)), "amin")
        counts = torch.tensor([segment.length for segment in segments])
        above = torch.tensor([index if s.prompt is None else s.prompt for index, s in enumerate(segments)])
        nodes = torch.arange(len(segments)).repeat_interleave(counts)
        return cls(
            tuple(
                _Group(g.size, g.queries.to(device), g.keys.to(device), None if g.mask is None else g.mask.to(device))
                for g in groups
            ),
            *(tensor.to(device) for tensor in (inverse, nodes, above[nodes])),
        )

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float | None,
        dropout: float,
        module: nn.Module | None = None,
    ) -> Tensor:
        """Attention of a flat row: [1, H, T, D] and, for G groups of heads, [1, G, T, D] to [1, T, H, D].

        The plan is the same for all layers, so it does not matter which `module` asks.
        """
        if query.is_cuda and dropout == 0.0 and query.shape[-1] >= 16 and (flex := _compiled_flex_attention()):
            # Unlike scaled_dot_product_attention, it is not on autocast's list.
            query, key = query.to(value.dtype), key.to(value.dtype)
            grouped = query.shape[1] != key.shape[1]
            out = flex(query, key, value, block_mask=self.block_mask, scale=scale, enable_gqa=grouped)
            return out.transpose(1, 2)
        # Rows of all heads of a token, so that places are rows to select.
        query, key, value = (part[0].transpose(0, 1) for part in (query, key, value))
        rows = [part.reshape(len(part), -1) for part in (query, key, value)]
        parts = []
        for group in self.groups:
            q, k, v = (
                row.index_select(0, places).view(group.size, -1, *part.shape[1:]).transpose(1, 2)
                for row, places, part in zip(
                    rows, (group.queries, group.keys, group.keys), (query, key, value), strict=True
                )
            )
            out = F.scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=group.mask,
                dropout_p=dropout,
                is_causal=group.mask is None,
                scale=scale,
                enable_gqa=q.shape[1] != k.shape[1],
            )
            parts.append(out.transpose(1, 2).reshape(len(group.queries), -1))
        return torch.cat(parts).index_select(0, self.inverse).view(1, len(self.inverse), query.shape[1], -1)

    @cached_property
    def block_mask(self) -> "BlockMask":
        """The same as FlexAttention's block mask, [1, 1, T, T]."""
        from torch.nn.attention.flex_attention import create_block_mask

        nodes, parents, length = self.nodes, self.parents, len(self.nodes)

        def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (key <= query) & ((nodes[key] == nodes[query]) | (nodes[key] == parents[query]))

        return create_block_mask(sees, None, None, length, length, device=nodes.device, _compile=nodes.is_cuda)


def _causal(stretches: Sequence[range]) -> _Group:
    width = max(map(len, stretches))
    places = torch.tensor([[*stretch, *[stretch[-1]] * (width - len(stretch))] for stretch in stretches])
    return _Group(len(stretches), places.flatten(), places.flatten(), None)


def _branching(branches: Sequence[tuple[Segment, Segment]]) -> _Group:
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
    return _Group(len(branches), torch.tensor(queries).flatten(), torch.tensor(keys).flatten(), mask)


def _similar(lengths: Sequence[int]) -> list[list[int]]:
    """Indices of `lengths` above 0, longest first, in groups of similar length."""
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


@cache
def _compiled_flex_attention() -> Callable[..., Any] | None:
    """FlexAttention's kernel, where there is the Triton that it is compiled with."""
    if find_spec("triton") is None:
        return None
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    judgelit_plan: RowAttention | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    if judgelit_plan is None:
        out, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **more
        )
        return out, None
    return judgelit_plan.attend(query, key, value, scaling, dropout, module), None


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
