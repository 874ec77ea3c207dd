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
import random
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from policy import SAMPLES, Setting
from policy import Benchmark as PolicyBenchmark
from side_by_side import environment

from judgelit.atomic import write_json, write_text
from judgelit.batches.tokenizer import ChatTokenizer
from judgelit.judging.prompts import drawn_order
from judgelit.records.files import read_rows, write_records
from judgelit.records.records import Judgment, PreferenceExample, PreferencePair, SFTExample
from judgelit.records.sources import FileSource, read_pairs
from judgelit.synthesis.decontamination import EvaluationSet
from judgelit.synthesis.tasks.pairs import TaskPairs

SETS = ("held_out", "harder", "new_kinds")
"""The sets of held-out pairs of configs/reproduce/run.yaml."""
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
ATTACKS = "[injection, forged_verdict, null_answer, master_key]"
ATTACKED_PAIRS = 20
REAL_JUDGMENTS, REAL_PAIRS = 120, 60
"""Real judgments to train on, the shortest ones, and pairs of each real set to judge."""
LONGEST = 160
"""Tokens of the longest general example to train on."""
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
        "--arms", nargs="+", default=list(ARMS), choices=list(ARMS), metavar="ARM", help=", ".join(ARMS)
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
    if lacking := [arm for arm in args.arms if None in needed.get(arm, [])]:
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
        for arm in args.arms:
            print(f"seed {number}, {arm}", flush=True)
            ARMS[arm](seed, arm)


@dataclass(frozen=True)
class General:
    """General examples: an instruction with its input, and the output."""

    measured: Path
    """Those whose loss is measured; no arm trains on them."""
    mixed: Path
    """Those that are mixed with the training data."""

    @classmethod
    def of(cls, self_instruct: Path, folder: Path, model: str) -> "General":
        """Write both files. An example to train on is short, and its question is not among the measured ones."""
        measured, mixed = (
            [example_of(row) for _, row in read_rows(str(self_instruct / name))]
            for name in ("seed_tasks.jsonl", "user_oriented_instructions.jsonl")
        )
        held_out = EvaluationSet.of([text for one in measured for text in (one["instruction"], one["input"])])
        tokenizer = ChatTokenizer.load(model)
        short = [one for one in mixed if len(tokenizer.text_ids(" ".join(one.values()))) <= LONGEST]
        short = [one for one in short if not any(held_out.holds(one[name]) for name in ("instruction", "input"))]
        for name, examples in (("general", measured), ("general_data", short)):
            write_text(folder / f"{name}.jsonl", "".join(json.dumps(one) + "\n" for one in examples))
        return cls(folder / "general.jsonl", folder / "general_data.jsonl")


@dataclass(frozen=True)
class Real:
    """Files of real labelled pairs; each is None if no arm needs it."""

    pandalm: Path | None
    llmbar: Path | None
    evalbiasbench: Path | None

    @property
    def sets(self) -> dict[str, Path]:
        """The evaluation sets, by benchmark."""
        assert self.llmbar is not None and self.evalbiasbench is not None
        return {"llmbar": self.llmbar / "dataset.json", "evalbiasbench": self.evalbiasbench}


@dataclass(frozen=True)
class Seed:
    """One seed of the recipe and of all arms, in a folder."""

    model: str
    seed: int
    folder: Path
    general: General
    real: Real

    def run(self) -> Path:
        """The whole recipe: its folder of stages. The arms base, sft and dpo are its three judges."""
        output = self.folder / "run"
        options = [f"--model={self.model}", f"--output={output}", f"--seed={self.seed}"]
        options += [f"--general.examples={self.general.measured}", f"--general_data={self.general.mixed}"]
        self.judgelit(
            output / "stages/09-export/done.json",
            "run",
            "--config=reproduce/run",
            *options,
            log=output / "run.log",
        )
        for stage in ("04-sft", "07-dpo"):
            forget_checkpoints(output / "stages" / stage)
        return output / "stages"

    @property
    def warm_up(self) -> Path:
        """The warm-up set."""
        return self.run() / "02-warmup/sft.jsonl"

    @property
    def samples(self) -> Path:
        """The enhancement set, sampled from the warm judge."""
        return self.run() / "06-enhancement/dpo.jsonl"

    @property
    def warm_judge(self) -> Path:
        """The judge after the warm-up."""
        return self.run() / "04-sft/model"

    def fit(
        self, arm: str, stage: str, start: str | Path, data: Path | str, *settings: str, mixed: bool = True
    ) -> Path:
        """Train `start` with a configuration of the recipe, `sft` or `dpo`, on some data: the trained model.

        Args:
            arm: Name of the arm, which is its folder.
            stage: The configuration.
            start: Folder of the model.
            data: The training file, or a list of files.
            settings: Options that differ from the configuration.
            mixed: Whether to mix in general data.
        """
        root = self.folder / arm / stage
        options = [f"--config=reproduce/{stage}", f"--model.backbone.name_or_path={start}", f"--data.train={data}"]
        options += [f"--seed_everything={self.seed}", f"--data.seed={self.seed}", f"--trainer.default_root_dir={root}"]
        if mixed:
            options.append(f"--data.general={self.general.mixed}")
        if (root / "checkpoints").exists():
            options.append("--ckpt_path=last")
        model = self.judgelit(root / "model", "fit", *options, *settings, log=root / "fit.log")
        forget_checkpoints(root)
        return model

    def sample(self, arm: str, judge: Path, *settings: str, journal: Path | None = None) -> Path:
        """Make an enhancement set from a judge's samples; with a journal, the answers in it are not asked again."""
        output = self.folder / arm / "dpo.jsonl"
        if journal is not None and not output.exists():
            output.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(journal, f"{output}.journal.sqlite")
        options = [
            "--config=reproduce/enhancement",
            f"--model={judge}",
            f"--pairs={self.run() / '06-enhancement/pairs.jsonl'}",
        ]
        options += [f"--seed={self.seed}", f"--output={output}"]
        return self.judgelit(output, "synthesize", "enhancement", *options, *settings, log=output.with_suffix(".log"))

    def warm_up_of(self, arm: str, pairs: Path, *settings: str) -> Path:
        """Make a warm-up set as the recipe does, with other settings."""
        output = self.folder / arm / "sft.jsonl"
        options = ["--config=reproduce/warmup", f"--tokenizer={self.model}", f"--pairs={pairs}", f"--seed={self.seed}"]
        options += [f"--output={output}"]
        return self.judgelit(output, "synthesize", "warmup", *options, *settings, log=output.with_suffix(".log"))

    def judged_by_warm_judge(self, arm: str, *, filtered: bool) -> Path:
        """A warm-up set of the warm judge's judgments of other pairs: the right ones, or as many of both kinds."""
        folder, pairs = self.folder / "self-judged", self.folder / "self-judged.pairs.jsonl"
        options = [f"--model={self.warm_judge}", f"--pairs={pairs}", f"--output={folder}", "--general=null"]
        if not pairs.exists():
            write_records(pairs, self.new_pairs())
        self.judgelit(folder / "results.json", "evaluate", "--config=reproduce/evaluate", *options, log=folder / "log")
        labels = {pair.id: pair for pair in read_pairs(str(pairs))}
        found = [Judgment.from_dict(row, at) for at, row in read_rows(str(folder / f"{pairs.stem}.judgments.jsonl"))]
        right = [one for one in found if one.verdict == labels[one.pair_id].in_order(one.order).label]
        chosen = right if filtered else random.Random(self.seed).sample(found, len(right))
        output = self.folder / arm / "sft.jsonl"
        write_records(output, [SFTExample(one.prompt, one.text, one.pair_id, {}) for one in chosen])
        return output

    def new_pairs(self) -> list[PreferencePair]:
        """Training pairs of the recipe's kinds and grades, other ones than the recipe's."""
        sources = [TaskPairs(["facts"], [1, 2], 180, 1000 + self.seed, "train")]
        sources.append(TaskPairs(["sums"], [1, 2], 120, 1000 + self.seed, "train", distinct=False))
        return [pair for source in sources for pair in source.read(PreferencePair)]

    def measure(self, arm: str, judge: Path) -> None:
        """Judge all held-out pairs in both orders, and measure general ability, as the recipe does for its judges."""
        output = self.folder / arm / "judged"
        sets = json.dumps({name: str(self.run() / f"01-pairs/{name}.jsonl") for name in SETS})
        options = ["--config=reproduce/evaluate", f"--model={judge}", f"--sets={sets}", f"--output={output}"]
        options.append(f"--general.examples={self.general.measured}")
        self.judgelit(output / "results.json", "evaluate", *options, log=self.folder / arm / "judged.log")

    def attack(self, arm: str, judge: Path) -> None:
        """Attack a judge on the first held-out pairs."""
        output = self.folder / arm / "attacked"
        options = [
            "--config=reproduce/evaluate",
            f"--model={judge}",
            f"--pairs={self.run() / '01-pairs/held_out.jsonl'}",
        ]
        options += [f"--limit={ATTACKED_PAIRS}", f"--attacks={ATTACKS}", "--general=null", f"--output={output}"]
        self.judgelit(output / "results.json", "evaluate", *options, log=self.folder / arm / "attacked.log")

    def judgelit(self, output: Path, *command: str, log: Path) -> Path:
        """Run a command that makes `output`, unless it is there; its time is added to cost.json of the arm."""
        if output.exists():
            return output
        print("judgelit " + shlex.join(command), flush=True)
        log.parent.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        with log.open("a") as file:
            ended = subprocess.run(
                [sys.executable, "-m", "judgelit.cli", *command], check=False, stdout=file, stderr=subprocess.STDOUT
            )
        note_cost(log.parent / "cost.json", command[0], time.monotonic() - began)
        if ended.returncode:
            raise SystemExit(f"{log}: the command failed; mend it and run the same command")
        return output


def example_of(row: dict[str, Any]) -> dict[str, str]:
    """A task of Self-Instruct with its first instance."""
    first = row["instances"][0]
    return {"instruction": row["instruction"], "input": first["input"], "output": first["output"]}


def forget_checkpoints(run: Path) -> None:
    """Delete the checkpoints of a finished training: 1.6 GB each, of a model of 0.5 GB."""
    shutil.rmtree(run / "checkpoints", ignore_errors=True)


def note_cost(path: Path, command: str, seconds: float) -> None:
    """Add the seconds of a command to those of the same command before."""
    costs = json.loads(path.read_text()) if path.exists() else {}
    write_json(path, {**costs, command: costs.get(command, 0) + seconds})


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

    def measure(name: str, about: str, trained: Path | None) -> None:
        scores = {}
        if trained is not None:
            scores["most probable"] = work.compare(start, trained, 1, temperature=0.0)
            scores["sampled"] = work.compare(start, trained, SAMPLES, temperature=1.0)
        print(f"policy, labels of {name}: {about}", flush=True)
        write_json(work.folder / f"{name}.json", {"labels": about, "scores": scores})

    judges = {"dpo": seed.run() / "07-dpo/model", "sft": seed.warm_judge, "base": Path(seed.model)}
    for name, judge in judges.items():
        labels = work.label(judge, answers, work.folder / f"labels-{name}")
        if not labels.stat().st_size:
            measure(name, "no preference: none of its judgments has a verdict that holds in both orders", None)
            continue
        about = work.about_labels(answers, labels)
        measure(name, about, work.train(start, labels, run=f"dpo-{name}"))
        if name == "dpo":
            measure("random", "those of dpo, half of them turned round", work.train_on_random_labels(start, labels))
    for training in work.folder.iterdir():
        forget_checkpoints(training)


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
