"""Train a small policy on the labels of the quickstart's judge, each step with the command that a user would type.

    judgelit run --config quickstart/run
    python benchmarks/policy.py [--judge runs/quickstart/export] [--seeds 0 1 2] [--output runs/benchmark-policy]

The policy answers sums of four numbers. Its first training ends while it is still often wrong. It answers questions
several times, the judge compares the answers in both orders, and DPO trains the policy on the judge's preferences.

The judge and the policy's first training have questions of the tasks' training part. The questions that the judge
labels and those that measure the policy are of the held-out part, and no question is among both.

The scorer is not the judge: an answer is right if it is the sum. Claim: sampled answers of the trained policy beat
those of the one before, with a 95% interval of the win rate that excludes one half. The last line is one JSON object:
`ratio` is the smallest win rate over the seeds, each pair is [accuracy after, accuracy before]. The table has the
most probable answers too, which gain less where the policy was nearly always right before.
"""

import argparse
import json
import random
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from side_by_side import environment

from judgelit.evaluation.intervals import Mean, estimates, gains
from judgelit.records.files import write_records
from judgelit.records.records import AnswerSet, PreferenceExample, PreferencePair
from judgelit.records.sources import FileSource, read_pairs
from judgelit.synthesis.tasks.pairs import TaskPairs

SAMPLES = 4
"""Answers to each question that measures a policy."""


@dataclass(frozen=True)
class Setting:
    """A policy: its questions, how it is trained, how it is asked and how the judge is."""

    kind: str
    """Kind of task of the questions."""
    grades: list[int]
    to_label: int
    """Number of questions whose answers the judge labels."""
    answers: int
    """Answers to each of them."""
    to_measure: int
    """Number of questions that measure the policy."""
    first: str
    """Configuration of the first training."""
    dpo: str
    answer_tokens: int
    judging: list[str]
    """Options of `judgelit judge`."""
    batch_size: int


NANO = Setting(
    "sums", [3], 2000, 4, 800, "policy/nano-sft", "policy/nano-dpo", 8, ["--max_new_tokens=72", "--batch_size=256"], 256
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", type=Path, default=Path("runs/quickstart/export"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("runs/benchmark-policy"))
    parser.add_argument("--control", action="store_true", help="also train on the same pairs with labels at random")
    args = parser.parse_args()
    if not args.judge.is_dir():
        raise SystemExit(f"{args.judge}: no such folder; make the judge first: judgelit run --config quickstart/run")

    judged = args.judge.parent / "stages/01-pairs/train.jsonl"
    found = [
        Benchmark(NANO, seed, args.output / f"seed-{seed}", judged).run(args.judge, args.control) for seed in args.seeds
    ]
    print("\n| seed | seconds | answers | accuracy before | accuracy after | gain | wins | losses | win rate |")
    print("|---|---|---|---|---|---|---|---|---|")
    for of_seed in found:
        for name, row in of_seed["scores"].items():
            cells = [percent(row[key]) for key in ("before", "after", "gain")]
            cells += [str(row["wins"]), str(row["losses"]), percent(row["win_rate"])]
            print(f"| {of_seed['seed']} | {of_seed['seconds']:.0f} | {name} | {' | '.join(cells)} |")
    sampled = [of_seed["scores"]["sampled"] for of_seed in found]
    print(
        json.dumps(
            {
                "claim": "policy: win rate of sampled answers after DPO on the judge's labels, smallest over the seeds",
                "ratio": min(row["win_rate"]["value"] for row in sampled),
                "goal": 0.5,
                "smaller_is_better": False,
                "pairs": [[row["after"]["value"], row["before"]["value"]] for row in sampled],
                "environment": {
                    **environment(),
                    "seeds": args.seeds,
                    "win rate, 95% interval": [[row["win_rate"]["low"], row["win_rate"]["high"]] for row in sampled],
                },
            }
        )
    )


class Benchmark:
    """One seed: the policy before and after, in a folder.

    Steps whose output is there are not repeated, so an interrupted benchmark continues.
    """

    def __init__(self, setting: Setting, seed: int, folder: Path, judged: Path | None) -> None:
        """Find the questions.

        Args:
            setting: The policy.
            seed: Seed of questions, weights, batches and samples.
            folder: Folder to write to.
            judged: File of the pairs that the judge was trained on; None: nobody knows them.
        """
        self.setting, self.seed, self.folder = setting, seed, folder
        count = setting.to_label + setting.to_measure
        tasks = TaskPairs([setting.kind], setting.grades, count, seed=seed, part="held_out")
        pairs = tasks.read(PreferencePair)
        self.measured = pairs[setting.to_label :]
        self.results = {pair.question: result(pair.answer_a if pair.label == "A" else pair.answer_b) for pair in pairs}
        if judged is not None:
            self.refuse_known_questions(pairs, judged)
        write_records(folder / "questions.jsonl", pairs[: setting.to_label])
        write_records(folder / "held_out.jsonl", self.measured)

    def refuse_known_questions(self, pairs: list[PreferencePair], file: Path) -> None:
        """Check that the judge was trained on none of the questions."""
        if file.is_file():
            known = {pair.question_key for pair in read_pairs(str(file))}
            if any(pair.question_key in known for pair in pairs):
                raise SystemExit(f"{file}: the judge was trained on a question of this benchmark")

    def run(self, judge: Path, control: bool) -> dict[str, Any]:
        """Train and measure; print what the judge did and what came of it."""
        began = time.monotonic()
        start = self.start()
        answers = self.answer(start, "questions", self.setting.answers)
        labels = self.label(judge, answers, self.folder / "labels")
        trained = self.train(start, labels)
        scores = {
            "most probable": self.compare(start, trained, 1, temperature=0.0),
            "sampled": self.compare(start, trained, SAMPLES, temperature=1.0),
        }
        seconds = time.monotonic() - began
        print(f"seed {self.seed}: {self.about_labels(answers, labels)}", flush=True)
        if control:
            scores["most probable, labels at random"] = self.compare(
                start, self.train_on_random_labels(start, labels), 1, temperature=0.0
            )
        return {"seed": self.seed, "seconds": seconds, "scores": scores}

    def start(self, *settings: str) -> Path:
        """The policy after its first training."""
        questions = f"--data.train.init_args.tasks.init_args.seed={self.seed}"
        return self.fit(self.setting.first, *settings, questions)

    def train(self, start: Path, labels: Path, run: str | None = None) -> Path:
        """The policy after DPO on labels."""
        settings = [f"--model.backbone.name_or_path={start}", f"--data.train={labels}"]
        return self.fit(self.setting.dpo, *settings, run=run)

    def fit(self, config: str, *settings: str, run: str | None = None) -> Path:
        """Train with a shipped configuration; the folder of the trained model."""
        root = self.folder / (run or config.split("/")[-1])
        seeds = [f"--seed_everything={self.seed}", f"--data.seed={self.seed}"]
        return self.judgelit(
            root / "model", "fit", "--config", config, *settings, *seeds, f"--trainer.default_root_dir={root}"
        )

    def answer(self, policy: Path, name: str, samples: int, temperature: float = 1.0) -> Path:
        """Ask a policy; the file of its answers."""
        output = self.folder / f"{policy.parent.name}.{name}.{samples}.jsonl"
        settings = [f"--samples={samples}", f"--temperature={temperature}"]
        settings += [f"--max_new_tokens={self.setting.answer_tokens}", f"--batch_size={self.setting.batch_size}"]
        questions = f"--prompts={self.folder / name}.jsonl"
        where = [f"--output={output}", f"--seed={self.seed}"]
        return self.judgelit(output, "answer", f"--model={policy}", questions, *settings, *where)

    def label(self, judge: Path, answers: Path, folder: Path) -> Path:
        """Have a judge compare the answers; the file of preferences."""
        return self.judgelit(
            folder / "preferences.jsonl",
            "judge",
            f"--model={judge}",
            f"--answers={answers}",
            "--as=preferences",
            *self.setting.judging,
            f"--output={folder}",
        )

    def judgelit(self, output: Path, *command: str) -> Path:
        """Run a command that makes `output`, unless it is there."""
        if not output.exists():
            print("judgelit " + " ".join(command), flush=True)
            ended = subprocess.run(
                [sys.executable, "-m", "judgelit.cli", *command], check=False, capture_output=True, text=True
            )
            # A judge that never gives a verdict is an error of the command, which then has written no preference.
            if ended.returncode and not output.exists():
                raise SystemExit(ended.stderr)
            if command[0] in ("answer", "judge"):
                print(ended.stdout, flush=True)
        return output

    def about_labels(self, answers: Path, labels: Path) -> str:
        """How often the judge's preferences are right, by the results."""
        sets, preferences = FileSource(str(answers)).read(AnswerSet), FileSource(str(labels)).read(PreferenceExample)
        different = sum(len({answer for answer in one.answers if answer}) > 1 for one in sets)
        one_right = [
            is_right
            for example in preferences
            if (is_right := self.is_right(example, example.chosen)) or self.is_right(example, example.rejected)
        ]
        return (
            f"{different} of {len(sets)} questions have different answers; {len(preferences)} preferences, "
            f"{len(one_right)} of them between a right and a wrong answer, {sum(one_right)} of these are right"
        )

    def is_right(self, example: PreferenceExample, answer: str) -> bool:
        """Whether an answer to an example's question has the right result."""
        return result(answer) == self.results[example.messages[-1]["content"]]

    def train_on_random_labels(self, start: Path, labels: Path) -> Path:
        """Train on the judge's preferences, half of them turned round at random."""
        rng = random.Random(self.seed)
        turned = [
            PreferenceExample(one.messages, *rng.sample([one.chosen, one.rejected], 2), one.meta)
            for one in FileSource(str(labels)).read(PreferenceExample)
        ]
        write_records(self.folder / "random.jsonl", turned)
        return self.train(start, self.folder / "random.jsonl", run="random-labels")

    def compare(self, start: Path, trained: Path, samples: int, temperature: float) -> dict[str, Any]:
        """Accuracy of two policies on the measured questions, and the win rate of the second one; ties count half."""
        before, after = (self.right(policy, samples, temperature) for policy in (start, trained))
        questions = np.repeat(np.arange(len(self.measured)), samples)
        first, second = ({"accuracy": [Mean(right, questions)]} for right in (before, after))
        won = 0.5 + (after.astype(float) - before) / 2
        return {
            "before": estimates(first)["accuracy"].to_dict(),
            "after": estimates(second)["accuracy"].to_dict(),
            "gain": gains(first, second)["accuracy"].to_dict(),
            "wins": int((after & ~before).sum()),
            "losses": int((before & ~after).sum()),
            "win_rate": estimates({"won": [Mean(won, questions)]})["won"].to_dict(),
        }

    def right(self, policy: Path, samples: int, temperature: float) -> np.ndarray:
        """Whether each answer to the measured questions is right, [questions * samples] bool."""
        sets = FileSource(str(self.answer(policy, "held_out", samples, temperature))).read(AnswerSet)
        return np.array([result(answer) == self.results[one.question] for one in sets for answer in one.answers])


def result(answer: str) -> str:
    """The result that an answer gives: the answer without the words around it."""
    return re.sub(r"^(The answer is|It is) |\.$", "", answer.strip())


def percent(found: dict[str, float]) -> str:
    return f"{100 * found['value']:.1f} [{100 * found['low']:.1f}, {100 * found['high']:.1f}]"


if __name__ == "__main__":
    main()
