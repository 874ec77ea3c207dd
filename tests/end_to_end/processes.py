"""Commands of judgelit as processes."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

JUDGELIT = [sys.executable, "-m", "judgelit.cli"]


def start(*command: str, folder: Path, **options: Any) -> "subprocess.Popen[str]":
    """Start a command in a folder, with options of Popen."""
    # A process that aborts says where.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, cwd=folder, env=environment, text=True, **pipes, **options)  # type: ignore[call-overload]


def finish(process: "subprocess.Popen[str]") -> str:
    """Wait for a process that must succeed; returns its output."""
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said[-4000:]
    return said


def fit(folder: Path, config: str, *more: str) -> str:
    """Run `judgelit fit` to its end."""
    return finish(start(*JUDGELIT, "fit", "--config", config, *more, folder=folder))
