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
from judgelit.records.records import Judgment, PreferencePair
from tests.evaluation.protocols.human_labels import judged, share, values, winners

EVALBIASBENCH = BENCHMARKS["evalbiasbench"]
SHARED = Path(os.environ.get("JUDGELIT_SHARED", Path(__file__).parents[4] / "shared")) / "data/eval/evalbiasbench"


def native(label: Any, bias: str = "length bias") -> dict[str, Any]:
    return {"bias": bias, "instruction": "Hi", "response1": "Yo", "response2": "Hello", "label": label}


def write(path: Path, rows: Any) -> str:
    path.write_text(json.dumps(rows, indent=2))
    return str(path)


def test_the_kinds_of_bias_are_categories(tmp_path: Path) -> None:
    one, two = native("1"), native("2", "concreteness")
    expected = [
        PreferencePair("length bias/1", "Hi", "Yo", "Hello", "A", "length bias"),
        PreferencePair("length bias/2", "Hi", "Yo", "Hello", "A", "length bias"),
        PreferencePair("concreteness/1", "Hi", "Yo", "Hello", "B", "concreteness"),
    ]
    path = write(tmp_path / "biasbench.json", {"length bias": [one, one], "concreteness": [two]})
    assert EVALBIASBENCH.read(path, None) == expected


def test_a_wrong_label_names_file_item_and_field(tmp_path: Path) -> None:
    path = write(tmp_path / "biasbench.json", {"length bias": [native("1"), native("3")]})
    with pytest.raises(UserError) as error:
        EVALBIASBENCH.read(path, None)
    assert str(error.value) == f"{path}: item 2 of 'length bias': field 'label': found '3', expected one of 1, 2"


@settings(max_examples=30, deadline=None)
@given(judged(("A", "B"), complete=True))
def test_metrics_equal_their_definitions(table: tuple[list[PreferencePair], list[Judgment]]) -> None:
    pairs, judgments = table
    label, said = {pair.id: pair.label for pair in pairs}, winners(judgments)
    expected = {
        "accuracy": share(winner == label[name] for name, by in said.items() for winner in by.values()),
        "consistent_accuracy": share(by["ab"] == by["ba"] == label[name] for name, by in said.items()),
        "consistency": share(by["ab"] == by["ba"] != "none" for by in said.values()),
    }
    found = values(EVALBIASBENCH, pairs, judgments)
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-12)


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no public data at {SHARED}; JUDGELIT_SHARED names its parent folder")
def test_the_real_set_by_hand(tmp_path: Path) -> None:
    """The accuracy of each kind, and the same from the file and the verdicts alone."""
    file = SHARED / "biasbench.json"
    pairs = EVALBIASBENCH.read(str(file), None)
    assert [*Counter(pair.category for pair in pairs).values()] == [17, 14, 13, 12, 12, 12]
    path = tmp_path / "verdicts.jsonl"
    with path.open("w") as lines:
        for number, pair in enumerate(pairs):
            for order in ("ab", "ba"):
                verdict = ["A", "B", "A", None, "tie"][(number * len(order + pair.answer_b)) % 5]
                one = Judgment(pair.id, ({"role": "user", "content": "?"},), "", verdict, order, "t", "e", 0)
                lines.write(json.dumps(one.to_dict()) + "\n")
    evaluate(str(tmp_path / "out"), benchmark="evalbiasbench", pairs=str(file), judgments=str(path))

    right: dict[str, list[bool]] = {}
    rows = json.loads(file.read_text())
    for one in map(json.loads, path.read_text().splitlines()):
        kind, number = one["pair_id"].split("/")
        better = int(rows[kind][int(number) - 1]["label"]) - 1
        right.setdefault(kind, []).append(one["verdict"] == {"ab": "AB", "ba": "BA"}[one["order"]][better])
    found = json.loads((tmp_path / "out/results.json").read_text())["groups"]["evalbiasbench"]["category"]
    assert {kind: one["accuracy"]["value"] for kind, one in found.items()} == pytest.approx(
        {kind: share(hits) for kind, hits in right.items()}, abs=1e-12
    )
