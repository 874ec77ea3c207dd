"""FSDP2: Lightning's strategy for models that are sharded over devices and nodes."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import lightning as L
import torch
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy

from judgelit.errors import UserError
from judgelit.models.sharding import Sharding
from judgelit.runs.sharded_checkpoints import load_meta, load_shards, shapes_in

if TYPE_CHECKING:
    from judgelit.training.finetuning import FineTuningModule


def refuse_unknown(strategy: Any) -> None:
    """Check that a strategy that is given by name is one of Lightning's.

    Raises:
        UserError: It is not.
    """
    if isinstance(strategy, str) and strategy.lower() not in ("auto", *StrategyRegistry.available_strategies()):
        raise UserError(
            f"trainer.strategy: found {strategy!r}, expected a name such as ddp, or a class as "
            "--trainer.strategy.class_path=judgelit.training.fsdp.FSDP2"
        )


class FSDP2(ModelParallelStrategy):
    """Shard weights, gradients and optimizer state equally over all devices of all nodes: GPUs (nccl) or CPUs (gloo).

    A device gathers the weights of a layer while it computes with them. With `trainer.precision: bf16-mixed`, weights
    are gathered and used in bfloat16, but stored and updated in float32, and gradients are summed in float32. With
    `32-true`, everything is in the dtype of the weights. A checkpoint is a folder to which each process writes its
    part; that of a LoRA run holds only the adapter. A run can resume from it on any number of devices.
    """

    def __init__(
        self, devices_per_copy: int | None = None, sync_every_micro_batch: bool = True, timeout_minutes: float = 30.0
    ) -> None:
        """Create the strategy.

        Args:
            devices_per_copy: Number of devices to shard one copy of the model over, such as the devices of a node.
                Copies exchange only gradients. None: one copy over all devices of all nodes.
            sync_every_micro_batch: Sum gradients over devices after every micro-batch, so that each device holds only
                its part of them. False: sum them once per optimizer step. That needs less communication, but while
                gradients accumulate, each device holds those of the whole model.
            timeout_minutes: Minutes that a device waits for the others before it gives up.
        """
        super().__init__(timeout=timedelta(minutes=timeout_minutes))
        self.devices_per_copy = devices_per_copy
        self.sync_every_micro_batch = sync_every_micro_batch

    def setup_environment(self) -> None:
        """Connect the processes and tell the module how to shard its model.

        Raises:
            UserError: `devices_per_copy` does not divide the number of devices, or the precision is not supported.
        """
        devices = self.num_nodes * self.num_processes
        size = devices if self.devices_per_copy is None else self.devices_per_copy
        if size < 1 or devices % size:
            raise UserError(
                f"strategy.devices_per_copy: found {size}, expected a divisor of the {devices} devices of the run "
                "(trainer.devices times trainer.num_nodes)"
            )
        precision = self.precision_plugin.precision
        if precision not in ("32-true", "bf16-mixed"):
            raise UserError(
                f"trainer.precision: found {precision!r}, expected 32-true or bf16-mixed with strategy FSDP2; weights "
                "in half precision are model.backbone.dtype"
            )
        self._data_parallel_size, self._tensor_parallel_size = devices, 1
        super().setup_environment()
        mesh = self.device_mesh["data_parallel"]
        if size < devices:
            shape, names = (devices // size, size), ("copies", "shards")
            mesh = torch.distributed.init_device_mesh(self.root_device.type, shape, mesh_dim_names=names)
        mixed = {"param_dtype": torch.bfloat16, "reduce_dtype": torch.float32} if precision == "bf16-mixed" else {}
        policy = MixedPrecisionPolicy(cast_forward_inputs=False, **mixed)
        self._module.sharding = Sharding(mesh, policy)

    def setup_optimizers(self, trainer: L.Trainer) -> None:
        """Create the optimizer.

        Raises:
            UserError: It is an optimizer of bitsandbytes, which cannot step sharded weights.
        """
        super().setup_optimizers(trainer)
        for optimizer in self.optimizers:
            if type(optimizer).__module__.startswith("bitsandbytes"):
                raise UserError(
                    f"optimizer: found {type(optimizer).__name__} with strategy FSDP2, expected one that can step "
                    "sharded weights, such as torch.optim.AdamW"
                )

    @property
    def _module(self) -> "FineTuningModule":
        return cast("FineTuningModule", self.lightning_module)

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Do not sum gradients over devices while they accumulate, unless `sync_every_micro_batch` asks for it."""
        assert self.model is not None
        roots = [module for module in self.model.modules() if isinstance(module, FSDPModule)]
        if self.sync_every_micro_batch:
            roots = []
        for module in roots:
            module.set_requires_gradient_sync(False, recurse=False)
        try:
            yield
        finally:
            for module in roots:
                module.set_requires_gradient_sync(True, recurse=False)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return this process's part of the weights for a checkpoint, on the host."""
        return {name: value.cpu() for name, value in self._kept_state().items()}

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Restore weights and optimizers in place, and return the rest of the checkpoint.

        Raises:
            UserError: The checkpoint is broken, it is of another model or adapter, or training would resume from a
                run that was not sharded.
        """
        from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

        path = Path(self.broadcast(checkpoint_path))
        state = self._kept_state()
        shapes = {name: tuple(value.shape) for name, value in state.items()}
        if not path.is_dir():
            if self.optimizers:
                raise UserError(
                    f"ckpt_path {str(path)!r}: found a checkpoint of a run that was not sharded, whose optimizer state "
                    "cannot be shared out; begin a new run from its weights: `judgelit export` makes a folder of them"
                )
            whole = self.checkpoint_io.load_checkpoint(path, weights_only=weights_only)["state_dict"]
            self._module.refuse_other_weights(shapes, {name: tuple(value.shape) for name, value in whole.items()})
            return super().load_checkpoint(path, weights_only)
        meta = load_meta(path)
        self._module.refuse_other_weights(shapes, shapes_in(path))
        # The tensors of `state` share memory with the parameters.
        load_shards({"state_dict": state}, path)
        assert self.model is not None
        for number, optimizer in enumerate(self.optimizers):
            key = f"optimizer_{number}"
            loaded = {key: get_optimizer_state_dict(self.model, optimizer)}
            load_shards(loaded, path)
            set_optimizer_state_dict(self.model, optimizer, optim_state_dict=loaded[key])
        return meta

    def _kept_state(self) -> Mapping[str, torch.Tensor]:
        from torch.distributed.checkpoint.state_dict import get_model_state_dict

        assert self.model is not None
        state: dict[str, Any] = get_model_state_dict(self.model)
        return self._module.kept_in_checkpoint(state)
