"""Fingerprints: a hash of a model's weights, and one of the settings that it computes with."""

import hashlib
import itertools
import json
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from judgelit.models import quantization
from judgelit.models.lora import without_adapter
from judgelit.models.sharding import reshard

_INTEGER = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integer type by bytes per element."""
_CHUNK = 1 << 24
_FACTOR = 0x9E3779B97F4A7C15 - (1 << 64)
"""Spreads consecutive positions over all 64 bits (Knuth's multiplicative hashing)."""

_NOT_COMPUTED = {
    # Where the model comes from, and what wrote its files.
    *("_name_or_path", "architectures", "auto_map", "transformers_version"),
    *("base_model_name_or_path", "revision", "auto_mapping", "peft_version", "task_type", "inference_mode"),
    # The weights' fingerprint covers these.
    *("dtype", "torch_dtype", "quantization_config", "init_lora_weights"),
    "use_cache",
}
"""Settings that no log-probability depends on."""


@torch.no_grad()
def fingerprint(model: nn.Module, skip: str | None = None) -> str:
    """Hash a model's weights, names and shapes included, to 16 hexadecimal digits.

    The hash does not depend on sharding. All ranks of a sharded model must call it; no weight is gathered.

    Args:
        model: The model, with or without adapter, on any device.
        skip: Leave out parameters whose name, followed by a dot, contains this.
    """
    reshard(model)
    weights = {
        name: weight for name, weight in sorted(model.named_parameters()) if skip is None or skip not in f"{name}."
    }
    sums = _sum_over_shards(model, [_checksum(*_local_part(weight)) for weight in weights.values()])
    # Sharding replaces a 4-bit weight, and its scales then belong to its layer alone.
    layers = {f"{name}.weight": layer for name, layer in model.named_modules() if hasattr(layer, "quant_state")}
    digest = hashlib.sha256()
    for (name, weight), total in zip(weights.items(), sums, strict=True):
        digest.update(f"{name} {tuple(weight.shape)} {total % (1 << 64)}\n".encode())
        for part, tensor in quantization.scales(layers.get(name, weight)).items():
            digest.update(f"{name}{part} {tuple(tensor.shape)} {_checksum(tensor) % (1 << 64)}\n".encode())
    return digest.hexdigest()[:16]


def settings_fingerprint(model: nn.Module, with_adapter: bool) -> str:
    """Hash all that a model computes with beside its weights, such as rope scaling, to 16 hexadecimal digits.

    Args:
        model: The model, with or without adapter.
        with_adapter: Whether the settings of the adapter `default` count, such as its alpha.
    """
    settings = [without_adapter(model).config.to_dict()]
    if with_adapter:
        peft: Any = model
        settings.append(peft.peft_config["default"].to_dict())
    text = json.dumps(_computed(settings), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _computed(value: Any) -> Any:
    """The settings of a nested configuration without those that nothing depends on, as JSON values."""
    if isinstance(value, dict):
        return {str(name): _computed(inner) for name, inner in value.items() if name not in _NOT_COMPUTED}
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    return [_computed(inner) for inner in value] if isinstance(value, list | tuple) else value


def _checksum(weight: Tensor, before: int = 0) -> int:
    """Sum a tensor's bits as integers, each times a number of its position, on the tensor's device.

    The sum is an int64 and wraps around, so it is exact, and the sums of a weight's shards add up to its own.

    Args:
        weight: The tensor, or one shard of it.
        before: Number of elements before the shard.
    """
    bits = weight.detach().contiguous().flatten().view(_INTEGER[weight.element_size()])
    total = torch.zeros((), dtype=torch.int64, device=bits.device)
    for start, chunk in zip(itertools.count(before, _CHUNK), bits.split(_CHUNK), strict=False):
        factors = torch.arange(start, start + len(chunk), device=chunk.device).mul_(_FACTOR).add_(1)
        total += chunk.to(torch.int64).mul_(factors).sum()
    return int(total)


def _local_part(weight: Tensor) -> tuple[Tensor, int]:
    """Return the rows of a weight that this rank holds, and the number of elements before them."""
    if not isinstance(weight, DTensor):
        return weight, 0
    _, offsets = compute_local_shape_and_global_offset(weight.shape, weight.device_mesh, weight.placements)
    return weight.to_local(), offsets[0] * math.prod(weight.shape[1:])


def _sum_over_shards(model: nn.Module, sums: list[int]) -> list[int]:
    """Sum int64s over the ranks that hold one copy of a sharded model; they wrap around."""
    mesh = next((weight.device_mesh for weight in model.parameters() if isinstance(weight, DTensor)), None)
    if mesh is None or not sums:
        return sums
    tensor = torch.tensor(sums, dtype=torch.int64, device=mesh.device_type)
    torch.distributed.all_reduce(tensor, group=mesh.get_group(mesh.ndim - 1))
    return tensor.tolist()
