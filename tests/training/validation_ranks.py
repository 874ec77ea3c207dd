"""Validation and training of ten examples over one or more ranks, for test_placeholders.py."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch

from judgelit.batches.datamodules import DPODataModule, SFTDataModule
from judgelit.models.backbone import Backbone
from judgelit.training.callbacks import Throughput
from judgelit.training.dpo import DPOModule
from judgelit.training.fsdp import FSDP2
from judgelit.training.sft import SFTModule


def run(kind: str, strategy: str, ranks: int, folder: str, model: str, file: str) -> dict[str, Any]:
    """Fit two epochs and validate; return the steps, the tokens and what was logged before and after."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    module: Any = SFTModule(Backbone(model)) if kind == "sft" else DPOModule(Backbone(model))
    data_type: Any = SFTDataModule if kind == "sft" else DPODataModule
    cache = str(Path(folder, "cache"))
    data = data_type(model, train=file, val=file, test=file, batch_size=4, cache=cache, group_by_length=False)
    trainer = L.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        devices=ranks,
        strategy=FSDP2() if strategy == "fsdp" else "ddp" if ranks > 1 else "auto",
        max_epochs=2,
        accumulate_grad_batches=4 // ranks,
        log_every_n_steps=1,
        num_sanity_val_steps=0,
        inference_mode=False,
        logger=False,
        callbacks=[Throughput()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    before = {**trainer.validate(module, data, verbose=False)[0], **trainer.test(module, data, verbose=False)[0]}
    trainer.fit(module, data)
    after = {key: float(value) for key, value in trainer.callback_metrics.items() if "throughput" not in key}
    after = {key: value for key, value in after.items() if key.startswith(("val/", "train/loss"))}
    return {"steps": trainer.global_step, "tokens": module.tokens_seen, "before": before, "after": after}


def main(kind: str, strategy: str, folder: str, model: str, file: str, out: str) -> None:
    """Run on the ranks that torchrun has started."""
    found = run(kind, strategy, int(os.environ["WORLD_SIZE"]), folder, model, file)
    if os.environ["RANK"] == "0":
        Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
