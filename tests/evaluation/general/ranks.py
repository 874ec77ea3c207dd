"""GeneralAbility over one or more ranks, for test_callback.py."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch

from judgelit.batches.datamodules import SFTDataModule
from judgelit.evaluation.general import loss
from judgelit.evaluation.general.callback import GeneralAbility
from judgelit.models.backbone import Backbone
from judgelit.training.fsdp import FSDP2
from judgelit.training.sft import SFTModule


def run(strategy: str, ranks: int, folder: str, model: str, examples: str) -> dict[str, Any]:
    """Measure before and after two steps; return the metrics and the answers of both."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    # Three batches and three prompts: the ranks have different numbers of both.
    loss._TOKENS_AT_ONCE = 100
    root = Path(folder, strategy)
    seen: list[dict[str, float]] = []

    class Noted(GeneralAbility):
        def log_metrics(self, trainer: L.Trainer, values: Any) -> None:
            seen.append(dict(values))
            super().log_metrics(trainer, values)

    trainer = L.Trainer(
        default_root_dir=root,
        accelerator="cpu",
        devices=ranks,
        strategy=FSDP2() if strategy == "fsdp" else strategy,
        max_steps=2,
        accumulate_grad_batches=2 // ranks,
        logger=False,
        callbacks=[Noted(examples, "builtin", limit=5, max_new_tokens=6, batch_size=2)],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    data = SFTDataModule(model, examples, batch_size=2, cache=f"{folder}/cache", group_by_length=False)
    trainer.fit(SFTModule(Backbone(model), lambda weights: torch.optim.SGD(weights, lr=0.1)), data)
    answers = {path.name: path.read_text() for path in sorted(root.glob("general/*"))}
    return {"seen": seen, "answers": answers}


def main(folder: str, model: str, examples: str, out: str) -> None:
    """Run on the ranks that torchrun has started."""
    ranks = int(os.environ["WORLD_SIZE"])
    found = {strategy: run(strategy, ranks, folder, model, examples) for strategy in ("ddp", "fsdp")}
    if os.environ["RANK"] == "0":
        Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
