from typing import Any

import datasets
import pytest

from judgelit.evaluation.protocols import BENCHMARKS
from judgelit.evaluation.protocols.listing import describe_benchmarks
from judgelit.evaluation.protocols.reasoningjudgebench import SPLITS
from tests.evaluation.protocols import test_judgebench, test_reasoningjudgebench, test_rm_bench

HUB: dict[str, dict[tuple[str, str], list[dict[str, Any]]]] = {
    "judgebench": {
        ("ScalerLab/JudgeBench", "gpt"): [test_judgebench.native(0)],
        ("ScalerLab/JudgeBench", "claude"): [test_judgebench.native(1), test_judgebench.native(3)],
    },
    "rm-bench": {("THU-KEG/RM-Bench", "train"): [test_rm_bench.native("one"), test_rm_bench.native("two")]},
    "reasoningjudgebench": {
        ("Salesforce/ReasoningJudgeBench", split): [test_reasoningjudgebench.native(split)] for split in SPLITS
    },
}


@pytest.mark.parametrize(("name", "count"), [("judgebench", 3), ("rm-bench", 18), ("reasoningjudgebench", 13)])
def test_all_splits_of_the_hub_are_read(name: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = HUB[name]
    asked = []

    def load(path: str, config: str | None, split: str) -> datasets.Dataset:
        asked.append((path, split))
        return datasets.Dataset.from_list(rows[path, split])

    monkeypatch.setattr(datasets, "load_dataset", load)
    benchmark = BENCHMARKS[name]
    assert benchmark.hub is not None
    pairs = benchmark.read(benchmark.hub, None)
    assert len({pair.id for pair in pairs}) == count
    assert sorted(asked) == sorted(rows)
    if name == "reasoningjudgebench":
        assert {f"{pair.subset}_pairwise": pair.category for pair in pairs} == SPLITS


def test_the_list_names_places_and_published_figures() -> None:
    listed = {text.partition(":")[0]: text for text in describe_benchmarks().split("\n\n")}
    for name, rows in HUB.items():
        ((path, _), *_) = rows
        assert f"read from: the hub ({path}, split " in listed[name]
    for name in ("rmb-pairwise", "rmb-bestofn"):
        assert "read from: files that you give with --pairs" in listed[name]
    assert "J1-Llama-8B / J1-Qwen-32B: 42.0 / 71.4 (right in both orders" in listed["judgebench"]
