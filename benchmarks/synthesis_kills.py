"""Compare syntheses that are killed repeatedly with the same syntheses without a kill.

    python benchmarks/synthesis_kills.py [--kills 20] [--cases warmup enhancement] [--model FOLDER] [--output FOLDER]

The judge is the built-in small model after a short warm-up on guesses, or `--model`. It is the teacher of
`judgelit synthesize warmup` (case `warmup`), and is sampled by `judgelit synthesize enhancement`, which also lets it
write missing judgments with a hint (case `enhancement`). Each command runs in a new process group, which is killed with
SIGKILL: in every second turn when the journal holds a number of answers that is drawn at random, in the others after a
time that is drawn at random, start of the process included. The same command then continues. A folder gets up to five
kills, then the command runs to its end and another folder is begun.

Claim: the files of each killed synthesis (data set and card) equal those of the unbroken one, byte by byte, and so does
every answer in its journal. The last line is one JSON object: `ratio` is the share of equal files and answers, each
pair is [equal, all] of a case.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from side_by_side import environment

MOST_KILLS = 5
"""Kills of one folder."""
WARM_UP = [
    *(
        "--trainer.max_steps=100",
        "--trainer.callbacks=null",
        "--data.init_args.judge=null",
        "--data.init_args.val=null",
    ),
    *("--data.init_args.train.init_args.glance_rate=1", "--data.init_args.train.init_args.tasks.count=3000"),
    "--data.init_args.train.init_args.templates.names=[nano-brief, nano-quick]",
]
"""Settings of `judgelit fit` that teach the small model to end with a verdict."""
TEMPLATES = "--templates.names=[nano-brief, nano-quick]"


def commands(pairs: Path, model: str) -> dict[str, list[str]]:
    """The command of each case, without its output."""
    common = [f"--pairs={pairs}", TEMPLATES, "--seed=3"]
    teacher = [f"--teacher.model={model}", "--teacher.max_new_tokens=24", "--teacher.temperature=1"]
    sampling = ["--settings.samples=4", "--settings.max_new_tokens=24", "--settings.top_p=1", "--settings.hint=right"]
    return {
        "warmup": ["warmup", *common, f"--tokenizer={model}", "--teacher=EngineTeacher", *teacher],
        "enhancement": ["enhancement", *common, f"--model={model}", "--batch_size=16", *sampling],
    }


def start(command: list[str], folder: Path) -> "subprocess.Popen[bytes]":
    """Start `judgelit synthesize` in a new process group; it continues what is in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "judgelit.cli", "synthesize", *command, f"--output={folder / 'set.jsonl'}"],
        stdout=(folder / "output.txt").open("ab"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finish(command: list[str], folder: Path) -> float:
    """Run until the synthesis ends; return the seconds that it took."""
    began = time.monotonic()
    process = start(command, folder)
    if process.wait() != 0:
        output = (folder / "output.txt").read_text(encoding="utf-8", errors="replace")
        raise SystemExit(f"{output[-3000:]}\n{folder}: exited with status {process.returncode}, see above")
    return time.monotonic() - began


def kill_once(command: list[str], folder: Path, answers: int | None, seconds: float) -> str:
    """Start the synthesis and kill it. Return `killed`, or `too late` if it had ended.

    Args:
        command: The command.
        folder: Folder of the data set.
        answers: Kill when the journal holds this many answers. None: kill after `seconds`.
        seconds: Seconds from the start of the process to the kill.
    """
    process, began = start(command, folder), time.monotonic()
    while process.poll() is None:
        if time.monotonic() - began > seconds if answers is None else len(journal(folder)) >= answers:
            break
        time.sleep(0.002)
    if process.poll() is not None:
        return "too late"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return "killed"


def journal(folder: Path) -> dict[str, str]:
    """The answers in the journal of a folder by key."""
    path = folder / "set.jsonl.journal.sqlite"
    if not path.is_file():
        return {}
    connection = sqlite3.connect(path)
    try:
        return dict(connection.execute("SELECT key, generated FROM answers"))
    except sqlite3.OperationalError:
        return {}  # The process has not made the table yet.
    finally:
        connection.close()


def compare(folder: Path, unbroken: Path) -> tuple[int, int]:
    """How many files and answers are equal, and how many there are."""
    files = ("set.jsonl", "set.jsonl.card.md")
    equal = sum((folder / name).read_bytes() == (unbroken / name).read_bytes() for name in files)
    ours, theirs = journal(folder), journal(unbroken)
    keys = ours.keys() | theirs.keys()
    return equal + sum(ours.get(key) == theirs.get(key) for key in keys), len(files) + len(keys)


def warm_judge(folder: Path) -> str:
    """Train the built-in model until it ends its judgments with a verdict."""
    if not (folder / "model" / "config.json").is_file():
        fit = ["fit", "--config", "quickstart/sft", f"--trainer.default_root_dir={folder}", *WARM_UP]
        subprocess.run([sys.executable, "-m", "judgelit.cli", *fit], check=True, stdout=sys.stderr)
    return str(folder / "model")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="kills in each case")
    parser.add_argument("--pairs", type=int, default=240, help="pairs of a synthesis")
    parser.add_argument("--cases", nargs="+", default=["warmup", "enhancement"], choices=["warmup", "enhancement"])
    parser.add_argument("--model", help="folder of a judge; by default the built-in small model is warmed up")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments of the kills")
    parser.add_argument("--output", type=Path, default=Path("runs/synthesis-kills"))
    args = parser.parse_args()

    rng = random.Random(args.seed)
    output = args.output.resolve()
    model = args.model or warm_judge(output / "judge")
    pairs = output / "pairs.jsonl"
    tasks = ["--kinds=[sums]", "--difficulties=[1, 2]", f"--count={args.pairs}", "--distinct=false"]
    made = [sys.executable, "-m", "judgelit.cli", "tasks", *tasks, f"--output={pairs}"]
    subprocess.run(made, check=True, stdout=sys.stderr)
    found: list[list[int]] = []
    total: dict[str, Any] = {}
    print("| case | kills | folders | answers | equal files and answers | all |")
    print("|---|---|---|---|---|---|")
    for case in args.cases:
        root, command = output / case, commands(pairs, model)[case]
        shutil.rmtree(root, ignore_errors=True)
        seconds = finish(command, root / "unbroken")
        answers = len(journal(root / "unbroken"))
        kills, folders, equal, count = 0, 0, 0, 0
        while kills < args.kills:
            folders += 1
            folder = root / f"killed-{folders}"
            for turn in range(min(MOST_KILLS, args.kills - kills)):
                known = len(journal(folder))
                target = rng.randint(known, answers) if turn % 2 == 0 else None
                if kill_once(command, folder, target, rng.uniform(0, seconds)) == "too late":
                    break
                kills += 1
            finish(command, folder)
            of_folder = compare(folder, root / "unbroken")
            equal, count = equal + of_folder[0], count + of_folder[1]
        total[case] = kills
        found.append([equal, count])
        print(f"| {case} | {kills} | {folders} | {answers} | {equal} | {count} |", flush=True)
    result = {
        "claim": "killed and continued syntheses: share of files and answers that equal those of the unbroken ones",
        "ratio": sum(equal for equal, _ in found) / sum(count for _, count in found),
        "goal": 1.0,
        "smaller_is_better": False,
        "pairs": found,
        "kills": total,
        "environment": environment(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
