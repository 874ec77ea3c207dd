"""What a benchmark is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from judgelit.evaluation import intervals
from judgelit.evaluation.intervals import Estimate, Gain, Metric
from judgelit.judging.prompts import JudgePrompt, PromptReport
from judgelit.records.records import Judgment, PreferencePair
from judgelit.records.sources import Sources

GROUPS = ("category", "subset")
"""Fields of a pair by which scores are also computed."""
MakePrompts = Callable[..., tuple[list[JudgePrompt], PromptReport]]
"""A function with the arguments of `judging.prompts.judge_prompts`."""


@dataclass(frozen=True)
class Benchmark:
    """A benchmark for judges: how its rows are read, which prompts it asks, how verdicts become its metrics."""

    read: Callable[[Sources, int | None], list[PreferencePair]]
    """Reads the benchmark's own rows as labelled pairs: the first ones, that many, or all."""
    prompts: MakePrompts
    """Makes the judge prompts of pairs."""
    metrics: Callable[[Sequence[PreferencePair], Sequence[Judgment]], Mapping[str, Metric]]
    """Computes the benchmark's metrics from its pairs (in the order ab) and the judgments of them."""
    shown: Mapping[str, str]
    """The metrics of printed tables and their column headings; files hold all metrics."""

    def estimates(self, pairs: Sequence[PreferencePair], judgments: Sequence[Judgment]) -> dict[str, Estimate]:
        """Each metric with its interval."""
        return intervals.estimates(self.metrics(pairs, judgments))

    def estimates_by_group(
        self, pairs: Sequence[PreferencePair], judgments: Sequence[Judgment]
    ) -> dict[str, dict[str, dict[str, Estimate]]]:
        """The estimates of each category and of each subset: {"category": {name: {metric: estimate}}, ...}.

        Pairs without a category are in none. A field that no pair has is left out.
        """
        groups: dict[str, dict[str, dict[str, Estimate]]] = {}
        for field in GROUPS:
            for name in sorted({getattr(pair, field) for pair in pairs} - {""}):
                members = {pair.id: pair for pair in pairs if getattr(pair, field) == name}
                of_group = [judgment for judgment in judgments if judgment.pair_id in members]
                groups.setdefault(field, {})[name] = self.estimates(list(members.values()), of_group)
        return groups

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
