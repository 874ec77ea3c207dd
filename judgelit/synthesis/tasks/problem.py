"""What every kind of verifiable task makes, and the sentences that they share."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """A question with one right answer, a subtly wrong one, and all that a judgment of the two has to say.

    The checks name no place ("Answer A"): a judgment puts them where the answers stand.
    """

    question: str
    correct: str
    """The right answer, as a model would write it."""
    wrong: str
    """An answer of the same form and about the same length, with one plausible slip."""
    steps: str
    """How the question is worked out, ending in the right answer."""
    check_correct: str
    """The right answer held against the working."""
    check_wrong: str
    """The wrong answer held against the working: where it slips and what is right there."""


@dataclass(frozen=True)
class Kind:
    """One kind of task: what it asks, how it is made and how hard it can be."""

    about: str
    make: Callable[[random.Random, int], Problem]
    difficulties: range = range(1, 6)
    terse: bool = False
    """Whether its judgments are working, checks and verdict alone, without a sentence around them."""


def agrees(found: str) -> str:
    """The check of a right answer that is one result."""
    return f"It gives {found}, which is the result of the working. It is correct."


def differs(found: str, expected: str, slip: str) -> str:
    """The check of a wrong answer that is one result; `slip` is a sentence of its own."""
    return f"It gives {found}, but the working gives {expected}. {slip} It is wrong."


def listed(items: Sequence[object]) -> str:
    """`1, 2, 3`."""
    return ", ".join(map(str, items))


def counted(number: int, noun: str) -> str:
    """`1 day`, `2 days`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
