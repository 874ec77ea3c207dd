"""judgelit in processes of its own, several at a time."""

import os
import subprocess
import sys
from pathlib import Path

JUDGELIT = [sys.executable, "-m", "judgelit.cli"]


def start(*command: str, folder: Path) -> "subprocess.Popen[str]":
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, cwd=folder, env=environment, text=True, **pipes)  # type: ignore[call-overload]


def finish(process: "subprocess.Popen[str]") -> str:
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said[-4000:]
    return said


def fit(folder: Path, config: str, *more: str) -> str:
    return finish(start(*JUDGELIT, "fit", "--config", config, *more, folder=folder))
