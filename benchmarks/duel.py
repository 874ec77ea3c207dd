"""Two trainers side by side: each in a process of its own, taking turns step by step, so that both see the same machine.

A script that imports this is started three times: as the referee, and by it as each of the two contestants. A contestant
builds its trainer, then does one step whenever it is told to and reports what the step took. Only ratios of paired steps
are meaningful on a machine that others use too.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


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
            os._exit(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # peak memory counts from here
        self._began = time.perf_counter()

    def end(self, **found: Any) -> None:
        """Report a step: its seconds, the process's peak resident memory in it, and what else was found."""
        report = {"seconds": time.perf_counter() - self._began, "peak_bytes": peak_bytes(), **found}
        self._reports.write(json.dumps(report) + "\n")
        self._reports.flush()


class Contestant:
    """The referee's side of a process."""

    def __init__(self, role: str) -> None:
        self.role = role
        self._process = subprocess.Popen(
            [sys.executable, *sys.argv, "--role", role],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if not os.environ.get("DUEL_VERBOSE") else None,
            text=True,
        )
        self._expect_ready()

    def step(self) -> dict[str, Any]:
        """One step, reported."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        report = json.loads(self._process.stdout.readline())
        self._expect_ready()
        return report

    def stop(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _expect_ready(self) -> None:
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            raise SystemExit(f"{self.role} failed; set DUEL_VERBOSE=1 to see why")


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


def duel(steps: int, warmup: int) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Reports of paired steps, ours and theirs, after the warm-up; who begins alternates."""
    ours, theirs = Contestant("ours"), Contestant("theirs")
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


def claim(text: str, goal: float, pairs: Sequence[Sequence[float]], *, smaller_is_better: bool, **more: Any) -> None:
    """Print a figure as a line of JSON: the median over pairs of theirs / ours, or of ours / theirs where less is better.

    `pairs` are [ours, theirs].
    """
    ratios = [ours / theirs if smaller_is_better else theirs / ours for ours, theirs in pairs]
    line = {
        "claim": text,
        "ratio": statistics.median(ratios),
        "goal": goal,
        "smaller_is_better": smaller_is_better,
        "pairs": [list(pair) for pair in pairs],
        **more,
        "environment": environment(),
    }
    print(json.dumps(line), flush=True)


def environment() -> dict[str, Any]:
    """Machine and versions."""
    names = ("judgelit", "torch", "lightning", "transformers", "peft", "trl")
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


def run_steps(trainer_steps: Callable[[Turns], None]) -> None:
    """A contestant's main."""
    trainer_steps(Turns())


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
