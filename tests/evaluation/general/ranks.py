"""GeneralAbility and JudgeEvaluation over one or more ranks, for test_callback.py."""

import json
import os
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import lightning as L
import torch

from judgelit.batches.datamodules import JudgeData, SFTDataModule
from judgelit.evaluation import callbacks
from judgelit.evaluation.general import loss
from judgelit.evaluation.general.callback import GeneralAbility
from judgelit.judging.prompts import Templates
from judgelit.models.backbone import Backbone
from judgelit.training.fsdp import FSDP2
from judgelit.training.sft import SFTModule


class Clock:
    """In place of the module `time`: each look at the clock takes some seconds."""

    def __init__(self, seconds: float) -> None:
        self.now, self.seconds = 0.0, seconds

    def monotonic(self) -> float:
        self.now += self.seconds
        return self.now


def run(strategy: str, ranks: int, folder: str, model: str, examples: str, pairs: str) -> dict[str, Any]:
    """Measure before and after two steps; return the metrics and the answers of both, and the judgments.

    Args:
        strategy: The Trainer's.
        ranks: How many.
        folder: Folder to write to.
        model: The model's folder.
        examples: A file of general examples.
        pairs: A file of pairs to judge, beside the template `short`.
    """
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

    # Time is over on the last rank alone, after some batches.
    last = int(os.environ.get("RANK", 0)) == ranks - 1
    clock = Clock(100 if last else 0)
    judge = JudgeData({"held": pairs}, Templates(["short"], str(Path(pairs).parent)), 6, batch_size=4 // ranks)
    general = Noted(examples, "builtin", limit=5, max_new_tokens=6, batch_size=2)
    trainer = L.Trainer(
        default_root_dir=root,
        accelerator="cpu",
        devices=ranks,
        strategy=FSDP2() if strategy == "fsdp" else strategy,
        max_steps=2,
        accumulate_grad_batches=2 // ranks,
        logger=False,
        callbacks=[general, callbacks.JudgeEvaluation(max_seconds=500)],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    data = SFTDataModule(model, examples, batch_size=2, cache=f"{folder}/cache", group_by_length=False, judge=judge)
    with mock.patch.object(callbacks, "time", clock):
        trainer.fit(SFTModule(Backbone(model), lambda weights: torch.optim.SGD(weights, lr=0.1)), data)
    answers = {path.name: path.read_text() for path in sorted(root.glob("general/*"))}
    lines = [line for path in root.glob("judgments/*-step2*.jsonl") for line in path.read_text().splitlines()]
    metrics = {name: value.item() for name, value in trainer.callback_metrics.items() if name.startswith("judge/")}
    return {"seen": seen, "answers": answers, "judgments": sorted(lines), "judged": metrics}


def main(folder: str, model: str, examples: str, pairs: str, out: str) -> None:
    """Run on the ranks that torchrun has started."""
    ranks = int(os.environ["WORLD_SIZE"])
    found = {strategy: run(strategy, ranks, folder, model, examples, pairs) for strategy in ("ddp", "fsdp")}
    if os.environ["RANK"] == "0":
        Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
