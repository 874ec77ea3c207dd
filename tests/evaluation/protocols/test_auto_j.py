import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from judgelit.errors import UserError
from judgelit.evaluation.protocols import BENCHMARKS
from judgelit.evaluation.protocols.auto_j import GROUPS
from judgelit.evaluation.saved import read_judgments
from judgelit.records.records import Judgment, PreferencePair
from tests.evaluation.protocols.human_labels import judged, share, values, winners

AUTO_J = BENCHMARKS["auto-j"]


def native(label: Any, scenario: str = "chitchat", **more: Any) -> dict[str, Any]:
    return {"scenario": scenario, "label": label, "prompt": "Hi", "response 1": "Yo", "response 2": "Yo", **more}


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_native_rows(tmp_path: Path) -> None:
    rows = [native(0), native(2, "ranking"), native("1", "my_own", **{"response 2": ""}), native(0)]
    pairs = AUTO_J.read(write(tmp_path / "testdata_pairwise.jsonl", rows), None)
    assert pairs == [  # two rows of the real file have the same texts; both count
        PreferencePair("1", "Hi", "Yo", "Yo", "A", "General Communication", source="chitchat"),
        PreferencePair("2", "Hi", "Yo", "Yo", "tie", "NLP Tasks", source="ranking"),
        PreferencePair("3", "Hi", "Yo", "", "B", "my_own", source="my_own"),
        PreferencePair("4", "Hi", "Yo", "Yo", "A", "General Communication", source="chitchat"),
    ]
    scenarios = " ".join(GROUPS.values()).split()
    assert len(scenarios) == len(set(scenarios)) == 58


def test_a_wrong_label_is_one_line(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [native(0), native(3)])
    with pytest.raises(UserError) as error:
        AUTO_J.read(path, None)
    assert str(error.value) == f"{path}:2: field 'label': found 3, expected one of 0, 1, 2"


def test_output_files_of_both_orders(tmp_path: Path) -> None:
    pairs = AUTO_J.read(write(tmp_path / "pairs.jsonl", [native(0), native(1), native(2), native(2)]), None)
    folder = tmp_path / "outputs"
    folder.mkdir()
    write(folder / "pairwise_output.jsonl", [{"output": code} for code in (0, 1, 2, -1)])
    write(folder / "pairwise_exchange_output.jsonl", [{"output": code} for code in (1, 1, 2, 2)])
    found = read_judgments(str(folder), AUTO_J, pairs)
    assert {(one.pair_id, one.order): one.verdict for one in found} == {
        **{("1", "ab"): "A", ("2", "ab"): "B", ("3", "ab"): "tie", ("4", "ab"): None},
        **{("1", "ba"): "B", ("2", "ba"): "B", ("3", "ba"): "tie", ("4", "ba"): "tie"},
    }
    figures = values(AUTO_J, pairs, found)
    assert (figures["agreement"], figures["consistency"], figures["agreement_one_order"]) == (0.5, 0.5, 0.75)
    write(folder / "pairwise_output.jsonl", [{"output": code} for code in (0, 1, 2, 3)])
    with pytest.raises(UserError, match=r"pairwise_output.jsonl:4: field 'output': found 3, expected one of 0, 1, 2"):
        read_judgments(str(folder), AUTO_J, pairs)
    write(folder / "pairwise_output.jsonl", [{"output": 0}] * 5)
    with pytest.raises(UserError, match="pair '5' is not among the 4 that were read"):
        read_judgments(str(folder), AUTO_J, pairs)


@settings(max_examples=40, deadline=None)
@given(judged())
def test_metrics_equal_their_definitions(table: tuple[list[PreferencePair], list[Judgment]]) -> None:
    pairs, judgments = table
    label, said = {pair.id: pair.label for pair in pairs}, winners(judgments)
    both = [(label[name], by["ab"], by["ba"]) for name, by in said.items() if len(by) == 2]
    expected = {
        "agreement": share(one == other == right for right, one, other in both),
        "consistency": share(one == other != "none" for _, one, other in both),
        "agreement_one_order": share(by["ab"] == label[name] for name, by in said.items() if "ab" in by),
    }
    found = values(AUTO_J, pairs, judgments)
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-12, nan_ok=True)
