import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from judgelit.errors import UserError
from judgelit.evaluation.evaluate import evaluate
from judgelit.evaluation.protocols import BENCHMARKS
from judgelit.evaluation.saved import read_judgments
from judgelit.records.records import Judgment, PreferencePair
from tests.evaluation.protocols.human_labels import combined, judged, share, values, winners

PANDALM = BENCHMARKS["pandalm"]
SHARED = Path(os.environ.get("JUDGELIT_SHARED", Path(__file__).parents[4] / "shared")) / "data/train/pandalm"


def native(number: int, *votes: Any, **more: Any) -> dict[str, Any]:
    texts = {"instruction": "Say it.", "input": f"{number}", "response1": True, "response2": ""}
    annotators = dict(zip(("annotator1", "annotator2", "annotator3"), votes, strict=True))
    return {"idx": number, "motivation_app": "Quora", "cmp_key": "a_b", **texts, **annotators, **more}


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text(json.dumps(rows, indent=0))
    return str(path)


def test_the_label_is_the_majority_of_three(tmp_path: Path) -> None:
    rows = [native(0, 1, 2, 1), native(1, "2", 2, 0), native(2, 0, 0.0, 1, input="")]
    pairs = PANDALM.read(write(tmp_path / "testset-v1.json", rows), None)
    assert pairs == [
        PreferencePair("0", "Say it.\n\n0", "True", "", "A", source="a_b"),
        PreferencePair("1", "Say it.\n\n1", "True", "", "B", source="a_b"),
        PreferencePair("2", "Say it.", "True", "", "tie", source="a_b"),
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (native(0, 1, 3, 1), "field 'annotator2': found 3, expected one of 0, 1, 2"),
        (native(0, 0, 1, 2), "field 'annotator1 to 3': found ['tie', 'A', 'B'], expected two that agree"),
        (native(0, 1, 1, 1, instruction=" ", input=""), "field 'instruction': found ' ', expected text that is not"),
        (native(0, 1, 1, 1, idx=None), "field 'idx': found nothing, expected text"),
    ],
)
def test_an_invalid_row_is_one_line(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "rows.json", [row])
    with pytest.raises(UserError) as error:
        PANDALM.read(path, None)
    assert str(error.value).startswith(f"{path}:") and message in str(error.value)


def test_result_files_of_both_teachers(tmp_path: Path) -> None:
    pairs = PANDALM.read(write(tmp_path / "pairs.json", [native(n, 0, 0, 0) for n in range(4)]), None)
    said = ["1", "2", "Tie", "garbage"]
    rows = [{"idx": n, "gpt_result": result, "gpt_reason": "Since."} for n, result in enumerate(said)]
    found = read_judgments(write(tmp_path / "gpt.json", rows), PANDALM, pairs)
    assert [(one.pair_id, one.order, one.verdict) for one in found] == [
        ("0", "ab", "A"),
        ("1", "ab", "B"),
        ("2", "ab", "tie"),
        ("3", "ab", None),
    ]
    figures = values(PANDALM, pairs, found)
    assert (figures["score"], figures["strict_score"], figures["no_verdict"]) == (0.5, 0.25, 0.25)
    rows = [{"idx": n, "pandalm_result": 0} for n in range(4)]
    assert {one.verdict for one in read_judgments(write(tmp_path / "p.json", rows), PANDALM, pairs)} == {"tie"}
    rows[1]["pandalm_result"] = 3
    with pytest.raises(UserError, match="'pandalm_result': found 3, expected one of 0, 1, 2, tie"):
        read_judgments(write(tmp_path / "p.json", rows), PANDALM, pairs)
    with pytest.raises(UserError, match=r"'\.\.\._result': found nothing, expected one field that ends so"):
        read_judgments(write(tmp_path / "p.json", [{"idx": 0}]), PANDALM, pairs)


def scores(rows: list[tuple[str, str]]) -> list[float]:
    """Accuracy and macro precision, recall and F1 of (label, verdict) rows, over the classes that occur."""
    by_class = []
    for name in ("A", "B", "tie"):
        said, labelled = sum(v == name for _, v in rows), sum(label == name for label, _ in rows)
        hits = sum(label == v == name for label, v in rows)
        precision, recall = hits / said if said else 0, hits / labelled if labelled else 0
        f1 = 2 * precision * recall / (precision + recall) if hits else 0
        if said or labelled:
            by_class.append((precision, recall, f1))
    nan = float("nan")
    macro = [sum(one) / len(by_class) for one in zip(*by_class, strict=True)] or [nan, nan, nan]
    return [share(label == v for label, v in rows), *macro]


@settings(max_examples=40, deadline=None)
@given(judged())
def test_metrics_equal_their_definitions(table: tuple[list[PreferencePair], list[Judgment]]) -> None:
    pairs, judgments = table
    label, said = {pair.id: pair.label for pair in pairs}, winners(judgments)
    order = "ab" if any("ab" in by for by in said.values()) else "ba"
    strict = [(str(label[name]), by[order]) for name, by in said.items() if order in by]
    both = [(str(label[name]), combined(by)) for name, by in said.items() if len(by) == 2]
    one_order, two_orders = (
        scores([(right, "tie" if verdict == "none" else verdict) for right, verdict in rows]) for rows in (strict, both)
    )
    expected = dict(zip(("score", "precision", "recall", "f1"), one_order, strict=True))
    expected |= {"combined_score": two_orders[0], "combined_f1": two_orders[3]}
    expected |= {"strict_score": scores(strict)[0], "strict_f1": scores(strict)[3]}
    found = values(PANDALM, pairs, judgments)
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-12, nan_ok=True)


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no public data at {SHARED}; JUDGELIT_SHARED names its parent folder")
@pytest.mark.parametrize(
    ("teacher", "published"),
    [("gpt-3.5-turbo", [71.07, 58.79, 57.36, 57.55]), ("pandalm-7b", [66.77, 57.38, 57.50, 57.43])],
)
def test_the_teachers_figures_come_out(
    tmp_path: Path, teacher: str, published: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    files = SHARED / "testset-v1.json", SHARED / f"{teacher}-testset-v1.json"
    evaluate(str(tmp_path), benchmark="pandalm", pairs=str(files[0]), judgments=str(files[1]))
    found = json.loads((tmp_path / "results.json").read_text())["sets"]["pandalm"]
    figures = [found[name]["value"] for name in ("score", "precision", "recall", "f1")]
    assert [round(100 * one, 2) for one in figures] == published
    assert "labelled tie" not in capsys.readouterr().out

    rows, results = (json.loads(file.read_text()) for file in files)
    key = next(name for name in results[0] if name.endswith("_result"))
    majority = [max((0, 1, 2), key=[row[f"annotator{n}"] for n in (1, 2, 3)].count) for row in rows]
    names = {0: "tie", 1: "A", 2: "B", "1": "A", "2": "B"}
    by_hand = scores([(names[m], names.get(row[key], "tie")) for m, row in zip(majority, results, strict=True)])
    assert figures == pytest.approx(by_hand, abs=1e-12)
