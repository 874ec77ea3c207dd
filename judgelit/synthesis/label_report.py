"""Report of `judgelit judge`: how many pairs agree, what was left out and why."""

from collections import Counter
from dataclasses import dataclass, field

from judgelit.synthesis.labelling import Labelled


@dataclass
class LabelReport:
    """Counts of what a judge has said so far."""

    both_orders: bool
    """Whether pairs are judged in both orders."""
    ranks: bool
    """Whether answers are ranked."""
    labelled: int = 0
    """Pairs, or questions with their answers."""
    pairs: int = 0
    """Pairs that were judged."""
    agreeing: int = 0
    """Pairs with the same winner, A or B, in both orders."""
    judgments: int = 0
    missing: int = 0
    """Judgments without a verdict."""
    cut: int = 0
    """Judgments without a verdict that the token limit has cut."""
    split: int = 0
    """Orders in which several labels have the most votes."""
    equal: int = 0
    """Answers that are equal to an earlier one of their question."""
    blank: int = 0
    """Blank answers."""
    single: int = 0
    """Questions without two different answers."""
    preferences: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    """How often there is no preference, by the reason."""

    def add(self, one: Labelled) -> None:
        """Count the label of one pair or answer set."""
        self.labelled += 1
        judged = [verdict for verdict in one.pairs if sum(verdict.votes.values())]
        self.pairs += len(judged)
        self.agreeing += sum(bool(verdict.consistent) and verdict.verdict in ("A", "B") for verdict in judged)
        self.split += sum(verdict.split for verdict in judged)
        self.judgments += len(one.judgments)
        self.missing += sum(judgment.verdict is None for judgment in one.judgments)
        self.cut += sum(judgment.verdict is None and judgment.finish == "length" for judgment in one.judgments)
        self.equal += one.equal
        self.blank += one.blank
        self.single += self.ranks and not one.pairs
        for found in one.preferences:
            if isinstance(found, str):
                self.dropped[found] += 1
            else:
                self.preferences += 1

    def __str__(self) -> str:
        lines = []
        if self.ranks:
            lines.append(f"{self.labelled} questions with answers ranked, {self.pairs} pairs judged")
        out = [
            f"{count} {what}"
            for count, what in (
                (self.equal, "answers equal to another one of their question, judged once"),
                (self.blank, "blank answers, not judged"),
                (self.single, "questions without two different answers, not judged"),
            )
            if count
        ]
        if out:
            lines.append("; ".join(out))
        judged = self.pairs if self.ranks else self.labelled
        if self.both_orders:
            lines.append(f"{self.agreeing} of {judged} pairs have the same winner in both orders")
        elif not self.ranks:
            lines.append(f"{judged} pairs judged, each in one order")
        if self.split:
            lines.append(f"{self.split} orders of pairs have equal votes for several labels and count as a tie")
        if self.missing:
            cut = f", {self.cut} of them cut at max_new_tokens" if self.cut else ""
            lines.append(f"{self.missing} of {self.judgments} judgments have no verdict{cut}")
        return "\n".join(lines)

    def of_preferences(self) -> str:
        """One line about the preferences."""
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.dropped.most_common())
        return f"{self.preferences} preferences" + (f"; left out: {reasons}" if reasons else "")
