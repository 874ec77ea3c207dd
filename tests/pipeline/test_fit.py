"""`judgelit fit` as a process of `judgelit run`: its exit code, its signals, its end."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from judgelit.errors import UserError
from judgelit.pipeline.fit import check_fit, run_fit, trainer_device
from judgelit.shipped_configs import find

FIT = [
    f"--config={find('quickstart/sft')}",
    "--data.train.init_args.tasks.init_args.count=40",
    "--data.val=null",
    "--data.judge=null",
    "--trainer.accelerator=cpu",
    "--trainer.default_root_dir=fit",
    "--trainer.callbacks=lightning.pytorch.callbacks.ModelCheckpoint",
    "--trainer.callbacks.every_n_train_steps=2",
    "--trainer.callbacks.save_last=true",
]
ENDLESS = [*FIT, "--trainer.max_steps=1000000"]
TWO = ["--trainer.devices=2", "--trainer.strategy=ddp"]
SCRIPT = "import sys; from pathlib import Path; from judgelit.pipeline.fit import run_fit; "
SCRIPT += "run_fit('04-sft', Path('fit'), sys.argv[1:])"


def processes_in(folder: Path) -> list[int]:
    """Processes whose working directory is the folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").readlink() == folder and "zombie" not in (process / "status").read_text():
                found.append(int(process.name))
        except OSError:
            continue
    return found


def start_and_train(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    """A process that runs an endless fit, once the fit has saved a checkpoint."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *ENDLESS, *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while process.poll() is None and not (folder / "fit/checkpoints/last.ckpt").exists():
        time.sleep(0.05)
    assert process.poll() is None, process.communicate()[0]
    return process


def test_a_fit_reports_what_it_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cost = run_fit("04-sft", tmp_path / "fit", [*FIT, "--trainer.max_steps=2"])
    assert cost == json.loads(Path("fit/fit.json").read_text(encoding="utf-8"))
    assert cost["tokens"] > 0 and cost["peak_memory_bytes"] > 0
    assert Path("fit/model/model.safetensors").exists()


def test_a_refused_fit_is_named_by_its_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="stage 04-sft: `judgelit fit` ended with the error above"):
        run_fit("04-sft", tmp_path / "fit", [*FIT, "--data.train=nowhere.jsonl"])
    said = capfd.readouterr().err
    assert said.count("judgelit: error: ") == 1 and "nowhere.jsonl" in said and "Traceback" not in said


def test_a_crashed_fit_ends_with_its_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.py").write_text(
        "import lightning as L\n\n\nclass Broken(L.Callback):\n"
        "    def on_train_start(self, *_):\n        raise RuntimeError('a bug')\n"
    )
    broken = [*FIT[:-2], "--trainer.callbacks=broken.Broken"]
    with pytest.raises(SystemExit) as stop:
        run_fit("04-sft", tmp_path / "fit", broken)
    assert stop.value.code == 1
    said = capfd.readouterr().err
    assert said.count("RuntimeError: a bug") == 1 and "stage 04-sft: `judgelit fit` ended with exit code 1" in said


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_fit_first(tmp_path: Path, number: signal.Signals, code: int) -> None:
    process = start_and_train(tmp_path)
    process.send_signal(number)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == code, said
    assert said.count("judgelit: interrupted") == 1 and "stage 04-sft was interrupted" in said
    assert "Traceback" not in said
    assert processes_in(tmp_path) == []


@pytest.mark.slow
def test_no_rank_outlives_a_killed_run(tmp_path: Path) -> None:
    process = start_and_train(tmp_path, *TWO)
    assert len(processes_in(tmp_path)) >= 3
    process.kill()
    deadline = time.monotonic() + 20
    while processes_in(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert processes_in(tmp_path) == []


def test_a_device_by_name_becomes_settings_of_the_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    assert trainer_device(None) == [] and trainer_device("cpu") == ["--trainer.accelerator=cpu"]
    with pytest.raises(UserError, match="device: found 'cuda:9', expected one that this machine has: auto, cpu"):
        trainer_device("cuda:9")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    for name in ("auto", "cuda"):
        assert trainer_device(name) == ["--trainer.accelerator=gpu"]
    assert trainer_device("cuda:1") == ["--trainer.accelerator=gpu", "--trainer.devices=[1]"]


def test_settings_are_checked_without_the_devices_that_they_ask_for() -> None:
    many = ["--trainer.accelerator=gpu", "--trainer.devices=64", "--trainer.strategy=ddp"]
    checked = check_fit([FIT[0], *many])
    assert checked.model.backbone.name_or_path == "nano"


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("--trainer.max_steps=-5", "max_steps"),
        ("--trainer.strategy=ddpp", "ddpp"),
        ("--trainer.accumulate_grad_batches=0", "accumulate_grad_batches"),
        ("--data.batch_size=0", "batch_size"),
    ],
)
def test_a_wrong_setting_is_refused_before_a_fit_is_started(argument: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        check_fit([FIT[0], argument])
