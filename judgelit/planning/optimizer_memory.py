"""Memory of an optimizer, measured in one step on a small weight."""

import logging
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from judgelit.errors import UserError
from judgelit.planning.memory_trace import LiveBytes

_SIDE = 128
"""Rows and columns of the small weight."""
_SMALL = 4096
"""8-bit optimizers keep the state of smaller weights in 32 bits (bitsandbytes' `min_8bit_size`)."""
_ONE_STATE = ("Lion", "SGD", "RMSprop", "Adagrad", "LARS")
_SCALE_BLOCK = 256
"""Values of an 8-bit optimizer's state that share a float32 scale."""


@dataclass(frozen=True)
class OptimizerMemory:
    """Memory of an optimizer, in bytes a weight.

    state: its state.
    temporary: tensors that exist only while it steps.
    all_at_once: whether it steps all weights together instead of one after the other.
    small_state: its state for tensors that are too small for 8 bits.
    """

    state: float
    temporary: float
    all_at_once: bool
    small_state: float

    def state_bytes(self, weight: Tensor) -> float:
        """Bytes of the state of a weight tensor."""
        return weight.numel() * (self.small_state if weight.numel() < _SMALL else self.state)


def make_optimizer(weight: nn.Parameter, make: OptimizerCallable) -> torch.optim.Optimizer:
    """Make a run's optimizer for one weight tensor."""
    # Without a GPU, an optimizer for GPUs logs which other optimizer replaces it.
    logging.disable(logging.INFO)
    try:
        return make([{"params": [weight]}])
    finally:
        logging.disable(logging.NOTSET)


def uses_8_bits(optimizer: torch.optim.Optimizer) -> bool:
    """Whether an optimizer keeps its state in 8 bits on a GPU."""
    return "8bit" in type(optimizer).__name__


def measure_optimizer(make: OptimizerCallable, dtype: torch.dtype, *, on_cpu: bool, sharded: bool) -> OptimizerMemory:
    """Measure the memory of a run's optimizer in one step on a small weight.

    Args:
        make: Makes the optimizer from groups of weights.
        dtype: The dtype of the weights.
        on_cpu: Whether the run trains on a CPU.
        sharded: Whether weights are sharded.

    Raises:
        UserError: Weights are sharded and the optimizer cannot step sharded weights.
    """
    weight = nn.Parameter(torch.zeros(_SIDE, _SIDE, dtype=dtype))
    weight.grad = torch.zeros_like(weight)
    optimizer = make_optimizer(weight, make)
    if uses_8_bits(optimizer) and not on_cpu:
        if sharded:
            raise UserError(
                f"optimizer: found {type(optimizer).__name__} with strategy FSDP2, expected one that can step sharded "
                "weights, such as torch.optim.AdamW"
            )
        # It runs only on GPUs, so its memory is computed: 8 bits a state and a float32 scale a block.
        states = 1 if any(name in type(optimizer).__name__ for name in _ONE_STATE) else 2
        return OptimizerMemory(states * (1 + 4 / _SCALE_BLOCK), 0.0, False, 4.0 * states)
    settings: dict[str, Any] = optimizer.param_groups[0]
    all_at_once = not on_cpu and "foreach" in settings and settings["foreach"] is not False
    all_at_once = all_at_once and not settings.get("fused")
    if all_at_once:
        settings["foreach"] = True
    with LiveBytes() as live:
        optimizer.step()
    kept = [value for value in optimizer.state[weight].values() if isinstance(value, Tensor) and value.ndim > 0]
    state = sum(value.numel() * value.element_size() for value in kept) / weight.numel()
    return OptimizerMemory(state, live.peak / weight.numel() - state, all_at_once, state)
