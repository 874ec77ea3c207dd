"""Plots of the reproduction: arms, kinds of task, training."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
from reproduction_runs import MAIN, Runs
from reproduction_seed import SETS

from judgelit.evaluation.intervals import estimates


def plot_arms(runs: Runs, file: Path) -> None:
    """Pairs right in both orders, of every arm and set, with intervals and each seed's figure."""
    pyplot = load_pyplot()
    figure, all_axes = pyplot.subplots(1, len(SETS), figsize=(5 * len(SETS), 0.5 * len(runs.arms) + 1.5), sharey=True)
    for axes, name in zip(all_axes, SETS, strict=True):
        for place, arm in enumerate(runs.arms):
            seeds = runs.common_seeds(arm)
            found = estimates(runs.metrics(arm, name, seeds))[MAIN]
            axes.plot([100 * found.low, 100 * found.high], [place, place], color="tab:blue", linewidth=2)
            axes.plot(100 * found.value, place, "o", color="tab:blue")
            each = [100 * estimates(runs.metrics(arm, name, [seed]))[MAIN].value for seed in seeds]
            axes.plot(each, [place] * len(each), "|", color="tab:orange", markersize=12)
        axes.set(title=name, xlabel="right in both orders, %", xlim=(-2, 102), ylim=(len(runs.arms) - 0.5, -0.5))
        axes.grid(axis="x", alpha=0.3)
    all_axes[0].set_yticks(range(len(runs.arms)), list(runs.arms))
    figure.tight_layout()
    figure.savefig(file, dpi=120)


def plot_kinds(runs: Runs, file: Path) -> None:
    """Pairs right in both orders by kind of task: the warm judge, the control, and the recipe's judge."""
    pyplot = load_pyplot()
    kinds = runs.kinds
    figure, axes = pyplot.subplots(figsize=(1.6 * len(kinds) + 2, 4))
    for shift, arm in ((-0.27, "sft"), (0, "sft-again"), (0.27, "dpo")):
        if arm in runs.arms:
            seeds = runs.common_seeds(arm)
            found = [estimates(runs.metrics(arm, "held_out", seeds, kind))[MAIN] for kind in kinds]
            values = np.array([[100 * one.value, 100 * one.low, 100 * one.high] for one in found]).T
            errors = np.abs(values[1:] - values[0])
            axes.bar(np.arange(len(kinds)) + shift, values[0], 0.25, yerr=errors, label=arm, capsize=3)
    axes.set_xticks(range(len(kinds)), kinds)
    axes.set(ylabel="right in both orders, %", ylim=(0, 100), title="held_out, by kind of task")
    axes.legend()
    figure.tight_layout()
    figure.savefig(file, dpi=120)


def plot_training(runs: Runs, file: Path) -> None:
    """Training curves of SFT and DPO, one line a seed."""
    pyplot = load_pyplot()
    curves = (
        ("sft", "train/loss"),
        ("dpo", "train/loss"),
        ("dpo", "train/rewards/accuracy"),
        ("dpo", "train/rewards/margin"),
    )
    size = (4.5 * len(curves), 3.6)
    figure, all_axes = pyplot.subplots(1, len(curves), figsize=size, layout="constrained")
    for axes, (arm, name) in zip(all_axes, curves, strict=True):
        for one in runs.arms.get(arm, ()):
            steps, values = read_curve(one.log, name)
            axes.plot(steps, values, label=f"seed {one.seed}")
        axes.set(title=f"{arm}: {name}", xlabel="optimizer step")
        axes.grid(alpha=0.3)
    # One legend for all, beside the curves.
    figure.legend(*all_axes[0].get_legend_handles_labels(), loc="outside right center")
    figure.savefig(file, dpi=120)


def read_curve(folder: Path | None, name: str) -> tuple[list[float], list[float]]:
    """Steps and values of a metric in the CSV logs of a fit."""
    steps, values = [], []
    for file in sorted((folder or Path()).glob("csv/*/metrics.csv")):
        with file.open(newline="", encoding="utf-8") as rows:
            for row in csv.DictReader(rows):
                if row.get(name):
                    steps.append(float(row["step"]))
                    values.append(float(row[name]))
    return steps, values


def load_pyplot() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise SystemExit("--plots: matplotlib is not installed; run pip install -e '.[bench]'") from None

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
