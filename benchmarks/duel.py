"""Two trainers side by side: each in a process of its own, taking turns, so that both see the same machine.

A script that imports this is started three times: as the referee, and by it as each of the two contestants. A
contestant builds its trainer, then does one step whenever it is told to and reports what the step took. Only ratios of
paired steps are meaningful on a machine that others use too.

Peak memory is what the kernel counts as resident (VmHWM), reset before each step to what is resident then. That
includes what glibc keeps of freed blocks and the libraries' own files, as whoever runs the trainer sees it, for both
sides alike.
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
    """A contestant's side: waits for its turn, and measures it."""

    def __init__(self) -> None:
        # What libraries print must not mix with the reports.
        self._reports = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def begin(self) -> None:
        """Wait to be told to do a step; the process ends where there is none to do."""
        self._reports.write("ready\n")
        self._reports.flush()
        if not sys.stdin.readline():
            raise SystemExit
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # peak memory counts from here
        self._took: dict[str, Any] | None = None
        self._began = time.perf_counter()

    def done(self) -> float:
        """Take the step's time and memory; what else happens before `end` is not part of it. Returns its seconds."""
        self._took = {"seconds": time.perf_counter() - self._began, "peak_bytes": peak_bytes()}
        return self._took["seconds"]

    def end(self, **found: Any) -> None:
        """Report a step: its seconds, the process's peak resident memory in it, and what else was found."""
        if self._took is None:
            self.done()
        self._reports.write(json.dumps({**self._took, **found}) + "\n")
        self._reports.flush()


class Contestant:
    """The referee's side of a process."""

    def __init__(self, role: str, *more: str) -> None:
        """Start this script once more in `role`, with `more` arguments, and wait until it is ready for a step."""
        self.role = role
        self._said = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (lives as long as the process)
        self._process = subprocess.Popen(
            [sys.executable, *sys.argv, "--role", role, *more],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            # As `judgelit fit` sets it, for both: threads that wait by spinning would take the other's time.
            env={"GOMP_SPINCOUNT": "10000", "TOKENIZERS_PARALLELISM": "false", **os.environ},
            text=True,
        )
        self._expect_ready()

    def step(self) -> dict[str, Any]:
        """One step, as reported; `turn_seconds` is all that passed until the process was ready for the next one."""
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
            raise SystemExit(f"{self.role} did not take its turn as expected")

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._said.seek(0)
            raise SystemExit(f"{''.join(self._said.readlines()[-30:])}\n{self.role} ended before its turn; see above")
        return line


def parser(description: str | None) -> argparse.ArgumentParser:
    """What all of these scripts take."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--model", required=True, help="folder of a causal language model")
    made.add_argument("--data", required=True, help="file of training examples")
    made.add_argument("--steps", type=int, default=5, help="paired steps that are measured")
    made.add_argument("--warmup", type=int, default=2, help="paired steps before those")
    made.add_argument("--batch", type=int, default=4, help="examples a step")
    made.add_argument("--seed", type=int, default=0, help="seed of the order of examples")
    made.add_argument("--threads", type=int, default=os.cpu_count())
    made.add_argument("--role", choices=["referee", "ours", "theirs"], default="referee", help=argparse.SUPPRESS)
    return made


def take_part(
    args: argparse.Namespace, ours: Callable[[Turns, Any], None], theirs: Callable[[Turns, Any], None]
) -> None:
    """A contestant's main."""
    import torch

    torch.set_num_threads(args.threads)
    (ours if args.role == "ours" else theirs)(Turns(), args)


def fit_ours(turns: Any, module: Any, data: Any, *callbacks: Any) -> None:
    """Train a LightningModule in Lightning's Trainer on a loader or a data module, a turn a step.

    Reports the step's loss, and its floor in seconds at the rate of matrix products right before and after it.
    """
    import lightning as L

    class Step(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
            self.operations = floor.operations(module, batch)
            self.before = floor.matmul_rate(module, batch)
            turns.begin()

        def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            turns.done()
            rate = (self.before + floor.matmul_rate(module, batch)) / 2
            loss = float(trainer.callback_metrics["train/loss"])
            turns.end(loss=loss, floor=self.operations / rate, rate=rate)

    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*callbacks, Step()],
    )
    trainer.fit(module, data)


def fit_theirs(
    turns: Turns,
    trainer_class: Any,
    config_class: Any,
    settings: dict[str, Any],
    args: argparse.Namespace,
    examples: Sequence[dict[str, Any]],
) -> None:
    """Train with one of TRL's trainers on examples in the form that its collator takes, `args.batch` and a turn a step.

    Everything is as TRL has it but for `settings`, bf16 (off), truncation (none) and what belongs to a run that is not
    kept. Its clipping (1.0) and its optimizer (AdamW, fused, no weight decay) are its defaults.
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

    with tempfile.TemporaryDirectory() as folder:
        trainer = Watched(
            args.model,
            args=config_class(
                folder,
                bf16=False,
                max_length=None,
                lr_scheduler_type="constant",
                per_device_train_batch_size=args.batch,
                train_sampling_strategy="sequential",
                max_steps=len(examples) // args.batch,
                report_to="none",
                save_strategy="no",
                disable_tqdm=True,
                use_cpu=True,
                **settings,
            ),
            train_dataset=Dataset.from_list(list(examples)),
            processing_class=AutoTokenizer.from_pretrained(args.model),
            callbacks=[Step()],
        )
        trainer.train()


def duel(steps: int, warmup: int, *more: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Reports of paired steps, ours and theirs, after the warm-up; who begins alternates.

    Both contestants are given the arguments `more`.
    """
    ours, theirs = Contestant("ours", *more), Contestant("theirs", *more)
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


def claim(
    text: str,
    goal: float,
    pairs: Sequence[Sequence[float]],
    *,
    smaller_is_better: bool,
    ratio: float | None = None,
    **more: Any,
) -> None:
    """Print a figure as a line of JSON.

    `pairs` are [ours, theirs]. `ratio` is the median over pairs of theirs / ours, or of ours / theirs where less is
    better, if it is not given.
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
    """Machine and versions."""
    names = ("judgelit", "torch", "lightning", "transformers", "peft", "accelerate", "trl")
    found: dict[str, Any] = {"python": platform.python_version(), "cores": os.cpu_count(), "processor": _processor()}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def peak_bytes() -> int:
    """Peak resident memory since it was last reset."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(1024 * int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


def batches(count: int, size: int, examples: Sequence[Any], seed: int) -> list[list[Any]]:
    """`count` random batches, the same for both contestants."""
    import random

    order: list[Any] = []
    rng = random.Random(seed)
    while len(order) < count * size:
        order += rng.sample(list(examples), len(examples))
    return [order[start : start + size] for start in range(0, count * size, size)]


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
