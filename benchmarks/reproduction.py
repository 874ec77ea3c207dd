"""Measure the recipe's claims on a small pretrained model, each step with the command that a user would type.

    python benchmarks/reproduction.py --model DIR --self-instruct DIR
        [--seeds 0 1] [--arms dpo sft-again] [--output runs/reproduction]
        [--pandalm DIR] [--llmbar DIR] [--evalbiasbench FILE]

The first DIR holds SmolLM2-135M-Instruct, the second one Self-Instruct's seed_tasks.jsonl and
user_oriented_instructions.jsonl. The files in the last line are for the arms with-real and real-sets.
configs/reproduce has the settings of the recipe; an arm changes one of them. All arms of a seed have the same pairs,
and arms that start from the same warm judge share its samples. A step whose output is there is not repeated, so the
same command continues an interrupted benchmark, and adds arms and seeds. Then benchmarks/reproduction_table.py makes
the tables and the plots.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import yaml
from policy import SAMPLES, Setting
from policy import Benchmark as PolicyBenchmark
from reproduction_seed import General, Real, Seed, forget_checkpoints
from side_by_side import environment

from judgelit.atomic import write_json
from judgelit.judging.prompts import drawn_order
from judgelit.records.files import write_records
from judgelit.records.records import PreferenceExample, SFTExample
from judgelit.records.sources import FileSource, read_pairs

POLICY = Setting(
    "facts",
    [1, 2],
    1200,
    2,
    400,
    "reproduce/policy-sft",
    "reproduce/policy-dpo",
    12,
    ["--templates.names=[nano-*]", "--max_new_tokens=96", "--batch_size=64"],
    64,
)
REAL_JUDGMENTS, REAL_PAIRS = 120, 60
"""Real judgments to train on, the shortest ones, and pairs of each real set to judge."""
COMPARED = (
    ("sft", "base"),
    ("dpo", "sft"),
    ("dpo", "sft-again"),
    ("dpo", "sft-on-chosen"),
    ("dpo", "dpo-no-nll"),
    ("dpo", "dpo-no-sft"),
    ("dpo", "dpo-beta-0.1"),
    ("dpo", "dpo-lr-3e-5"),
    ("right-in-both", "dpo"),
    ("dpo", "one-pair"),
    ("dpo", "four-samples"),
    ("two-rounds", "dpo"),
    ("sft", "no-order-swap"),
    ("sft", "no-length-balance"),
    ("filtered", "unfiltered"),
    ("sft", "sft-no-general"),
    ("sft", "sft-lr-3e-4"),
    ("with-real", "sft"),
    ("sft", "sft-grouped"),
)
"""Arms to compare, the first one against the second one."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of the pretrained model")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument(
        "--arms",
        nargs="+",
        choices=list(ARMS),
        metavar="ARM",
        help=f"default: all arms whose files are given; {', '.join(ARMS)}",
    )
    parser.add_argument("--output", type=Path, default=Path("runs/reproduction"))
    parser.add_argument(
        "--self-instruct",
        type=Path,
        required=True,
        help="folder of Self-Instruct's seed_tasks.jsonl, whose loss is measured, and of its "
        "user_oriented_instructions.jsonl, which are mixed with the training data",
    )
    parser.add_argument("--pandalm", type=Path, help="folder of PandaLM's files, for the arm with-real")
    parser.add_argument("--llmbar", type=Path, help="folder of LLMBar's Natural set, for the arm real-sets")
    parser.add_argument("--evalbiasbench", type=Path, help="biasbench.json, for the arm real-sets")
    args = parser.parse_args()
    needed = {"with-real": [args.pandalm], "real-sets": [args.llmbar, args.evalbiasbench]}
    without_files = [arm for arm, files in needed.items() if None in files]
    arms = args.arms or [arm for arm in ARMS if arm not in without_files]
    if lacking := [arm for arm in arms if arm in without_files]:
        raise SystemExit(
            f"{', '.join(lacking)}: give --pandalm for with-real, --llmbar and --evalbiasbench for real-sets"
        )
    machine = environment()
    general = General.of(args.self_instruct, args.output, args.model)
    for number in args.seeds:
        real = Real(args.pandalm, args.llmbar, args.evalbiasbench)
        seed = Seed(args.model, number, args.output / f"seed-{number}", general, real)
        write_json(seed.folder / "machine.json", machine)
        seed.run()
        for arm in arms:
            print(f"seed {number}, {arm}", flush=True)
            ARMS[arm](seed, arm)


Arm = Callable[[Seed, str], None]
"""Trains and measures an arm of a seed; the second argument is its name, which is its folder."""


def base(seed: Seed, arm: str) -> None:
    """The pretrained model."""


def sft(seed: Seed, arm: str) -> None:
    """The warm judge."""
    seed.attack(arm, seed.warm_judge)


def dpo(seed: Seed, arm: str) -> None:
    """The recipe: the warm judge after DPO + NLL."""
    seed.attack(arm, seed.run() / "07-dpo/model")


def sft_again(seed: Seed, arm: str) -> None:
    """The warm judge after more whole epochs of SFT on the warm-up set, about as many tokens as those of DPO."""
    warmed, enhanced = (
        json.loads((seed.run() / name / "fit.json").read_text())["tokens"] for name in ("04-sft", "07-dpo")
    )
    epochs = yaml.safe_load((seed.run() / "04-sft/config.yaml").read_text())["trainer"]["max_epochs"]
    more = f"--trainer.max_epochs={max(1, round(enhanced / (warmed / epochs)))}"
    judge = seed.fit(arm, "sft", seed.warm_judge, seed.warm_up, more)
    seed.measure(arm, judge)


def sft_on_chosen(seed: Seed, arm: str) -> None:
    """The warm judge after SFT on the right judgments of the enhancement set: its examples without the wrong ones."""
    data = seed.folder / arm / "chosen.jsonl"
    examples = FileSource(str(seed.samples)).read(PreferenceExample)
    write_records(data, [SFTExample(one.messages, one.chosen, str(number), {}) for number, one in enumerate(examples)])
    seed.measure(arm, seed.fit(arm, "sft", seed.warm_judge, data))


def other_dpo(*settings: str) -> Arm:
    """The recipe with other settings of DPO."""

    def run(seed: Seed, arm: str) -> None:
        seed.measure(arm, seed.fit(arm, "dpo", seed.warm_judge, seed.samples, *settings))

    return run


def dpo_without_sft(seed: Seed, arm: str) -> None:
    """DPO + NLL of the pretrained model on the samples of the warm judge."""
    seed.measure(arm, seed.fit(arm, "dpo", seed.model, seed.samples))


def other_examples(*settings: str, same_samples: bool = True) -> Arm:
    """The recipe with other DPO examples of the warm judge, from the recipe's samples or from others."""

    def run(seed: Seed, arm: str) -> None:
        journal = seed.run() / "06-enhancement/journal.sqlite" if same_samples else None
        data = seed.sample(arm, seed.warm_judge, *settings, journal=journal)
        seed.measure(arm, seed.fit(arm, "dpo", seed.warm_judge, data))

    return run


def without_order_swap(seed: Seed, arm: str) -> None:
    """SFT on judgments of prompts that all show the better answer first, as pairs of (chosen, rejected) do."""
    pairs = [
        pair if pair.label == drawn_order(pair.id, seed.seed)[0].upper() else pair.swapped()
        for pair in read_pairs(str(seed.run() / "02-warmup/pairs.jsonl"))
    ]
    write_records(seed.folder / arm / "pairs.jsonl", pairs)
    data = seed.warm_up_of(arm, seed.folder / arm / "pairs.jsonl", "--balance_labels=false")
    seed.measure(arm, seed.fit(arm, "sft", seed.model, data))


def without_length_balance(seed: Seed, arm: str) -> None:
    """SFT without the balance between longer and shorter better answers."""
    data = seed.warm_up_of(arm, seed.run() / "02-warmup/pairs.jsonl", "--balance_length=false")
    seed.measure(arm, seed.fit(arm, "sft", seed.model, data))


def filtered(seed: Seed, arm: str) -> None:
    """SFT of the pretrained model on a fallible teacher's judgments, the warm judge's: the right ones alone."""
    seed.measure(arm, seed.fit(arm, "sft", seed.model, seed.judged_by_warm_judge(arm, filtered=True)))


def unfiltered(seed: Seed, arm: str) -> None:
    """The same on as many judgments, right or wrong."""
    seed.measure(arm, seed.fit(arm, "sft", seed.model, seed.judged_by_warm_judge(arm, filtered=False)))


def other_sft(*settings: str, mixed: bool = True) -> Arm:
    """The warm judge with other settings of SFT."""

    def run(seed: Seed, arm: str) -> None:
        seed.measure(arm, seed.fit(arm, "sft", seed.model, seed.warm_up, *settings, mixed=mixed))

    return run


def with_real(seed: Seed, arm: str) -> None:
    """SFT with real judgments of real pairs too: those of PandaLM's two teachers that most annotators agree with."""
    folder = seed.folder / arm
    files = [f"--pandalm={seed.real.pandalm}", f"--out={folder}", f"--tokenizer={seed.model}", f"--seed={seed.seed}"]
    script = [sys.executable, str(Path(__file__).with_name("real_data.py")), *files]
    subprocess.run(script, check=True, stdout=subprocess.DEVNULL)
    found = FileSource(str(folder / "sft.jsonl")).read(SFTExample)
    shortest = sorted(found, key=lambda one: len(one.messages[-1]["content"]) + len(one.completion))
    write_records(folder / "shortest.jsonl", shortest[:REAL_JUDGMENTS])
    data = json.dumps([str(seed.warm_up), str(folder / "shortest.jsonl")])
    seed.measure(arm, seed.fit(arm, "sft", seed.model, data))


def real_sets(seed: Seed, arm: str) -> None:
    """Judges of other arms on public benchmarks of real pairs, with the judge prompt `rise`."""
    judges = {
        "sft": seed.warm_judge,
        "dpo": seed.run() / "07-dpo/model",
        "with-real": seed.folder / "with-real/sft/model",
    }
    for name, judge in judges.items():
        for benchmark, file in seed.real.sets.items() if judge.exists() else ():
            output = seed.folder / arm / f"{name}-{benchmark}"
            options = [f"--model={judge}", f"--benchmark={benchmark}", f"--pairs={file}", f"--output={output}"]
            options += [f"--limit={REAL_PAIRS}", "--max_new_tokens=96"]
            seed.judgelit(output / "results.json", "evaluate", *options, log=output.with_suffix(".log"))


def two_rounds(seed: Seed, arm: str) -> None:
    """A second round: DPO of the recipe's judge on its own samples, against itself as the reference."""
    judge = seed.run() / "07-dpo/model"
    data = seed.sample(arm, judge, "--round=2")
    seed.measure(arm, seed.fit(arm, "dpo", judge, data))


def policy(seed: Seed, arm: str) -> None:
    """The judges at work: each labels the same answers of a policy, which is then trained on its preferences.

    As a control, the policy is also trained on the preferences of the recipe's judge, half of them turned round.
    """
    work = PolicyBenchmark(POLICY, seed.seed, seed.folder / arm, seed.run() / "01-pairs/train.jsonl")
    start = work.start(f"--model.backbone.name_or_path={seed.model}")
    answers = work.answer(start, "questions", POLICY.answers)
    judges = {"dpo": seed.run() / "07-dpo/model", "sft": seed.warm_judge, "base": Path(seed.model)}
    for name, judge in judges.items():
        labels = work.label(judge, answers, work.folder / f"labels-{name}")
        if not labels.stat().st_size:
            about = "no preference: none of its judgments has a verdict that holds in both orders"
            write_json(work.folder / f"{name}.json", {"labels": about, "scores": {}})
            continue
        about = work.about_labels(answers, labels)
        measure_policy(work, name, about, start, work.train(start, labels, run=f"dpo-{name}"))
        if name == "dpo":
            about = "those of dpo, half of them turned round"
            measure_policy(work, "random", about, start, work.train_on_random_labels(start, labels))
    for training in work.folder.iterdir():
        forget_checkpoints(training)


def measure_policy(work: PolicyBenchmark, name: str, about: str, start: Path, trained: Path) -> None:
    """Compare a policy with the one before its training, by the most probable answer and by sampled ones."""
    scores = {
        "most probable": work.compare(start, trained, 1, temperature=0.0),
        "sampled": work.compare(start, trained, SAMPLES, temperature=1.0),
    }
    print(f"policy, labels of {name}: {about}", flush=True)
    write_json(work.folder / f"{name}.json", {"labels": about, "scores": scores})


ARMS: dict[str, Arm] = {
    "base": base,
    "sft": sft,
    "dpo": dpo,
    "sft-again": sft_again,
    "dpo-no-nll": other_dpo("--model.loss.nll_weight=0"),
    "dpo-beta-0.1": other_dpo("--model.loss.beta=0.1"),
    "dpo-lr-3e-5": other_dpo("--model.optimizer.init_args.lr=3e-5"),
    "dpo-no-sft": dpo_without_sft,
    "sft-on-chosen": sft_on_chosen,
    # A sample counts as right only if the judge also has a right one with the answers in the other order.
    "right-in-both": other_examples("--settings.right=both_orders"),
    "one-pair": other_examples("--settings.pairs_per_prompt=1"),
    "four-samples": other_examples("--settings.samples=4", same_samples=False),
    "two-rounds": two_rounds,
    "no-order-swap": without_order_swap,
    "no-length-balance": without_length_balance,
    "filtered": filtered,
    "unfiltered": unfiltered,
    "sft-no-general": other_sft(mixed=False),
    "sft-lr-3e-4": other_sft("--model.optimizer.init_args.lr=3e-4"),
    "sft-grouped": other_sft("--data.group_by_length=true"),
    "with-real": with_real,
    "real-sets": real_sets,
    "policy": policy,
}


if __name__ == "__main__":
    main()
