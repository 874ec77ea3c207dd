import importlib.util
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from judgelit.errors import UserError
from judgelit.evaluation.evaluate import evaluate
from judgelit.evaluation.protocols import BENCHMARKS
from judgelit.evaluation.saved import read_judgments, read_results
from judgelit.records.records import PreferencePair
from tests.evaluation.protocols.verdict_tables import Won, tables
from tests.support import make_pair

JUDGEBENCH = BENCHMARKS["judgebench"]
SOURCES = ("mmlu-pro-computer science", "livebench-reasoning", "livebench-math", "livecodebench")
DECISIONS = ["A>B", "B>A", "A=B", None, "A<B"]
FLIPPED = {"A>B": "B>A", "B>A": "A>B"}


def native(number: int, label: str = "A>B", **more: Any) -> dict[str, Any]:
    """A row in the form of the authors' files."""
    return {
        "pair_id": f"id-{number}",
        "original_id": "10646",
        "source": SOURCES[number % 4],
        "question": f"What is {number}?",
        "response_model": ("gpt-4o-2024-05-13", "claude-3-5-sonnet-20240620")[number % 2],
        "response_A": "First.",
        "response_B": "Second.",
        "label": label,
        **more,
    }


def judged(row: dict[str, Any], *decisions: str | None) -> dict[str, Any]:
    """The row with these decisions, as in the authors' output files; None is a call that failed."""
    of = {"judge_model": "m", "prompt": "Which?", "response": "Hm."}
    made = [None if one is None else {"judgment": of, "decision": one} for one in decisions]
    return {**row, "judge_name": "arena_hard", "judgments": made}


def write(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_native_rows(tmp_path: Path) -> None:
    rows = [native(0), native(1, "B>A", response_A="Second.")]  # one pair of the benchmark has two equal answers
    write(tmp_path / "rows.jsonl", rows)
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    expected = [
        PreferencePair(
            "id-0",
            "What is 0?",
            "First.",
            "Second.",
            "A",
            "mmlu-pro",
            "gpt-4o-2024-05-13",
            "mmlu-pro-computer science",
        ),
        PreferencePair(
            "id-1",
            "What is 1?",
            "Second.",
            "Second.",
            "B",
            "livebench-reasoning",
            "claude-3-5-sonnet-20240620",
            "livebench-reasoning",
        ),
    ]
    for name in ("rows.jsonl", "rows.json", "rows.parquet"):
        assert JUDGEBENCH.read(str(tmp_path / name), None) == expected
    assert JUDGEBENCH.read(str(tmp_path / "rows.json"), 1) == expected[:1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": "A=B"}, "field 'label': found 'A=B', expected one of 'A>B', 'B>A'"),
        ({"label": None}, "field 'label': found nothing"),
        ({"pair_id": None}, "field 'pair_id': found nothing, expected text"),
        ({"source": 3}, "field 'source': found 3, expected text"),
        ({"response_B": ["x"]}, r"field 'response_B': found \['x'\], expected text"),
        ({"question": " "}, "field 'question': found ' ', expected text that is not empty"),
    ],
)
def test_a_wrong_row_gives_one_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "rows.jsonl", [native(0), {**native(1), **change}])
    with pytest.raises(UserError, match=rf"rows\.jsonl:2: {message}") as caught:
        JUDGEBENCH.read(path, None)
    assert "\n" not in str(caught.value)


PAIRS = [make_pair(number, "AB"[number % 2], question=f"q{number // 2}") for number in range(9)]


def by_hand(pairs: Sequence[PreferencePair], won: Won) -> dict[str, float]:
    """The metrics from what each judgment says of its pair."""
    said = {pair.id: [won[pair.id, order] for order in ("ab", "ba") if (pair.id, order) in won] for pair in pairs}
    any_order = [of for of in said.values() if of]
    both = [of for of in said.values() if len(of) == 2]
    orders = [[what for (_, order), what in won.items() if order == one] for one in ("ab", "ba")]
    return {
        "score": share(of.count("right") > of.count("wrong") for of in any_order),
        "strict": share(of == ["right", "right"] for of in both),
        "inconsistent": share(of[0] != of[1] for of in both),
        "best_order": max((share(what == "right" for what in of) for of in orders if of), default=math.nan),
    }


def share(hits: Any) -> float:
    values = [*hits]
    return sum(values) / len(values) if values else math.nan


@settings(max_examples=50, deadline=None)
@given(tables(PAIRS))
def test_metrics_are_those_computed_by_hand(table: Any) -> None:
    judgments, won = table
    found = JUDGEBENCH.estimates(PAIRS, judgments)
    for name, value in by_hand(PAIRS, won).items():
        assert found[name].value == pytest.approx(value, abs=1e-12, nan_ok=True), name
    assert found["strict"] == found["consistent_accuracy"]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["A>B", "B>A"]), *[st.sampled_from(DECISIONS)] * 2), min_size=1, max_size=9))
def test_output_files_are_scored_by_the_authors_rule(table: list[tuple[str, str | None, str | None]]) -> None:
    rows = [judged(native(n, label), *decisions) for n, (label, *decisions) in enumerate(table)]
    pairs = {
        f"id-{n}": make_pair(n, label[0])  # type: ignore[arg-type]
        for n, (label, *_) in enumerate(table)
    }
    pairs = {name: PreferencePair(name, one.question, "a", "b", one.label) for name, one in pairs.items()}
    assert JUDGEBENCH.judgments is not None
    judgments = [one for n, row in enumerate(rows) for one in JUDGEBENCH.judgments(row, f"rows:{n}", pairs)]
    points = []
    for label, first, second in table:
        decisions = [first, FLIPPED.get(str(second), second)]
        points.append(sum((one == label) - (one == FLIPPED[label]) for one in decisions))
    found = JUDGEBENCH.estimates([*pairs.values()], judgments)
    assert found["score"].value == pytest.approx(share(one > 0 for one in points), abs=1e-12)


def test_an_output_file_is_pairs_and_judgments(tmp_path: Path) -> None:
    rows = [
        judged(native(0), "A>B", "B>A"),
        judged(native(1, "B>A"), "A=B", "A>B"),
        judged(native(2), None, "A>B"),
        judged(native(3), "B>A", "A=B"),
    ]
    path = write(tmp_path / "dataset=judgebench,judge_name=arena_hard.jsonl", rows)
    evaluate(str(tmp_path / "out"), benchmark="judgebench", pairs=path, judgments=path)
    saved = read_results(tmp_path / "out")
    found = saved.content["sets"]["judgebench"]
    assert {name: found[name]["value"] for name in ("score", "strict", "best_order", "inconsistent")} == {
        "score": 0.5,
        "strict": 0.25,
        "best_order": 0.5,
        "inconsistent": 0.75,
    }
    assert (found["no_verdict"]["value"], found["no_verdict"]["n"]) == (0.125, 8)
    assert set(saved.content["groups"]["judgebench"]["category"]) == {"mmlu-pro", *SOURCES[1:]}
    assert set(saved.content["groups"]["judgebench"]["subset"]) == {
        rows[0]["response_model"],
        rows[1]["response_model"],
    }
    first, second = saved.sets["judgebench"].judgments[:2]
    assert (first.text, first.prompt[0]["content"], first.engine, first.template) == (
        "Hm.",
        "Which?",
        "m",
        "arena_hard",
    )
    assert [(one.order, one.verdict) for one in (first, second)] == [("ab", "A"), ("ba", "B")]


def test_one_order_and_judgments_without_texts(tmp_path: Path) -> None:
    scores = {"judgment": {"judge_model": "r", "scores": [1.0, 2.0]}, "decision": "B>A"}
    rows = [{**native(n), "judge_name": "reward_model", "judgments": [scores]} for n in range(2)]
    path = write(tmp_path / "out.jsonl", rows)
    pairs = JUDGEBENCH.read(path, None)
    judgments = read_judgments(path, JUDGEBENCH, pairs)
    assert [(one.order, one.verdict, one.text, one.engine) for one in judgments] == [("ab", "B", "", "r")] * 2
    found = JUDGEBENCH.estimates(pairs, judgments)
    assert (found["score"].value, found["best_order"].value) == (0, 0)
    assert math.isnan(found["strict"].value) and math.isnan(found["inconsistent"].value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"judgments": None}, "field 'judgments': found nothing, expected a list of one or two judgments"),
        ({"judgments": []}, "field 'judgments': found .*, expected a list of one or two judgments"),
        ({"judgments": [None] * 3}, "field 'judgments': found .*, expected a list of one or two"),
        ({"judgments": [None, "A>B"]}, r"field 'judgments\[1\]': found 'A>B', expected a judgment with a decision"),
        ({"judgments": [{"judgment": {}}]}, r"field 'judgments\[0\]': found .*, expected a judgment with a decision"),
        (
            {"judgments": [{"decision": "[[A]]"}]},
            r"field 'judgments\[0\]\.decision': found '\[\[A\]\]', expected 'A>B'",
        ),
        ({"judgments": [{"decision": 1}]}, r"field 'judgments\[0\]\.decision': found 1, expected 'A>B'"),
        ({"label": "B>A"}, "field 'label': found 'B>A', expected 'A>B', the label of pair 'id-1'"),
        ({"pair_id": "id-0"}, "pair 'id-0': found a second judgment in order ab, expected one"),
        ({"pair_id": "other"}, "pair 'other' is not among the 2 that were read"),
    ],
)
def test_a_wrong_output_row_gives_one_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    rows = [judged(native(n), "A>B", "B>A") for n in range(2)]
    pairs = JUDGEBENCH.read(write(tmp_path / "rows.jsonl", rows), None)
    path = write(tmp_path / "out.jsonl", [rows[0], {**rows[1], **change}])
    with pytest.raises(UserError, match=rf"out\.jsonl:2: {message}") as caught:
        read_judgments(path, JUDGEBENCH, pairs)
    assert "\n" not in str(caught.value)


def test_missing_pairs_are_an_error(tmp_path: Path) -> None:
    rows = [judged(native(n), "A>B", "B>A") for n in range(3)]
    pairs = JUDGEBENCH.read(write(tmp_path / "rows.jsonl", rows), None)
    with pytest.raises(UserError, match=r"found no judgment of .* the first: 'id-2'"):
        read_judgments(write(tmp_path / "out.jsonl", rows[:2]), JUDGEBENCH, pairs)


REPOSITORY = Path(os.environ.get("JUDGEBENCH_REPOSITORY", "JudgeBench"))


@pytest.mark.skipif(not REPOSITORY.is_dir(), reason="JUDGEBENCH_REPOSITORY names no clone of ScalerLab/JudgeBench")
def test_the_authors_output_files_give_the_figures_of_their_scorer() -> None:
    spec = importlib.util.spec_from_file_location("judgebench_metrics", REPOSITORY / "utils/metrics.py")
    assert spec is not None and spec.loader is not None
    scorer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(scorer)
    files = [*(REPOSITORY / "outputs").glob("*.jsonl")]
    assert files
    for file in files:
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        pairs = JUDGEBENCH.read(str(file), None)
        judgments = read_judgments(str(file), JUDGEBENCH, pairs)
        both = len(rows[0]["judgments"]) == 2
        found = JUDGEBENCH.estimates(pairs, judgments)["score"].value
        assert 100 * found == pytest.approx(scorer.compute_final_metrics(rows, both), abs=1e-12), file.name
        for group, of_group in JUDGEBENCH.estimates_by_group(pairs, judgments)["category"].items():
            expected = scorer.compute_final_metrics(
                rows, both, lambda row, group=group: row["source"].startswith(group)
            )
            assert 100 * of_group["score"].value == pytest.approx(expected, abs=1e-12), file.name
