"""Verdicts that compare, such as `[[A>B]]`: a second reading after judgelit's own parser."""

import re

from judgelit.judging import verdict

DOUBLE_BRACKETS = re.compile(r"\[\[\s*([AB](?:>>|>|=)[AB])\s*\]\]")
"""`[[A>>B]]`, `[[A>B]]`, `[[A=B]]`, `[[B>A]]`, `[[B>>A]]`: the form of Arena-Hard, which JudgeBench asks for."""
BOXED = re.compile(r"\\boxed\{{1,2}\s*([AB](?:>>|>|=)[AB])\s*\}{1,2}")
r"""`\boxed{A>>B}` and so on: the form of RM-Bench's prompt for generative judges."""
WINNERS = {"A>>B": "A", "A>B": "A", "A=B": "tie", "B=A": "tie", "B>A": "B", "B>>A": "B"}
"""The verdict of each comparison."""
_LETTERS = {"A": "A", "B": "B", "tie": "C"}


def read_comparison(text: str, form: re.Pattern[str], lead: re.Pattern[str] | None = None) -> str | None:
    """The verdict of a judgment in judgelit's form, or as a comparison.

    A comparison is read by the rules of `judgelit.judging.verdict`: not in reasoning or quotations, not if its sentence
    contradicts it. All comparisons outside of these must be the same. As everywhere, nothing is guessed: two different
    comparisons are no verdict, and neither are two readings that disagree.

    Args:
        text: The judgment.
        form: Finds the comparisons; DOUBLE_BRACKETS or BOXED.
        lead: Matches the text before the comparisons that count, if it is there.
    """
    own = verdict.parse(text)
    before = lead.match(text) if lead else None
    compared: dict[int, str] = {}

    def as_verdict(found: re.Match[str]) -> str:
        """A verdict in judgelit's form, of the same length."""
        winner = WINNERS.get(found[1])
        if winner is None or (before and found.start() < before.end()):
            return found[0]
        compared[found.start() + 2] = found[1]
        return f"[[{_LETTERS[winner]}{' ' * (len(found[0]) - 5)}]]"

    rewritten = form.sub(as_verdict, text)
    counted = {compared[place] for place in verdict.places(rewritten) if place in compared}
    if not counted:
        return own
    winner = verdict.parse(rewritten) if len(counted) == 1 else None
    return winner if own in (None, winner) else None
