import json
import math
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
from hypothesis import given, settings

from judgelit.errors import UserError
from judgelit.evaluation.protocols import BENCHMARKS
from judgelit.records.records import PreferencePair
from tests.evaluation.protocols.verdict_tables import Won, tables

PAIRWISE, BEST_OF_N = BENCHMARKS["rmb-pairwise"], BENCHMARKS["rmb-bestofn"]
GOALS = ("Helpfulness", "Harmlessness")


def turns(*texts: str) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": roles[at % 2], "content": text, "language": "English"} for at, text in enumerate(texts)]


def answer(text: str) -> dict[str, str]:
    return {"llm_name": "m", "answer": text}


def pair_row(number: int, goal: str = "Helpfulness", **more: Any) -> dict[str, Any]:
    """A row of the authors' pairs."""
    return {
        "pair_uid": str(number),
        "conversation_input": turns(f"Ask {number}."),
        "chosen": answer("Better."),
        "reject": answer("Worse."),
        "category_path": f"Pairwise_set/{goal}/Rewrite/Paraphrasing",
        **more,
    }


def set_row(number: int, losers: int, goal: str = "Helpfulness", **more: Any) -> dict[str, Any]:
    """A row of the authors' best-of-N sets."""
    return {
        "bon_uid": str(number),
        "conversation_input": turns(f"Ask {number}."),
        "bon_best": answer("Best."),
        "loser_list": [answer(f"Loser {at}.") for at in range(losers)],
        "category_path": f"BoN_set/{goal}/S1",
        **more,
    }


def write(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text(json.dumps(rows, indent=1))
    return str(path)


def better(pair: PreferencePair) -> tuple[str, str]:
    return (pair.answer_a, pair.answer_b) if pair.label == "A" else (pair.answer_b, pair.answer_a)


def test_native_pairs(tmp_path: Path) -> None:
    rows = [pair_row(1, conversation_input=turns("Hi.", "Hello.", "Rewrite it.")), pair_row(2, "Harmlessness")]
    first, second = PAIRWISE.read(write(tmp_path / "pairs.json", *rows), None)
    assert (first.id, first.question, first.category, first.subset) == ("1", "Rewrite it.", "helpfulness", "Rewrite")
    assert first.context == ({"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."})
    assert better(first) == ("Better.", "Worse.")
    assert (second.category, second.source) == ("harmlessness", "Pairwise_set/Harmlessness/Rewrite/Paraphrasing")


def test_native_sets(tmp_path: Path) -> None:
    path = write(tmp_path / "sets.json", set_row(1, 2), set_row(2, 3, "Harmlessness"))
    pairs = BEST_OF_N.read(path, None)
    assert [pair.id for pair in pairs] == ["1/1", "1/2", "2/1", "2/2", "2/3"]
    assert [better(pair) for pair in pairs[2:]] == [("Best.", f"Loser {at}.") for at in range(3)]
    assert (pairs[2].category, pairs[2].subset) == ("harmlessness", "S1")
    assert [pair.id for pair in BEST_OF_N.read(path, 4)] == ["1/1", "1/2"]


def test_the_better_answer_has_no_fixed_place(tmp_path: Path) -> None:
    pairs = BEST_OF_N.read(write(tmp_path / "sets.json", *(set_row(n, 4) for n in range(60))), None)
    assert 0.4 < mean(pair.label == "A" for pair in pairs) < 0.6


def test_a_question_without_text_is_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [pair_row(1, conversation_input=turns("Hi.", "Hello.", "")), pair_row(2), pair_row(3, chosen=answer(""))]
    assert [pair.id for pair in PAIRWISE.read(write(tmp_path / "pairs.json", *rows), None)] == ["2", "3"]
    assert "1 rows are left out, since they have a question without text" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"category_path": "Pairwise_set/Fun/x"}, "field 'category_path': found 'Pairwise_set/Fun/x', expected"),
        ({"category_path": "x"}, "field 'category_path': found 'x', expected 'SET/Helpfulness/...'"),
        ({"reject": "Worse."}, "field 'reject': found 'Worse.', expected an object with 'llm_name' and 'answer'"),
        ({"chosen": {"llm_name": "m"}}, "field 'chosen': found .*, expected an object with"),
        ({"conversation_input": []}, "field 'conversation_input': found .*, expected a list of messages"),
        (
            {"conversation_input": turns("Hi.", "Hello.")},
            r"field 'conversation_input\[1\].role': found 'assistant', expected 'user'",
        ),
        ({"pair_uid": None}, "field 'pair_uid': found nothing"),
    ],
)
def test_a_wrong_pair_gives_one_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (pair_row(1), pair_row(2, **change))))
    with pytest.raises(UserError, match=rf"pairs\.jsonl:2: {message}") as caught:
        PAIRWISE.read(str(path), None)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loser_list": []}, "field 'loser_list': found .*, expected a list of answers, one or more"),
        ({"loser_list": [answer("a"), None]}, r"field 'loser_list\[1\]': found nothing, expected an object"),
        ({"bon_best": None}, "field 'bon_best': found nothing, expected an object"),
    ],
)
def test_a_wrong_set_gives_one_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "sets.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (set_row(1, 2), set_row(2, 2, **change))))
    with pytest.raises(UserError, match=rf"sets\.jsonl:2: {message}"):
        BEST_OF_N.read(str(path), None)


def over_goals(values: list[tuple[str, float]]) -> dict[str, float]:
    """The mean of each goal, and overall the mean of the goals that have values."""
    goals = {goal: [value for of, value in values if of == goal] for goal in ("helpfulness", "harmlessness")}
    means = {goal: mean(of) if of else math.nan for goal, of in goals.items()}
    known = [value for value in means.values() if value == value]
    return {**means, "overall": mean(known) if known else math.nan}


def agrees(found: Any, each: list[tuple[str, float]], both: list[tuple[str, float]]) -> None:
    for name, value in over_goals(each).items():
        assert found[name].value == pytest.approx(value, abs=1e-12, nan_ok=True), name
    strict = over_goals(both)["overall"]
    assert found["strict_overall"].value == pytest.approx(strict, abs=1e-12, nan_ok=True)


def test_metrics_of_pairs_are_those_computed_by_hand(tmp_path: Path) -> None:
    pairs = PAIRWISE.read(write(tmp_path / "pairs.json", *(pair_row(n, GOALS[n % 3 > 0]) for n in range(8))), None)

    @settings(max_examples=30, deadline=None)
    @given(tables(pairs))
    def check(table: tuple[Any, Won]) -> None:
        judgments, won = table
        goals = {pair.id: pair.category for pair in pairs}
        each = [(goals[name], float(what == "right")) for (name, _), what in won.items()]
        both = [
            (goal, float(won[name, "ab"] == won[name, "ba"] == "right"))
            for name, goal in goals.items()
            if {(name, "ab"), (name, "ba")} <= won.keys()
        ]
        agrees(PAIRWISE.estimates(pairs, judgments), each, both)

    check()


def test_metrics_of_sets_are_those_computed_by_hand(tmp_path: Path) -> None:
    rows = [set_row(n, 1 + n % 3, GOALS[n % 2]) for n in range(10)]
    pairs = BEST_OF_N.read(write(tmp_path / "sets.json", *rows), None)
    sets = {row["bon_uid"]: [f"{row['bon_uid']}/{at + 1}" for at in range(len(row["loser_list"]))] for row in rows}
    goals = {row["bon_uid"]: row["category_path"].split("/")[1].lower() for row in rows}

    @settings(max_examples=30, deadline=None)
    @given(tables(pairs))
    def check(table: tuple[Any, Won]) -> None:
        judgments, won = table
        known = {
            (name, order): all(won[member, order] == "right" for member in members)
            for name, members in sets.items()
            for order in ("ab", "ba")
            if all((member, order) in won for member in members)
        }
        each = [(goals[name], float(value)) for (name, _), value in known.items()]
        both = [
            (goals[name], float(known[name, "ab"] and known[name, "ba"]))
            for name in sets
            if {(name, "ab"), (name, "ba")} <= known.keys()
        ]
        agrees(BEST_OF_N.estimates(pairs, judgments), each, both)

    check()
