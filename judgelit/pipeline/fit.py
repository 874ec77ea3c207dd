"""`judgelit fit` as a process that `judgelit run` starts.

With several devices, Lightning starts the other ranks by running the same command again. So a fit needs its own
command: otherwise each rank would run the whole recipe.
"""

import gc
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from judgelit.errors import UserError
from judgelit.generation.loading import find_device
from judgelit.training.cli import TrainingCLI

_PASSED_ON = (signal.SIGINT, signal.SIGTERM)
_ONE_CPU = ("--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.num_nodes=1")


def trainer_device(name: str | None) -> list[str]:
    """Arguments of `judgelit fit` for a device by its name; without a name, the configuration's own setting stays.

    The number of devices is the configuration's, unless the name is that of one GPU.

    Raises:
        UserError: This machine does not have it.
    """
    if name is None:
        return []
    device = find_device(name)
    if device.type != "cuda":
        return [f"--trainer.accelerator={device.type}"]
    return ["--trainer.accelerator=gpu", *([] if device.index is None else [f"--trainer.devices=[{device.index}]"])]


def check_fit(arguments: Sequence[str]) -> TrainingCLI:
    """Build all that `judgelit fit` would build from these arguments, but load no model and train nothing.

    The Trainer is built for one CPU, because this process uses none of the devices that the fit will use.

    Raises:
        UserError: A setting is wrong.
    """
    with warnings.catch_warnings():
        # Lightning's messages about devices are not true of the fit.
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            return TrainingCLI([*arguments, *_ONE_CPU], run=False)
        except MisconfigurationException as error:
            raise UserError(" ".join(str(error).split())) from error
        finally:
            logging.disable(logging.NOTSET)


def run_fit(stage: str, folder: Path, arguments: Sequence[str]) -> dict[str, Any]:
    """Run `judgelit fit` to its end, from its last checkpoint if there is one.

    SIGINT and SIGTERM are passed on to the process. If this process is killed, the other ends too: see `judgelit.cli`.

    Args:
        stage: Name of the stage, for messages.
        folder: Folder of the stage; the fit's `trainer.default_root_dir`.
        arguments: Arguments of the command.

    Returns:
        The content of `fit.json`: `tokens` and `peak_memory_bytes`.

    Raises:
        UserError: The fit refused its settings or data, or left no model.
        SystemExit: It was interrupted or failed; the exit code is the fit's.
    """
    ended = folder / "fit.json"
    # A stage that was killed between the end of its fit and its own end trains no further, but writes its model again.
    ended.unlink(missing_ok=True)
    shutil.rmtree(folder / "model", ignore_errors=True)
    resume = ["--ckpt_path=last"] if (folder / "checkpoints").exists() else []
    free_gpu_memory()
    status = _run_and_pass_on_signals([sys.executable, "-m", "judgelit.cli", "fit", *arguments, *resume])
    # `fit.json` comes last. With it, code 2 says that standard output has failed, as this process will say too.
    if status == 2 and not ended.exists():
        raise UserError(f"stage {stage}: `judgelit fit` ended with the error above; mend it and run the same command")
    if status in (130, 143):
        sys.stderr.write(f"judgelit: stage {stage} was interrupted; the same `judgelit run` continues it\n")
        raise SystemExit(status)
    if status not in (0, 2):
        advice = "; it was killed, as the system does when memory runs out" if status == 137 else ""
        sys.stderr.write(f"judgelit: error: stage {stage}: `judgelit fit` ended with exit code {status}{advice}\n")
        raise SystemExit(status)
    if not ended.exists():
        raise UserError(f"stage {stage}: `judgelit fit` left no fit.json in {folder}, expected a trained model there")
    try:
        return json.loads(ended.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{ended}: found no JSON, expected what `judgelit fit` writes; run the same command") from error


def _run_and_pass_on_signals(command: Sequence[str]) -> int:
    """Exit code of a command; 128 + n if signal n ended it, as in a shell."""
    process: subprocess.Popen[bytes] | None = None
    early: list[int] = []

    def pass_on(number: int, _: Any) -> None:
        if process is None:
            early.append(number)
        else:
            process.send_signal(number)

    # A signal that this process ignores, as under nohup, stays ignored in both.
    before = {number: signal.getsignal(number) for number in _PASSED_ON}
    handled = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    for number in handled:
        signal.signal(number, pass_on)
    try:
        process = subprocess.Popen(
            command,
            # The process ends when this pipe closes, which the system does when this process dies in any way.
            stdin=subprocess.PIPE,
            env={**os.environ, "JUDGELIT_END_WITH_STDIN": "1"},
            # Ctrl-C in a terminal reaches a whole process group: the fit would get it twice.
            start_new_session=True,
        )
        for missed in early:
            process.send_signal(missed)
        status = process.wait()
    finally:
        for number in handled:
            signal.signal(number, before[number])
        if process is not None and process.stdin is not None:
            process.stdin.close()
    return status if status >= 0 else 128 - status


def free_gpu_memory() -> None:
    """Return GPU memory that PyTorch keeps for this process, so that another one can have it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
