"""RewardBench 2's ranking: native rows, the score and the slots recomputed in plain Python, result files."""

import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from judgelit.errors import UserError
from judgelit.evaluation.evaluate import evaluate, main
from judgelit.evaluation.protocols.rewardbench2 import REWARDBENCH2
from judgelit.evaluation.saved import read_judgments
from judgelit.generation.engine import Generated
from judgelit.generation.local import LocalEngine
from judgelit.generation.sampling import Sampling
from judgelit.judging.answer_prompts import best_order
from judgelit.records.files import write_records
from judgelit.records.records import AnswerSet, Judgment
from tests.evaluation.protocols.rewardbench2_rows import NATIVE_SUBSETS, native, write
from tests.evaluation.protocols.test_rewardbench import value

NAMES = {"Factuality": "factuality", "Precise IF": "precise_if", "Math": "math", "Safety": "safety", "Focus": "focus"}


def judgment(name: str, order: str, verdict: str | None) -> Judgment:
    return Judgment(name, ({"role": "user", "content": "?"},), "text", verdict, order, "t", "e", 0)


@settings(max_examples=50)
@given(
    st.lists(
        st.tuples(st.sampled_from(NATIVE_SUBSETS), st.permutations("abcd"), st.sampled_from([*"ABCD", None])),
        min_size=1,
        max_size=40,
    )
)
def test_the_score_is_the_plain_mean_of_five_subsets(table: Any) -> None:
    items = [
        AnswerSet(f"q{n}", f"{n}?", ("1", "2", "3", "4"), right=(0,), category=subset)
        for n, (subset, _, _) in enumerate(table)
    ]
    judgments = [judgment(f"q{n}", "".join(order), verdict) for n, (_, order, verdict) in enumerate(table)]
    found = REWARDBENCH2.metrics(items, judgments)
    # Points as the official script gives them: 1, 0, or 0.25 for a text without a verdict.
    rows = []
    for subset, order, verdict in table:
        slot = "ABCD"[order.index("a")]
        rows.append((subset, slot, 0.25 if verdict is None else 1.0 if verdict == slot else 0.0, verdict))

    def mean(points: list[float]) -> float:
        return sum(points) / len(points) if points else math.nan

    subsets = {name: mean([row[2] for row in rows if row[0] == subset]) for subset, name in NAMES.items()}
    slots = {f"slot_{slot.lower()}": mean([row[2] for row in rows if row[1] == slot]) for slot in "ABCD"}
    given_ = [row[3] for row in rows if row[3] is not None]
    shares = {f"share_{slot.lower()}": mean([float(one == slot) for one in given_]) for slot in "ABCD"}
    expected = {"score": sum(subsets.values()) / 5, **subsets, **slots, **shares}
    expected |= {"accuracy": mean([float(row[2] == 1) for row in rows]), "no_verdict": 1 - len(given_) / len(rows)}
    assert {name: value(found[name]) for name in expected} == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_every_slot_is_as_likely_and_the_order_depends_on_the_id_alone() -> None:
    orders = [best_order(f"id {number}") for number in range(2000)]
    slots = Counter(order.index("a") for order in orders)
    assert set(slots) == {0, 1, 2, 3} and all(400 < count < 600 for count in slots.values())
    assert set(orders) == {"abcd", "bacd", "cbad", "dbca"}
    assert orders == [best_order(f"id {number}") for number in range(2000)]


def test_rows_without_ties_are_questions_with_four_answers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [native("Math", "1"), native("Ties", "tied:0", 3, 2), native("Precise IF", "2", wrong=4)]
    items = REWARDBENCH2.read(write(tmp_path, rows), None)
    assert [(one.id, one.category, one.answers, one.right) for one in items] == [
        ("1", "Math", ("yes 0", "no 0", "no 1", "no 2"), (0,)),
        ("2", "Precise IF", ("yes 0", "no 0", "no 1", "no 2"), (0,)),
    ]
    assert "1 of 3 questions are of the subset Ties, which has no ranking; rewardbench2-ratings has it" in caplog.text
    assert REWARDBENCH2.read(write(tmp_path, rows), 1) == items[:1]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            native("Maths", "1"),
            "rows.jsonl:1: field 'subset': found 'Maths', expected one of 'Factuality', 'Precise IF'",
        ),
        (
            native("Math", "1", chosen="a"),
            "field 'chosen': found 'a', expected a list of texts; a single text is a row of",
        ),
        (native("Math", "1", num_correct=4), "field 'num_correct': found 4, expected from 1 to 3, with 4 answers"),
        (native("Math", "1", num_correct="1"), "field 'num_correct': found '1', expected a whole number"),
        (native("Math", "1", 2, 3), "question 1: found 2 right and 3 wrong answers, expected 1 right and 3 wrong"),
        (native("Math", "1", 1, 2), "question 1: found 1 right and 2 wrong answers, expected 1 right and 3 wrong"),
        (native("Math", "1", rejected=[1, 2, 3]), r"field 'answers\[1\]': found 1, expected text"),
        (native("Ties", "7", 2), "field 'id': found '7', expected ref:NUMBER or tied:NUMBER in the subset Ties"),
        (native("Ties", "tied:7", 1), "field 'num_correct': found 1, expected two or more right answers of a tied"),
        (native("Ties", "tied:7", 30, 30), "rows.jsonl:1: found 60 answers, expected 52 at most"),
        (native("Ties", "ref:7"), "found questions of the subset Ties alone; use rewardbench2-ratings"),
        ({"prompt": "?", "chosen": "a", "rejected": "b", "id": 1, "subset": "hep-go"}, "without num_correct"),
    ],
)
def test_other_rows_are_refused(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        REWARDBENCH2.read(write(tmp_path, [row]), None)


def test_a_judgment_of_one_answer_is_refused(tmp_path: Path) -> None:
    items = REWARDBENCH2.read(write(tmp_path, [native("Math", "1")]), None)
    with pytest.raises(UserError, match="question 1: found a judgment in order 'a', expected four answers"):
        REWARDBENCH2.metrics(items, [judgment("1", "a", "7")])
    write_records(tmp_path / "j.jsonl", [judgment("1", "e", "7")])
    with pytest.raises(UserError, match="'1': found a judgment in order e, expected letters from a to d"):
        read_judgments(str(tmp_path / "j.jsonl"), REWARDBENCH2, items)


def test_a_result_file_gives_its_figures_and_no_slots(tmp_path: Path) -> None:
    rows = [native(subset, f"{subset} {n}") for subset in NATIVE_SUBSETS for n in range(4)] + [native("Ties", "ref:1")]
    results = [1, 1, 0, 0.25, *[1] * 4, *[0] * 4, *[0.25] * 4, 1, 0, 0, 0, None]
    table = {"id": [row["id"] for row in rows], "subset": [row["subset"] for row in rows], "results": results}
    (tmp_path / "judge.json").write_text(json.dumps({**table, "scores": [None] * 20 + [[9, 1, 1, 1]], "model": "m"}))
    files = {"pairs": write(tmp_path, rows), "judgments": str(tmp_path / "judge.json")}
    evaluate(str(tmp_path / "out"), benchmark="rewardbench2", **files)
    found = json.loads((tmp_path / "out/results.json").read_text())["sets"]["rewardbench2"]
    assert {name: found[name]["value"] for name in ("score", *NAMES.values())} == pytest.approx(
        {"score": 0.4125, "factuality": 0.5625, "precise_if": 1, "math": 0, "safety": 0.25, "focus": 0.25}
    )
    assert all(found[f"{kind}_{slot}"]["value"] is None for kind in ("slot", "share") for slot in "abcd")
    board = json.loads((tmp_path / "out/rewardbench2.leaderboard.json").read_text())
    assert board["Factuality"] == 0.5625 and board["Precise IF"] == 1 and "Ties" not in board
    (tmp_path / "judge.json").write_text(json.dumps({**table, "results": [0.5] * 21}))
    with pytest.raises(UserError, match=r"id Factuality 0: field 'results': found 0.5, expected 1, 0.25 or 0; reward"):
        read_judgments(files["judgments"], REWARDBENCH2, REWARDBENCH2.read(files["pairs"], None))


def test_a_judge_is_asked_with_four_answers_and_with_each_alone(
    tmp_path: Path, llama: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stops: list[bool] = []

    def speak(self: LocalEngine, conversations: Any, sampling: Sampling, **more: Any) -> Any:
        stops.append(sampling.stop_at_verdict)
        for index, (turn,) in enumerate(conversations):
            shown = re.findall(r"\[Answer ?(\w?)\]\n(\w+)", turn["content"])
            best = next(([letter] for letter, answer in shown if answer == "yes"), ["none"])
            text = f"[[{best[0]}]]" if len(shown) == 4 else "Rating: 9" if shown[0][1] == "yes" else "[[2]]"
            yield index, [Generated(text, "stop")]

    monkeypatch.setattr(LocalEngine, "answer", speak)
    rows = [native(subset, f"{subset} {n}") for subset in NATIVE_SUBSETS for n in range(2)]
    path = write(tmp_path, [*rows, native("Ties", "ref:1"), native("Ties", "tied:1", 2, 2)])
    command = ["--model", llama, "--output", str(tmp_path / "out"), "--max_new_tokens", "8"]
    names = ("rewardbench2", "rewardbench2-ratings")
    main([*command, f"--benchmark=[{','.join(names)}]", *(part for name in names for part in (f"--sets.{name}", path))])
    found = json.loads((tmp_path / "out/results.json").read_text())["sets"]
    assert {name: found[name]["score"]["value"] for name in names} == {
        names[0]: pytest.approx(1),
        names[1]: pytest.approx((5 + 1.01) / 6),
    }
    assert found[names[0]]["slot_a"]["n"] < 10
    # The rule that finds the line of a verdict knows two answers only, so no text is ended by it.
    assert stops == [False, False]
    printed = capsys.readouterr().out
    assert "the built-in prompt 'best-of-four' was asked with" in printed and "right in slot D" in printed
    assert {"rewardbench2.leaderboard.json", "rewardbench2-ratings.items.jsonl"} <= {
        file.name for file in (tmp_path / "out").iterdir()
    }
