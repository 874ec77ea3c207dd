import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from judgelit.errors import UserError
from judgelit.evaluation.evaluate import evaluate
from judgelit.evaluation.protocols import BENCHMARKS
from judgelit.evaluation.saved import read_judgments
from judgelit.records.records import Judgment, PreferencePair
from tests.evaluation.protocols.human_labels import judged, share, values, winners

LLMBAR = BENCHMARKS["llmbar"]
SHARED = Path(os.environ.get("JUDGELIT_SHARED", Path(__file__).parents[4] / "shared")) / "data/eval"


def native(text: str, label: Any = 1) -> dict[str, Any]:
    return {"input": f"Say {text}.", "output_1": text, "output_2": "No.", "label": label}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The folders of the repository, with a result file."""
    for name, rows in {
        "Natural": [native("one"), native("two", 2)],
        "Adversarial/Manual": [native("three", "2")],
        "Processed/LLMEval^2": [{**native("four"), "output_1": ""}],
    }.items():
        folder = tmp_path / "data" / name
        folder.mkdir(parents=True)
        (folder / "dataset.json").write_text(json.dumps(rows, indent=2))
    rows = [
        {**native("one"), "results": ["Metrics.", results("1", "2")]},
        {**native("two", 2), "results": [results("1", "2"), results("2", None)]},
    ]
    results_folder = tmp_path / "data/Natural/evaluators/GPT-4/Vanilla"
    results_folder.mkdir(parents=True)
    (results_folder / "result.json").write_text(json.dumps(rows, indent=2))
    return tmp_path / "data"


def results(ab: str | None, ba: str | None) -> dict[str, Any]:
    return {
        "swap = False": {"completion": ["Output (a)", "stop"], "winner": ab},
        "swap = True": {"completion": ["Output (b)", "content management policy"], "winner": ba},
    }


@pytest.mark.parametrize("place", ["{}", "{}/**/dataset.json", "{}/"])
def test_a_tree_of_folders_is_read_as_subsets(tree: Path, place: str) -> None:
    pairs = LLMBAR.read(place.format(tree), None)
    assert pairs == [
        PreferencePair("Manual/1", "Say three.", "three", "No.", "B", subset="Manual"),
        PreferencePair("Natural/1", "Say one.", "one", "No.", "A", subset="Natural"),
        PreferencePair("Natural/2", "Say two.", "two", "No.", "B", subset="Natural"),
        PreferencePair("LLMEval^2/1", "Say four.", "", "No.", "A", subset="LLMEval^2"),
    ]
    assert LLMBAR.read(place.format(tree), 2) == pairs[:2]


def test_one_folder_or_file_has_the_same_ids(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = ["Natural/1", "Natural/2"]
    for place in (tree / "Natural", tree / "Natural/dataset.json"):
        assert [pair.id for pair in LLMBAR.read(str(place), None)] == expected
    monkeypatch.chdir(tree / "Natural")
    assert [pair.id for pair in LLMBAR.read("dataset.json", None)] == expected
    (tree / "mine.json").write_text(json.dumps([native("five")]))
    assert [pair.id for pair in LLMBAR.read(str(tree / "mine.json"), None)] == ["mine/1"]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"label": 3}, "'label': found 3, expected one of 1, 2"),
        ({"label": None}, "'label': found nothing, expected one of 1, 2"),
        ({"label": True}, "'label': found True, expected one of 1, 2"),
        ({"input": " "}, "'input': found ' ', expected text that is not empty"),
        ({"output_2": None}, "'output_2': found nothing, expected text"),
    ],
)
def test_an_invalid_row_is_one_line(tmp_path: Path, change: dict[str, Any], field: str) -> None:
    path = tmp_path / "dataset.json"
    path.write_text(f"[\n{json.dumps(native('one'))},\n{json.dumps({**native('two'), **change})}\n]")
    with pytest.raises(UserError) as error:
        LLMBAR.read(str(path), None)
    assert str(error.value) == f"{path}:3: field {field}"


def test_result_files_are_judgments_of_both_orders(tree: Path) -> None:
    pairs = LLMBAR.read(str(tree / "Natural"), None)
    found = read_judgments(str(tree / "Natural/evaluators/GPT-4/Vanilla/result.json"), LLMBAR, pairs)
    assert [(one.pair_id, one.order, one.verdict, one.finish, one.text) for one in found] == [
        ("Natural/1", "ab", "A", "stop", "Output (a)"),
        ("Natural/1", "ba", "A", None, "Output (b)"),  # the winner is output 2, which the swapped order shows first
        ("Natural/2", "ab", "B", "stop", "Output (a)"),
        ("Natural/2", "ba", None, None, "Output (b)"),
    ]
    assert {one.engine for one in found} == {"GPT-4/Vanilla"}
    assert all(Judgment.from_dict(one.to_dict(), "here") == one for one in found)
    figures = values(LLMBAR, pairs, found)
    assert (figures["accuracy"], figures["agreement"], figures["consistent_accuracy"]) == (0.5, 0.0, 0.0)


def test_result_files_of_other_pairs_are_refused(tree: Path) -> None:
    path = tree / "Natural/evaluators/GPT-4/Vanilla/result.json"
    with pytest.raises(UserError, match=r"found no pair of subset 'Natural' with this input, outputs and label"):
        read_judgments(str(path), LLMBAR, LLMBAR.read(str(tree / "Adversarial/Manual"), None))
    path.write_text(json.dumps([native("one")]))
    with pytest.raises(UserError, match=r"'results': found nothing, expected a list that ends with 'swap = False' and"):
        read_judgments(str(path), LLMBAR, LLMBAR.read(str(tree / "Natural"), None))


@settings(max_examples=40, deadline=None)
@given(judged(("A", "B")))
def test_metrics_equal_their_definitions(table: tuple[list[PreferencePair], list[Judgment]]) -> None:
    pairs, judgments = table
    label, said = {pair.id: pair.label for pair in pairs}, winners(judgments)
    of_orders = [[said[name][order] == label[name] for name in said if order in said[name]] for order in ("ab", "ba")]
    known = [hits for hits in of_orders if hits]
    both = [(label[name], *by.values()) for name, by in said.items() if len(by) == 2]
    expected = {
        "accuracy": sum(map(share, known)) / len(known) if known else float("nan"),
        "agreement": share(one == other for _, one, other in both),
        "consistent_accuracy": share(one == other == right for right, one, other in both),
    }
    found = values(LLMBAR, pairs, judgments)
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-12, nan_ok=True)


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no public data at {SHARED}; JUDGELIT_SHARED names its parent folder")
def test_the_real_set_by_hand(tmp_path: Path) -> None:
    """The command's figures on all pairs, and the same from the files and the verdicts alone."""
    pairs = LLMBAR.read(str(SHARED / "llmbar"), None)
    lines = []
    for number, pair in enumerate(pairs):
        for order in ("ab", "ba"):
            verdict = ["A", "B", "tie", None, "A"][(7 * number + 3 * len(order + pair.answer_a)) % 5]
            lines.append(Judgment(pair.id, ({"role": "user", "content": "?"},), "", verdict, order, "t", "e", 0))
    path = tmp_path / "verdicts.jsonl"
    path.write_text("".join(json.dumps(one.to_dict()) + "\n" for one in lines))
    evaluate(str(tmp_path / "out"), benchmark="llmbar", pairs=str(SHARED / "llmbar"), judgments=str(path))

    right: dict[str, list[bool]] = {"ab": [], "ba": []}
    for row in map(json.loads, path.read_text().splitlines()):
        subset, number = row["pair_id"].split("/")
        folder = SHARED / "llmbar" / ("" if subset == "Natural" else "Adversarial") / subset
        label = json.loads((folder / "dataset.json").read_text())[int(number) - 1]["label"]
        right[row["order"]].append(row["verdict"] == {"ab": "AB", "ba": "BA"}[row["order"]][label - 1])
    both = [one and other for one, other in zip(*right.values(), strict=True)]
    found = json.loads((tmp_path / "out/results.json").read_text())["sets"]["llmbar"]
    assert len(both) == 419
    assert found["accuracy"]["value"] == pytest.approx((share(right["ab"]) + share(right["ba"])) / 2, abs=1e-12)
    assert found["consistent_accuracy"]["value"] == pytest.approx(share(both), abs=1e-12)
    others = Counter(pair.subset for pair in LLMBAR.read(str(SHARED / "llmbar_processed"), None))
    assert others == {"MT-Bench": 200, "LLMEval2": 200, "FairEval": 66}
