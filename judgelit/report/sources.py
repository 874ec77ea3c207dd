"""What a report shows: the judges and the training curves of run folders and of folders with results."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from judgelit.errors import UserError
from judgelit.evaluation.calibration import calibrate
from judgelit.evaluation.intervals import Estimate
from judgelit.evaluation.judged_folder import RESULTS
from judgelit.evaluation.protocols.pairs import PAIRS
from judgelit.evaluation.saved import SavedSet, read_results
from judgelit.evaluation.votes import samples_by_prompt
from judgelit.records.files import read_rows
from judgelit.records.records import Judgment, PreferencePair
from judgelit.report.curves import Fit, read_fits
from judgelit.yaml_files import read_text

JUDGED = {"base": "03-base", "sft": "05-sft-judged", "dpo": "08-dpo-judged"}
"""The judges of a run, each with the stage that has its judgments."""
_PAIRS = "01-pairs"
"""The stage with the sets of pairs."""
Figures = Mapping[str, Estimate]
"""{metric: estimate}"""


@dataclass(frozen=True)
class Judge:
    """A judge with its judgments and its figures; in a run, a judge is a stage."""

    name: str
    sets: Mapping[str, SavedSet]
    figures: Mapping[str, Figures]
    """By set."""
    groups: Mapping[str, Mapping[str, Mapping[str, Figures]]]
    """By set, field (category or subset) and name of the group."""
    calibration: Mapping[str, Mapping[str, Any]]
    """By set, as `Calibration.to_dict` writes it."""
    attacks: Mapping[str, Mapping[str, Figures]] = field(default_factory=dict)
    """By set and attack."""
    attacked: Mapping[str, Mapping[str, SavedSet]] = field(default_factory=dict)
    """The attacked pairs and the judgments of them, by set and attack."""
    votes: Mapping[str, Figures] = field(default_factory=dict)
    """The shares of `vote_shares`, of the sets with several judgments of each prompt."""
    general: Figures = field(default_factory=dict)
    against: Mapping[str, Any] = field(default_factory=dict)
    """The comparison with another judge, as `Against.to_dict` writes it."""

    def with_set_names(self, names: Mapping[str, str]) -> "Judge":
        """The same judge with other names of its sets: {name: new name}."""

        def renamed(by_set: Mapping[str, Any]) -> dict[str, Any]:
            return {names.get(name, name): one for name, one in by_set.items()}

        return replace(
            self,
            sets=renamed(self.sets),
            figures=renamed(self.figures),
            groups=renamed(self.groups),
            calibration=renamed(self.calibration),
            attacks=renamed(self.attacks),
            attacked=renamed(self.attacked),
            votes=renamed(self.votes),
            against={**self.against, "sets": renamed(self.against.get("sets", {}))},
        )


@dataclass(frozen=True)
class Reported:
    """A folder that a report shows."""

    folder: Path
    version: str
    """The version of judgelit that has written the results."""
    judges: Sequence[Judge]
    gains: Sequence[Mapping[str, Any]] = ()
    """Gains between the judges of a run, as `results.json` has them."""
    cost: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Seconds, tokens and peak memory in bytes, by stage."""
    fits: Sequence[Fit] = ()
    settings: str = ""
    """The settings as text."""

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.folder.resolve().name


def read_reported(path: Path, benchmarks: Collection[str] = ()) -> Reported:
    """The results of a run, of a run that has not ended, or of an evaluation.

    Args:
        path: The folder, or the file `results.json` in it.
        benchmarks: The benchmarks of the form `FILE.py:NAME` whose code the user wants to run.

    Raises:
        UserError: The folder is neither, or a file is damaged.
    """
    folder = path.parent if path.name == RESULTS else path
    if (folder / "config.yaml").is_file() and (folder / "stages").is_dir():
        content = _read_json(folder / RESULTS) if (folder / RESULTS).exists() else {}
    elif (folder / RESULTS).is_file():
        content = _read_json(folder / RESULTS)
    else:
        what = "no folder" if not folder.is_dir() else f"no {RESULTS}"
        raise UserError(
            f"{path}: found {what}, expected a folder that `judgelit run` or `judgelit evaluate` has written; "
            "give the value of its --output"
        )
    try:
        return _evaluated(folder, benchmarks) if "benchmarks" in content else _run(folder, content)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(
            f"{folder / RESULTS}: found content of another form ({type(error).__name__}: {error}), expected what "
            "`judgelit run` or `judgelit evaluate` has written; run that command again"
        ) from error


def votes_of(of_set: SavedSet) -> int:
    """Number of judgments of each prompt of a set, the largest if they differ."""
    return max(map(len, samples_by_prompt(of_set.judgments).values()), default=1)


def name_apart(found: Sequence[Reported]) -> list[Judge]:
    """All judges, each with a name of its own: judges of the same name also get the name of their folder."""
    judges = [(one, judge) for one in found for judge in one.judges]
    names = [judge.name for _, judge in judges]
    named: list[Judge] = []
    for one, judge in judges:
        name = judge.name if names.count(judge.name) == 1 else f"{one.name}: {judge.name}"
        taken = {other.name for other in named}
        number = next(number for number in range(1, len(judges) + 1) if _numbered(name, number) not in taken)
        named.append(replace(judge, name=_numbered(name, number)))
    return named


def name_sets_apart(found: Sequence[Reported]) -> list[Reported]:
    """The same results; sets of one name that belong to two benchmarks also get the name of their benchmark."""
    benchmarks: dict[str, set[str]] = {}
    for name, of_set in ((name, one) for each in found for judge in each.judges for name, one in judge.sets.items()):
        benchmarks.setdefault(name, set()).add(of_set.name)

    def apart(one: Reported) -> Reported:
        names = {
            name: f"{name} ({of_set.name})" if len(benchmarks[name]) > 1 else name
            for judge in one.judges
            for name, of_set in judge.sets.items()
        }
        gains = [{**gain, "set": names.get(gain["set"], gain["set"])} for gain in one.gains]
        return replace(one, judges=[judge.with_set_names(names) for judge in one.judges], gains=gains)

    return [apart(one) for one in found]


def _numbered(name: str, number: int) -> str:
    return name if number == 1 else f"{name} ({number})"


def _run(folder: Path, content: Mapping[str, Any]) -> Reported:
    judges = []
    for name, by_set in content.get("stages", {}).items():
        sets = {
            of_set: SavedSet(
                "pairs",
                [PreferencePair.from_dict(row, at) for at, row in _rows(folder, _PAIRS, of_set)],
                [Judgment.from_dict(row, at) for at, row in _rows(folder, JUDGED[name], of_set)],
            )
            for of_set in by_set
        }
        found = {of_set: calibrate(one.items, one.judgments) for of_set, one in sets.items()}
        judges.append(
            Judge(
                name,
                sets,
                {of_set: _figures(figures) for of_set, figures in by_set.items()},
                {of_set: PAIRS.estimates_by_group(one.items, one.judgments) for of_set, one in sets.items()},
                {of_set: one.to_dict() for of_set, one in found.items() if one is not None},
                general=_figures(content.get("general", {}).get(name, {})),
            )
        )
    return Reported(
        folder,
        str(content.get("judgelit", "")),
        judges,
        content.get("gains", []),
        content.get("cost", {}),
        read_fits(folder / "stages"),
        read_text(folder / "config.yaml"),
    )


def _evaluated(folder: Path, benchmarks: Collection[str]) -> Reported:
    saved = read_results(folder, benchmarks)
    content = saved.content
    judge = Judge(
        saved.model,
        saved.sets,
        {name: _figures(figures) for name, figures in content["sets"].items()},
        {
            name: {by: {group: _figures(one) for group, one in of.items()} for by, of in by_field.items()}
            for name, by_field in content["groups"].items()
        },
        content.get("calibration", {}),
        {
            name: {attack: _figures(one) for attack, one in attacks.items()}
            for name, attacks in content.get("attacks", {}).items()
        },
        saved.attacked,
        {name: _figures(shares) for name, shares in content.get("votes", {}).items()},
        _figures(content.get("general", {})),
        content.get("against", {}),
    )
    settings = json.dumps(content.get("settings", {}), indent=1, ensure_ascii=False)
    return Reported(folder, str(content.get("judgelit", "")), [judge], settings=settings)


def _figures(figures: Mapping[str, Any]) -> dict[str, Estimate]:
    return {metric: Estimate.from_dict(found) for metric, found in figures.items()}


def _rows(folder: Path, stage: str, name: str) -> Any:
    return read_rows(str(folder / "stages" / stage / f"{name}.jsonl"))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}); run the command that wrote it again") from error
    if not isinstance(content, dict) or not {"stages", "benchmarks"} & set(content):
        raise UserError(f"{path}: found no results, expected those of `judgelit run` or `judgelit evaluate`")
    return content
