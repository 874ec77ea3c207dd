"""Generation over a sharded model: each forward pass needs all ranks, and they need not have equally many."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from judgelit.models.sharding import BEFORE_FORWARD, through_root


@contextmanager
def in_lockstep(root: nn.Module) -> Iterator[None]:
    """Within it, each rank may run any number of forward passes, without gradient, of a model that may be sharded.

    Before a pass, a rank that has one says so; a rank that has left the block runs an empty one for every pass of the
    others, until all have left. Nothing else within the block may wait for other ranks.

    Args:
        root: The causal language model itself, without its adapter's wrapper.
    """
    if not isinstance(root, FSDPModule):
        yield
        return
    device = next(root.parameters()).device

    def someone_goes_on(myself: bool) -> bool:
        going_on = torch.tensor(int(myself), device=device)
        torch.distributed.all_reduce(going_on)
        return bool(going_on)

    def announce(*_: Any) -> None:
        someone_goes_on(True)

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
        while someone_goes_on(False):
            through_root(root, lambda: body(input_ids=token, use_cache=False).last_hidden_state)
