"""Verdicts that compare, such as `[[A>B]]`: a second reading after judgelit's own parser."""

import re

from judgelit.judging import verdict

DOUBLE_BRACKETS = re.compile(r"\[\[\s*([AB](?:>>|>|=)[AB])\s*\]\]")
"""`[[A>>B]]`, `[[A>B]]`, `[[A=B]]`, `[[B>A]]`, `[[B>>A]]`: the form of Arena-Hard, which JudgeBench asks for."""
BOXED = re.compile(r"\\boxed\{{1,2}\s*([AB](?:>>|>|=)[AB])\s*\}{1,2}")
r"""`\boxed{A>>B}` and so on: the form of RM-Bench's prompt for generative judges."""
WINNERS = {"A>>B": "A", "A>B": "A", "A=B": "tie", "B=A": "tie", "B>A": "B", "B>>A": "B"}
"""The verdict of each comparison."""


def read_comparison(text: str, form: re.Pattern[str], lead: re.Pattern[str] | None = None) -> str | None:
    """The verdict of a judgment in judgelit's form, or as a comparison.

    Comparisons count after the reasoning (the last `</think>`), if all of them are the same. As everywhere, nothing is
    guessed: two different comparisons are no verdict, and neither are two readings that disagree.

    Args:
        text: The judgment.
        form: Finds the comparisons; DOUBLE_BRACKETS or BOXED.
        lead: Matches the text before the comparisons that count, if it is there.
    """
    own = verdict.parse(text)
    said = text.rpartition("</think>")[2]
    before = lead.match(said) if lead else None
    compared = set(form.findall(said, before.end() if before else 0))
    if not compared:
        return own
    winner = WINNERS.get(compared.pop()) if len(compared) == 1 else None
    return winner if own in (None, winner) else None
