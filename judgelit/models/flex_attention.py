"""FlexAttention's kernel for flat rows, tried before its first use.

PyTorch compiles the kernel for the GPU at hand. For some GPUs, head sizes and versions this fails, or the kernel asks
for more shared memory than the GPU has. This must not end a run at its thousandth step. So the kernel computes a small
row first, forward and backward, and the result is compared with that of scaled dot products.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any, Self

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from judgelit.batches.attention_plan import AttentionPlan
from judgelit.batches.flat_batch import TokenizedCompletion, flatten_completions
from judgelit.errors import first_line

Kernel = Callable[..., Tensor]
"""`flex_attention`: query, key, value, block_mask, scale, enable_gqa to [1, H, T, D]."""
Attention = Callable[[AttentionPlan, Tensor, Tensor, Tensor], Tensor]
"""Attention of a flat row by its plan: query, key and value to [1, T, H, D]."""

BLOCK = 128
"""Tokens of a block of FlexAttention's mask. A row that is no longer gains nothing from the kernel."""

_COMPILED_AT_MOST = 64
"""Kernels that a process compiles: PyTorch's limit of 8 is less than some benchmarks and tests need."""
_TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 3e-2, torch.float16: 1e-2}
"""Largest difference to scaled dot products, as a share of the largest value; float32 products may be in TF32."""


@dataclass(frozen=True)
class Heads:
    """The heads of a layer's attention: all that a compiled kernel depends on but the row's length."""

    queries: int
    """Heads of the queries."""
    groups: int
    """Heads of keys and values."""
    size: int
    """Channels of a query and of a key."""
    value_size: int
    """Channels of a value."""
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, query: Tensor, value: Tensor) -> Self:
        """The heads of [1, H, T, D] queries and [1, G, T, E] values, in the values' dtype."""
        return cls(query.shape[1], value.shape[1], query.shape[3], value.shape[3], value.dtype, value.device)


@cache
def checked_kernel(heads: Heads, other: Attention) -> Kernel | None:
    """FlexAttention's compiled kernel, or None where it cannot be used; then a line of the log says why.

    Args:
        heads: What the kernel is compiled for.
        other: The attention that the kernel is compared with, and that is used in its place.
    """
    fault = "Triton, which compiles it, is not installed"
    if find_spec("triton") is not None:
        fault = kernel_fault(_compiled(), heads, other)
    if not fault:
        return _compiled()
    rank_zero_info(
        f"attention: FlexAttention cannot be used with heads of {heads.size} channels in {heads.dtype} on "
        f"{heads.device}: {fault}; scaled dot products, stretch by stretch, are used in its place"
    )
    return None


def kernel_fault(kernel: Kernel, heads: Heads, other: Attention) -> str:
    """Why a kernel cannot be used: it raises, or its values or gradients are wrong; "" if it can be.

    Raises:
        torch.OutOfMemoryError: The GPU's memory is full, which is no fault of the kernel.
    """
    generator = torch.Generator().manual_seed(0)
    # The first batch may come under `no_grad` or `inference_mode`, but gradients are tried in any case. A checkpointed
    # layer is computed again without this trial, so what the trial saves must not count as the layer's.
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(heads.device.type, enabled=False),
        torch.autograd.graph.saved_tensors_hooks(_unchanged, _unchanged),
    ):
        plan = _trial_plan(heads.device)
        length = len(plan.segments)
        query, key, value, weights = (
            torch.randn(1, count, length, size, generator=generator).to(heads.device, heads.dtype).requires_grad_()
            for count, size in (
                (heads.queries, heads.size),
                (heads.groups, heads.size),
                (heads.groups, heads.value_size),
                (heads.queries, heads.value_size),
            )
        )
        weights = weights.detach().transpose(1, 2)
        try:
            found = flex_rows(kernel, plan, query, key, value)
            gradients = torch.autograd.grad((found * weights).sum(), (query, key, value))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            # The compiler and the driver raise many types, and all mean the same here.
            return f"{type(error).__name__}: {first_line(error)[:200]}"
        expected = other(plan, query, key, value)
        wanted = torch.autograd.grad((expected * weights).sum(), (query, key, value))
    for name, one, right in zip(
        ("values", "gradients of queries", "gradients of keys", "gradients of values"),
        (found.detach(), *gradients),
        (expected.detach(), *wanted),
        strict=True,
    ):
        gap = ((one - right).abs().max() / right.abs().max()).item()
        if not gap <= _TOLERANCE[heads.dtype]:
            return f"its {name} differ from those of scaled dot products by {gap:.2g} of the largest"
    return ""


def flex_rows(
    kernel: Kernel, plan: AttentionPlan, query: Tensor, key: Tensor, value: Tensor, scale: float | None = None
) -> Tensor:
    """Apply the kernel to a flat row: [1, H, T, D] and, for G groups of heads, [1, G, T, D] to [1, T, H, D]."""
    grouped = query.shape[1] != key.shape[1]
    out = kernel(query, key, value, block_mask=plan.block_mask, scale=scale, enable_gqa=grouped)
    return out.transpose(1, 2)


def _trial_plan(device: torch.device) -> AttentionPlan:
    """The plan of a row of a few blocks: two prompts, of which one has two completions."""
    prompt, other = [0] * (BLOCK + 20), [1] * 30
    rows = [
        TokenizedCompletion("", prompt, [2] * 70),
        TokenizedCompletion("", prompt, [2] * (BLOCK + 5)),
        TokenizedCompletion("", other, [2] * 40),
    ]
    return flatten_completions(rows).to(device).plan


def _unchanged(tensor: Tensor) -> Tensor:
    return tensor


@cache
def _compiled() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    # It is compiled again for other heads, other dtypes, and with or without gradients. Past its limit, PyTorch would
    # warn and compute the attention of all [T x T] pairs of tokens; `fullgraph` makes that an error.
    torch._dynamo.config.recompile_limit = max(_COMPILED_AT_MOST, torch._dynamo.config.recompile_limit)
    return torch.compile(flex_attention, dynamic=True, fullgraph=True)
