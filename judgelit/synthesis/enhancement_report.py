"""Report of the enhancement synthesis."""

from collections.abc import Sequence
from dataclasses import dataclass

from judgelit.generation.engine import Generated
from judgelit.synthesis.warmup import list_counts


@dataclass(frozen=True)
class EnhancementReport:
    """Report of the enhancement synthesis."""

    prompts: int
    kept: int
    """Number of preference pairs."""
    dropped: dict[str, int]
    """Number of dropped prompts by reason."""
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

    @property
    def counts(self) -> dict[str, int]:
        """Numbers of sampled judgments, for the data card."""
        return {
            "judgments": self.sampled,
            "right": self.right,
            "without_verdict": self.without_verdict,
            "cut_by_the_limit": self.cut,
        }

    def __str__(self) -> str:
        cut = f", {self.cut} cut by the limit" if self.cut else ""
        written = f" {self.written} more judgments written;" if self.written else ""
        return (
            f"{self.sampled} judgments of {self.prompts} prompts sampled: {self.right} right, {self.without_verdict} "
            f"without verdict{cut};{written} {self.kept} preference pairs kept; prompts dropped: "
            f"{list_counts(self.dropped) or 'none'}"
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
        "prompts": sum(answer.prompt_tokens for answer in answers),
        "texts": sum(answer.new_tokens for answer in answers),
    }
