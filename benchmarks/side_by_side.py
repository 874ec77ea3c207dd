"""Run two programs side by side: two processes take turns, step by step, so that both see the same machine.

The user starts a script as the parent; the parent starts the same script twice more, as the workers `ours` and
`theirs`. A worker builds its trainer, waits for its turn, does one step and reports its time and memory. On a machine
with other jobs, only the ratios of paired steps are meaningful.

Peak memory is the peak resident memory that the kernel reports (VmHWM), reset before each step. For both workers it
includes the libraries' files and the freed blocks that glibc keeps. On a GPU, `gpu_bytes` is the peak of tensors.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import floor


class Turns:
    """A worker's turns: wait for the parent, measure a step, report it."""

    def __init__(self) -> None:
        # The output of libraries goes to stderr, so that stdout carries only reports.
        self._reports = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def begin(self) -> None:
        """Wait for the parent's signal to do a step. End the process when there are no more steps."""
        self._reports.write("ready\n")
        self._reports.flush()
        if not sys.stdin.readline():
            raise SystemExit
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # reset the peak memory
        if (cuda := cuda_in_use()) is not None:
            cuda.synchronize()
            cuda.reset_peak_memory_stats()
        self._took: dict[str, Any] | None = None
        self._began = time.perf_counter()

    def done(self) -> float:
        """Stop measuring the step: work between `done` and `end` does not count. Return the step's seconds."""
        cuda = cuda_in_use()
        if cuda is not None:
            cuda.synchronize()
        self._took = {"seconds": time.perf_counter() - self._began, "peak_bytes": peak_bytes()}
        self._took["gpu_bytes"] = 0 if cuda is None else cuda.max_memory_allocated()
        return self._took["seconds"]

    def end(self, **found: Any) -> None:
        """Report a step: its seconds, its peak resident memory and the values in `found`."""
        if self._took is None:
            self.done()
        self._reports.write(json.dumps({**self._took, **found}) + "\n")
        self._reports.flush()


class Worker:
    """A worker process, as the parent sees it."""

    def __init__(self, role: str, *more: str) -> None:
        """Start this script again as `role`, with `more` arguments, and wait until it is ready for a step."""
        self.role = role
        self._stderr = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (it is open as long as the process runs)
        self._process = subprocess.Popen(
            [sys.executable, *sys.argv, "--role", role, *more],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            # `judgelit fit` sets GOMP_SPINCOUNT too. Threads that spin while they wait would slow the other worker.
            env={"GOMP_SPINCOUNT": "10000", "TOKENIZERS_PARALLELISM": "false", **os.environ},
            text=True,
        )
        self._expect_ready()

    def step(self) -> dict[str, Any]:
        """Do one step and return its report. `turn_seconds` is the time until the worker is ready for the next step."""
        assert self._process.stdin is not None
        began = time.perf_counter()
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        report = json.loads(self._line())
        self._expect_ready()
        return {**report, "turn_seconds": time.perf_counter() - began}

    def stop(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _expect_ready(self) -> None:
        if self._line() != "ready\n":
            raise SystemExit(f"{self.role} sent an unexpected line")

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._stderr.seek(0)
            raise SystemExit(f"{''.join(self._stderr.readlines()[-30:])}\n{self.role} ended too early; see above")
        return line


def argument_parser(description: str | None) -> argparse.ArgumentParser:
    """Parser of the arguments that all these scripts share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a causal language model")
    parser.add_argument("--data", required=True, help="file of training examples")
    parser.add_argument("--steps", type=int, default=5, help="measured pairs of steps")
    parser.add_argument("--warmup", type=int, default=2, help="pairs of steps before the measured ones")
    parser.add_argument("--batch", type=int, default=4, help="examples a step")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random batches")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="torch threads of each process")
    parser.add_argument("--role", choices=["parent", "ours", "theirs"], default="parent", help=argparse.SUPPRESS)
    return parser


def run_worker(
    args: argparse.Namespace, ours: Callable[[Turns, Any], None], theirs: Callable[[Turns, Any], None]
) -> None:
    """Main function of a worker."""
    import torch

    torch.set_num_threads(args.threads)
    (ours if args.role == "ours" else theirs)(Turns(), args)


def fit_ours(turns: Any, module: Any, data: Any, *callbacks: Any, **settings: Any) -> None:
    """Train a LightningModule with Lightning's Trainer on a loader or a data module, one step a turn.

    Reports the loss of each step. On a CPU it also reports the step's floor in seconds (see `floor.py`); the rate of
    matrix products is measured directly before and after the step.

    Args:
        settings: Of the Trainer, in place of float32 on the CPU.
    """
    import lightning as L

    class Step(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
            self.on_cpu = module.device.type == "cpu"
            if self.on_cpu:
                self.operations = floor.operations(module, batch)
                self.before = floor.matmul_rate(module, batch)
            turns.begin()

        def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            turns.done()
            found = {"loss": float(trainer.callback_metrics["train/loss"])}
            if self.on_cpu:
                rate = (self.before + floor.matmul_rate(module, batch)) / 2
                found |= {"floor": self.operations / rate, "rate": rate}
            turns.end(**found)

    defaults = {
        "accelerator": "cpu",
        "max_epochs": 1,
        "gradient_clip_val": 1.0,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = L.Trainer(**{**defaults, **settings}, callbacks=[*callbacks, Step()])
    trainer.fit(module, data)


def fit_theirs(
    turns: Turns,
    trainer_class: Any,
    config_class: Any,
    settings: dict[str, Any],
    args: argparse.Namespace,
    examples: Sequence[dict[str, Any]],
) -> None:
    """Train with a TRL trainer on `args.batch` examples a step, one step a turn.

    Everything is TRL's default except `settings`, bf16 (off), the device (CPU), truncation (none), saving and logging
    (off). Gradient clipping (1.0) and the optimizer (fused AdamW without weight decay) are TRL's defaults.

    Args:
        examples: In the form that the trainer's collator expects.
    """
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback

    class Watched(trainer_class):
        def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
            return dataset

        def training_step(self, *step: Any, **more: Any) -> Any:
            loss = super().training_step(*step, **more)
            self.last_loss = float(loss)
            return loss

    class Step(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            turns.begin()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            turns.end(loss=trainer.last_loss)

    defaults = {
        "bf16": False,
        "max_length": None,
        "lr_scheduler_type": "constant",
        "per_device_train_batch_size": args.batch,
        "train_sampling_strategy": "sequential",
        "max_steps": len(examples) // args.batch,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    with tempfile.TemporaryDirectory() as folder:
        trainer = Watched(
            args.model,
            args=config_class(folder, **{**defaults, **settings}),
            train_dataset=Dataset.from_list(list(examples)),
            processing_class=AutoTokenizer.from_pretrained(args.model),
            callbacks=[Step()],
        )
        trainer.train()


def paired_steps(steps: int, warmup: int, *more: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield the reports (ours, theirs) of each pair of steps after the warm-up. The worker that goes first alternates.

    Args:
        more: Further arguments for both workers.
    """
    ours, theirs = Worker("ours", *more), Worker("theirs", *more)
    try:
        for step in range(warmup + steps):
            if step % 2:
                second, first = theirs.step(), ours.step()
            else:
                first, second = ours.step(), theirs.step()
            if step >= warmup:
                yield first, second
    finally:
        ours.stop()
        theirs.stop()


def print_claim(
    text: str,
    goal: float,
    pairs: Sequence[Sequence[float]],
    *,
    smaller_is_better: bool,
    ratio: float | None = None,
    **more: Any,
) -> None:
    """Print a claim as one line of JSON.

    Args:
        text: What the ratio means.
        goal: The ratio that the project aims for.
        pairs: [ours, theirs] of each pair of steps.
        smaller_is_better: Whether a smaller ratio is better.
        ratio: By default the median over pairs of theirs / ours, or of ours / theirs if smaller is better.
        more: Further fields.
    """
    if ratio is None:
        ratio = statistics.median(ours / theirs if smaller_is_better else theirs / ours for ours, theirs in pairs)
    line = {
        "claim": text,
        "ratio": ratio,
        "goal": goal,
        "smaller_is_better": smaller_is_better,
        "pairs": [list(pair) for pair in pairs],
        **more,
        "environment": environment(),
    }
    print(json.dumps(line), flush=True)


def environment() -> dict[str, Any]:
    """Processor, GPU, and versions of judgelit and of the libraries."""
    import torch

    import judgelit

    found: dict[str, Any] = {"python": platform.python_version(), "cores": os.cpu_count(), "processor": _processor()}
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        found |= {"gpu": card.name, "gpu_gib": round(card.total_memory / 2**30, 1), "cuda": torch.version.cuda}
    found["judgelit"] = judgelit.__version__
    for name in ("torch", "lightning", "transformers", "peft", "accelerate", "trl"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def cuda_in_use() -> Any:
    """`torch.cuda` if this process uses a GPU, else None."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None


def peak_bytes() -> int:
    """Peak resident memory in bytes since the last reset."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(1024 * int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


def random_batches(count: int, size: int, examples: Sequence[Any], seed: int) -> list[list[Any]]:
    """`count` random batches, the same for both workers."""
    import random

    order: list[Any] = []
    rng = random.Random(seed)
    while len(order) < count * size:
        order += rng.sample(list(examples), len(examples))
    return [order[start : start + size] for start in range(0, count * size, size)]


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
