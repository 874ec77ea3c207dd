"""Report and data card of the enhancement synthesis."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from judgelit.generation.engine import Generated
from judgelit.judging.token_ids import PromptCounter
from judgelit.records.records import PreferenceExample
from judgelit.synthesis.card import write_card
from judgelit.synthesis.warmup import list_counts, list_held


@dataclass(frozen=True)
class EnhancementReport:
    """Report of the enhancement synthesis."""

    prompts: int
    kept: int
    """Number of preference pairs."""
    dropped: dict[str, int]
    """Number of dropped prompts by reason; ties, pairs whose question is in an evaluation set, and pairs with a prompt
    that is too long are counted as pairs."""
    sampled: int
    """Number of sampled judgments, and of those that are right, that have no verdict and that the limit has cut."""
    right: int
    without_verdict: int
    cut: int
    written: int
    """Number of judgments that were written for prompts which the judge never gets right."""
    solve_rates: dict[str, int]
    """Number of pairs by solve rate over both orders: `0%`, `1-9%`, `10-19%`, ..., `90-99%`, `100%`."""
    tokens: dict[str, int]
    """Tokens of the prompts that were asked, and of the texts; 0 where the engine does not count."""
    shortened: int = 0
    """Number of pairs that were asked about with shortened answers."""
    decontamination: dict[str, dict[str, int]] = field(default_factory=dict)
    """Number of questions of each evaluation set, and of pairs that it holds."""

    def __str__(self) -> str:
        cut = f", {self.cut} cut by the limit" if self.cut else ""
        shortened = f"; {self.shortened} pairs asked with shortened answers" if self.shortened else ""
        written = f" {self.written} more judgments written;" if self.written else ""
        return (
            f"{self.sampled} judgments of {self.prompts} prompts sampled: {self.right} right, {self.without_verdict} "
            f"without verdict{cut};{written} {self.kept} preference pairs kept; dropped: "
            f"{list_counts(self.dropped) or 'none'}{shortened}{list_held(self.decontamination)}"
        )


def write_enhancement_card(
    path: Path,
    examples: Sequence[PreferenceExample],
    report: EnhancementReport,
    counter: PromptCounter,
    name: str,
    settings: Mapping[str, Any],
) -> None:
    """Write the data card of an enhancement set.

    Args:
        path: File to write.
        examples: The examples of the data file.
        report: Report of their synthesis.
        counter: Counts the tokens.
        name: Name of the tokenizer, or of the judge whose tokenizer counts the tokens.
        settings: Settings of the command.
    """
    write_card(
        path,
        "Judgments for the enhancement",
        examples,
        counter,
        tokenizer=name,
        summary=str(report),
        dropped={reason: count for reason, count in report.dropped.items() if count},
        cost={"judgments_sampled": report.sampled, "judgments_written": report.written, **report.tokens},
        settings=settings,
        decontamination=report.decontamination,
        sampled={
            "prompts": report.prompts,
            "pairs_shortened": report.shortened,
            "judgments": report.sampled,
            "right": report.right,
            "without_verdict": report.without_verdict,
            "cut_by_the_limit": report.cut,
        },
        solve_rates={"pairs": report.solve_rates},
    )


def rate_bin(rate: float) -> str:
    """The bin of a solve rate from 0 to 1. Bins of 10 points; 0% and 100% are bins of their own."""
    if rate in (0, 1):
        return f"{rate:.0%}"
    # The rate is a fraction of few samples; 0.3 must not fall below 30% by rounding.
    low = int(rate * 10 + 1e-9) * 10
    return f"{max(low, 1)}-{low + 9}%"


def count_rates(rates: Sequence[float]) -> dict[str, int]:
    """Number of pairs in each bin, from the lowest bin to the highest."""
    bins = ["0%", *(rate_bin(low / 10 + 0.05) for low in range(10)), "100%"]
    counts = dict.fromkeys(bins, 0)
    for rate in rates:
        counts[rate_bin(rate)] += 1
    return counts


def count_tokens(answers: Sequence[Generated]) -> dict[str, int]:
    """Tokens of prompts and texts of some answers."""
    return {
        "prompt_tokens": sum(answer.prompt_tokens for answer in answers),
        "new_tokens": sum(answer.new_tokens for answer in answers),
    }
