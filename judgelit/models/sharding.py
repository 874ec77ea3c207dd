"""Sharding a model's weights over devices (PyTorch's FSDP2), each decoder layer by itself, then all the rest."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from judgelit.errors import UserError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

Result = TypeVar("Result")


class Weights(Protocol):
    """Where the weights of a model that has none yet come from; see `judgelit.models.shard_loading`."""

    def fill(self, name: str, weight: nn.Parameter, whole: Tensor, mine: slice) -> None:
        """Put a weight's values into `whole`, at least the rows `mine`; all ranks call it for the same weight."""
        ...

    def has(self, name: str, weight: nn.Parameter) -> bool:
        """Whether a weight's values come from here; otherwise it has its own already."""
        ...


@dataclass(frozen=True)
class Sharding:
    """Over which devices weights are sharded, and in which dtype layers compute."""

    mesh: "DeviceMesh"
    """One dimension to shard over; or two, copies of the model and the devices that each is sharded over."""
    precision: MixedPrecisionPolicy = field(
        default_factory=lambda: MixedPrecisionPolicy(cast_forward_inputs=False),
    )
    """Inputs are never cast: they are ids, and a cast would copy what the layers share, such as a cache of keys."""

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        kind = self.mesh.device_type
        return torch.device(kind, torch.cuda.current_device()) if kind == "cuda" else torch.device(kind)

    def shard(self, root: nn.Module, weights: Weights | None = None) -> None:
        """Shard a causal language model (not its PEFT wrapper, within which `generate` would fail) in place.

        Args:
            root: The model, with adapters in it or without.
            weights: Values of weights that it does not have yet. They are taken a layer at a time, so no device ever
                holds the whole model.

        Raises:
            UserError: The model's layers cannot be told, or a weight's dtype cannot be sharded in this precision.
        """
        self._refuse(root)
        names = {weight: name for name, weight in root.named_parameters()}
        for module in (*decoder_layers(root), root):
            self._settle(module, names, weights)
            fully_shard(module, mesh=self.mesh, mp_policy=self.precision)
        # The method that `through_root` calls; FSDP2 gathers the root's weights around it.
        root.__dict__["judgelit_call"] = lambda function: function()
        register_fsdp_forward_method(root, "judgelit_call")

    def _settle(self, module: nn.Module, names: dict[nn.Parameter, str], weights: Weights | None) -> None:
        """Give weights that are not sharded yet, and then leave `names`, their values on this device."""
        for weight in module.parameters():
            if (name := names.pop(weight, None)) is None:
                continue
            if weights is not None and weights.has(name, weight):
                # Rows of other ranks stay as they are: no memory is spent on what is never written.
                whole = torch.empty(weight.shape, dtype=weight.dtype, device=self.device)
                weights.fill(name, weight, whole, rows_of_rank(len(whole), self.mesh))
                weight.data = whole
            else:
                weight.data = weight.data.to(self.device)
                if weight.requires_grad:
                    # A new adapter is drawn at random, and ranks need not have drawn the same before it.
                    torch.distributed.broadcast(weight.data, 0)

    def _refuse(self, root: nn.Module) -> None:
        dtype = self.precision.param_dtype
        for weight in root.parameters():
            stored = type(weight).__name__ == "Params4bit" and weight.dtype.is_floating_point
            if stored and dtype is not None and weight.dtype != dtype:
                raise UserError(
                    f"4-bit weights are stored as {_plain(weight.dtype)} and layers compute in {_plain(dtype)}, which "
                    f"sharding needs to be the same: set model.backbone.dtype to {_plain(dtype)}, or trainer.precision "
                    "to 32-true"
                )
            if weight.ndim == 0:
                raise UserError(f"FSDP2 cannot shard {type(root).__name__}: it has weights that are single numbers")


def decoder_layers(root: Any) -> list[nn.Module]:
    """The layers that a model says must not be split, innermost first.

    Raises:
        UserError: It does not say, or has none of them.
    """
    wanted = set(getattr(root, "_no_split_modules", None) or ())
    layers = [module for module in root.modules() if type(module).__name__ in wanted]
    if not layers:
        raise UserError(
            f"FSDP2 cannot tell the layers of {type(root).__name__}: its `_no_split_modules` names "
            f"{', '.join(sorted(wanted)) or 'nothing'}, and expected is the class of its layers; use strategy ddp"
        )
    return layers[::-1]


def through_root(root: nn.Module, function: Callable[[], Result]) -> Result:
    """Call a function that runs parts of a model, with the weights outside its layers at hand if it is sharded.

    What it returns must be a tensor (or a collection of tensors), for backward passes begin there.
    """
    if not isinstance(root, FSDPModule):
        return function()
    if (announce := root.__dict__.get(BEFORE_FORWARD)) is not None:
        announce()
    return root.judgelit_call(function)  # type: ignore[operator]


BEFORE_FORWARD = "judgelit_before_forward"
"""Attribute of a sharded model with what is to be called before `through_root`; see `judgelit.models.lockstep`."""


def rows_of_rank(count: int, mesh: "DeviceMesh") -> slice:
    """Which of `count` rows of a weight this process keeps, as FSDP2 deals them out."""
    last = mesh.ndim - 1
    size = -(-count // mesh.size(last))
    start = min(mesh.get_local_rank(last) * size, count)
    return slice(start, min(start + size, count))


def local_part(weight: Tensor) -> tuple[Tensor, int]:
    """A weight's rows that this process holds, and how many elements stand before them."""
    if not isinstance(weight, DTensor):
        return weight, 0
    before = rows_of_rank(len(weight), weight.device_mesh).start
    return weight.to_local(), before * (weight.numel() // max(1, len(weight)))


def sum_over_shards(model: nn.Module, totals: list[int]) -> list[int]:
    """Sums of whole numbers, modulo 2^64, over the ranks that share a model's shards."""
    mesh = next((weight.device_mesh for weight in model.parameters() if isinstance(weight, DTensor)), None)
    if mesh is None or not totals:
        return totals
    half = 1 << 63
    signed = [(total + half) % (1 << 64) - half for total in totals]
    tensor = torch.tensor(signed, dtype=torch.int64, device=mesh.device_type)
    torch.distributed.all_reduce(tensor, group=mesh.get_group(mesh.ndim - 1))
    return [total % (1 << 64) for total in tensor.tolist()]


def reshard(model: nn.Module) -> None:
    """Free what a forward pass without a backward one has left gathered, so that all parameters are shards."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


@torch.no_grad()
def whole_weights(model: nn.Module) -> dict[str, Tensor] | None:
    """Weights and saved buffers of a sharded model for `save_pretrained`, on the first rank's host; else empty.

    Of a LoRA model the trained adapter alone. None if the model is not sharded. All ranks must call it; one weight at a
    time is gathered.
    """
    reshard(model)
    shards = {name: weight for name, weight in model.named_parameters() if isinstance(weight, DTensor)}
    if not shards:
        return None
    first = torch.distributed.get_rank() == 0
    adapted = hasattr(model, "peft_config")
    found = {}
    for name, weight in shards.items():
        if weight.requires_grad or not adapted:
            whole = weight.full_tensor()
            if first:
                found[name] = whole.cpu()
    if first and not adapted:
        weights = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        found |= {name: value.cpu() for name, value in _saved_buffers(model) if name not in weights}
    return found


def _saved_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for prefix, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                yield f"{prefix}.{name}" if prefix else name, buffer


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
