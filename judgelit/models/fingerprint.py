"""What tells one model's weights from another's."""

import hashlib
import itertools

import torch
from torch import Tensor, nn

from judgelit.models import quantization
from judgelit.models.sharding import local_part, reshard, sum_over_shards

_AS_INTEGER = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_CHUNK = 1 << 24
_ODD = 0x9E3779B97F4A7C15 - (1 << 64)
"""Spreads consecutive places over all 64 bits (Knuth's multiplicative hashing)."""


@torch.no_grad()
def fingerprint(model: nn.Module, skip: str | None = None) -> str:
    """A hash of a model's weights, leaving out parameters with `skip` in their name and a dot after it.

    It does not depend on whether, or over how many ranks, the model is sharded; if it is, all ranks must ask for it.
    """
    reshard(model)
    named = sorted(model.named_parameters())
    weights = {name: weight for name, weight in named if skip is None or skip not in f"{name}."}
    sums = sum_over_shards(model, [_checksum(*local_part(weight)) for weight in weights.values()])
    digest = hashlib.sha256()
    # A sharded weight has left its scales with its layer.
    layers = {f"{name}.weight": layer for name, layer in model.named_modules() if hasattr(layer, "quant_state")}
    for (name, weight), total in zip(weights.items(), sums, strict=True):
        digest.update(f"{name} {tuple(weight.shape)} {total}\n".encode())
        for part, tensor in quantization.scales(layers.get(name, weight)).items():
            digest.update(f"{name}{part} {tuple(tensor.shape)} {_checksum(tensor)}\n".encode())
    return digest.hexdigest()[:16]


def _checksum(weight: Tensor, before: int = 0) -> int:
    """A sum over a tensor's bits, each weighted by its place, without moving the tensor to the host.

    Whole numbers wrap around at 2^64 in whatever order they are added: any device gives the same, to the last bit, and
    the sums of a weight's shards, with `before` elements before each, add up to its own.
    """
    bits = weight.detach().contiguous().flatten().view(_AS_INTEGER[weight.element_size()])
    total = 0
    for start, chunk in zip(itertools.count(before, _CHUNK), bits.split(_CHUNK), strict=False):
        places = torch.arange(start, start + len(chunk), device=chunk.device).mul_(_ODD).add_(1)
        total += int(chunk.to(torch.int64).mul_(places).sum())
    return total % (1 << 64)
