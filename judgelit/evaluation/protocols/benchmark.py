"""What a benchmark is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from judgelit.evaluation import intervals
from judgelit.evaluation.intervals import Estimate, Gain, Metric
from judgelit.evaluation.votes import majorities
from judgelit.judging import verdict
from judgelit.judging.prompts import PromptReport, judge_prompts
from judgelit.records.records import AnswerSet, Judgment, PreferencePair
from judgelit.records.row_fields import Row
from judgelit.records.sources import Sources

GROUPS = ("category", "subset")
"""Fields of a pair by which scores are also computed."""
Item = TypeVar("Item", PreferencePair, AnswerSet)
"""What a benchmark judges: labelled pairs, or questions with several answers."""
MakePrompts = Callable[..., tuple[Sequence[Any], PromptReport]]
"""A function with the arguments of `judging.prompts.judge_prompts` that returns prompts of the kind `Asked`."""


@dataclass(frozen=True)
class Published:
    """A figure of another judge, beside which a result may be read."""

    model: str
    figure: str
    """In percent, as published; several parts are separated by slashes."""
    convention: str = ""
    """How the figure was computed, where that differs from the benchmark's own rule; and who measured it."""


@dataclass(frozen=True)
class Benchmark(Generic[Item]):
    """A benchmark for judges: how its rows are read, which prompts it asks, how verdicts become its metrics.

    The first of `shown` is its published figure.
    """

    title: str
    """Name and authors' repository."""
    size: str
    licence: str
    convention: str
    """How its figures are computed, in one or two sentences."""
    read: Callable[[Sources, int | None], list[Item]]
    """Reads the benchmark's own rows as labelled items: the first ones, that many, or all."""
    metrics: Callable[[Sequence[Item], Sequence[Judgment]], Mapping[str, Metric]]
    """Computes the benchmark's metrics from its items (pairs in the order ab) and one judgment of each prompt."""
    shown: Mapping[str, str]
    """The metrics of printed tables and their column headings; files hold all metrics."""
    meanings: Mapping[str, str] = field(default_factory=dict)
    """What metrics mean, each in a sentence that needs no other one. The report shows it. Metrics of all labelled pairs
    have a meaning already, which a line here replaces."""
    hub: Sources | None = None
    """Where its rows are read from if the user gives no files. None: the user must give them."""
    ties_count: bool = False
    """Whether a tie is the right verdict about a pair labelled tie. If not, such pairs are left out of accuracy."""
    prompts: MakePrompts = judge_prompts
    """Makes the judge prompts of items."""
    verdict: Callable[[str], str | None] = verdict.parse
    """Reads the verdict of a judgment's text."""
    judgments: Callable[[Row, str, Mapping[str, Item]], list[Judgment]] | None = None
    """Reads a row of the benchmark's own result files, from its place and the items by id, as judgments. None: there
    are no such files."""
    published: tuple[Published, ...] = ()
    """Figures of other judges, of the first metric of `shown`."""
    export: Callable[[str, Sequence[Item], Sequence[Judgment]], Mapping[str, Any]] | None = None
    """The result in the JSON form of the benchmark's leaderboard, from the judge's name, the items and the judgments.
    None: there is no such form."""
    shown_groups: Mapping[str, str] | None = None
    """The metrics of printed tables of categories and subsets. Default: those of `shown`."""

    @property
    def stops_at_verdict(self) -> bool:
        """Whether a judgment may end with the line of its verdict.

        The rule that finds this line knows verdicts about two answers. In another form it could end a judgment early.
        """
        return self.verdict is verdict.parse

    def estimates(self, items: Sequence[Item], judgments: Sequence[Judgment]) -> dict[str, Estimate]:
        """Each metric with its interval. Of several samples of a prompt the majority counts; see `majorities`."""
        return intervals.estimates(self.metrics(items, majorities(judgments)))

    def estimates_by_group(
        self, items: Sequence[Item], judgments: Sequence[Judgment]
    ) -> dict[str, dict[str, dict[str, Estimate]]]:
        """The estimates of each category and of each subset: {"category": {name: {metric: estimate}}, ...}.

        Items without a category are in none. A field that no item has is left out.
        """
        groups: dict[str, dict[str, dict[str, Estimate]]] = {}
        for kind in GROUPS:
            for name in sorted({getattr(item, kind) for item in items} - {""}):
                members = {item.id: item for item in items if getattr(item, kind) == name}
                of_group = [judgment for judgment in judgments if judgment.pair_id in members]
                groups.setdefault(kind, {})[name] = self.estimates(list(members.values()), of_group)
        return groups

    def gains(self, items: Sequence[Item], before: Sequence[Judgment], after: Sequence[Judgment]) -> dict[str, Gain]:
        """The gain of each metric from the judgments of one judge to those of another, or from their majorities.

        Raises:
            ValueError: The two judges did not judge the same items in the same orders.
        """
        if _asked(before) != _asked(after):
            raise ValueError("the two judges were not asked the same questions")
        return intervals.gains(self.metrics(items, majorities(before)), self.metrics(items, majorities(after)))


def _asked(judgments: Sequence[Judgment]) -> set[Any]:
    return {(judgment.pair_id, judgment.order) for judgment in judgments}
