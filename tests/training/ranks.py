"""Script for test_finetuning.py: small training runs on one or two ranks."""

import random
import sys
from functools import partial
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader

from judgelit.batches.flat_batch import (
    TokenizedCompletion,
    TokenizedPreference,
    flatten_completions,
    flatten_preferences,
)
from judgelit.batches.sampler import BatchSampler
from judgelit.models.backbone import Backbone
from judgelit.training.dpo import DPOModule
from judgelit.training.losses import PreferenceLoss
from judgelit.training.sft import SFTModule

TAGS = ("general", "judge", "judge", "", "judge")


class UnevenData(L.LightningDataModule):
    """Rows of very different length, distributed over the ranks by the batch sampler."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        draw = random.Random(0)
        ids = [[[draw.randrange(300) for _ in range(draw.randint(1, 15))] for _ in range(3)] for _ in range(24)]
        if kind == "sft":
            self.rows: list[Any] = [TokenizedCompletion(str(i), p, c, TAGS[i % 5]) for i, (p, c, _) in enumerate(ids)]
            self.collate: Any = partial(flatten_completions, tags=("general", "judge"))
        else:
            self.rows = [
                TokenizedCompletion(str(i), p, c, "general") if i % 5 == 0 else TokenizedPreference(str(i), p, c, other)
                for i, (p, c, other) in enumerate(ids)
            ]
            self.collate = partial(flatten_preferences, tags=("general", "judge"))

    def train_dataloader(self) -> DataLoader:
        assert self.trainer is not None
        batches = BatchSampler(
            [len(row) for row in self.rows],
            3,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
            shuffle=False,
        )
        return DataLoader(self.rows, batch_sampler=batches, collate_fn=self.collate)  # type: ignore[arg-type]


def train(kind: str, ranks: int, accumulate: int, folder: str, adapter: str) -> dict[str, Any]:
    """Train for two epochs with micro-batches of three rows; return weights, the last loss and the number of steps."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    sgd = partial(torch.optim.SGD, lr=0.05)
    module: Any
    if kind == "sft":
        module = SFTModule(Backbone(folder), sgd)
    else:
        module = DPOModule(Backbone(folder, adapter=adapter), PreferenceLoss(beta=0.5, nll_weight=0.3), optimizer=sgd)
    module.configure_model()
    start = {name: weight.detach().clone() for name, weight in module.named_parameters() if weight.requires_grad}
    trainer = L.Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy="ddp" if ranks > 1 else "auto",
        max_epochs=2,
        accumulate_grad_batches=accumulate,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(module, datamodule=UnevenData(kind))
    after = {name: weight.detach() for name, weight in module.named_parameters() if weight.requires_grad}
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return {"start": start, "weights": after, "logged": logged, "steps": trainer.global_step}


def main(folder: str, adapter: str, out: str) -> None:
    """Train on two ranks, SFT and DPO, each with and without accumulation."""
    results = {
        f"{kind}-{accumulate}": train(kind, 2, accumulate, folder, adapter)
        for kind in ("sft", "dpo")
        for accumulate in (1, 2)
    }
    if torch.distributed.get_rank() == 0:
        torch.save(results, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
