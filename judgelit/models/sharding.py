"""Sharding with PyTorch's FSDP2: each decoder layer is a unit, and all other weights are one more."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from judgelit.errors import UserError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

Result = TypeVar("Result")


@dataclass(frozen=True)
class Sharding:
    """Devices that a model is sharded over, and the dtype that its layers compute in."""

    mesh: "DeviceMesh"
    """One dimension: the devices to shard over. Two: copies of the model, and the devices to shard each copy over."""
    precision: MixedPrecisionPolicy = field(
        default_factory=lambda: MixedPrecisionPolicy(cast_forward_inputs=False),
    )
    """Inputs must not be cast: the model's are ids, and a cast would copy what layers share, such as the KV cache."""

    @property
    def device(self) -> torch.device:
        """Device of this process."""
        kind = self.mesh.device_type
        return torch.device(kind, torch.cuda.current_device()) if kind == "cuda" else torch.device(kind)

    def shard(self, root: nn.Module) -> None:
        """Shard a causal language model in place, with its adapter if it has one.

        Weights from `shard_loading.build_without_weights` get memory here, one layer at a time, so no device ever holds
        the whole model. Their values are loaded afterwards.

        Args:
            root: The model itself, not its PEFT wrapper, in which `generate` would fail.

        Raises:
            UserError: The model does not name its layers, or its weights cannot be sharded in this precision.
        """
        self._check_weights(root)
        for module in (*decoder_layers(root), root):
            self._place_weights(module)
            fully_shard(module, mesh=self.mesh, mp_policy=self.precision)
        # `through_root` calls this method; FSDP2 gathers the root's own weights around it.
        root.__dict__["judgelit_call"] = lambda function: function()
        register_fsdp_forward_method(root, "judgelit_call")

    def _place_weights(self, module: nn.Module) -> None:
        """Prepare the weights of a module that `fully_shard` does not move to the device as they are."""
        for weight in module.parameters():
            if isinstance(weight, DTensor):
                continue
            if not weight.is_contiguous():  # an expanded zero
                weight.data = torch.empty(weight.shape, dtype=weight.dtype, device=self.device)
            elif weight.requires_grad:
                # A new adapter is random, and the ranks' random states may differ.
                weight.data = weight.data.to(self.device)
                torch.distributed.broadcast(weight.data, 0)

    def _check_weights(self, root: nn.Module) -> None:
        dtype = self.precision.param_dtype
        for weight in root.parameters():
            is_4bit = type(weight).__name__ == "Params4bit" and weight.dtype.is_floating_point
            if is_4bit and dtype is not None and weight.dtype != dtype:
                raise UserError(
                    f"4-bit weights are stored as {_plain(weight.dtype)} and layers compute in {_plain(dtype)}, which "
                    f"sharding needs to be the same: set model.backbone.dtype to {_plain(dtype)}, or trainer.precision "
                    "to 32-true"
                )
            if weight.ndim == 0:
                raise UserError(f"FSDP2 cannot shard {type(root).__name__}: it has weights that are single numbers")


def decoder_layers(root: Any) -> list[nn.Module]:
    """List a model's layers, inner ones before those that contain them.

    Raises:
        UserError: The model does not name their class in `_no_split_modules`, or has no such layers.
    """
    names = set(getattr(root, "_no_split_modules", None) or ())
    layers = [module for module in root.modules() if type(module).__name__ in names]
    if not layers:
        raise UserError(
            f"FSDP2 cannot find the layers of {type(root).__name__}: its `_no_split_modules` names "
            f"{', '.join(sorted(names)) or 'nothing'}, expected the class of its layers; use strategy ddp"
        )
    return layers[::-1]


def through_root(root: nn.Module, function: Callable[[], Result]) -> Result:
    """Call a function that runs parts of a model; if the model is sharded, the root's own weights are gathered first.

    Args:
        root: The model itself, not its PEFT wrapper.
        function: Must return a tensor or a collection of tensors, because FSDP2 hooks the backward pass to them.
    """
    if not isinstance(root, FSDPModule):
        return function()
    if (hook := root.__dict__.get(BEFORE_FORWARD)) is not None:
        hook()
    return root.judgelit_call(function)  # type: ignore[operator]


BEFORE_FORWARD = "judgelit_before_forward"
"""Attribute of a sharded model: a function that `through_root` calls first; see `judgelit.models.lockstep`."""


def reshard(model: nn.Module) -> None:
    """Free the weights that a forward pass without a backward pass has left gathered."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole_weights(model: nn.Module) -> dict[str, Any] | None:
    """Gather the weights and stored buffers of a sharded model, one at a time, for `save_pretrained`.

    All ranks must call it. The first rank gets them on its host, the others an empty dict. A tied weight is in it under
    one name, and the frozen weights of a LoRA model are not in it. None if the model is not sharded.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    if not any(isinstance(weight, DTensor) for weight in model.parameters()):
        return None
    trained_only = hasattr(model, "peft_config")
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=trained_only)
    once = {name for name, _ in model.named_parameters()}
    tied_again = {name for name, _ in model.named_parameters(remove_duplicate=False)} - once
    return {
        name: value for name, value in get_model_state_dict(model, options=options).items() if name not in tied_again
    }


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
