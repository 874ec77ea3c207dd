"""What an optimizer needs of memory, found by letting it step."""

import logging
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from judgelit.errors import UserError
from judgelit.planning.memory_trace import LiveBytes

_TRIED = 128
"""Rows and columns of the weight that an optimizer is tried on."""
_SMALL = 4096
"""Weights of fewer values have their state in 32 bits in 8-bit optimizers too (bitsandbytes' `min_8bit_size`)."""
_ONE_STATE = ("Lion", "SGD", "RMSprop", "Adagrad", "LARS")
_SCALE_BLOCK = 256
"""Values of an 8-bit optimizer's state that share a float32 scale."""


@dataclass(frozen=True)
class OptimizerMemory:
    """What an optimizer keeps and makes, in bytes a weight.

    state: what it keeps.
    moment: what it makes for a moment while it steps.
    at_once: whether it steps all weights together, and not one after the other.
    small_state: what it keeps of tensors that are too small for 8 bits.
    """

    state: float
    moment: float
    at_once: bool
    small_state: float

    def kept(self, weight: Tensor) -> float:
        """Bytes of state that go with a weight."""
        return weight.numel() * (self.small_state if weight.numel() < _SMALL else self.state)


def optimizer_over(weight: nn.Parameter, make: OptimizerCallable) -> torch.optim.Optimizer:
    """A run's optimizer over one weight."""
    # An optimizer for GPUs would say what takes its place here, where there may be none.
    logging.disable(logging.INFO)
    try:
        return make([{"params": [weight]}])
    finally:
        logging.disable(logging.NOTSET)


def uses_8_bits(optimizer: torch.optim.Optimizer) -> bool:
    """Whether an optimizer keeps its state in 8 bits on a GPU."""
    return "8bit" in type(optimizer).__name__


def try_optimizer(make: OptimizerCallable, dtype: torch.dtype, *, on_cpu: bool, sharded: bool) -> OptimizerMemory:
    """Let a run's optimizer step once on a small weight.

    Args:
        make: Makes the optimizer of groups of weights.
        dtype: The weights'.
        on_cpu: Whether the run takes no GPU at all.
        sharded: Whether weights are sharded.

    Raises:
        UserError: They are and the optimizer knows nothing of that.
    """
    weight = nn.Parameter(torch.zeros(_TRIED, _TRIED, dtype=dtype))
    weight.grad = torch.zeros_like(weight)
    optimizer = optimizer_over(weight, make)
    if uses_8_bits(optimizer) and not on_cpu:
        if sharded:
            raise UserError(
                f"optimizer: found {type(optimizer).__name__} with strategy FSDP2, expected one that can step sharded "
                "weights, such as torch.optim.AdamW"
            )
        # It works on GPUs alone; small weights have states of 32 bits.
        states = 1 if any(name in type(optimizer).__name__ for name in _ONE_STATE) else 2
        return OptimizerMemory(states * (1 + 4 / _SCALE_BLOCK), 0.0, False, 4.0 * states)
    settings: dict[str, Any] = optimizer.param_groups[0]
    at_once = not on_cpu and "foreach" in settings and settings["foreach"] is not False
    at_once = at_once and not settings.get("fused")
    if at_once:
        settings["foreach"] = True
    with LiveBytes() as live:
        optimizer.step()
    kept = [value for value in optimizer.state[weight].values() if isinstance(value, Tensor) and value.ndim > 0]
    state = sum(value.numel() * value.element_size() for value in kept) / weight.numel()
    return OptimizerMemory(state, live.peak / weight.numel() - state, at_once, state)
