"""Runs that are killed in a hook and continued: the same callbacks are called, weights kept and stops made."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from judgelit.cli import main

from .test_exact_resume import FILE_RUN, ROWS, logged, write_rows

# 12 examples in batches of 2: 6 steps an epoch.
RUN = [
    argument
    for argument in FILE_RUN
    if not argument.startswith(
        ("--trainer.callbacks", "--trainer.accumulate", "--data.batch_size", "--trainer.max_epochs")
    )
] + ["--data.val=../val.jsonl", "--data.batch_size=2", "--trainer.max_epochs=3", "--trainer.num_sanity_val_steps=0"]
LIGHTNING = "lightning.pytorch.callbacks"


def callback(name: str, **settings: Any) -> list[str]:
    """Arguments that add a callback."""
    settings = {key: str(value).lower() if isinstance(value, bool) else value for key, value in settings.items()}
    path = name if "." in name else f"{LIGHTNING}.{name}"
    given = [f"--trainer.callbacks.{key}={value}" for key, value in settings.items()]
    return [f"--trainer.callbacks+={path}", *given]


def kill(hook: str, step: int) -> list[str]:
    return callback("tests.runs.killed.Kill", hook=hook, step=step)


def every(steps: int) -> list[str]:
    """Arguments to validate after every so many steps of an epoch."""
    return [f"--trainer.val_check_interval={steps}"]


LAST = callback("ModelCheckpoint", every_n_train_steps=1, save_last=True)
BEST = callback("ModelCheckpoint", every_n_train_steps=3, monitor="val/loss", save_top_k=-1, filename="best-{step}")
AT_EPOCH_END = callback(
    "ModelCheckpoint", monitor="val/loss", save_on_train_epoch_end=True, save_top_k=-1, filename="epoch-{epoch}-{step}"
)
STOP_AFTER_TWO = callback("EarlyStopping", monitor="val/loss", min_delta=100.0, patience=1)
KILLS = {
    "the validation before a stop": [*LAST, *AT_EPOCH_END, *STOP_AFTER_TWO, *kill("on_validation_start", 12)],
    "the end of the last epoch": [*LAST, *kill("on_train_epoch_end", 18), *AT_EPOCH_END],
    "saves at the end of an epoch": [
        *callback("ModelCheckpoint", save_on_train_epoch_end=True, save_last=True),
        *kill("on_train_epoch_end", 12),
        *AT_EPOCH_END,
        *STOP_AFTER_TWO,
    ],
    "the end of training within an epoch": [
        *LAST,
        *kill("on_train_epoch_end", 8),
        *AT_EPOCH_END,
        *["--trainer.max_steps=8", *every(2)],
    ],
    "a validation within an epoch": [
        *LAST,
        *callback("ModelCheckpoint", monitor="val/loss", filename="best-{step}"),
        *STOP_AFTER_TWO,
        *kill("on_validation_start", 4),
        *every(2),
    ],
    "a validation for which a save waits": [*LAST, *BEST, *kill("on_validation_start", 4), *every(4)],
    "an epoch's validation for which a save waits": [*BEST, *LAST, *kill("on_validation_start", 6), *every(3)],
    "a step whose save waits": [*LAST, *kill("on_train_batch_end", 3), *BEST, *every(3)],
    "saves of a step": [
        *LAST,
        *kill("on_train_batch_end", 6),
        *callback("ModelCheckpoint", every_n_train_steps=3, save_top_k=-1, filename="third-{step}"),
    ],
    "saves of a validation": [
        *callback("ModelCheckpoint", every_n_epochs=1, monitor="val/loss", save_last=True, save_top_k=-1),
        *kill("on_validation_end", 9),
        *callback(
            "ModelCheckpoint", every_n_epochs=1, monitor="val/loss", mode="max", save_top_k=-1, filename="{step}"
        ),
        *every(3),
    ],
    "a save after another callback has stopped the run": [
        *callback("tests.runs.killed.StopAt", step=4),
        *LAST,
        *kill("on_train_batch_end", 4),
        *AT_EPOCH_END,
        "--trainer.log_every_n_steps=3",
    ],
}


def fit(parent: Path, monkeypatch: pytest.MonkeyPatch, run: list[str], *more: str) -> None:
    parent.mkdir(exist_ok=True)
    monkeypatch.chdir(parent)
    main([*run, *more])


def fit_and_kill(parent: Path, run: list[str]) -> "subprocess.CompletedProcess[str]":
    """Run a process in which a hook of tests/runs/killed.py kills or interrupts."""
    parent.mkdir()
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "KILL": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    command = [sys.executable, "-m", "judgelit.cli", *run]
    return subprocess.run(command, cwd=parent, env=environment, capture_output=True, text=True, check=False)


def left_behind(parent: Path) -> dict[str, tuple[dict[str, torch.Tensor], str]]:
    """Of each checkpoint of a run its weights, and the states of its callbacks as a text."""
    found = {}
    for path in sorted((parent / "run/checkpoints").iterdir()):
        content = torch.load(path, weights_only=True)
        states = {name: state for name, state in content["callbacks"].items() if "Throughput" not in name}
        for state in states.values():
            state.pop("current_score", None)  # Lightning saves it, but does not load it.
        found[path.name] = content["state_dict"], repr(states).replace(str(parent), "")
    return found


def check_equal(one: Path, other: Path) -> None:
    """Compare two runs: their logs, checkpoints, and the states of callbacks."""
    assert logged(other / "run") == logged(one / "run")
    wanted, found = left_behind(one), left_behind(other)
    assert found.keys() == wanted.keys()
    for name, (weights, states) in wanted.items():
        assert all(torch.equal(weight, found[name][0][key]) for key, weight in weights.items()), name
        assert found[name][1] == states, name


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_rows(tmp_path / "train.jsonl", ROWS[:12])
    write_rows(tmp_path / "val.jsonl", ROWS[12:16])
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("moment", KILLS)
def test_a_run_killed_between_hooks_keeps_and_stops_the_same(
    moment: str, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = [*RUN, *KILLS[moment]]
    fit(data / "unbroken", monkeypatch, run)
    killed = fit_and_kill(data / "killed", run)
    assert killed.returncode == -9, killed.stderr
    fit(data / "killed", monkeypatch, run, "--ckpt_path=last")
    check_equal(data / "unbroken", data / "killed")


@pytest.mark.slow
def test_a_run_that_a_callback_has_ended_does_nothing_more(
    data: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run = [*RUN, *LAST]
    stopping = [*run, *STOP_AFTER_TWO]
    for name in ("unbroken", "continued"):
        fit(data / name, monkeypatch, stopping)
    assert "has ended this run" not in capfd.readouterr().out
    for more in ([], ["--trainer.max_epochs=5"]):
        fit(data / "continued", monkeypatch, stopping, "--ckpt_path=last", *more)
        check_equal(data / "unbroken", data / "continued")
        assert "EarlyStopping has ended this run at step 12" in capfd.readouterr().out
    # What that line advises.
    fit(data / "continued", monkeypatch, stopping, "--ckpt_path=last", "--trainer.min_steps=14")
    assert logged(data / "continued/run")[-1]["step"] == "13"
    fit(data / "continued", monkeypatch, run, "--ckpt_path=last")
    assert [row["step"] for row in logged(data / "continued/run") if "train/loss" in row] == [str(n) for n in range(18)]
    assert "has ended this run" not in capfd.readouterr().out


@pytest.mark.slow
def test_a_run_whose_time_was_over_trains_on_with_more_time(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = [*RUN, *LAST, "--data.val=null", "--model.lr_scheduler=null", "--trainer.max_epochs=-1"]
    fit(data / "timed", monkeypatch, run, "--trainer.max_time=00:00:00:01")
    steps = len(logged(data / "timed/run"))
    more = [f"--trainer.max_steps={steps + 2}", "--ckpt_path=last"]
    fit(data / "timed", monkeypatch, run, *more, "--trainer.max_time=00:00:00:01")
    assert len(logged(data / "timed/run")) == steps
    fit(data / "timed", monkeypatch, run, *more, "--trainer.max_time=00:01:00:00")
    assert len(logged(data / "timed/run")) == steps + 2


SAVE_WHEN_STOPPED = callback("ModelCheckpoint", every_n_train_steps=5, save_last=True, save_on_exception=True)


@pytest.mark.slow
@pytest.mark.parametrize("step", [4, 18], ids=["of-a-step", "at-the-end"])
def test_an_interrupted_measurement_is_made_when_the_run_continues(
    step: int, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = callback("ModelCheckpoint", every_n_train_steps=4, monitor="judge/step", save_top_k=-1, filename="{step}")
    run = [*RUN, *SAVE_WHEN_STOPPED, *callback("tests.runs.killed.CountSteps", interrupted=step), *best]
    fit(data / "unbroken", monkeypatch, run)
    stopped = fit_and_kill(data / "stopped", run)
    assert stopped.returncode == 130, stopped.stderr
    fit(data / "stopped", monkeypatch, run, "--ckpt_path=last")
    assert logged(data / "stopped/run") == logged(data / "unbroken/run")
    kept = [{path.name for path in (data / name / "run/checkpoints").iterdir()} for name in ("unbroken", "stopped")]
    assert not kept[0] - kept[1]
    assert len(kept[1] - kept[0]) == 1  # of the interrupt


@pytest.mark.slow
@pytest.mark.parametrize("step", [4, 6], ids=["within-an-epoch", "at-its-end"])
def test_a_run_that_is_told_to_end_after_a_step_continues_the_same(
    step: int, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = callback("tests.runs.killed.Kill", hook="on_train_batch_end", step=step, number=15)
    plateau = ["=lightning.pytorch.cli.ReduceLROnPlateau", ".monitor=val/loss", ".threshold=9", ".patience=0"]
    run = [*RUN, *told, *SAVE_WHEN_STOPPED, *(f"--model.lr_scheduler{setting}" for setting in plateau)]
    fit(data / "unbroken", monkeypatch, run)
    stopped = fit_and_kill(data / "stopped", run)
    assert stopped.returncode == 143, stopped.stderr
    fit(data / "stopped", monkeypatch, run, "--ckpt_path=last")
    assert logged(data / "stopped/run") == logged(data / "unbroken/run")
    rates = [
        torch.load(data / name / "run/checkpoints/last.ckpt", weights_only=True)["optimizer_states"]
        for name in ("unbroken", "stopped")
    ]
    assert rates[0][0]["param_groups"][0]["lr"] == rates[1][0]["param_groups"][0]["lr"]
