"""Runs continued from each of their checkpoints, against the run without a stop."""

import csv
import os
import random
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from judgelit.cli import main
from judgelit.runs.checkpoints import AtomicCheckpoints
from judgelit.runs.exact_resume import seed_all
from judgelit.training.sft import SFTModule

WALL_CLOCK = re.compile(r"(train|validate)/(time|device/.*|.*_per_sec)")
MODEL_CHECKPOINT = "--trainer.callbacks=lightning.pytorch.callbacks.ModelCheckpoint"
# 28 examples, 7 micro-batches an epoch: the last global batch of an epoch has one micro-batch instead of two.
RUN = [
    "fit",
    "--config=quickstart/sft",
    "--data.train.init_args.tasks.init_args.count=32",
    "--data.val.init_args.tasks.init_args.count=6",
    "--data.judge=null",
    "--data.batch_size=4",
    "--model.backbone.lora.r=2",
    "--model.backbone.lora.dropout=0.2",
    "--trainer.accumulate_grad_batches=2",
    "--trainer.log_every_n_steps=1",
    "--trainer.num_sanity_val_steps=0",
    MODEL_CHECKPOINT,
    "--trainer.callbacks.save_last=true",
]
# When checkpoints are saved and when the run validates.
RHYTHMS = {
    "steps, validation within epochs": ["--trainer.callbacks.every_n_train_steps=1", "--trainer.val_check_interval=4"],
    "steps, validation at the end of epochs": ["--trainer.callbacks.every_n_train_steps=1"],
    "every micro-batch": ["--trainer.callbacks.train_time_interval=0:00:00", "--trainer.val_check_interval=3"],
    "validations": ["--trainer.callbacks.monitor=val/loss", "--trainer.val_check_interval=4"],
    "epochs": ["--trainer.callbacks.save_on_train_epoch_end=true"],
}
ENDS = {"max_steps": ["--trainer.max_steps=12"], "max_epochs": ["--trainer.max_steps=-1", "--trainer.max_epochs=2"]}


def logged(folder: Path) -> list[dict[str, str]]:
    with (folder / "csv/version_0/metrics.csv").open(newline="", encoding="utf-8") as file:
        rows = [
            {name: value for name, value in row.items() if value and not WALL_CLOCK.fullmatch(name)}
            for row in csv.DictReader(file)
        ]
    return [row for row in rows if row.keys() - {"epoch", "step"}]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model/adapter_model.safetensors")


def keep_each(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Keep a copy of every checkpoint that is saved, with the log as it then is."""
    save = AtomicCheckpoints.save_checkpoint

    def and_copy(self: Any, checkpoint: dict[str, Any], path: str, *more: Any, **options: Any) -> None:
        save(self, checkpoint, path, *more, **options)
        if not Path(path).exists():
            return
        number = len(list(folder.iterdir())) if folder.exists() else 0
        kept = folder / f"{number:02}" / "run"
        (kept / "checkpoints").mkdir(parents=True)
        shutil.copy(path, kept / "checkpoints/last.ckpt")
        if (Path(path).parents[1] / "csv").exists():
            shutil.copytree(Path(path).parents[1] / "csv", kept / "csv")

    monkeypatch.setattr(AtomicCheckpoints, "save_checkpoint", and_copy)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rhythm", "end"),
    [*((rhythm, "max_steps") for rhythm in RHYTHMS), ("steps, validation at the end of epochs", "max_epochs")],
)
def test_a_run_continued_from_any_checkpoint_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rhythm: str, end: str
) -> None:
    unbroken = tmp_path / "unbroken/run"
    unbroken.parent.mkdir()
    monkeypatch.chdir(unbroken.parent)
    run = [*RUN, *RHYTHMS[rhythm], *ENDS[end], "--trainer.default_root_dir=run"]
    with monkeypatch.context() as patch:
        keep_each(patch, tmp_path / "kept")
        main(run)
    expected, trained = logged(unbroken), weights(unbroken)
    losses = [row for row in expected if "train/loss" in row]
    assert [row["step"] for row in losses] == [str(step) for step in range(8 if end == "max_epochs" else 12)]
    kept = sorted((tmp_path / "kept").iterdir())
    assert kept
    # The last but one was saved at the last step, before the validation and the end of the run.
    some = sorted({0, len(kept) // 3, 2 * len(kept) // 3, len(kept) - 2})
    for number, folder in enumerate(kept[index] for index in some):
        if number % 2 == 0:
            # The killed run had trained on for long after its checkpoint.
            shutil.copytree(unbroken / "csv", folder / "run/csv", dirs_exist_ok=True)
        monkeypatch.chdir(folder)
        main([*run, "--ckpt_path=last"])
        assert logged(folder / "run") == expected, folder.name
        for name, weight in weights(folder / "run").items():
            assert torch.equal(weight, trained[name]), (folder.name, name)


GLOBAL_BATCH = 8, 9  # micro-batches of the first global batch of the second epoch


def stop(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """Stop the run from within."""
    seen = 0
    forward, update = SFTModule.training_step, torch.optim.AdamW.step

    def training_step(self: SFTModule, *batch: Any) -> torch.Tensor:
        nonlocal seen
        seen += 1
        if seen == GLOBAL_BATCH[1] and how == "an error":
            raise RuntimeError("something else failed")
        if seen == GLOBAL_BATCH[0] and how == "SIGTERM":
            os.kill(os.getpid(), signal.SIGTERM)
        return forward(self, *batch)

    def step(self: torch.optim.AdamW, closure: Any = None) -> Any:
        found = update(self, closure)
        if seen == 7 and how == "an error in an optimizer step":
            raise RuntimeError("something else failed")
        return found

    monkeypatch.setattr(SFTModule, "training_step", training_step)
    monkeypatch.setattr(torch.optim.AdamW, "step", step)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["an error", "SIGTERM", "an error in an optimizer step"])
def test_a_global_batch_in_which_a_run_stops_is_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.chdir(tmp_path)
    run = [
        *RUN,
        "--trainer.callbacks.save_on_exception=true",
        f"--trainer.callbacks.every_n_train_steps={2 if 'optimizer' in how else 100}",
        "--trainer.max_steps=7",
        "--trainer.val_check_interval=2",
    ]
    main([*run, "--trainer.default_root_dir=unbroken"])
    with monkeypatch.context() as patch, pytest.raises((RuntimeError, SystemExit)):
        stop(patch, how)
        main([*run, "--trainer.default_root_dir=stopped"])
    last = torch.load("stopped/checkpoints/last.ckpt", weights_only=True)
    # In the fourth optimizer step nothing is saved: the checkpoint of the second step is kept.
    assert last["global_step"] == (2 if "optimizer" in how else 4)
    main([*run, "--trainer.default_root_dir=stopped", "--ckpt_path=last"])
    assert logged(tmp_path / "stopped") == logged(tmp_path / "unbroken")
    ends = [
        torch.load(f"{folder}/checkpoints/last.ckpt", weights_only=True)["tokens_seen"]
        for folder in ("stopped", "unbroken")
    ]
    assert ends[0] == ends[1]


def test_dropout_differs_from_step_to_step_and_rank_to_rank() -> None:
    draws = []
    for key in ("0/0", "0/1", "1/0", "0/0"):
        seed_all(key)
        draws.append((random.random(), float(np.random.rand()), float(torch.rand(()))))
    assert draws[0] == draws[3]
    assert all(len(set(column)) == 3 for column in zip(*draws, strict=True))
