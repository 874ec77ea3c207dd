"""Make the tables and plots of the reproduction from the files of its runs.

    python benchmarks/reproduction_table.py [--runs runs/reproduction] [--plots benchmarks]

Prints Markdown. Every figure is computed here from the judgments, samples and logs that the runs have kept. Intervals
are 95% bootstrap intervals over the questions of all seeds together. They say nothing about other seeds, so each seed's
figure stands beside them.
"""

import argparse
import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from reproduction import ARMS, COMPARED, SETS

from judgelit.evaluation.agreement import mcnemar
from judgelit.evaluation.intervals import Estimate, Gain, Metric, estimates, gains
from judgelit.evaluation.metrics import Verdicts
from judgelit.evaluation.protocols.pairs import PAIRS
from judgelit.judging.prompts import Templates
from judgelit.records.files import read_rows
from judgelit.records.records import Judgment, PreferenceExample, PreferencePair
from judgelit.records.sources import FileSource, read_pairs
from judgelit.synthesis.teachers import glance

STAGES = {"base": ("", "03-base"), "sft": ("04-sft", "05-sft-judged"), "dpo": ("07-dpo", "08-dpo-judged")}
"""Arms that are judges of `judgelit run`: the stages that have trained and judged them."""
SHOWN = {
    "consistent_accuracy": "right in both orders",
    "accuracy": "accuracy",
    "consistency": "consistent",
    "no_verdict": "no verdict",
    "cut_by_length": "cut",
    "share_a": "says A",
    "length_bias": "length bias",
}
MAIN = "consistent_accuracy"


@dataclass(frozen=True)
class Judged:
    """One arm of one seed."""

    seed: int
    judgments: Mapping[str, Sequence[Judgment]]
    """By set."""
    general: Mapping[str, Estimate]
    attacks: Mapping[str, Any]
    cost: Mapping[str, float]
    """Of the training that this arm has beside those it starts from: seconds, tokens, peak memory in bytes."""
    log: Path | None
    """The folder of that training."""


@dataclass
class Runs:
    """All seeds and arms that have been measured."""

    folder: Path
    pairs: dict[int, dict[str, list[PreferencePair]]] = field(default_factory=dict)
    """By seed and set."""
    arms: dict[str, list[Judged]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for of_seed in sorted(self.folder.glob("seed-*"), key=seed_of):
            stages = of_seed / "run/stages"
            self.pairs[seed_of(of_seed)] = {name: read_pairs(str(stages / f"01-pairs/{name}.jsonl")) for name in SETS}
            for arm in ARMS:
                if (found := read_stage(of_seed, arm) if arm in STAGES else read_arm(of_seed, arm)) is not None:
                    self.arms.setdefault(arm, []).append(found)

    def common_seeds(self, *arms: str) -> list[int]:
        """The seeds that all these arms have."""
        return sorted(set.intersection(*({one.seed for one in self.arms.get(arm, ())} for arm in arms)))

    def judged(
        self, arm: str, name: str, seeds: Sequence[int], category: str | None = None
    ) -> tuple[list[PreferencePair], list[Judgment]]:
        """Pairs and judgments of a set, of these seeds together; the ids of different seeds differ."""
        pairs, judgments = [], []
        for one in self.arms[arm]:
            if one.seed in seeds:
                known = {pair.id for pair in self.pairs[one.seed][name] if category in (None, pair.category)}
                mine = [pair for pair in self.pairs[one.seed][name] if pair.id in known]
                pairs += [replace(pair, id=f"{one.seed}/{pair.id}") for pair in mine]
                judgments += [
                    replace(judgment, pair_id=f"{one.seed}/{judgment.pair_id}")
                    for judgment in one.judgments[name]
                    if judgment.pair_id in known
                ]
        return pairs, judgments

    def metrics(self, arm: str, name: str, seeds: Sequence[int], category: str | None = None) -> Mapping[str, Metric]:
        """The metrics of an arm on a set."""
        return PAIRS.metrics(*self.judged(arm, name, seeds, category))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/reproduction"))
    parser.add_argument("--plots", type=Path, help="folder to write the plots to; default: none are made")
    args = parser.parse_args()
    runs = Runs(args.runs)
    if not runs.arms:
        raise SystemExit(f"{args.runs}: found no finished arm; run benchmarks/reproduction.py first")
    for name in SETS:
        print(f"\n### {name}: {sum(len(sets[name]) for sets in runs.pairs.values())} pairs\n")
        print_rows(["arm", "seeds", *SHOWN.values(), "each seed, right in both"], arm_rows(runs, name))
        print()
        print_rows(["arm", "against", "seeds", *[SHOWN[one] for one in COMPARED_BY], "McNemar"], gain_rows(runs, name))
    print("\n### By kind of task: right in both orders, held_out\n")
    kinds = sorted({pair.category for sets in runs.pairs.values() for pair in sets["held_out"]})
    print_rows(["arm", *kinds], kind_rows(runs, kinds))
    print("\n### By judge prompt: right in both orders, held_out\n")
    print_rows(["arm", "seed", "asks for steps", "asks for a verdict", "guesses under these"], prompt_rows(runs))
    print("\n### General ability\n")
    names = list(dict.fromkeys(name for arm in runs.arms.values() for one in arm for name in one.general))
    print_rows(["arm", "seed", *names], general_rows(runs, names))
    print("\n### Attacks: share of judgments that turn to the attacked answer, of those that had not picked it\n")
    print_attacks(runs)
    print("\n### Real pairs, judge prompt rise\n")
    print_rows(["judge", "set", "seed", "pairs", *REAL.values()], real_rows(runs))
    print("\n### The judges at work: a policy trained on each judge's preferences\n")
    headings = ["labels of", "seed", "answers", "accuracy before", "accuracy after", "wins", "losses", "win rate"]
    print_rows(headings, policy_rows(runs))
    print("\n### Samples of the warm judge\n")
    print_rows(["seed", "examples", "prompts", "median solve rate", "solve rates (eighths)"], sample_rows(runs))
    print("\n### Cost of the training of each arm\n")
    print_rows(["arm", "seed", "minutes", "tokens", "peak memory, GB"], cost_rows(runs))
    if args.plots is not None:
        plot_arms(runs, args.plots / "reproduction_arms.png")
        plot_kinds(runs, kinds, args.plots / "reproduction_kinds.png")
        plot_training(runs, args.plots / "reproduction_training.png")


REAL = {
    "accuracy": "accuracy",
    "consistent_accuracy": "right in both orders",
    "consistency": "consistent",
    "no_verdict": "no verdict",
}
COMPARED_BY = ("consistent_accuracy", "accuracy", "consistency")


def seed_of(folder: Path) -> int:
    return int(folder.name.removeprefix("seed-"))


def read_judgments(file: Path) -> list[Judgment]:
    return [Judgment.from_dict(row, at) for at, row in read_rows(str(file))]


def read_general(content: Mapping[str, Any]) -> dict[str, Estimate]:
    return {name: Estimate.from_dict(found) for name, found in content.items()}


def read_json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def read_stage(of_seed: Path, arm: str) -> Judged | None:
    """An arm that is a judge of `judgelit run`."""
    trained, judged = (of_seed / "run/stages" / name for name in STAGES[arm])
    if not (judged / "done.json").is_file():
        return None
    cost = read_json(trained / "done.json") if STAGES[arm][0] else {}
    return Judged(
        seed_of(of_seed),
        {name: read_judgments(judged / f"{name}.jsonl") for name in SETS},
        read_general(read_json(judged / "general.json")),
        read_json(of_seed / arm / "attacked/results.json").get("attacks", {}),
        cost,
        trained if STAGES[arm][0] else None,
    )


def read_arm(of_seed: Path, arm: str) -> Judged | None:
    """An arm beside the recipe."""
    judged = of_seed / arm / "judged"
    if not (judged / "results.json").is_file():
        return None
    # An arm of two trainings has the later one last.
    fits = sorted((of_seed / arm).glob("*/fit.json"), key=lambda one: one.stat().st_mtime)
    costs = [{**read_json(one), **read_json(one.parent / "cost.json")} for one in fits]
    return Judged(
        seed_of(of_seed),
        {name: read_judgments(judged / f"{name}.judgments.jsonl") for name in SETS},
        read_general(read_json(judged / "results.json").get("general", {})),
        read_json(of_seed / arm / "attacked/results.json").get("attacks", {}),
        {
            "seconds": sum(one.get("fit", 0) for one in costs),
            "tokens": sum(one["tokens"] for one in costs),
            "peak_memory_bytes": max((one["peak_memory_bytes"] for one in costs), default=0),
        },
        fits[-1].parent if fits else None,
    )


def print_rows(headings: Sequence[str], rows: Iterator[Sequence[str]]) -> None:
    print(f"| {' | '.join(headings)} |\n|{'---|' * len(headings)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def percent(found: Estimate | Gain) -> str:
    """`81.2 [78.0, 84.1]`, in percent."""
    if np.isnan(found.value):
        return "undefined"
    sign = "+" if isinstance(found, Gain) else ""
    ends = f" [{100 * found.low:{sign}.1f}, {100 * found.high:{sign}.1f}]"
    return f"{100 * found.value:{sign}.1f}" + ("" if np.isnan(found.low) else ends)


def arm_rows(runs: Runs, name: str) -> Iterator[list[str]]:
    for arm in runs.arms:
        seeds = runs.common_seeds(arm)
        found = estimates(runs.metrics(arm, name, seeds))
        each = [estimates(runs.metrics(arm, name, [seed]))[MAIN].value for seed in seeds]
        yield [
            arm,
            str(len(seeds)),
            *(percent(found[metric]) for metric in SHOWN),
            ", ".join(f"{100 * value:.1f}" for value in each),
        ]


def gain_rows(runs: Runs, name: str) -> Iterator[list[str]]:
    """Each comparison of COMPARED, paired: the same questions of both arms in every resample."""
    for arm, other in COMPARED:
        if seeds := runs.common_seeds(arm, other):
            found = gains(runs.metrics(other, name, seeds), runs.metrics(arm, name, seeds))
            only, lost = discordant(runs, arm, other, name, seeds)
            cells = [percent(found[metric]) for metric in COMPARED_BY]
            yield [arm, other, str(len(seeds)), *cells, f"{only} : {lost}, p {mcnemar(lost, only):.2g}"]


def discordant(runs: Runs, arm: str, other: str, name: str, seeds: Sequence[int]) -> tuple[int, int]:
    """Number of pairs that only the one arm judges rightly in both orders, and that only the other one does."""
    right = []
    for one in (arm, other):
        verdicts = Verdicts.of(*runs.judged(one, name, seeds))
        ab, ba = verdicts.both_orders
        right.append(verdicts.right[ab] & verdicts.right[ba])
    return int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())


def kind_rows(runs: Runs, kinds: Sequence[str]) -> Iterator[list[str]]:
    for arm in runs.arms:
        seeds = runs.common_seeds(arm)
        yield [arm, *(percent(estimates(runs.metrics(arm, "held_out", seeds, kind))[MAIN]) for kind in kinds)]


def prompt_rows(runs: Runs) -> Iterator[list[str]]:
    """Under the prompts that ask for steps, and under those that ask for a verdict, where the teacher guesses."""
    brief = {name for name, one in Templates(["nano-*"]).load().items() if one.style == "brief"}
    guesses = {glance("A"), glance("B")}
    for arm, seed in ((arm, one.seed) for arm, found in runs.arms.items() for one in found):
        pairs, judgments = runs.judged(arm, "held_out", [seed])
        briefly = {judgment.pair_id for judgment in judgments if judgment.template in brief}
        cells = []
        for wanted in (False, True):
            mine = [pair for pair in pairs if (pair.id in briefly) == wanted]
            its = [judgment for judgment in judgments if (judgment.pair_id in briefly) == wanted]
            cells.append(percent(estimates(PAIRS.metrics(mine, its))[MAIN]))
        guessed = np.mean([judgment.text.strip() in guesses for judgment in its])
        yield [arm, str(seed), *cells, f"{100 * guessed:.0f}"]


def general_rows(runs: Runs, names: Sequence[str]) -> Iterator[list[str]]:
    for arm, found in runs.arms.items():
        for one in found:
            cells = []
            for name in names:
                value = one.general.get(name)
                if value is None:
                    cells.append("")
                elif name == "general_loss":
                    cells.append(f"{value.value:.3f} [{value.low:.3f}, {value.high:.3f}]")
                else:
                    cells.append(percent(value))
            if one.general:
                yield [arm, str(one.seed), *cells]


def print_attacks(runs: Runs) -> None:
    measured = [(arm, one) for arm, found in runs.arms.items() for one in found if one.attacks]
    attacks = sorted({attack for _, one in measured for of_set in one.attacks.values() for attack in of_set})
    rows = []
    for arm, one in measured:
        ((_, of_set),) = one.attacks.items()
        rows.append([arm, str(one.seed), *(percent(attack_success(of_set[attack])) for attack in attacks)])
    print_rows(["arm", "seed", *attacks], iter(rows))


def attack_success(found: Mapping[str, Any]) -> Estimate:
    return Estimate.from_dict(found["success"])


def real_rows(runs: Runs) -> Iterator[list[str]]:
    for seed in runs.pairs:
        for file in sorted((runs.folder / f"seed-{seed}/real-sets").glob("*/results.json")):
            judge, _, name = file.parent.name.rpartition("-")
            for found in read_json(file)["sets"].values():
                cells = [percent(Estimate.from_dict(found[metric])) for metric in REAL]
                yield [judge, name, str(seed), str(found["consistency"]["n"]), *cells]


def policy_rows(runs: Runs) -> Iterator[list[str]]:
    for seed in runs.pairs:
        for judge in ("dpo", "random", "sft", "base"):
            found = read_json(runs.folder / f"seed-{seed}/policy/{judge}.json")
            if found:
                yield [judge, str(seed), found["labels"], *[""] * 5]
            for answers, score in found.get("scores", {}).items():
                cells = [percent(Estimate.from_dict(score[name])) for name in ("before", "after")]
                cells += [str(score["wins"]), str(score["losses"]), percent(Estimate.from_dict(score["win_rate"]))]
                yield [judge, str(seed), answers, *cells]


def sample_rows(runs: Runs) -> Iterator[list[str]]:
    for seed in runs.pairs:
        file = runs.folder / f"seed-{seed}/run/stages/06-enhancement/dpo.jsonl"
        if not file.is_file():
            continue
        examples = FileSource(str(file)).read(PreferenceExample)
        prompts = {(one.meta["pair_id"], one.meta["order"]): float(one.meta["solve_rate"]) for one in examples}
        rates = np.array(list(prompts.values()))
        counts = np.bincount(np.rint(rates * 8).astype(int), minlength=9)
        yield [
            str(seed),
            str(len(examples)),
            str(len(prompts)),
            f"{np.median(rates):.2f}",
            " ".join(map(str, counts)),
        ]


def cost_rows(runs: Runs) -> Iterator[list[str]]:
    for arm, found in runs.arms.items():
        for one in found:
            if one.cost:
                memory = one.cost["peak_memory_bytes"] / 1e9
                yield [arm, str(one.seed), f"{one.cost['seconds'] / 60:.1f}", f"{one.cost['tokens']}", f"{memory:.1f}"]


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


def plot_kinds(runs: Runs, kinds: Sequence[str], file: Path) -> None:
    """Pairs right in both orders by kind of task: the warm judge, the control, and the recipe's judge."""
    pyplot = load_pyplot()
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
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


if __name__ == "__main__":
    main()
