"""Random tables of verdicts, and figures by their definitions, for tests of benchmarks with human labels."""

from collections.abc import Iterable, Mapping, Sequence
from math import nan
from unittest.mock import patch

from hypothesis import strategies as st

from judgelit.evaluation import intervals
from judgelit.evaluation.protocols.benchmark import Benchmark
from judgelit.records.records import Judgment, Label, Order, PreferencePair
from tests.support import make_judgment, make_pair

Said = dict[str, dict[str, str]]
"""The winners by pair and order, in the order ab; "none" is no verdict."""
SWAPPED = {"A": "B", "B": "A"}


@st.composite
def judged(
    draw: st.DrawFn, labels: Sequence[Label] = ("A", "B", "tie"), complete: bool = False
) -> tuple[list[PreferencePair], list[Judgment]]:
    """Pairs and judgments of them in a random sequence, in both orders or (unless `complete`) in some."""
    pairs, judgments = [], []
    for number in range(draw(st.integers(1, 12))):
        pairs.append(make_pair(number, draw(st.sampled_from(labels))))
        orders: Sequence[Order] = ("ab", "ba")
        for order in orders if complete else draw(st.sampled_from([orders, orders, ("ab",), ("ba",), ()])):
            judgments.append(make_judgment(f"p{number}", order, draw(st.sampled_from(["A", "B", "tie", None]))))
    return pairs, draw(st.permutations(judgments))


def winners(judgments: Iterable[Judgment]) -> Said:
    """What the judgments say, in the order ab."""
    said: Said = {}
    for one in judgments:
        verdict = one.verdict or "none"
        said.setdefault(one.pair_id, {})[one.order] = SWAPPED.get(verdict, verdict) if one.order == "ba" else verdict
    return said


def combined(of_orders: Mapping[str, str]) -> str:
    """The winner that all orders name, or a tie."""
    return next(iter(of_orders.values())) if len(set(of_orders.values())) == 1 else "tie"


def share(hits: Iterable[bool]) -> float:
    """The share of hits; NaN of nothing."""
    listed = list(hits)
    return sum(listed) / len(listed) if listed else nan


def values(benchmark: Benchmark, pairs: Sequence[PreferencePair], judgments: Sequence[Judgment]) -> dict[str, float]:
    """The benchmark's metrics without their intervals, of which few resamples are enough."""
    with patch.object(intervals, "RESAMPLES", 2):
        return {name: one.value for name, one in benchmark.estimates(pairs, judgments).items()}
