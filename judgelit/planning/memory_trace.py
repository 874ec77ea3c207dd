"""Memory of a training step, measured by running the step on the meta device, where tensors have no contents.

Model, loss and backward pass are those of training. Each storage is counted from its creation to its release. Kernels
that allocate other memory on a real device than on the meta device are replaced.
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
"""Name of the attention function that replaces a GPU's: one kernel over the flat batch."""


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that operations create, until they are released."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.peak = 0.0
        self.gradients = 0.0
        """Bytes of `now` that `mark_gradient` has marked."""
        self.gradients_at_peak = 0.0
        self._known: dict[int, tuple[float, bool]] = {}

    def mark_gradient(self, gradient: Tensor, share: float) -> None:
        """Mark a tensor as a gradient of which this rank keeps the fraction `share`."""
        storage = gradient.untyped_storage()
        if storage._cdata in self._known:
            self._remove(storage._cdata)
        self._add(storage, share, gradient=True)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operation and count the storages that it creates."""
        # An input that no counted operation created existed before, and results may be views of it.
        self._add_new((args, kwargs), 0.0)
        found = func(*args, **(kwargs or {}))
        self._add_new(found, 1.0)
        if func is _gemm_4bit():
            # The kernel dequantises the weights and releases them before it returns.
            self._raise_peak(self.now + args[2][0] * args[2][1] * args[0].element_size())
        return found

    def _add_new(self, values: Any, share: float) -> None:
        for tensor in tree_leaves(values):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in self._known:
                self._add(tensor.untyped_storage(), share, gradient=False)

    def _add(self, storage: Any, share: float, gradient: bool) -> None:
        size, key = storage.nbytes() * share, storage._cdata
        self._known[key] = (size, gradient)
        self.now += size
        self.gradients += size * gradient
        weakref.finalize(storage, self._remove, key)
        self._raise_peak(self.now)

    def _remove(self, key: int) -> None:
        size, gradient = self._known.pop(key, (0.0, False))
        self.now -= size
        self.gradients -= size * gradient

    def _raise_peak(self, total: float) -> None:
        if total > self.peak:
            self.peak, self.gradients_at_peak = total, self.gradients


class DeviceKernels:
    """Context in which operations save as much memory for the backward pass as on a real device.

    Attention is one fused kernel. With `cast`, linear layers and attention compute as under autocast, which keeps a
    copy of each trained weight until the forward pass ends. Functions of torch are replaced by name, because a
    `TorchFunctionMode` would be off in the backward pass, which computes checkpointed layers again.
    """

    def __init__(self, cast: torch.dtype | None) -> None:
        self.cast = cast
        self.copies: dict[int, Tensor] | None = {}
        """Weights in the dtype `cast`, by the weight's id; None once the forward pass has ended."""
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
        """Replacement of `scaled_dot_product_attention`."""
        return _FusedAttention.apply(self._as_cast(query), self._as_cast(key), self._as_cast(value), attn_mask)

    def linear(self, inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Replacement of `linear`."""
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
    """Flash attention without contents: saves query, key, value, mask, output and a float32 log-sum-exp.

    Query is [S, H, L, D]; key and value are [S, G, M, D]; the output is [S, H, L, D], in memory [S, L, H, D]. The
    log-sum-exp is [S, H, L].
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        size, heads, length, _ = query.shape
        out = query.new_empty(size, length, heads, value.shape[-1]).transpose(1, 2)
        lse = query.new_empty(size, heads, length, dtype=torch.float32)
        # A bool mask is converted to one that is added to the scores.
        added = None if mask is None else mask.to(query.dtype) if mask.dtype == torch.bool else mask
        ctx.save_for_backward(query, key, value, added, out, lse)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, _, _, lse = ctx.saved_tensors
        # Row sums of gradient times output. In half precision the query's gradient is summed in float32.
        temporary = [torch.empty_like(lse)]
        if query.dtype != torch.float32:
            temporary.append(torch.empty_like(query, dtype=torch.float32))
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None


def _flat_row_kernel(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **more: Any
) -> tuple[Tensor, None]:
    return _FusedAttention.apply(query, key, value, None).transpose(1, 2), None


AttentionInterface.register(ROW_KERNEL, _flat_row_kernel)
AttentionMaskInterface.register(ROW_KERNEL, sdpa_mask)


def _gemm_4bit() -> Any:
    # The operation exists once bitsandbytes has been imported.
    return getattr(getattr(torch.ops.bitsandbytes, "gemm_4bit", None), "default", None)


class _Scores(Protocol):
    def logprobs(self, batch: Batch) -> Any: ...


@dataclass(frozen=True)
class StepBytes:
    """Bytes of one rank in a micro-batch, without weights and optimizer state.

    kept: activations that the forward pass saves for the backward pass.
    peak: largest number at one time, gradients included.
    gradients_at_peak: bytes of gradients in `peak`.
    """

    kept: int
    peak: int
    gradients_at_peak: int


def meta_batch(batch: Batch, scoring: Layout, attention: str) -> Batch:
    """A batch on the meta device; padded rows have the mask [K, 1, W, W] that the attention function would build."""
    moved = batch.to("meta")
    if scoring.rows == "concatenated":
        rows = batch.padded
        count, width = rows.input_ids.shape
        dtype = torch.float32 if attention == "eager" else torch.bool
        # The cached value of the property: padded rows can only be made where lengths can be read.
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
    """Run forward and backward pass of a micro-batch on the meta device and measure their memory.

    Args:
        policy: Its model is on the meta device, in training mode; its gradients are removed at the end.
        reference: Scores the batch first, without gradients; None for SFT and for a precomputed reference.
        batch: From `meta_batch`.
        cast: The dtype of autocast; None without autocast.
        accumulates: Whether gradients of earlier micro-batches exist when the forward pass begins.
        share: The fraction of a trained weight's gradient that stays on a rank.
    """
    trained = [weight for weight in policy.model.parameters() if weight.requires_grad]
    with DeviceKernels(cast) as kernels, LiveBytes() as live:
        hooks = []
        for weight in trained:
            if accumulates:
                weight.grad = torch.empty_like(weight)
                live.mark_gradient(weight.grad, share(weight))
            hooks.append(
                weight.register_post_accumulate_grad_hook(lambda one: live.mark_gradient(one.grad, share(one)))
            )
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
