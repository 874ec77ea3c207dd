from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import judgelit
from judgelit.errors import UserError
from judgelit.evaluation import protocols
from judgelit.evaluation.benchmark_metric import BenchmarkMetric
from judgelit.evaluation.protocols.pairs import PAIRS
from judgelit.records.records import Judgment
from tests.support import make_judgment, make_pair

PAIRS_JUDGED = [make_pair(number, "AB"[number % 2]) for number in range(4)]


@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["ab", "ba"]), st.sampled_from(["A", "B", "tie", None]))),
        min_size=1,
        max_size=4,
    )
)
@settings(max_examples=30, deadline=None)
def test_it_computes_what_the_benchmark_computes_of_all_updates(batches: list[list[Any]]) -> None:
    metric = BenchmarkMetric("pairs", PAIRS_JUDGED)
    latest: dict[tuple[str, str], Judgment] = {}
    for batch in batches:
        judgments = [make_judgment(f"p{number}", order, verdict) for number, order, verdict in batch]
        metric.update(judgments)
        for judgment in judgments:
            # Of two texts about one prompt the later one counts, and it counts once.
            latest[judgment.pair_id, judgment.order] = judgment
    wanted = PAIRS.estimates(PAIRS_JUDGED, list(latest.values()))
    found = metric.compute()
    for name, estimate in wanted.items():
        assert found[name] == pytest.approx(estimate, nan_ok=True)
    metric.reset()
    metric.update([])
    assert all(estimate.n == 0 for estimate in metric.compute().values())


def test_judgments_arrive_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Judgment] = []

    def metrics(items: Sequence[Any], judgments: Sequence[Judgment]) -> dict[str, Any]:
        seen.extend(judgments)
        return {}

    monkeypatch.setitem(protocols.BENCHMARKS, "seen", replace(PAIRS, metrics=metrics))
    text = 'line\r\nline\u2028line\x85 \x00 "quoted" 答 </script>'
    given = [replace(make_judgment("p0", order, "A"), text=text, margin=0.1, finish="stop") for order in ("ab", "ba")]
    metric = judgelit.BenchmarkMetric("seen", PAIRS_JUDGED)
    metric.update(given)
    metric.compute()
    assert seen == given
    with pytest.raises(UserError, match=r"benchmark: found 'pear'.* nearest known one is 'pairs'"):
        BenchmarkMetric("pear", PAIRS_JUDGED)
