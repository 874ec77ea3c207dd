"""Make the tables and plots of the reproduction from the files of its runs.

    python benchmarks/reproduction_table.py [--runs runs/reproduction] [--plots benchmarks] [--keep FILE.tar.xz]

Prints Markdown. Every figure is computed here from the judgments, samples and logs that the runs have kept. Intervals
are 95% bootstrap intervals over the questions of all seeds together. They say nothing about other seeds, so each seed's
figure stands beside them. To add seeds to an archive, unpack it into the folder of the runs, run the other seeds there,
and keep the whole folder.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from reproduction import COMPARED
from reproduction_plots import plot_arms, plot_kinds, plot_training
from reproduction_runs import MAIN, Runs, keep, opened, read_json
from reproduction_seed import SETS

from judgelit.evaluation.agreement import mcnemar
from judgelit.evaluation.intervals import Estimate, Gain, estimates, gains
from judgelit.evaluation.metrics import Verdicts
from judgelit.evaluation.protocols.pairs import PAIRS
from judgelit.judging.prompts import Templates
from judgelit.records.records import PreferenceExample
from judgelit.records.sources import FileSource
from judgelit.synthesis.teachers import glance

SHOWN = {
    "consistent_accuracy": "right in both orders",
    "accuracy": "accuracy",
    "consistency": "consistent",
    "no_verdict": "no verdict",
    "cut_by_length": "cut",
    "share_a": "says A",
    "length_bias": "length bias",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/reproduction"), help="their folder, or an archive that --keep has made"
    )
    parser.add_argument("--plots", type=Path, help="folder to write the plots to; default: none are made")
    parser.add_argument("--keep", type=Path, help="FILE.tar.xz to write all that this reads to")
    args = parser.parse_args()
    with opened(args.runs) as folder:
        runs = Runs(folder)
        if not runs.arms:
            raise SystemExit(f"{args.runs}: found no finished arm; run benchmarks/reproduction.py first")
        print_tables(runs)
        if args.plots is not None:
            plot_arms(runs, args.plots / "reproduction_arms.png")
            plot_kinds(runs, args.plots / "reproduction_kinds.png")
            plot_training(runs, args.plots / "reproduction_training.png")
        if args.keep is not None:
            keep(folder, args.keep)


def print_tables(runs: Runs) -> None:
    for name in SETS:
        title = f"{name}: {sum(len(sets[name]) for sets in runs.pairs.values())} pairs"
        print_rows(title, ["arm", "seeds", *SHOWN.values(), "each seed, right in both"], arm_rows(runs, name))
        by = [SHOWN[one] for one in COMPARED_BY]
        print_rows(f"{name}, paired", ["arm", "against", "seeds", *by, "McNemar"], gain_rows(runs, name))
    print_rows("By kind of task: right in both orders, held_out", ["arm", *runs.kinds], kind_rows(runs))
    headings = ["arm", "seed", "asks for steps", "asks for a verdict", "guesses under these"]
    print_rows("By judge prompt: right in both orders, held_out", headings, prompt_rows(runs))
    names = list(dict.fromkeys(name for arm in runs.arms.values() for one in arm for name in one.general))
    print_rows("General ability", ["arm", "seed", *names], general_rows(runs, names))
    attacks = sorted({attack for _, one in runs.attacked for attack in one.attacks})
    title = "Attacks: share of judgments that turn to the attacked answer, of those that had not picked it"
    print_rows(title, ["arm", "seed", *attacks], attack_rows(runs, attacks))
    print_rows("Real pairs, judge prompt rise", ["judge", "set", "seed", "pairs", *REAL.values()], real_rows(runs))
    headings = ["labels of", "seed", "answers", "accuracy before", "accuracy after", "wins", "losses", "win rate"]
    print_rows("The judges at work: a policy trained on each judge's preferences", headings, policy_rows(runs))
    headings = ["seed", "examples", "prompts", "median solve rate", "solve rates (eighths)"]
    print_rows("Samples of the warm judge", headings, sample_rows(runs))
    headings = ["arm", "seed", "minutes", "tokens", "peak memory, GB"]
    print_rows("Cost of the training of each arm", headings, cost_rows(runs))


REAL = {
    "accuracy": "accuracy",
    "consistent_accuracy": "right in both orders",
    "consistency": "consistent",
    "no_verdict": "no verdict",
}
COMPARED_BY = ("consistent_accuracy", "accuracy", "consistency")


def print_rows(title: str, headings: Sequence[str], rows: Iterator[Sequence[str]]) -> None:
    """Print a table, unless it is empty."""
    if lines := [f"| {' | '.join(row)} |" for row in rows]:
        print(f"\n### {title}\n\n| {' | '.join(headings)} |\n|{'---|' * len(headings)}", *lines, sep="\n")


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


def kind_rows(runs: Runs) -> Iterator[list[str]]:
    for arm in runs.arms:
        seeds = runs.common_seeds(arm)
        yield [arm, *(percent(estimates(runs.metrics(arm, "held_out", seeds, kind))[MAIN]) for kind in runs.kinds)]


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


def attack_rows(runs: Runs, attacks: Sequence[str]) -> Iterator[list[str]]:
    for arm, one in runs.attacked:
        yield [arm, str(one.seed), *(percent(attack_success(one.attacks[attack])) for attack in attacks)]


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


if __name__ == "__main__":
    main()
