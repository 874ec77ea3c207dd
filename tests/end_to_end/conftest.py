"""The quickstart's own configurations, shortened so that a run takes seconds."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from judgelit.cli import main
from judgelit.shipped_configs import configs_folder

Judgelit = Callable[..., None]


@pytest.fixture
def judgelit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Judgelit:
    """Run a command of judgelit in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> None:
        main(list(arguments))

    return run


@pytest.fixture
def refused(judgelit: Judgelit, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must be refused with exit code 2; returns the error."""

    def run(*arguments: str) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            judgelit(*arguments)
        assert exit_.value.code == 2
        complaints = capsys.readouterr().err.strip().splitlines()
        said = [line for line in complaints if line.startswith("judgelit: error: ")]
        assert len(said) == 1, complaints
        assert complaints[-1] == said[0]
        return said[0].removeprefix("judgelit: error: ")

    return run


def in_a_process(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    """Start a command of judgelit as a process, as a user does."""
    return subprocess.Popen(
        [sys.executable, "-m", "judgelit.cli", *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def shortened_quickstart(folder: Path) -> Path:
    """Write the quickstart with little data and few steps; returns its run.yaml.

    All prompts are of the brief kind and all judgments are glances: a model learns to write these in few steps.
    """
    configs: dict[str, dict[str, Any]] = {
        name: yaml.safe_load((configs_folder() / "quickstart" / f"{name}.yaml").read_text(encoding="utf-8"))
        for name in ("run", "sft", "dpo")
    }
    run, sft, dpo = configs["run"], configs["sft"], configs["dpo"]
    run["train"]["init_args"]["count"] = 300
    run["sets"]["in_distribution"] = run["sets"]["in_distribution"]["init_args"]["sources"][1]
    run["sets"]["in_distribution"]["init_args"]["count"] = 12
    run["sets"]["harder"]["init_args"]["count"] = 8
    run["templates"]["names"] = ["nano-brief"]
    run["teacher"]["init_args"]["glance_rate"] = 1.0
    run["enhancement_pairs"] = 8
    run["max_new_tokens"] = run["enhancement"]["max_new_tokens"] = 16
    sft["trainer"]["max_steps"] = 80
    dpo["trainer"]["max_steps"] = 4
    for config, steps in ((sft, 10), (dpo, 2)):
        config["trainer"]["callbacks"] = config["trainer"]["callbacks"][:1]
        config["trainer"]["callbacks"][0]["init_args"]["every_n_train_steps"] = steps
        for removed in ("val", "judge"):
            config["data"]["init_args"].pop(removed)
    folder.mkdir(parents=True, exist_ok=True)
    for name, config in configs.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return folder / "run.yaml"
