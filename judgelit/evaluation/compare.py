"""Two judges of the same items compared: how much better one is, and how often their verdicts differ."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from judgelit.console import printable
from judgelit.errors import UserError
from judgelit.evaluation.agreement import cohens_kappa, mcnemar
from judgelit.evaluation.intervals import Estimate, Gain, Mean, Metric, as_json, estimates
from judgelit.evaluation.judged_folder import BenchmarkSet, flat_settings
from judgelit.evaluation.metrics import question_numbers
from judgelit.evaluation.saved import SavedResults, read_results
from judgelit.evaluation.tables import print_rows, show, show_gain
from judgelit.evaluation.votes import majorities, winner_of
from judgelit.records.records import AnswerSet, Judgment, PreferencePair

Key = tuple[str, str]
"""A prompt: the id of its item and its order."""
_OF_SETS = ("benchmarks.", "pairs.")
"""Settings that say which sets there are, which may be more in the other folder."""


@dataclass(frozen=True)
class Discordant:
    """Cases in which just one of two judges is right, with McNemar's exact test."""

    only_this: int
    only_other: int

    @property
    def p(self) -> float:
        """Two-sided. The test takes cases as independent; two orders of a pair, or pairs of a question, are not."""
        return mcnemar(self.only_other, self.only_this)

    def to_dict(self) -> dict[str, float]:
        """Fields as JSON values."""
        return {"only_this": self.only_this, "only_other": self.only_other, "p": self.p}


@dataclass(frozen=True)
class Comparison:
    """A judge against another one on one set, of the prompts that both have judged."""

    shown: Mapping[str, str]
    """The metrics of printed tables and their column headings, the most important one first."""
    this: Mapping[str, Estimate]
    other: Mapping[str, Estimate]
    gains: Mapping[str, Gain]
    """From the other judge to this one."""
    tests: Mapping[str, Discordant]
    """`judgments`: a case is a judgment. `both_orders`: a case is an item that was judged in several orders, and right
    means right in all of them. Items without a right answer, such as pairs labelled tie, are in none."""
    figures: Mapping[str, Estimate]
    """`flip_rate`: share of judgments with another verdict. `kappa`: Cohen's kappa of the verdicts as the judges saw
    the answers, where no verdict is a class too; not of ratings."""
    judgments: int
    """Number of prompts that both have judged."""
    left_out: int
    """Number of prompts that only one of them has judged."""

    def to_dict(self) -> dict[str, Any]:
        """Fields as JSON values."""
        return {
            "gains": {name: gain.to_dict() for name, gain in self.gains.items()},
            "mcnemar": {name: test.to_dict() for name, test in self.tests.items()},
            **as_json(self.figures),
            "judgments": self.judgments,
            "left_out": self.left_out,
        }

    def __str__(self) -> str:
        name, heading = next(iter(self.shown.items()))
        gain, flips = self.gains[name], self.figures["flip_rate"]
        if math.isnan(gain.value):
            parts = [f"{heading} is undefined"]
        elif abs(gain.value) < 1e-12:
            parts = [f"{heading} is the same"]
        else:
            way = "higher" if gain.value > 0 else "lower"
            parts = [f"{heading} is {way} than the other judge's: {show_gain(gain)}"]
        if flips.value == 0:
            parts.append(f"none of {self.judgments} judgments has another verdict")
        else:
            kappa = self.figures.get("kappa")
            agreement = "" if kappa is None or math.isnan(kappa.value) else f" (kappa {kappa.value:.2f})"
            parts.append(f"{show(flips)} of {self.judgments} judgments have another verdict{agreement}")
            for case, found in self.tests.items():
                right = "judgments that are right" if case == "judgments" else "pairs that are right in both orders"
                parts.append(
                    f"{right} only here: {found.only_this}, only there: {found.only_other} (McNemar p {found.p:.2g})"
                )
        if self.left_out:
            parts.append(f"{self.left_out} judgments that only one of them has are left out")
        return "; ".join(parts)

    def rows(self, name: str) -> Iterator[tuple[str, ...]]:
        """Rows of the printed table: set, metric, the other judge, this judge, difference."""
        for metric, heading in self.shown.items():
            yield (name, heading, show(self.other[metric]), show(self.this[metric]), show_gain(self.gains[metric]))


@dataclass(frozen=True)
class Against:
    """A judge against another one, on all sets."""

    other: SavedResults
    settings: Mapping[str, tuple[Any, Any]]
    """Settings that differ, by name: that of the other judge and that of this one."""
    sets: Mapping[str, Comparison]

    def to_dict(self) -> dict[str, Any]:
        """Fields as JSON values."""
        return {
            "model": self.other.model,
            "folder": str(self.other.folder),
            "settings": {name: list(values) for name, values in self.settings.items()},
            "sets": {name: comparison.to_dict() for name, comparison in self.sets.items()},
        }

    def print(self) -> None:
        """Print what was compared, a table, and a sentence for each set."""
        print(f"compared with {printable(self.other.model)} in {self.other.folder}")
        for name, (there, here) in self.settings.items():
            print(f"  {name}: {there} there, {here} here")
        headings = ("set", "metric", "other judge", "this judge", "difference")
        print_rows(headings, [row for name, one in self.sets.items() for row in one.rows(name)])
        for name, one in self.sets.items():
            print(f"{name}: {one}")


def read_other(folder: Path, output: Path, sets: Mapping[str, BenchmarkSet]) -> SavedResults:
    """The results of another judge of the same sets.

    Args:
        folder: Its folder, which `judgelit evaluate` has written.
        output: The folder of this judge.
        sets: What this judge judges.

    Raises:
        UserError: The folder has no results, or not of these sets and items.
    """
    if folder.resolve() == output.resolve():
        raise UserError(f"against: found {folder}, the folder of these results, expected that of another judge")
    if not sets:
        raise UserError("against: found no pairs to judge, expected some; general ability is not compared")
    other = read_results(folder, {of_set.name for of_set in sets.values()})
    if missing := [name for name in sets if name not in other.sets]:
        there = ", ".join(other.sets) or "none"
        raise UserError(
            f"against: {folder}: found the sets {there}, expected {', '.join(missing)} too; judge the same sets"
        )
    for name, mine in sets.items():
        theirs = other.sets[name]
        if theirs.name != mine.name:
            raise UserError(f"against: {folder}: {name}: found the benchmark {theirs.name}, expected {mine.name}")
        before, now = ({item.id: item for item in items} for items in (theirs.items, mine.items))
        different = [item for item in {**before, **now} if before.get(item) != now.get(item)]
        if different:
            raise UserError(
                f"against: {folder}: {name}: found {len(different)} of {len({**before, **now})} pairs that differ, "
                f"expected the same pairs; the first: {different[0]!r}"
            )
    return other


def compare_with(
    other: SavedResults,
    sets: Mapping[str, BenchmarkSet],
    judgments: Mapping[str, Sequence[Judgment]],
    settings: Mapping[str, Any],
) -> Against:
    """Compare a judge with another one.

    Args:
        other: The results of the other judge, as `read_other` has returned them.
        sets: What both have judged.
        judgments: The judgments of this judge, by set.
        settings: The settings of this judge.

    Raises:
        UserError: The judges have no prompt of a set in common.
    """
    compared = {}
    for name, of_set in sets.items():
        found = compare(of_set, other.sets[name].judgments, judgments[name])
        if found is None:
            raise UserError(
                f"against: {other.folder}: {name}: found no judgment of the same pair in the same order, expected some"
            )
        compared[name] = found
    there, here = flat_settings(other.content.get("settings", {})), flat_settings(settings)
    differ = {
        name: (there.get(name), here.get(name)) for name in {**there, **here} if there.get(name) != here.get(name)
    }
    return Against(other, {name: both for name, both in differ.items() if not name.startswith(_OF_SETS)}, compared)


def compare(of_set: BenchmarkSet, before: Sequence[Judgment], after: Sequence[Judgment]) -> Comparison | None:
    """A judge against another one on a set; of several samples of a prompt the majority counts.

    Args:
        of_set: What both have judged.
        before: The judgments of the other judge.
        after: The judgments of this judge.

    Returns:
        The comparison, or None if they have no prompt in common.
    """
    theirs, mine = ({(one.pair_id, one.order): one for one in majorities(found)} for found in (before, after))
    common = [key for key in mine if key in theirs]
    if not common:
        return None
    benchmark = of_set.benchmark
    old, new = [theirs[key] for key in common], [mine[key] for key in common]
    return Comparison(
        benchmark.shown,
        benchmark.estimates(of_set.items, new),
        benchmark.estimates(of_set.items, old),
        benchmark.gains(of_set.items, old, new),
        _tests(of_set.items, theirs, mine, common),
        estimates(_differences(of_set.items, old, new)),
        len(common),
        len({*theirs, *mine}) - len(common),
    )


def _differences(items: Sequence[Any], old: Sequence[Judgment], new: Sequence[Judgment]) -> dict[str, Metric]:
    """Flip rate and kappa of the judgments of two judges, each of the same prompts."""
    numbers = question_numbers(items)
    questions = np.array([numbers[one.pair_id] for one in new])
    classes: dict[str | None, int] = {}
    there, here = (np.array([classes.setdefault(one.verdict, len(classes)) for one in found]) for found in (old, new))
    found: dict[str, Metric] = {"flip_rate": [Mean(there != here, questions)]}
    if all(len(one.order) > 1 for one in new):
        found["kappa"] = cohens_kappa(there, here, len(classes), questions)
    return found


def _tests(
    items: Sequence[Any], theirs: Mapping[Key, Judgment], mine: Mapping[Key, Judgment], common: Sequence[Key]
) -> dict[str, Discordant]:
    """McNemar's test on judgments, and on items that were judged in several orders."""
    by_id = {item.id: item for item in items}
    cases: list[tuple[bool, bool]] = []
    by_item: dict[str, list[tuple[bool, bool]]] = {}
    for key in common:
        before, after = (_is_right(by_id[key[0]], found[key]) for found in (theirs, mine))
        if before is not None and after is not None:
            cases.append((before, after))
            by_item.setdefault(key[0], []).append((before, after))
    in_all = [
        (all(before for before, _ in of_item), all(after for _, after in of_item))
        for of_item in by_item.values()
        if len(of_item) > 1
    ]
    named = {"judgments": cases, "both_orders": in_all}
    return {
        name: Discordant(found.count((False, True)), found.count((True, False)))
        for name, found in named.items()
        if found
    }


def _is_right(item: PreferencePair | AnswerSet, judgment: Judgment) -> bool | None:
    """Whether a verdict names the right answer; None if the item has none, or the verdict is a rating."""
    if isinstance(item, PreferencePair):
        return None if item.label == "tie" else winner_of(judgment) == item.label
    if len(judgment.order) == 1 or not item.right:
        return None
    if judgment.verdict is None or judgment.verdict == "tie":
        return False
    shown = judgment.order[ord(judgment.verdict) - ord("A")]
    return ord(shown) - ord("a") in item.right
