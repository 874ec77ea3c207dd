"""What a benchmark is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from judgelit.evaluation import intervals
from judgelit.evaluation.intervals import Estimate, Gain, Metric
from judgelit.judging.prompts import JudgePrompt, PromptReport
from judgelit.records.records import Judgment, PreferencePair
from judgelit.records.sources import Sources

MakePrompts = Callable[..., tuple[list[JudgePrompt], PromptReport]]
"""A function with the arguments of `judging.prompts.judge_prompts`."""


@dataclass(frozen=True)
class Benchmark:
    """A benchmark for judges: how its rows are read, which prompts it asks, how verdicts become its metrics."""

    read: Callable[[Sources], list[PreferencePair]]
    """Reads the benchmark's own rows as labelled pairs."""
    prompts: MakePrompts
    """Makes the judge prompts of pairs."""
    metrics: Callable[[Sequence[PreferencePair], Sequence[Judgment]], Mapping[str, Metric]]
    """Computes the benchmark's metrics from its pairs (in the order ab) and the judgments of them."""
    shown: Mapping[str, str]
    """The metrics of printed tables and their column headings; files hold all metrics."""

    def estimates(self, pairs: Sequence[PreferencePair], judgments: Sequence[Judgment]) -> dict[str, Estimate]:
        """Each metric with its interval."""
        return intervals.estimates(self.metrics(pairs, judgments))

    def gains(
        self, pairs: Sequence[PreferencePair], before: Sequence[Judgment], after: Sequence[Judgment]
    ) -> dict[str, Gain]:
        """The gain of each metric from the judgments of one judge to those of another.

        Raises:
            ValueError: The two judges did not judge the same pairs in the same orders.
        """
        if _asked(before) != _asked(after):
            raise ValueError("the two judges were not asked the same questions")
        return intervals.gains(self.metrics(pairs, before), self.metrics(pairs, after))


def _asked(judgments: Sequence[Judgment]) -> set[Any]:
    return {(judgment.pair_id, judgment.order) for judgment in judgments}
