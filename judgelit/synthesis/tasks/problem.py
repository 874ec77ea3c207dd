"""Problems of verifiable tasks, and sentences that several kinds use."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """What a judgment says about one answer. It does not say "Answer A" or "Answer B": the judgment adds that."""

    sentences: str
    """The comparison with the solution: the mistake if there is one, and its correction."""
    short: str
    """The same in as few words as possible."""


@dataclass(frozen=True)
class Problem:
    """A question, a right and a slightly wrong answer, and the parts of a judgment about them."""

    question: str
    correct: str
    """Right answer, as a model would write it."""
    wrong: str
    """Answer of the same form and about the same length, with one plausible mistake."""
    steps: str
    """Solution of the question, which ends with the right answer."""
    check_correct: Check
    """Comparison of the right answer with the solution."""
    check_wrong: Check
    """Comparison of the wrong answer with the solution."""


@dataclass(frozen=True)
class Kind:
    """Kind of task: a description, the function that makes a problem, and the difficulties."""

    about: str
    make: Callable[[random.Random, int], Problem]
    difficulties: range = range(1, 6)
    terse: bool = False
    """Whether its judgments are only solution, checks and verdict, without sentences around them."""


def agrees(found: str) -> Check:
    """The check of a right answer that is a single result."""
    return Check(f"It gives {found}, which is the result of the working. It is correct.", f"{found}, right")


def differs(found: str, expected: str, slip: str) -> Check:
    """The check of a wrong answer that is a single result. `slip` is a whole sentence."""
    return Check(
        f"It gives {found}, but the working gives {expected}. {slip} It is wrong.", f"{found}, not {expected}, wrong"
    )


def listed(items: Sequence[object]) -> str:
    """`1, 2, 3`."""
    return ", ".join(map(str, items))


def counted(number: int, noun: str) -> str:
    """`1 day`, `2 days`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
