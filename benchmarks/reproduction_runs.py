"""The judgments, samples and logs that the runs of the reproduction have kept, for its tables and plots."""

import json
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from reproduction import ARMS
from reproduction_seed import SETS

from judgelit.evaluation.intervals import Estimate, Metric
from judgelit.evaluation.protocols.pairs import PAIRS
from judgelit.records.files import read_rows
from judgelit.records.records import Judgment, PreferencePair
from judgelit.records.sources import read_pairs

STAGES = {"base": ("", "03-base"), "sft": ("04-sft", "05-sft-judged"), "dpo": ("07-dpo", "08-dpo-judged")}
"""Arms that are judges of `judgelit run`: the stages that have trained and judged them."""
KEPT = (
    "machine.json",
    *(f"run/stages/01-pairs/{name}.jsonl" for name in SETS),
    "run/stages/06-enhancement/dpo.jsonl",
    *(f"run/stages/{stage}/*.json*" for stage in ("03-base", "05-sft-judged", "08-dpo-judged")),
    *(f"run/stages/{stage}/{file}" for stage in ("04-sft", "07-dpo") for file in ("done.json", "csv/*/metrics.csv")),
    "*/judged/*.json*",
    "*/attacked/results.json",
    "*/*/fit.json",
    "*/*/cost.json",
    "*/*/csv/*/metrics.csv",
    "real-sets/*/results.json",
    "policy/*.json",
)
"""Files of a seed that the tables and plots are made of, and the answers and losses behind the general figures."""
MAIN = "consistent_accuracy"
"""The metric of the claims: right in both orders."""


@dataclass(frozen=True)
class Judged:
    """One arm of one seed."""

    seed: int
    judgments: Mapping[str, Sequence[Judgment]]
    """By set."""
    general: Mapping[str, Estimate]
    attacks: Mapping[str, Any]
    """By attack, on the set that was attacked; empty if none was."""
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

    @property
    def kinds(self) -> list[str]:
        """Kinds of task of the held-out pairs."""
        return sorted({pair.category for sets in self.pairs.values() for pair in sets["held_out"]})

    @property
    def attacked(self) -> list[tuple[str, Judged]]:
        """The arms that were attacked, each seed of them."""
        return [(arm, one) for arm, found in self.arms.items() for one in found if one.attacks]

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


def seed_of(folder: Path) -> int:
    return int(folder.name.removeprefix("seed-"))


def read_judgments(file: Path) -> list[Judgment]:
    return [Judgment.from_dict(row, at) for at, row in read_rows(str(file))]


def read_general(content: Mapping[str, Any]) -> dict[str, Estimate]:
    return {name: Estimate.from_dict(found) for name, found in content.items()}


def read_attacks(file: Path) -> dict[str, Any]:
    """Results of the attacks on the one set that is attacked."""
    (found,) = read_json(file).get("attacks", {"": {}}).values()
    return found


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
        read_attacks(of_seed / arm / "attacked/results.json"),
        cost,
        trained if STAGES[arm][0] else None,
    )


def read_arm(of_seed: Path, arm: str) -> Judged | None:
    """An arm beside the recipe."""
    judged = of_seed / arm / "judged"
    if not (judged / "results.json").is_file():
        return None
    (fit,) = (of_seed / arm).glob("*/fit.json")
    return Judged(
        seed_of(of_seed),
        {name: read_judgments(judged / f"{name}.judgments.jsonl") for name in SETS},
        read_general(read_json(judged / "results.json").get("general", {})),
        read_attacks(of_seed / arm / "attacked/results.json"),
        {**read_json(fit), "seconds": read_json(fit.parent / "cost.json")["fit"]},
        fit.parent,
    )


@contextmanager
def opened(runs: Path) -> Iterator[Path]:
    """The folder of runs; an archive of `keep` is unpacked into a temporary one."""
    if not runs.is_file():
        yield runs
        return
    with tempfile.TemporaryDirectory() as folder, tarfile.open(runs) as archive:
        archive.extractall(folder, filter="data")
        yield Path(folder)


def keep(runs: Path, file: Path) -> None:
    """Write the files that the tables and plots are made of to an archive, without users and times."""
    found = {one for pattern in KEPT for one in runs.glob(f"seed-*/{pattern}")}
    with tarfile.open(file, "w:xz") as archive:
        for one in sorted(found):
            archive.add(one, one.relative_to(runs), filter=anonymous)


def anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    return member.replace(uid=0, gid=0, uname="", gname="", mtime=0, deep=False)
