"""Check and measure what judgelit does on a GPU, in one call, without network, data or downloads.

    python benchmarks/gpu.py [--minutes 8] [--only NAME...] [--out gpu.jsonl]
    python benchmarks/gpu.py --dry-run     the same on a CPU with tiny shapes

It runs on any machine with CUDA and PyTorch 2.9 or newer. Models have real shapes and random weights; data are random
digits, of which each is one token. Each check is a process with a time limit. Its results are printed and written to
--out at once, one line of JSON each, so a check that crashes or hangs costs no other's results. Checks that no time is
left for are listed as not run; name them with --only in another call. A table ends the output. The exit code is 1 if a
check failed.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).parents[1]
"""It need not be installed."""
Row = dict[str, Any]
"""A result: `case`, `ok` (true, false, or null for a measurement), and figures."""


@dataclass(frozen=True)
class Bench:
    """What a check is given."""

    folder: Path
    """For files; models that are made here are found by later checks."""
    dry: bool
    """Whether to use the CPU and tiny shapes."""

    @property
    def device(self) -> str:
        return "cpu" if self.dry else "cuda"

    @property
    def accelerator(self) -> str:
        return "cpu" if self.dry else "gpu"


@dataclass(frozen=True)
class Check:
    """A check: a function that yields its results, and its time limit."""

    run: Callable[[Bench], Iterator[Row]]
    seconds: int


def checks() -> dict[str, Check]:
    """All checks by name, the most important first."""
    import gpu_checks
    import gpu_measures

    return {
        "attention": Check(gpu_checks.attention, 300),
        "steps": Check(gpu_checks.steps, 300),
        "references": Check(gpu_checks.references, 200),
        "generation": Check(gpu_checks.generation, 200),
        "qlora_24gb": Check(gpu_checks.qlora_24gb, 300),
        "plan": Check(gpu_checks.plan, 240),
        "kill": Check(gpu_checks.kill, 240),
        "kernels": Check(gpu_measures.kernels, 120),
        "speed_sft": Check(gpu_measures.speed_sft, 240),
        "speed_dpo": Check(gpu_measures.speed_dpo, 240),
        "trl_sft": Check(gpu_measures.trl_sft, 180),
        "trl_dpo": Check(gpu_measures.trl_dpo, 180),
        # Steps of so small a model are all overhead, so a GPU is no faster than a CPU.
        "quickstart": Check(gpu_checks.quickstart, 600),
    }


def main() -> None:
    names = list(checks())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0, help="time for all checks together")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--out", type=Path, default=Path("gpu.jsonl"), help="file of the results")
    parser.add_argument("--dry-run", action="store_true", help="CPU and tiny shapes")
    parser.add_argument("--check", choices=names, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--role", choices=["parent", "ours", "theirs"], default="parent", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.check:
        run_check(args)
        return
    print(json.dumps(environment(args.dry_run)), flush=True)
    ends = time.monotonic() + 60 * args.minutes
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder, args.out.open("a", encoding="utf-8") as out:
        for name in args.only:
            for row in results(name, Path(folder), args.dry_run, ends - time.monotonic()):
                line = json.dumps({"check": name, **row})
                print(line, flush=True)
                out.write(line + "\n")
                out.flush()
                rows.append({"check": name, **row})
    print("\n".join(table(rows)))
    if any(row["ok"] is False for row in rows):
        raise SystemExit(1)


def results(name: str, folder: Path, dry: bool, left: float) -> Iterator[Row]:
    """Run a check as a process and yield its results as they come; a crash or the time limit is one more result."""
    # A dry run may share its few cores with other programs.
    limit = min(checks()[name].seconds * (3 if dry else 1), left)
    if limit < 10:
        yield {"case": "", "ok": None, "note": "not run: no time left"}
        return
    command = [sys.executable, __file__, "--check", name, "--folder", str(folder), *["--dry-run"] * dry]
    began = time.monotonic()
    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True, env=variables(dry)
        )
        timer = threading.Timer(limit, os.killpg, (process.pid, signal.SIGKILL))
        timer.start()
        assert process.stdout is not None
        for line in process.stdout:
            yield json.loads(line)
        code = process.wait()
        timer.cancel()
        seconds = round(time.monotonic() - began, 1)
        errors.seek(0)
        last = [line.rstrip() for line in errors.readlines() if line.strip()][-12:]
    if code == -signal.SIGKILL and seconds >= limit:
        yield {"case": "time limit", "ok": False, "seconds": seconds, "last_lines": last[-3:]}
    elif code != 0:
        yield {"case": "crash", "ok": False, "exit_code": code, "seconds": seconds, "last_lines": last}
    else:
        yield {"case": "whole check", "ok": None, "seconds": seconds}


def run_check(args: argparse.Namespace) -> None:
    """Run one check in this process. Results go to standard output, everything else to standard error."""
    import side_by_side

    if args.role != "parent":
        import gpu_measures

        gpu_measures.trl_worker(args, side_by_side.Turns())
        return
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for row in checks()[args.check].run(Bench(args.folder, args.dry_run)):
        out.write(json.dumps(row) + "\n")
        out.flush()


def variables(dry: bool) -> dict[str, str]:
    """Environment variables of a check."""
    path = [str(CHECKOUT), *filter(None, [os.environ.get("PYTHONPATH")])]
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if dry else {}
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), "HF_HUB_OFFLINE": "1", **hidden}


def environment(dry: bool) -> dict[str, Any]:
    """The machine and the versions of the libraries."""
    sys.path.insert(0, str(CHECKOUT))
    import side_by_side

    found = side_by_side.environment()
    if not dry and "gpu" not in found:
        raise SystemExit("found no CUDA GPU; --dry-run does the same on a CPU with tiny shapes")
    return found


def table(rows: list[Row]) -> Iterator[str]:
    """The lines of a table of all results."""
    yield "| check | case | ok | figures |"
    yield "|---|---|---|---|"
    for row in rows:
        # Of a crash, the last line says what it was.
        shown = {name: value[-1:] if name == "last_lines" else value for name, value in row.items()}
        figures = "; ".join(f"{name} {value}" for name, value in shown.items() if name not in ("check", "case", "ok"))
        said = {True: "yes", False: "NO", None: ""}[row["ok"]]
        yield f"| {row['check']} | {row['case']} | {said} | {figures} |"


if __name__ == "__main__":
    main()
