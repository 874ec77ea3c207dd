"""Compare training runs that are killed repeatedly with the same runs without a kill.

    python benchmarks/kills.py [--kills 6] [--steps 30] [--cases sft dpo sft-ranks ...] [--output runs/kills]

Each case trains the built-in small model with `judgelit fit` in a new process group: two micro-batches a step, two
loader workers, a checkpoint every second step and two validations an epoch. SFT trains LoRA with dropout, DPO trains
all weights; each runs on one process, on two (`-ranks`) and sharded over two (`-shards`). The group is killed with
SIGKILL, alternately at a random moment of training and while a checkpoint is being written. The same command then
continues the run.

Claim: the killed run logs the same values as the unbroken run, bit by bit and in the same order (columns of wall-clock
time excluded), and ends with the same weights. The last line is one JSON object: `ratio` is the share of equal values,
each pair is [equal, all] of a case.
"""

import argparse
import csv
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from side_by_side import environment

SUMS = {"kinds": ["sums"], "difficulties": [1], "distinct": False}
NANO = {"names": ["nano-*"]}
WALL_CLOCK = re.compile(r"(train|validate)/(time|device/.*|.*_per_sec)")
SAVE_EVERY = 2
STRATEGIES = {"": "auto", "ranks": "ddp", "shards": {"class_path": "judgelit.FSDP2"}}


def configuration(case: str, steps: int) -> dict[str, Any]:
    """Configuration of `judgelit fit` for a case."""
    sft = case.startswith("sft")
    source = f"judgelit.{'TaskJudgments' if sft else 'TaskPreferences'}"
    backbone: dict[str, Any] = {"name_or_path": "nano", "activation_checkpointing": False}
    if sft:
        backbone["lora"] = {"r": 4, "dropout": 0.1}

    def tasks(count: int, part: str) -> dict[str, Any]:
        made = {"tasks": {**SUMS, "count": count, "part": part}, "templates": NANO}
        return {"class_path": source, "init_args": made}

    return {
        "seed_everything": 3,
        "trainer": {
            "accelerator": "cpu",
            "devices": 2 if "-" in case else 1,
            "strategy": STRATEGIES[case.partition("-")[2]],
            "max_steps": steps,
            "accumulate_grad_batches": 2,
            "gradient_clip_val": 1.0,
            "log_every_n_steps": 1,
            "val_check_interval": 0.5,
            "num_sanity_val_steps": 0,
            "enable_model_summary": False,
            "callbacks": [
                {
                    "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
                    "init_args": {"every_n_train_steps": SAVE_EVERY, "save_last": True},
                }
            ],
        },
        "model": {
            "class_path": f"judgelit.{'SFT' if sft else 'DPO'}Module",
            "init_args": {
                "backbone": backbone,
                "lr_scheduler": {"class_path": "judgelit.WarmupCosine"},
            },
        },
        "data": {
            "class_path": f"judgelit.{'SFT' if sft else 'DPO'}DataModule",
            "init_args": {
                "train": tasks(44 if sft else 24, "train"),
                "val": tasks(6, "held_out"),
                "batch_size": 2,
                "num_workers": 2,
            },
        },
    }


def start(config: Path, folder: Path) -> "subprocess.Popen[bytes]":
    """Start `judgelit fit` in a new process group; it continues the run in the folder."""
    command = ["fit", "--config", str(config), f"--trainer.default_root_dir={folder}", "--ckpt_path=last"]
    return subprocess.Popen(
        [sys.executable, "-m", "judgelit.cli", *command],
        stdout=(folder.parent / "output.txt").open("ab"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finish(config: Path, folder: Path) -> None:
    """Run until training ends."""
    process = start(config, folder)
    if process.wait() != 0:
        output = (folder.parent / "output.txt").read_text(encoding="utf-8", errors="replace")
        raise SystemExit(f"{output[-3000:]}\n{folder}: exited with status {process.returncode}, see above")


def log_file(folder: Path) -> Path:
    return folder / "csv/version_0/metrics.csv"


def kill_once(config: Path, folder: Path, wait: float | None, *, early: bool) -> str:
    """Start the run and kill it. Return when it died: `during a save`, `between saves` or `too late` (it had ended).

    Args:
        config: Configuration of the run.
        folder: Folder of the run.
        wait: Seconds between the first new checkpoint and the kill. None: kill during the next save.
        early: Count `wait` from the first new line of the log.
    """
    saving = folder / "checkpoints"
    watched = log_file(folder) if early else saving / "last.ckpt"
    before = change_time(watched)
    process = start(config, folder)
    while process.poll() is None and change_time(watched) == before:
        time.sleep(0.002)
    if wait is None:
        while process.poll() is None and not any(saving.glob("*.part")):
            pass
    else:
        time.sleep(wait)
    if process.poll() is not None:
        return "too late"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return "during a save" if any(saving.glob("*.part")) else "between saves"


def change_time(path: Path) -> int | None:
    return path.stat().st_mtime_ns if path.exists() else None


def values(folder: Path) -> list[tuple[str, str]]:
    """The logged values of a run, without those that depend on the clock."""
    with log_file(folder).open(newline="", encoding="utf-8") as file:
        rows = [
            [(name, value) for name, value in row.items() if value and not WALL_CLOCK.fullmatch(name)]
            for row in csv.DictReader(file)
        ]
    return [cell for row in rows if {name for name, _ in row} - {"epoch", "step"} for cell in row]


def weights(folder: Path) -> bytes:
    (path,) = (folder / "model").glob("*.safetensors")
    return path.read_bytes()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=6, help="kills in each case")
    parser.add_argument("--steps", type=int, default=30, help="optimizer steps of a run")
    parser.add_argument(
        "--cases", nargs="+", default=["sft", "dpo", "sft-ranks", "dpo-ranks", "sft-shards", "dpo-shards"]
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments of the kills")
    parser.add_argument("--output", type=Path, default=Path("runs/kills"))
    args = parser.parse_args()

    rng = random.Random(args.seed)
    pairs, kills, kills_during_saves = [], 0, 0
    print("| case | kills | during a save | values logged | equal | weights equal |")
    print("|---|---|---|---|---|---|")
    for case in args.cases:
        root = args.output.resolve() / case
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        config = root / "fit.json"
        config.write_text(json.dumps(configuration(case, args.steps), indent=1), encoding="utf-8")
        finish(config, root / "unbroken")
        deaths: list[str] = []
        for turn in range(args.kills):
            wait = rng.uniform(0, 0.5) if turn % 2 == 0 else None
            deaths.append(kill_once(config, root / "killed", wait, early=turn == 0))
            if deaths[-1] == "too late":
                break
        finish(config, root / "killed")
        unbroken, killed = values(root / "unbroken"), values(root / "killed")
        equal = sum(one == other for one, other in zip(unbroken, killed, strict=False))
        same = weights(root / "unbroken") == weights(root / "killed")
        deaths = [death for death in deaths if death != "too late"]
        during_saves = deaths.count("during a save")
        kills += len(deaths)
        kills_during_saves += during_saves
        # The weights count as one more value.
        pairs.append([equal + same, max(len(unbroken), len(killed)) + 1])
        print(f"| {case} | {len(deaths)} | {during_saves} | {len(unbroken)} | {equal} | {same} |", flush=True)
    found = {
        "claim": "killed and continued runs: share of logged values and weights that equal those of the unbroken run",
        "ratio": sum(equal for equal, _ in pairs) / sum(count for _, count in pairs),
        "goal": 1.0,
        "smaller_is_better": False,
        "pairs": pairs,
        "kills": kills,
        "kills_during_saves": kills_during_saves,
        "environment": environment(),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
