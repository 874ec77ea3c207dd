"""Lockstep: ranks that share a sharded model may run different numbers of forward passes."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from judgelit.models.sharding import BEFORE_FORWARD, through_root


@contextmanager
def in_lockstep(root: nn.Module) -> Iterator[None]:
    """Let each rank run any number of forward passes, without gradient, of a model that may be sharded.

    A forward pass of a sharded model needs all ranks. So each rank announces a pass before it starts one. A rank that
    has left the block runs an empty pass for each pass of the others, until all have left. Within the block nothing
    else may wait for other ranks.

    Args:
        root: The causal language model itself, not its PEFT wrapper.
    """
    if not isinstance(root, FSDPModule):
        yield
        return
    device = next(root.parameters()).device

    def any_rank_runs(this_rank_runs: bool) -> bool:
        runs = torch.tensor(int(this_rank_runs), device=device)
        torch.distributed.all_reduce(runs)
        return bool(runs)

    def announce(*_: Any) -> None:
        any_rank_runs(True)

    hook = root.register_forward_pre_hook(announce, prepend=True)
    root.__dict__[BEFORE_FORWARD] = announce
    try:
        yield
    finally:
        hook.remove()
        del root.__dict__[BEFORE_FORWARD]
    body: Any = root.base_model
    token = torch.zeros(1, 1, dtype=torch.int64, device=device)
    with torch.no_grad():
        while any_rank_runs(False):
            through_root(root, lambda: body(input_ids=token, use_cache=False).last_hidden_state)
