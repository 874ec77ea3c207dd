"""Runs continued from each of their checkpoints, against the run without a stop."""

import csv
import json
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
from lightning.pytorch.callbacks import ModelCheckpoint
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


CALLBACKS = {
    "accumulation from epoch to epoch": [
        "--trainer.callbacks+=lightning.pytorch.callbacks.GradientAccumulationScheduler",
        '--trainer.callbacks.scheduling={"0": 1, "1": 2}',
        "--trainer.accumulate_grad_batches=1",
        "--model.lr_scheduler=WarmupCosine",
    ],
    "the learning rate by a metric": [
        "--trainer.callbacks.every_n_train_steps=4",  # at the last step of an epoch, before the rate changes
        "--model.lr_scheduler=lightning.pytorch.cli.ReduceLROnPlateau",
        "--model.lr_scheduler.monitor=val/loss",
        "--model.lr_scheduler.threshold=1.0",
        "--model.lr_scheduler.patience=0",
    ],
    "moving average of the weights": ["--trainer.callbacks+=lightning.pytorch.callbacks.EMAWeightAveraging"],
    "the best by a metric of the judge": [
        '--data.judge={"sets": {"s": {"class_path": "TaskPairs", "init_args": {"kinds": ["sums"], '
        '"difficulties": [1], "count": 2}}}, "templates": {"names": ["nano-*"]}, "max_new_tokens": 2}',
        "--trainer.callbacks+=judgelit.JudgeEvaluation",
        "--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint",
        "--trainer.callbacks.monitor=judge/s/accuracy",
        "--trainer.callbacks.filename=best",
        "--trainer.callbacks+=lightning.pytorch.callbacks.EarlyStopping",
        "--trainer.callbacks.monitor=judge/s/accuracy",
        "--trainer.callbacks.patience=9",
        "--trainer.val_check_interval=4",
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("callbacks", CALLBACKS)
def test_a_run_with_callbacks_that_change_it_continues_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, callbacks: str
) -> None:
    unbroken = tmp_path / "unbroken/run"
    unbroken.parent.mkdir()
    monkeypatch.chdir(unbroken.parent)
    run = [*RUN, "--trainer.callbacks.every_n_train_steps=3", *ENDS["max_epochs"], *CALLBACKS[callbacks]]
    run += ["--trainer.default_root_dir=run"]
    with monkeypatch.context() as patch:
        keep_each(patch, tmp_path / "kept")
        main(run)
    for folder in sorted((tmp_path / "kept").iterdir())[-4:-1:2]:
        monkeypatch.chdir(folder)
        main([*run, "--ckpt_path=last"])
        assert logged(folder / "run") == logged(unbroken), folder.name
        for name, weight in weights(folder / "run").items():
            assert torch.equal(weight, weights(unbroken)[name]), (folder.name, name)


ROWS = [{"prompt": f"{n}+1=?", "completion": f"{n + 1} [[A]]"} for n in range(40)]
FILE_RUN = [
    "fit",
    "--model=SFTModule",
    "--model.backbone.name_or_path=nano",
    '--model.backbone.lora={"r": 2, "dropout": 0.0}',
    "--model.optimizer=torch.optim.AdamW",
    "--model.optimizer.lr=0.001",
    "--model.lr_scheduler=WarmupCosine",
    "--data=SFTDataModule",
    "--data.train=../train.jsonl",
    "--data.cache=../cache",
    "--data.batch_size=1",
    "--trainer.accelerator=cpu",
    "--trainer.max_epochs=1",
    "--trainer.accumulate_grad_batches=4",
    "--trainer.log_every_n_steps=1",
    MODEL_CHECKPOINT,
    "--trainer.callbacks.save_last=true",
    "--trainer.callbacks.every_n_train_steps=4",
    "--trainer.default_root_dir=run",
]


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def stopped_at_4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of forty rows that was stopped at its fourth step of ten; its data are beside it."""
    root = tmp_path_factory.mktemp("stopped")
    write_rows(root / "train.jsonl", ROWS)
    (root / "one").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root / "one")
        seen: list[str] = []
        watch(patch, seen, stop_after=18)
        with pytest.raises(RuntimeError, match="killed"):
            main(FILE_RUN)
    assert len(seen) == 18
    (root / "seen.json").write_text(json.dumps(seen[:16]), encoding="utf-8")
    return root


def watch(monkeypatch: pytest.MonkeyPatch, seen: list[str], stop_after: int | None = None) -> None:
    """Note the examples of each training step."""
    forward = SFTModule.training_step

    def training_step(self: SFTModule, batch: Any, *more: Any) -> torch.Tensor:
        seen.extend(batch.ids)
        if stop_after is not None and len(seen) >= stop_after:
            raise RuntimeError("killed")
        return forward(self, batch, *more)

    monkeypatch.setattr(SFTModule, "training_step", training_step)


def copied(stopped: Path, to: Path) -> Path:
    shutil.copytree(stopped, to, dirs_exist_ok=True)
    return to / "one"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("--data.batch_size=4", "data.batch_size: found 4, expected 1, with which the run of the checkpoint was begun"),
        ("--data.tokens_per_batch=64", "data.tokens_per_batch: found 64, expected None"),
        ("--data.group_by_length=false", "data.group_by_length: found False, expected True"),
        ("--data.max_length=90", "data.max_length: found 90, expected"),
        ("--data.seed=1", "data.seed: found 1, expected 0"),
        ("--data.val_fraction=0.1", "data.val_fraction: found 0.1, expected 0.0"),
        ("--data.train=../fewer.jsonl", "data.train: found 39 examples with hash"),
        ("--seed_everything=1", "seed_everything: found 1, expected 0"),
        ("--model.optimizer.lr=0.01", "model.optimizer.lr: found 0.01, expected 0.001"),
        ("--model.optimizer=torch.optim.SGD", "model.optimizer.class_path: found 'torch.optim.SGD'"),
        ("--model.lr_scheduler=null", "model.lr_scheduler.class_path: found nothing, expected 'judgelit."),
        ("--model.backbone.lora.r=3", "model.backbone.lora.r: found 3, expected 2"),
        ("--trainer.gradient_clip_val=1.0", "trainer.gradient_clip_val: found 1.0, expected nothing"),
        ("--trainer.limit_train_batches=20", "trainer.limit_train_batches: found 20, expected nothing"),
        ("--trainer.precision=bf16-mixed", "trainer.precision: found 'bf16-mixed', expected"),
    ],
)
def test_a_run_with_another_setting_is_refused_and_changes_nothing(
    change: str,
    said: str,
    stopped_at_4: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(copied(stopped_at_4, tmp_path))
    write_rows(tmp_path / "fewer.jsonl", ROWS[1:])
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.suffix in (".yaml", ".csv", ".ckpt")}
    with pytest.raises(SystemExit) as exit_:
        main([*FILE_RUN, change, "--ckpt_path=last"])
    assert exit_.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("judgelit: error:")]
    assert said in line
    assert all(path.read_bytes() == content for path, content in before.items())


@pytest.mark.parametrize(("accumulated", "steps"), [(1, 28), (8, 7)])
def test_with_another_accumulation_each_example_comes_once(
    accumulated: int, steps: int, stopped_at_4: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(copied(stopped_at_4, tmp_path))
    seen = json.loads((tmp_path / "seen.json").read_text(encoding="utf-8"))
    watch(monkeypatch, seen)
    main([*FILE_RUN, f"--trainer.accumulate_grad_batches={accumulated}", "--ckpt_path=last"])
    assert len(seen) == 40 == len(set(seen))
    last = torch.load("run/checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] == steps
    # The schedule ends with the run, so the last step had the learning rate before its end.
    assert last["lr_schedulers"][0]["_last_lr"][0] == pytest.approx(0, abs=1e-9)


def test_a_checkpoint_that_a_kill_left_behind_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_rows(tmp_path / "train.jsonl", ROWS)
    (tmp_path / "one").mkdir()
    monkeypatch.chdir(tmp_path / "one")

    def killed(*_: Any) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr(ModelCheckpoint, "_remove_checkpoint", killed)
        main(FILE_RUN)
    folder = Path("run/checkpoints")
    shutil.copy(folder / "last.ckpt", folder / "mine.ckpt")
    os.utime(folder / "mine.ckpt", ns=(0, 0))
    assert {path.name for path in folder.iterdir()} == {
        "epoch=0-step=4.ckpt",
        "epoch=0-step=8.ckpt",
        "last.ckpt",
        "mine.ckpt",
    }
    main([*FILE_RUN, "--trainer.max_epochs=2", "--ckpt_path=last"])
    assert {path.name for path in folder.iterdir()} == {"epoch=1-step=20.ckpt", "last.ckpt", "mine.ckpt"}


def test_dropout_differs_from_step_to_step_and_rank_to_rank() -> None:
    draws = []
    for key in ("0/0", "0/1", "1/0", "0/0"):
        seed_all(key)
        draws.append((random.random(), float(np.random.rand()), float(torch.rand(()))))
    assert draws[0] == draws[3]
    assert all(len(set(column)) == 3 for column in zip(*draws, strict=True))
