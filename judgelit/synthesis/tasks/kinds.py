"""The kinds of verifiable task. To add one, write a module with a function `make` and a line in `KINDS`."""

from judgelit.synthesis.tasks import (
    arithmetic,
    constraints,
    counting,
    dates,
    facts,
    sorting,
    strings,
    sums,
    tracing,
)
from judgelit.synthesis.tasks.problem import Kind, Problem

KINDS: dict[str, Kind] = {
    "arithmetic": Kind("several steps with numbers of several digits", arithmetic.make),
    "constraints": Kind("lists and sentences that have to meet stated constraints", constraints.make),
    "counting": Kind("letters in words, words and numbers in lists", counting.make),
    "dates": Kind("adding days, days between dates, days of the week", dates.make),
    "facts": Kind("who has how many of what: found, compared and added up", facts.make),
    "sorting": Kind("numbers and words in a stated order", sorting.make),
    "strings": Kind("operations on the letters of a text", strings.make),
    "sums": Kind("short sums, judged in few tokens, for the built-in small model", sums.make, terse=True),
    "tracing": Kind("what a short Python program prints", tracing.make),
}

__all__ = ["KINDS", "Kind", "Problem"]
