"""Problems of verifiable tasks, and sentences that several kinds use."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """A question, a right and a slightly wrong answer, and the parts of a judgment about them.

    The checks do not say "Answer A" or "Answer B": the judgment adds that.
    """

    question: str
    correct: str
    """Right answer, as a model would write it."""
    wrong: str
    """Answer of the same form and about the same length, with one plausible mistake."""
    steps: str
    """Solution of the question, which ends with the right answer."""
    check_correct: str
    """Comparison of the right answer with the solution."""
    check_wrong: str
    """Comparison of the wrong answer with the solution: its mistake, and the correction."""


@dataclass(frozen=True)
class Kind:
    """Kind of task: a description, the function that makes a problem, and the difficulties."""

    about: str
    make: Callable[[random.Random, int], Problem]
    difficulties: range = range(1, 6)
    terse: bool = False
    """Whether its judgments are only solution, checks and verdict, without sentences around them."""


def agrees(found: str) -> str:
    """The check of a right answer that is a single result."""
    return f"It gives {found}, which is the result of the working. It is correct."


def differs(found: str, expected: str, slip: str) -> str:
    """The check of a wrong answer that is a single result. `slip` is a whole sentence."""
    return f"It gives {found}, but the working gives {expected}. {slip} It is wrong."


def listed(items: Sequence[object]) -> str:
    """`1, 2, 3`."""
    return ", ".join(map(str, items))


def counted(number: int, noun: str) -> str:
    """`1 day`, `2 days`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
