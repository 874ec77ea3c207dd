"""Preference pairs whose label is known because the answer can be computed, and judgments that show the computation.

The id of a pair contains its kind, difficulty, seed and index, which determine the whole pair.
"""

import hashlib
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count as count_up
from itertools import cycle
from pathlib import Path
from typing import Literal, TypeVar, cast, get_args

from judgelit.commands import call
from judgelit.errors import UserError
from judgelit.records.files import refuse_unknown_suffix, write_records
from judgelit.records.records import Label, PreferencePair, Record
from judgelit.records.sources import Source
from judgelit.synthesis.tasks.kinds import KINDS, Problem

SOURCE = "judgelit-tasks"
Part = Literal["all", "train", "held_out"]
ANSWERS: tuple[Label, Label] = ("A", "B")
R = TypeVar("R", bound=Record)
_ID = re.compile(r"(?P<kind>[a-z_]+)-d(?P<difficulty>\d+)-s(?P<seed>-?\d+)-(?P<index>\d+)")
_REPEATS = 2000
"""After this many repeated questions in a row that are not wanted, a kind is taken to have no other questions."""
_MOST_PAIRS = 10_000_000
"""Most pairs of a source; all are in memory at once."""
_OPENINGS = (
    "I work the question out first.",
    "First the right answer has to be found.",
    "Before looking at the answers, I solve the task.",
)
_CLOSINGS = (
    "Answer {} is the better one.",
    "So answer {} is better.",
    "Answer {} is right and the other one is not.",
)


def make_pair(kind: str, difficulty: int, seed: int, index: int) -> PreferencePair:
    """Pair number `index` of a kind, difficulty and seed. It is the same on every machine."""
    return _make(kind, difficulty, seed, index)[0]


def worked_judgment(pair: PreferencePair, short: bool = False) -> str:
    """Judgment of a pair from `make_pair`, for the present order of its answers.

    It solves the question, compares answer A and then answer B with the result, and ends with the verdict.

    Args:
        pair: The pair.
        short: In as few words as possible; otherwise in sentences.

    Raises:
        UserError: The id is not the id of a task, or makes another pair.
    """
    found = _ID.fullmatch(pair.id)
    if not found:
        raise UserError(
            f"pair {pair.id!r}: found an id that is not the id of a task, expected one like "
            "'sorting-d2-s0-17'; only tasks have a worked judgment"
        )
    made, problem = _make(found["kind"], int(found["difficulty"]), int(found["seed"]), int(found["index"]))
    if _content(pair) not in (_content(made), _content(made.swapped())):
        raise UserError(
            f"pair {pair.id!r}: its question, answers or label are not those that its id makes, perhaps because "
            "another version of judgelit wrote it; make the tasks again"
        )
    first, second = problem.check_correct, problem.check_wrong
    if pair.label == "B":
        first, second = second, first
    if KINDS[made.category].terse:
        return f"{problem.steps}\nA:{first.short}\nB:{second.short} [[{pair.label}]]"
    if short:
        return f"{problem.steps}\nA: {first.short}\nB: {second.short}\n[[{pair.label}]]"
    style = random.Random(f"{SOURCE}/judgment/{pair.id}")
    opening, closing = style.choice(_OPENINGS), style.choice(_CLOSINGS)
    return "\n\n".join(
        [
            f"{opening}\n{problem.steps}",
            f"Answer A: {first.sentences}",
            f"Answer B: {second.sentences}",
            f"{closing.format(pair.label)}\n[[{pair.label}]]",
        ]
    )


@dataclass(frozen=True)
class TaskPairs(Source):
    """Source of verifiable tasks, with equal numbers of each kind, difficulty and label."""

    kinds: list[str]
    """Kinds of task: arithmetic, constraints, counting, dates, facts, sorting, strings, sums, tracing."""
    difficulties: list[int]
    """Difficulties, 1 (short and small) to 5 (long and large)."""
    count: int
    """Number of pairs, spread evenly over kinds and difficulties."""
    seed: int | None = None
    """Seed of the pairs. Default: the seed of the run if there is one, otherwise 0."""
    part: Part = "all"
    """train or held_out: no question is in both, for any seeds. all: both parts."""
    distinct: bool = True
    """Ask no question twice. If false, small kinds may repeat a question, mostly with another wrong answer."""
    held_out_share: float = 0.1
    """Share of the questions that is held out. Sources are disjoint only if they have the same share."""
    weight: float = 1.0
    """Passes over this source in one epoch."""

    def __post_init__(self) -> None:
        for name in ("kinds", "difficulties"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise UserError(f"tasks: {name} is {values}; expected at least one, and none twice")
        for kind, difficulty in self._cells():
            _check(kind, difficulty)
        if not 1 <= self.count <= _MOST_PAIRS:
            raise UserError(f"tasks: count is {self.count}; expected 1 to {_MOST_PAIRS}")
        if self.part not in get_args(Part):
            raise UserError(f"tasks: part is {self.part!r}; expected one of {', '.join(get_args(Part))}")
        if not 0 < self.held_out_share < 1:
            raise UserError(f"tasks: held_out_share is {self.held_out_share}; expected a share between 0 and 1")

    def read(self, kind: type[R]) -> list[R]:
        """The pairs, alternating between kinds and difficulties."""
        if kind is not PreferencePair:
            raise UserError(f"tasks: they are read as PreferencePair, not as {kind.__name__}")
        cells = self._cells()
        seen: set[str] = set()
        streams = [self._stream(*cell, seen) for cell in cells]
        places = self._places(cells)
        pairs: list[PreferencePair] = []
        for number in range(self.count):
            done, at = divmod(number, len(cells))
            pair = next(streams[at], None)
            if pair is None:
                name, difficulty = cells[at]
                raise UserError(
                    f"tasks: {name} of difficulty {difficulty} has only {done} different questions in part "
                    f"{self.part!r}, as far as {_REPEATS} tries in a row without a new one can tell; count "
                    f"{self.count} asks for {done + 1} or more: lower it or add kinds and difficulties"
                )
            pairs.append(pair if pair.label == places[at][done] else pair.swapped())
        return cast(list[R], pairs)

    def _cells(self) -> list[tuple[str, int]]:
        """Kinds and difficulties. Kinds change fastest, so that the first pairs are of all kinds."""
        return [(kind, difficulty) for difficulty in self.difficulties for kind in self.kinds]

    def _stream(self, kind: str, difficulty: int, seen: set[str]) -> Iterator[PreferencePair]:
        """Yield the wanted pairs of one kind and difficulty, until only repeated questions come."""
        repeats = 0
        for index in count_up():
            pair = make_pair(kind, difficulty, self.seed or 0, index)
            key = pair.question_key
            is_new = key not in seen
            seen.add(key)
            is_wanted = (is_new or not self.distinct) and self.part in ("all", _part(key, self.held_out_share))
            repeats = 0 if is_new or is_wanted else repeats + 1
            if repeats == _REPEATS:
                return
            if is_wanted:
                yield pair

    def _places(self, cells: list[tuple[str, int]]) -> list[list[Label]]:
        """The labels: half A and half B over all pairs and over each kind and difficulty."""
        places, extra = [], cycle(ANSWERS)
        for at, (kind, difficulty) in enumerate(cells):
            size = len(range(at, self.count, len(cells)))
            labels: list[Label] = [*ANSWERS] * (size // 2)
            if size % 2:
                labels.append(next(extra))
            random.Random(f"{SOURCE}/places/{kind}-d{difficulty}-s{self.seed or 0}").shuffle(labels)
            places.append(labels)
        return places


def _make(kind: str, difficulty: int, seed: int, index: int) -> tuple[PreferencePair, Problem]:
    _check(kind, difficulty)
    pair_id = f"{kind}-d{difficulty}-s{seed}-{index}"
    # `Random` hashes a text with SHA-512, not with hash(), which differs between processes.
    rng = random.Random(f"{SOURCE}/{pair_id}")
    problem = KINDS[kind].make(rng, difficulty)
    pair = PreferencePair(
        id=pair_id,
        question=problem.question,
        answer_a=problem.correct,
        answer_b=problem.wrong,
        label="A",
        category=kind,
        subset=f"difficulty-{difficulty}",
        source=SOURCE,
    )
    return (pair if rng.random() < 0.5 else pair.swapped()), problem


def _check(kind: str, difficulty: int) -> None:
    if kind not in KINDS:
        raise UserError(f"tasks: there is no kind {kind!r}; expected one of {', '.join(sorted(KINDS))}")
    known = KINDS[kind].difficulties
    if difficulty not in known:
        raise UserError(f"tasks: {kind} has no difficulty {difficulty}; expected {known[0]} to {known[-1]}")


def _content(pair: PreferencePair) -> tuple[str, str, str, Label]:
    return pair.question, pair.answer_a, pair.answer_b, pair.label


def _part(question_key: str, held_out_share: float) -> Part:
    """The part of a question. It depends on the question and not on a seed."""
    digest = hashlib.sha256(f"{SOURCE}/part/{question_key}".encode()).hexdigest()
    drawn = int(digest[:12], 16) / 16**12
    return "held_out" if drawn < held_out_share else "train"


def write_tasks(
    output: str,
    kinds: list[str] | None = None,
    difficulties: list[int] | None = None,
    count: int = 1000,
    seed: int = 0,
    part: Part = "all",
    distinct: bool = True,
    held_out_share: float = 0.1,
) -> None:
    """Make verifiable preference pairs: a question, a right answer and a subtly wrong one.

    Args:
        output: File to write, .jsonl or .parquet.
        kinds: arithmetic, constraints, counting, dates, facts, sorting, strings, sums, tracing. Default: all but sums.
        difficulties: From 1 (short and small) to 5 (long and large). Default: 1, 2 and 3.
        count: Number of pairs, spread evenly over kinds and difficulties.
        seed: Seed of the pairs.
        part: train or held_out: no question is in both, for any seeds. all: both parts.
        distinct: Ask no question twice. If false, small kinds may repeat a question, mostly with another wrong answer.
        held_out_share: Share of the questions that is held out. Parts are disjoint only if they have the same share.
    """
    refuse_unknown_suffix(Path(output))
    chosen = kinds or [name for name, kind in KINDS.items() if not kind.terse]
    tasks = TaskPairs(chosen, difficulties or [1, 2, 3], count, seed, part, distinct, held_out_share)
    pairs = tasks.read(PreferencePair)
    write_records(Path(output), pairs)
    print(f"{len(pairs)} pairs written to {output}")


def main(argv: list[str]) -> None:
    """Run `judgelit tasks`."""
    call(write_tasks, argv, "judgelit tasks")
