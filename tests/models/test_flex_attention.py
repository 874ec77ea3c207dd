"""The trial of FlexAttention's kernel, with kernels that are right, wrong, slow to fail, and PyTorch's own on a CPU."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_mask, flex_attention
from torch.utils.checkpoint import checkpoint

from judgelit.batches.attention_plan import AttentionPlan
from judgelit.models.flat_attention import FlatAttention
from judgelit.models.flex_attention import Heads, kernel_fault

CPU = torch.device("cpu")


def stretches(plan: AttentionPlan, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return FlatAttention(plan).attend(query, key, value, None, 0.0)


def dense(query: Tensor, key: Tensor, value: Tensor, block_mask: Any, scale: Any, enable_gqa: bool) -> Tensor:
    """What the kernel should compute, written out."""
    key, value = (part.repeat_interleave(query.shape[1] // part.shape[1], dim=1) for part in (key, value))
    mask = create_mask(block_mask.mask_mod, None, None, query.shape[2], query.shape[2], device="cpu")
    scores = (query @ key.transpose(-1, -2)) * (scale or query.shape[-1] ** -0.5)
    return scores.masked_fill(~mask, -torch.inf).softmax(-1) @ value


class NoGradientOfKeys(torch.autograd.Function):
    """Its forward pass is right, its backward pass is not."""

    @staticmethod
    def forward(ctx: Any, key: Tensor) -> Tensor:
        return key.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return torch.zeros_like(gradient)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("queries", "groups", "size", "value_size"), [(4, 4, 16, 16), (4, 2, 24, 8), (2, 1, 64, 64)])
def test_a_right_kernel_has_no_fault(dtype: torch.dtype, queries: int, groups: int, size: int, value_size: int) -> None:
    assert kernel_fault(dense, Heads(queries, groups, size, value_size, dtype, CPU), stretches) == ""


def test_it_is_tried_with_gradients_whatever_the_first_batch_is_for() -> None:
    heads = Heads(2, 2, 16, 16, torch.float32, CPU)
    with torch.inference_mode():
        assert kernel_fault(dense, heads, stretches) == ""
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert kernel_fault(dense, heads, stretches) == ""


def test_a_trial_during_activation_checkpointing_does_not_count_as_the_layers_own() -> None:
    tried = []

    def layer(values: Tensor) -> Tensor:
        if not tried:
            tried.append(kernel_fault(dense, Heads(2, 2, 16, 16, torch.float32, CPU), stretches))
        return values.exp().sin()

    values = torch.ones(3, requires_grad=True)
    checkpoint(layer, values, use_reentrant=False).sum().backward()
    assert tried == [""]
    torch.testing.assert_close(values.grad, torch.ones(3).exp() * torch.ones(3).exp().cos())


def test_a_kernel_that_ignores_the_mask_is_refused() -> None:
    def everything(query: Tensor, key: Tensor, value: Tensor, **_: Any) -> Tensor:
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)

    assert "values differ" in kernel_fault(everything, Heads(2, 2, 16, 16, torch.float32, CPU), stretches)


def test_a_wrong_backward_pass_is_refused() -> None:
    def forward_only(query: Tensor, key: Tensor, value: Tensor, **more: Any) -> Tensor:
        return dense(query, NoGradientOfKeys.apply(key), value, **more)  # type: ignore[no-untyped-call]

    assert "gradients of keys differ" in kernel_fault(forward_only, Heads(2, 2, 16, 16, torch.float32, CPU), stretches)


def test_a_kernel_that_raises_is_refused_with_what_it_says() -> None:
    # On a CPU, FlexAttention has no backward pass.
    fault = kernel_fault(flex_attention, Heads(2, 2, 16, 16, torch.float32, CPU), stretches)  # type: ignore[arg-type]
    assert fault.startswith("NotImplementedError: ") and "backward" in fault


def test_full_memory_is_no_fault_of_the_kernel() -> None:
    def full(*_: Any, **__: Any) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(torch.OutOfMemoryError):
        kernel_fault(full, Heads(2, 2, 16, 16, torch.float32, CPU), stretches)
