import json
import math
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
from hypothesis import given, settings

from judgelit.errors import UserError
from judgelit.evaluation.protocols import BENCHMARKS
from tests.evaluation.protocols.verdict_tables import Won, tables
from tests.support import make_pair

REASONINGJUDGEBENCH = BENCHMARKS["reasoningjudgebench"]


def native(split: str, number: int = 0, **more: Any) -> dict[str, Any]:
    """A row in the form of the hub."""
    return {
        "problem_id": f"reasoning-judge-bench-{split}:{number:064x}",
        "instruction": f"Solve {number}.",
        "positive_response": "Right.",
        "negative_response": "Wrong.",
        "source_id": "a source",
        "label": 1,
        **more,
    }


def read(path: Path, *rows: dict[str, Any]) -> Any:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return REASONINGJUDGEBENCH.read(str(path), None)


@pytest.mark.parametrize(
    ("split", "kind"),
    [
        ("aime_4o_pairwise", "math"),
        ("aime_pairwise", "math"),
        ("olympiadbench", "math"),
        ("bbeh_ma", "math"),
        ("arc_challenge", "multihop"),
        ("bbeh_be", "multihop"),
        ("reclor", "multihop"),
        ("folio", "multihop"),
        ("bbeh_cu", "everyday"),
        ("bbeh_dq", "everyday"),
        ("bbeh_hyper", "everyday"),
        ("strategy_qa", "everyday"),
        ("supergpqa", "domain"),
    ],
)
def test_native_rows(tmp_path: Path, split: str, kind: str) -> None:
    (pair,) = read(tmp_path / "rows.jsonl", native(split))
    assert (pair.category, pair.subset, pair.source) == (kind, split.removesuffix("_pairwise"), "a source")
    assert (pair.id, pair.question) == (native(split)["problem_id"], "Solve 0.")
    assert {pair.answer_a: "A", pair.answer_b: "B"}["Right."] == pair.label


def test_the_files_name_says_the_split_if_the_id_does_not(tmp_path: Path) -> None:
    folder = tmp_path / "folio"
    folder.mkdir()
    (pair,) = read(folder / "bbeh_dq_pairwise-00000-of-00001.jsonl", native("", problem_id="reclor"))
    assert pair.subset == "bbeh_dq"


def test_the_better_answer_has_no_fixed_place(tmp_path: Path) -> None:
    pairs = read(tmp_path / "rows.jsonl", *(native("folio", number) for number in range(200)))
    assert 0.4 < mean(pair.label == "A" for pair in pairs) < 0.6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": 2}, "field 'label': found 2, expected 1, since positive_response is the better answer"),
        ({"problem_id": "x:1"}, "field 'problem_id': found 'x:1', expected an id with the name of the split"),
        ({"instruction": None}, "field 'instruction': found nothing"),
        ({"negative_response": 4}, "field 'negative_response': found 4, expected text"),
    ],
)
def test_a_wrong_row_gives_one_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=rf"rows\.jsonl:2: {message}") as caught:
        read(tmp_path / "rows.jsonl", native("folio"), native("folio", 1, **change))
    assert "\n" not in str(caught.value)


PAIRS = [make_pair(number, "AB"[number % 2], question=f"q{number // 2}") for number in range(9)]


def by_hand(won: Won) -> tuple[float, float]:
    """The authors' rule: (score, agreement)."""
    scores, agreements = [], []
    for pair in PAIRS:
        if {(pair.id, "ab"), (pair.id, "ba")} <= won.keys():
            first, second = won[pair.id, "ab"], won[pair.id, "ba"]
            if first == second:
                scores.append(first == "right")
                agreements.append(True)
            elif "tie" in (first, second):
                clear = second if first == "tie" else first
                scores.append(clear == "right")
                agreements.append(True)
            else:
                scores.append(False)
                agreements.append(False)
    return (mean(scores), mean(agreements)) if scores else (math.nan, math.nan)


@settings(max_examples=50, deadline=None)
@given(tables(PAIRS))
def test_metrics_are_those_computed_by_hand(table: Any) -> None:
    judgments, won = table
    found = REASONINGJUDGEBENCH.estimates(PAIRS, judgments)
    values = (found["score"].value, found["agreement"].value)
    assert values == pytest.approx(by_hand(won), abs=1e-12, nan_ok=True)
