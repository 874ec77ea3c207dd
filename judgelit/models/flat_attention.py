"""Attention over a flat row of prompts and completions, in which each token sees its own prompt and itself.

transformers' models take their attention function from a registry and pass on keywords that they do not know. judgelit
registers a function (`NAME`). Given a `judgelit_attention`, it computes the attention that a separate row for each
completion would have; without one, it is PyTorch's usual attention.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from judgelit.batches.attention_plan import AttentionPlan
from judgelit.models.flex_attention import BLOCK, Heads, Kernel, checked_kernel, flex_rows

NAME = "judgelit"
"""The attention's name, as `attn_implementation` takes it."""


class RowAttention(Protocol):
    """Computes the attention of a flat row: `FlatAttention`, or a cache that keeps keys and values between rows."""

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float | None, dropout: float, module: nn.Module
    ) -> Tensor:
        """[1, H, T, D] and, for G groups of heads, [1, G, T, D] to [1, T, H, D]; `module` is the layer's attention."""
        ...


@dataclass(frozen=True)
class FlatAttention:
    """The attention of a flat row by its plan: FlexAttention on CUDA, else scaled dot products group by group."""

    plan: AttentionPlan

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float | None,
        dropout: float,
        module: nn.Module | None = None,
    ) -> Tensor:
        """[1, H, T, D] and, for G groups of heads, [1, G, T, D] to [1, T, H, D]; all layers share the plan."""
        if query.is_cuda and dropout == 0.0 and query.shape[2] > BLOCK:
            # Unlike scaled_dot_product_attention, it is not on autocast's list.
            query, key = query.to(value.dtype), key.to(value.dtype)
            kernel = kernel_for(Heads.of(query, value))
            if kernel is not None:
                return flex_rows(kernel, self.plan, query, key, value, scale)
        return _by_scaled_dot_products(self.plan, query, key, value, scale, dropout)


def kernel_for(heads: Heads) -> Kernel | None:
    """FlexAttention's kernel for these heads; None where scaled dot products are used in its place."""
    return checked_kernel(heads, _by_scaled_dot_products)


def _by_scaled_dot_products(
    plan: AttentionPlan, query: Tensor, key: Tensor, value: Tensor, scale: float | None = None, dropout: float = 0.0
) -> Tensor:
    """[1, H, T, D] and [1, G, T, D] to [1, T, H, D], one call for each group of similar stretches."""
    # One row of all heads for each token, so that a place in the flat row is a row to select.
    query, key, value = (part[0].transpose(0, 1) for part in (query, key, value))
    rows = [part.reshape(len(part), -1) for part in (query, key, value)]
    parts = []
    for group in plan.groups:
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
    return torch.cat(parts).index_select(0, plan.inverse).view(1, len(plan.inverse), query.shape[1], -1)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    judgelit_attention: RowAttention | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    if judgelit_attention is not None:
        return judgelit_attention.attend(query, key, value, scaling, dropout, module), None
    out, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **more)
    return out, None


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
