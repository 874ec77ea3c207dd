"""Runs that are killed, told to end, or continued on another number of processes."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .conftest import in_a_process
from .processes import JUDGELIT, start

KILLS = Path(__file__).parents[2] / "benchmarks/kills.py"


@pytest.mark.slow
def test_killed_and_continued_runs_end_like_unbroken_ones(tmp_path: Path) -> None:
    options = ["--kills=2", "--steps=14", f"--output={tmp_path}", "--cases", "sft", "dpo-ranks"]
    found = subprocess.run([sys.executable, str(KILLS), *options], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    claim = json.loads(found.stdout.splitlines()[-1])
    assert claim["ratio"] == 1, found.stdout
    assert claim["kills"] == 4 and claim["kills_during_saves"] >= 1
    assert all(count > 30 for _, count in claim["pairs"])


@pytest.mark.slow
def test_a_run_of_two_processes_is_continued_on_one(tmp_path: Path) -> None:
    def fit(ranks: int, steps: int, folder: str, *more: str) -> str:
        process = in_a_process(
            tmp_path,
            "fit",
            "--config=quickstart/sft",
            # 23 examples are 12 micro-batches an epoch; the run uses 10 of them.
            "--data.train.init_args.tasks.init_args.count=28",
            "--data.val=null",
            "--data.judge=null",
            "--data.batch_size=2",
            "--model.backbone.lora.r=2",
            "--model.backbone.lora.dropout=0.2",
            "--model.lr_scheduler=null",
            "--trainer.callbacks=lightning.pytorch.callbacks.ModelCheckpoint",
            "--trainer.callbacks.save_last=true",
            "--trainer.accelerator=cpu",
            f"--trainer.devices={ranks}",
            f"--trainer.strategy={'ddp' if ranks > 1 else 'auto'}",
            f"--trainer.accumulate_grad_batches={2 // ranks}",
            f"--trainer.limit_train_batches={10 // ranks}",
            "--trainer.log_every_n_steps=1",
            f"--trainer.max_steps={steps}",
            f"--trainer.default_root_dir={folder}",
            *more,
        )
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said
        return said

    fit(1, 16, "one")
    fit(2, 9, "two")
    said = fit(1, 16, "two", "--ckpt_path=last")
    (line,) = [line for line in said.splitlines() if "processes" in line]
    assert line.startswith("the checkpoint is of 2 processes and there are 1 now")
    losses = []
    for folder in ("one", "two"):
        with (tmp_path / folder / "csv/version_0/metrics.csv").open(newline="", encoding="utf-8") as file:
            losses.append([float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]])
    # Examples, steps and dropout are the same; only the rounding of sums differs.
    assert len(losses[0]) == 16 and losses[1] == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.slow
def test_all_processes_end_after_a_sigterm_to_the_first(tmp_path: Path) -> None:
    command = ["fit", "--config", "fsdp/cpu", "--trainer.max_steps=500", "--trainer.default_root_dir=run"]
    process = start(*JUDGELIT, *command, folder=tmp_path)
    log = tmp_path / "run/csv/version_0/metrics.csv"
    while process.poll() is None and not (log.exists() and log.read_text(encoding="utf-8").count("\n") > 3):
        time.sleep(0.05)
    # The second process gets no signal, and often waits for the first in a collective operation.
    process.terminate()
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 143, said
    assert said.count("judgelit: interrupted") == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "to_all", "moment"),
    [
        # Ctrl-C in a terminal reaches all processes.
        (signal.SIGINT, True, "training"),
        (signal.SIGINT, False, "training"),
        (signal.SIGTERM, False, "launch"),
        (signal.SIGTERM, False, "connection"),
        (signal.SIGTERM, True, "connection"),
        (signal.SIGINT, True, "connection"),
    ],
)
def test_two_processes_end_with_the_code_of_the_signal_and_without_a_traceback(
    number: int, to_all: bool, moment: str, tmp_path: Path
) -> None:
    command = ["fit", "--config=quickstart/sft", "--data.judge=null", "--trainer.max_steps=5000"]
    command += ["--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.strategy=ddp"]
    command += ["--trainer.callbacks=lightning.pytorch.callbacks.ModelCheckpoint", "--trainer.callbacks.save_last=true"]
    command += ["--trainer.callbacks.every_n_train_steps=1", "--data.val=null"]
    command += ["--data.train.init_args.tasks.init_args.count=200"]
    command += ["--trainer.log_every_n_steps=1", "--trainer.default_root_dir=run"]
    process = start(*JUDGELIT, *command, folder=tmp_path, start_new_session=True)
    log = tmp_path / "run/csv/version_0/metrics.csv"

    def ranks() -> list[str]:
        return Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="ascii").split()

    def reached() -> bool:
        return (
            log.exists() and log.read_text(encoding="utf-8").count("\n") > 3 if moment == "training" else bool(ranks())
        )

    while process.poll() is None and not reached():
        time.sleep(0.05)
    if moment == "connection":
        time.sleep(2)  # The first rank waits in a system call for the second, which imports its modules.
    send = os.killpg if to_all else os.kill
    send(process.pid, number)
    if number == signal.SIGINT:
        time.sleep(0.3)
        if process.poll() is None:
            send(process.pid, number)
    # This returns when no process has the output open any more.
    said, _ = process.communicate(timeout=120)
    # A shell shows both in the same way: 130 or 143.
    assert process.returncode in (128 + number, -number), said
    assert "Traceback" not in said
    if moment == "training":
        assert "judgelit: interrupted" in said
