"""What a training step keeps in memory, found by taking the step itself on tensors that have sizes but no contents.

Nothing is fitted: model, loss and backward pass are the ones that train, run on the meta device while every storage
that comes and goes is counted. Kernels that allocate otherwise on a real device have a stand-in here.
"""

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Self
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from judgelit.batches.flat_batch import Batch, PaddedBatch
from judgelit.likelihood.layouts import Layout
from judgelit.likelihood.logprobs import Scorer

ROW_KERNEL = "judgelit-row-kernel"
"""Name of the attention function that stands for a GPU's: one kernel over a flat row."""


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that operations make, from when they appear to when they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.peak = 0.0
        self.gradients = 0.0
        """Those of `now` that `weigh` has named gradients."""
        self.gradients_at_peak = 0.0
        self._known: dict[int, tuple[float, bool]] = {}

    def weigh(self, gradient: Tensor, share: float) -> None:
        """Name a tensor a gradient, of which this rank keeps `share`."""
        storage = gradient.untyped_storage()
        if storage._cdata in self._known:
            self._forget(storage._cdata)
        self._enter(storage, share, gradient=True)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operation and count what it makes."""
        # What an operation takes and none has made was there before; results may be views of it.
        self._meet((args, kwargs), 0.0)
        found = func(*args, **(kwargs or {}))
        self._meet(found, 1.0)
        if func is _gemm_4bit():
            # The kernel makes the weights whole again, and frees them before it returns.
            self._reach(self.now + args[2][0] * args[2][1] * args[0].element_size())
        return found

    def _meet(self, values: Any, share: float) -> None:
        for tensor in tree_leaves(values):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in self._known:
                self._enter(tensor.untyped_storage(), share, gradient=False)

    def _enter(self, storage: Any, share: float, gradient: bool) -> None:
        size, key = storage.nbytes() * share, storage._cdata
        self._known[key] = (size, gradient)
        self.now += size
        self.gradients += size * gradient
        weakref.finalize(storage, self._forget, key)
        self._reach(self.now)

    def _forget(self, key: int) -> None:
        size, gradient = self._known.pop(key, (0.0, False))
        self.now -= size
        self.gradients -= size * gradient

    def _reach(self, total: float) -> None:
        if total > self.peak:
            self.peak, self.gradients_at_peak = total, self.gradients


class DeviceKernels:
    """While entered, operations that would be others on the meta device keep what they keep on a real one.

    Attention is one fused kernel, and with `cast` linear layers and attention compute as under autocast, which keeps a
    copy of each trained weight until the forward pass is over. Functions of torch are exchanged by name: a mode for
    torch functions would be off during the backward pass, which computes checkpointed layers again.
    """

    def __init__(self, cast: torch.dtype | None) -> None:
        self.cast = cast
        self.copies: dict[int, Tensor] | None = {}
        """Weights in the cast's dtype, by the weight's id; None: they are no longer kept."""
        self._linear: Any = F.linear
        self._patch = patch.multiple(F, linear=self.linear, scaled_dot_product_attention=self.attention)

    def __enter__(self) -> Self:
        self._patch.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._patch.stop()

    def attention(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **more: Any
    ) -> Tensor:
        """In place of `scaled_dot_product_attention`."""
        return _FusedAttention.apply(self._as_cast(query), self._as_cast(key), self._as_cast(value), attn_mask)

    def linear(self, inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """In place of `linear`."""
        if self.cast is None:
            return self._linear(inputs, weight, bias)
        return self._linear(self._as_cast(inputs), self._copy(weight), None if bias is None else self._as_cast(bias))

    def _as_cast(self, tensor: Tensor) -> Tensor:
        return tensor if self.cast is None else tensor.to(self.cast)

    def _copy(self, weight: Tensor) -> Tensor:
        if self.copies is None or not weight.requires_grad:
            return self._as_cast(weight)
        if id(weight) not in self.copies:
            self.copies[id(weight)] = self._as_cast(weight)
        return self.copies[id(weight)]


class _FusedAttention(torch.autograd.Function):
    """What flash attention keeps: query, key, value, mask, output and a float32 log-sum-exp a query and head.

    [S, H, L, D] queries with [S, G, M, D] keys and values to [S, H, L, D], laid out as [S, L, H, D].
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        size, heads, length, _ = query.shape
        out = query.new_empty(size, length, heads, value.shape[-1]).transpose(1, 2)
        lse = query.new_empty(size, heads, length, dtype=torch.float32)
        # A bool mask is made one of numbers to add.
        added = None if mask is None else mask.to(query.dtype) if mask.dtype == torch.bool else mask
        ctx.save_for_backward(query, key, value, added, out, lse)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, _, _, lse = ctx.saved_tensors
        # Row sums of gradient times output; in half precision the query's gradient is added up in float32.
        work = [torch.empty_like(lse)]
        if query.dtype != torch.float32:
            work.append(torch.empty_like(query, dtype=torch.float32))
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None


def _row_kernel(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **more: Any
) -> tuple[Tensor, None]:
    return _FusedAttention.apply(query, key, value, None).transpose(1, 2), None


AttentionInterface.register(ROW_KERNEL, _row_kernel)
AttentionMaskInterface.register(ROW_KERNEL, sdpa_mask)


def _gemm_4bit() -> Any:
    # It is there once bitsandbytes has been imported.
    return getattr(getattr(torch.ops.bitsandbytes, "gemm_4bit", None), "default", None)


class _Scores(Protocol):
    def logprobs(self, batch: Batch) -> Any: ...


@dataclass(frozen=True)
class StepBytes:
    """Bytes of one rank beyond weights and optimizer state while it takes a micro-batch.

    kept: what the forward pass leaves for the backward pass.
    peak: the most at any time, gradients included.
    gradients_at_peak: those of `peak` that are gradients.
    """

    kept: int
    peak: int
    gradients_at_peak: int


def on_meta(batch: Batch, scoring: Layout, attention: str) -> Batch:
    """`batch` without contents; padded rows come with the mask [K, 1, W, W] that `attention` would make of theirs."""
    moved = batch.to("meta")
    if scoring.rows == "concatenated":
        rows = batch.padded
        count, width = rows.input_ids.shape
        dtype = torch.float32 if attention == "eager" else torch.bool
        # The property's cached value: padded rows cannot be made without contents.
        vars(moved)["padded"] = PaddedBatch(
            rows.input_ids.to("meta"),
            torch.empty(count, 1, width, width, dtype=dtype, device="meta"),
            rows.predicts.to("meta"),
        )
    return moved


def trace_step(
    policy: Scorer,
    reference: _Scores | None,
    batch: Batch,
    *,
    cast: torch.dtype | None = None,
    accumulates: bool = False,
    share: Callable[[nn.Parameter], float] = lambda weight: 1.0,
) -> StepBytes:
    """Take a micro-batch with a model on the meta device.

    Args:
        policy: Its model is on the meta device, in training mode; its gradients are gone afterwards.
        reference: Answers first and without gradient, where there is one.
        batch: As `on_meta` gives it.
        cast: The dtype of autocast, None without.
        accumulates: Whether gradients are added to those of earlier micro-batches; otherwise there are none before the
            backward pass.
        share: The share of a trained weight's gradient that stays on a rank.
    """
    trained = [weight for weight in policy.model.parameters() if weight.requires_grad]
    with DeviceKernels(cast) as kernels, LiveBytes() as live:
        hooks = []
        for weight in trained:
            if accumulates:
                weight.grad = torch.empty_like(weight)
                live.weigh(weight.grad, share(weight))
            hooks.append(weight.register_post_accumulate_grad_hook(lambda one: live.weigh(one.grad, share(one))))
        if reference is not None:
            reference.logprobs(batch)
        loss = policy.logprobs(batch).sums.sum()
        kernels.copies = None
        kept = live.now - live.gradients
        loss.backward()
        for hook in hooks:
            hook.remove()
        for weight in trained:
            weight.grad = None
    return StepBytes(round(kept), round(live.peak), round(live.gradients_at_peak))
