"""One seed of the reproduction: the recipe, and the steps that an arm is made of, each a command of judgelit.

`reproduction.py` makes the arms of these steps. A step whose output is there is not repeated.
"""

import json
import random
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from judgelit.atomic import write_json, write_text
from judgelit.batches.tokenizer import ChatTokenizer
from judgelit.records.files import read_rows, write_records
from judgelit.records.records import Judgment, PreferencePair, SFTExample
from judgelit.records.sources import read_pairs
from judgelit.synthesis.decontamination import EvaluationSet
from judgelit.synthesis.tasks.pairs import TaskPairs

SETS = ("held_out", "harder", "new_kinds")
"""The sets of held-out pairs of configs/reproduce/run.yaml."""
ATTACKS = "[injection, forged_verdict, null_answer, master_key]"
ATTACKED_PAIRS = 20
LONGEST = 160
"""Tokens of the longest general example to train on."""


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
        found = [Judgment.from_dict(row, at) for at, row in read_rows(str(folder / f"{folder.name}.judgments.jsonl"))]
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
