"""Results of `judgelit evaluate`, read from their folder; and judgments that were made elsewhere."""

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from judgelit.errors import UserError
from judgelit.evaluation.judged_folder import ATTACKED, ITEMS, JUDGMENTS, RESULTS, BenchmarkSet
from judgelit.evaluation.protocols import find_benchmark, runs_code
from judgelit.evaluation.protocols.benchmark import Benchmark
from judgelit.records.files import data_files, read_rows
from judgelit.records.records import ANSWER_LETTERS, AnswerSet, Judgment, PreferencePair


@dataclass(frozen=True)
class SavedSet(BenchmarkSet):
    """Items of a benchmark with a judge's judgments of them."""

    judgments: Sequence[Judgment]


@dataclass(frozen=True)
class SavedResults:
    """A folder of `judgelit evaluate`."""

    folder: Path
    content: Mapping[str, Any]
    """The content of RESULTS."""
    sets: Mapping[str, SavedSet]
    attacked: Mapping[str, Mapping[str, SavedSet]]
    """The attacked sets with their judgments: {set: {attack: attacked set}}. `AttackedId.of(item.id)` of
    `evaluation.bias.attack` says which pair was attacked, and in which form."""

    @property
    def model(self) -> str:
        """The judge."""
        return str(self.content["model"])


def read_results(folder: Path, named: Collection[str] = ()) -> SavedResults:
    """The results in a folder of `judgelit evaluate`.

    Args:
        folder: The folder.
        named: The benchmarks of the form `FILE.py:NAME` whose code the user wants to run.

    Raises:
        UserError: The folder has none, a file is missing or damaged, or a benchmark is the code of another file.
    """
    path = folder / RESULTS
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        benchmarks = dict(content["benchmarks"])
        attacks = {name: list(of_set) for name, of_set in content.get("attacks", {}).items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{folder}: found no results, expected a folder that `judgelit evaluate` has written"
        ) from error
    sets = {}
    for name, benchmark in benchmarks.items():
        if runs_code(benchmark) and benchmark not in named:
            raise UserError(
                f"{path}: found the benchmark {benchmark!r}, which is Python code that judgelit runs only if you name "
                "it: --benchmark FILE.py:NAME, exactly as here"
            )
        find_benchmark(benchmark)
        sets[name] = _read_set(folder, name, benchmark)
    attacked = {}
    for name, of_set in attacks.items():
        # Some attacks, such as `position`, change no answer, so they have no files.
        files = {attack: ATTACKED.format(name, attack) for attack in of_set}
        changed = {attack: file for attack, file in files.items() if (folder / ITEMS.format(file)).exists()}
        attacked[name] = {attack: _read_set(folder, file, benchmarks[name]) for attack, file in changed.items()}
    return SavedResults(folder, content, sets, attacked)


def read_judgments(path: str, benchmark: Benchmark[Any], items: Sequence[Any]) -> list[Judgment]:
    """Judgments of a benchmark's items that were made elsewhere: judgelit's, or in the benchmark's own form.

    Args:
        path: A file, folder or glob pattern.
        benchmark: The benchmark.
        items: Its items.

    An item that judgelit has read with the judgments, and that has none, was too long for the judge. It is left out
    here too, with a line.

    Raises:
        UserError: A row cannot be read; it is about no item; an item has no judgment, or two in the same order
            with the same number of sample.
    """
    by_id = {item.id: item for item in items}
    judgments: list[Judgment] = []
    seen: set[Any] = set()
    for at, row in read_rows(path):
        if "pair_id" in row and "order" in row:
            found = [Judgment.from_dict(row, at)]
        elif benchmark.judgments is not None:
            found = benchmark.judgments(row, at, by_id)
        else:
            raise UserError(f"{at}: found no field 'pair_id' and 'order', expected judgments that judgelit has written")
        for one in found:
            if one.pair_id not in by_id:
                raise UserError(f"{at}: pair {one.pair_id!r} is not among the {len(by_id)} that were read")
            _refuse_other_order(one, by_id[one.pair_id], at)
            key = (one.pair_id, one.order, one.sample)
            if key in seen:
                raise UserError(
                    f"{at}: pair {one.pair_id!r}: found a second judgment in order {one.order}, expected one"
                )
            seen.add(key)
            judgments.append(one)
    orders = Counter(one.order for one in judgments) if isinstance(items[0], PreferencePair) else Counter([""])
    judged = {(one.pair_id, one.order if isinstance(by_id[one.pair_id], PreferencePair) else "") for one in judgments}
    missing = [(name, order) for name in by_id for order in orders if (name, order) not in judged]
    if missing:
        skipped = _items_beside(path) - {name for name, _ in judged}
        left_out = sorted(skipped & {name for name, _ in missing})
        missing = [one for one in missing if one[0] not in skipped]
        if left_out:
            print(f"{path}: {len(left_out)} of {len(by_id)} pairs are left out, as they were skipped: {left_out[0]!r}")
    if missing:
        name, order = missing[0]
        raise UserError(
            f"{path}: found no judgment of {len({name for name, _ in missing})} of {len(by_id)} pairs, expected one of "
            f"each; the first: {name!r}" + (f" in order {order}" if order else "")
        )
    return judgments


def _items_beside(path: str) -> set[str]:
    """The ids of the items that judgelit has written beside these files of judgments."""
    _, files = data_files(path)
    ending = JUDGMENTS.format("")
    sets = [
        file.with_name(ITEMS.format(file.name.removesuffix(ending))) for file in files if file.name.endswith(ending)
    ]
    return {str(row.get("id")) for file in sets if file.is_file() for _, row in read_rows(str(file))}


def _read_set(folder: Path, name: str, benchmark: str) -> SavedSet:
    items = [_item(row, at) for at, row in read_rows(str(folder / ITEMS.format(name)))]
    judgments = [Judgment.from_dict(row, at) for at, row in read_rows(str(folder / JUDGMENTS.format(name)))]
    return SavedSet(benchmark, items, judgments)


def _refuse_other_order(judgment: Judgment, item: PreferencePair | AnswerSet, at: str) -> None:
    """Reject a judgment that shows answers which its item does not have."""
    if isinstance(item, PreferencePair):
        fits, expected = judgment.order in ("ab", "ba"), "ab or ba"
    else:
        letters = ANSWER_LETTERS[: len(item.answers)]
        fits, expected = set(judgment.order) <= set(letters), f"letters from a to {letters[-1]}"
    if not fits:
        raise UserError(f"{at}: {item.id!r}: found a judgment in order {judgment.order}, expected {expected}")


def _item(row: Mapping[str, Any], at: str) -> PreferencePair | AnswerSet:
    kind: Any = AnswerSet if "answers" in row else PreferencePair
    return kind.from_dict(row, at)
