"""Script for test_sharding.py: each rank does the runs of a plan, one after another."""

import random
import sys
from functools import partial
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

from judgelit.batches.flat_batch import (
    TokenizedCompletion,
    TokenizedPreference,
    flatten_completions,
    flatten_preferences,
)
from judgelit.errors import UserError
from judgelit.generation.generate import Sampling, generate
from judgelit.models.backbone import Backbone
from judgelit.models.fingerprint import fingerprint
from judgelit.models.lockstep import in_lockstep
from judgelit.models.lora import LoRA, without_adapter
from judgelit.models.sharding import Sharding, whole_weights
from judgelit.training.dpo import DPOModule
from judgelit.training.fsdp import FSDP2
from judgelit.training.losses import PreferenceLoss
from judgelit.training.sft import SFTModule

EPOCH = 5
"""Steps of an epoch."""


class UnevenData(L.LightningDataModule):
    """Micro-batches of two examples of very different length, distributed over the ranks in turn."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        draw = random.Random(0)
        self.collate: Any = flatten_completions if kind == "sft" else flatten_preferences
        self.rows: list[Any] = []
        for index in range(8 * EPOCH):
            ids = [[draw.randrange(300) for _ in range(draw.randint(1, 15))] for _ in range(3)]
            row = TokenizedCompletion(str(index), *ids[:2]) if kind == "sft" else TokenizedPreference(str(index), *ids)
            self.rows.append(row)

    def train_dataloader(self) -> DataLoader:
        trainer = self.trainer
        assert trainer is not None
        batches = [range(start, start + 2) for start in range(0, len(self.rows), 2)]
        mine = batches[trainer.global_rank :: trainer.world_size]
        return DataLoader(self.rows, batch_sampler=mine, collate_fn=self.collate)  # type: ignore[arg-type]


class Watch(L.Callback):
    """Callback that records losses and weights of a run and saves a checkpoint after its first epoch."""

    def __init__(self, path: str | None) -> None:
        self.path = path
        self.losses: dict[int, float] = {}
        self.start: dict[str, Any] = {}
        self.saved: dict[str, Any] = {}
        self.synced: list[bool] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.start = hashes(pl_module)
        self.saved = {**self.start, "moments": moments(trainer)}

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        self.synced.append(any(weight.grad is not None for weight in pl_module.parameters()))
        step, loss = trainer.global_step, trainer.callback_metrics.get("train/loss")
        if loss is not None and step not in self.losses:
            self.losses[step] = float(loss)
            if self.path is not None and step == EPOCH:
                trainer.save_checkpoint(self.path)
                self.saved = {**hashes(pl_module), "moments": moments(trainer)}


def moments(trainer: L.Trainer) -> list[float]:
    """Sum of absolute values of each first moment (AdamW), in the order of the optimizer's weights."""
    (optimizer,) = trainer.optimizers
    kept = [optimizer.state[weight].get("exp_avg") for group in optimizer.param_groups for weight in group["params"]]
    whole = [value.full_tensor() if isinstance(value, DTensor) else value for value in kept]
    return [float(value.abs().sum()) for value in whole if value is not None]


def hashes(module: Any) -> dict[str, str]:
    found = {"model": fingerprint(module.model)}
    return found if not hasattr(module, "reference") else {**found, "reference": module.reference.fingerprint()}


def backbone_of(settings: dict[str, Any]) -> Backbone:
    return Backbone(**{**settings, "lora": LoRA(**settings["lora"]) if "lora" in settings else None})


def module_of(kind: str, backbone: dict[str, Any], reference: str = "auto") -> Any:
    optimizer = partial(torch.optim.AdamW, lr=1e-2)
    if kind == "sft":
        return SFTModule(backbone_of(backbone), optimizer)
    loss = PreferenceLoss(beta=0.5, nll_weight=0.3)
    return DPOModule(backbone_of(backbone), loss, reference=reference, optimizer=optimizer)  # type: ignore[arg-type]


def train(
    kind: str,
    backbone: dict[str, Any],
    ranks: int,
    reference: str = "auto",
    strategy: dict[str, Any] | None = None,
    save: str | None = None,
    resume: str | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Train for two epochs, with four micro-batches a step for any number of ranks.

    Without `strategy` the run is not sharded.
    """
    torch.set_num_threads(1)
    L.seed_everything(0, verbose=False)
    module, watch = module_of(kind, backbone, reference), Watch(save)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy="auto" if strategy is None else FSDP2(**strategy),
        max_epochs=2,
        accumulate_grad_batches=4 // ranks,
        callbacks=[watch],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **settings,
    )
    try:
        trainer.fit(module, datamodule=UnevenData(kind), ckpt_path=resume, weights_only=True)
    except UserError as error:
        return {"error": str(error)}
    optimizer = trainer.optimizers[0]
    states = [value for state in optimizer.state.values() for value in state.values() if value.ndim]
    whole = whole_weights(module.model)
    if whole is None:
        whole = {name: weight.detach() for name, weight in module.model.named_parameters()}
    return {
        "losses": watch.losses,
        "tokens": module.tokens_seen,
        "start": watch.start,
        "end": hashes(module),
        "saved": watch.saved,
        "synced": watch.synced,
        "weights": whole,
        "trained": sorted(name for name, weight in module.model.named_parameters() if weight.requires_grad),
        "share": share([weight for group in optimizer.param_groups for weight in group["params"]]),
        "state share": share(states),
    }


def share(tensors: list[Tensor]) -> float:
    """Fraction of all elements that this rank holds."""
    held = sum((tensor.to_local() if isinstance(tensor, DTensor) else tensor).numel() for tensor in tensors)
    return held / sum(tensor.numel() for tensor in tensors)


def sharding() -> Sharding:
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")
    return Sharding(torch.distributed.init_device_mesh("cpu", (torch.distributed.get_world_size(),)))


def build(backbone: dict[str, Any], sharded: bool = True) -> dict[str, Any]:
    """Build a model and return its weights."""
    over = sharding() if sharded else None
    torch.manual_seed(0)
    try:
        model = backbone_of(backbone).build(over)
    except UserError as error:
        return {"error": str(error)}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    weights = whole_weights(model) or {name: w.detach() for name, w in model.named_parameters()}
    return {
        "hash": fingerprint(model),
        "buffers": buffers,
        "weights": weights,
        "share": share(list(model.parameters())),
    }


def answers(backbone: dict[str, Any], batches: list[list[list[int]]], sharded: bool = True) -> dict[str, Any]:
    """Generate answers to batches of prompts; the second rank gets fewer batches."""
    over = sharding() if sharded else None
    torch.manual_seed(0)
    model = backbone_of(backbone).build(over)
    if sharded:
        batches = batches[2 * torch.distributed.get_rank() :]
    found = []
    with in_lockstep(without_adapter(model)):
        for prompts in batches:
            width = max(map(len, prompts))
            ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
            mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
            found.append(generate(model, ids, mask, Sampling(max_new_tokens=12), stop_ids=range(100), pad_id=0))
    if sharded:
        gathered: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(gathered, found)
        return {"answers": gathered}
    return {"answers": found}


RUNS = {"train": train, "build": build, "answers": answers}


def main(plan: str, out: str) -> None:
    """Do the runs in the file `plan` and write their results to the file `out`."""
    torch.set_num_threads(1)
    results = {}
    for name, (run, settings) in torch.load(plan, weights_only=True).items():
        results[name] = RUNS[run](**settings)
    if torch.distributed.get_rank() == 0:
        torch.save(results, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
