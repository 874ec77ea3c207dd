"""Two judges of the same pairs compared."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from judgelit.atomic import write_json
from judgelit.errors import UserError
from judgelit.evaluation.agreement import mcnemar
from judgelit.evaluation.compare import compare, compare_with, read_other
from judgelit.evaluation.judged_folder import RESULTS, BenchmarkSet, write_set
from judgelit.evaluation.protocols import BENCHMARKS
from judgelit.evaluation.protocols.pairs import PAIRS
from judgelit.records.records import AnswerSet, Judgment, Label, Order, PreferencePair
from tests.support import make_judgment, make_pair

Said = dict[tuple[int, Order], Label | None]
VERDICTS = st.sampled_from(["A", "B", "tie", None])


def judgments(said: Said) -> list[Judgment]:
    return [make_judgment(f"p{number}", order, verdict) for (number, order), verdict in said.items()]


def right(pair: PreferencePair, order: Order, verdict: Label | None) -> bool:
    return pair.in_order(order).label == verdict


def test_two_judges_by_hand() -> None:
    pairs = [make_pair(1, "A"), make_pair(2, "B"), make_pair(3, "tie"), make_pair(4, "A")]
    before: Said = {(1, "ab"): "A", (1, "ba"): "B", (2, "ab"): "B", (2, "ba"): "A", (3, "ab"): "A", (4, "ab"): "B"}
    # Worse on p2 in one order; another verdict on the tie; better on p4. Order ba of p4 has no counterpart.
    after: Said = {**before, (2, "ba"): None, (3, "ab"): "tie", (4, "ab"): "A", (4, "ba"): "B"}
    found = compare(BenchmarkSet("pairs", pairs), judgments(before), judgments(after))
    assert found is not None
    assert (found.judgments, found.left_out) == (6, 1)
    assert found.figures["flip_rate"].value == pytest.approx(3 / 6)
    # Three of six agree. Before: 3 A and 3 B; after: 2 A, 2 B, 1 tie, 1 none.
    assert found.figures["kappa"].value == pytest.approx((1 / 2 - 12 / 36) / (1 - 12 / 36))
    assert {name: (one.only_this, one.only_other, one.p) for name, one in found.tests.items()} == {
        "judgments": (1, 1, 1),
        "both_orders": (0, 1, 1),
    }
    assert found.gains["accuracy"].value == 0 and found.gains["consistent_accuracy"].value == -0.5
    assert found.other["consistent_accuracy"].value == 1
    text = str(found)
    assert text.startswith("accuracy is the same; 50.0% [")
    assert "judgments that are right only here: 1, only there: 1 (McNemar p 1)" in text
    assert text.endswith("1 judgments that only one of them has are left out")
    json.dumps(found.to_dict(), allow_nan=False)


@given(st.lists(st.tuples(st.sampled_from(["A", "B", "tie"]), *[VERDICTS] * 4), min_size=1, max_size=12))
@settings(max_examples=40, deadline=None)
def test_against_independent_definitions(table: list[tuple[Label, ...]]) -> None:
    pairs = [make_pair(number, row[0]) for number, row in enumerate(table)]
    orders: tuple[Order, Order] = ("ab", "ba")
    before: Said = {(n, order): row[1 + at] for n, row in enumerate(table) for at, order in enumerate(orders)}
    after: Said = {(n, order): row[3 + at] for n, row in enumerate(table) for at, order in enumerate(orders)}
    found = compare(BenchmarkSet("pairs", pairs), judgments(before), judgments(after)[::-1])
    assert found is not None and found.left_out == 0
    flips = sum(before[key] != after[key] for key in before) / len(before)
    assert found.figures["flip_rate"].value == pytest.approx(flips, abs=1e-12)
    here = there = both_here = both_there = winners = 0
    for number, pair in enumerate(pairs):
        if pair.label == "tie":
            continue
        winners += 1
        old = [right(pair, order, before[number, order]) for order in orders]
        new = [right(pair, order, after[number, order]) for order in orders]
        here += sum(b > a for a, b in zip(old, new, strict=True))
        there += sum(a > b for a, b in zip(old, new, strict=True))
        both_here += all(new) and not all(old)
        both_there += all(old) and not all(new)
    expected = {"judgments": (here, there), "both_orders": (both_here, both_there)} if winners else {}
    assert {name: (one.only_this, one.only_other) for name, one in found.tests.items()} == expected
    assert all(one.p == mcnemar(one.only_this, one.only_other) for one in found.tests.values())
    for name, gain in PAIRS.gains(pairs, judgments(before), judgments(after)).items():
        assert found.gains[name].to_dict() == gain.to_dict()
    if winners:
        assert found.gains["accuracy"].value == pytest.approx((here - there) / (2 * winners), abs=1e-12)
    str(found)


def test_a_judge_against_itself() -> None:
    pairs = [make_pair(number) for number in range(4)]
    said: Said = {(number, "ab"): "AB"[number % 2] for number in range(4)}  # type: ignore[misc]
    found = compare(BenchmarkSet("pairs", pairs), judgments(said), judgments(said))
    assert found is not None
    assert str(found) == "accuracy is the same; none of 4 judgments has another verdict"
    assert found.figures["kappa"].value == 1


def test_majorities_are_compared() -> None:
    pairs = [make_pair(1), make_pair(2)]
    one = judgments({(1, "ab"): "A", (2, "ab"): "B"})
    votes = [
        replace(make_judgment(f"p{number}", "ab", verdict), sample=sample)
        for number, verdicts in ((1, ["B", "A", "A"]), (2, ["A", None, "A"]))
        for sample, verdict in enumerate(verdicts)
    ]
    found = compare(BenchmarkSet("pairs", pairs), one, votes)
    assert found is not None
    assert (found.judgments, found.figures["flip_rate"].value, found.gains["accuracy"].value) == (2, 0.5, 0.5)


@pytest.fixture
def several_answers(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a benchmark whose items are answer sets."""
    monkeypatch.setitem(BENCHMARKS, "several", replace(PAIRS, metrics=lambda items, judgments: {}, shown={}))
    return "several"


def judged_set(name: str, order: str, verdict: str | None) -> Judgment:
    return replace(make_judgment(name, "ab", None), order=order, verdict=verdict)


def test_verdicts_about_several_answers(several_answers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("judgelit.evaluation.compare.Comparison.__str__", lambda self: "")
    sets = [AnswerSet(name, f"{name}?", ("w", "x", "y", "z"), right=(2,)) for name in ("one", "two", "three")]
    # In the order cadb the third answer stands first.
    before = [judged_set("one", "cadb", "A"), judged_set("two", "abcd", "A"), judged_set("three", "dbca", None)]
    after = [judged_set("one", "cadb", "C"), judged_set("two", "abcd", "C"), judged_set("three", "dbca", "C")]
    found = compare(BenchmarkSet(several_answers, sets), before, after)
    assert found is not None
    assert {name: (one.only_this, one.only_other) for name, one in found.tests.items()} == {"judgments": (2, 1)}
    assert found.figures["flip_rate"].value == 1
    ratings = [judged_set("one", order, str(rating)) for order, rating in zip("abcd", [1, 7, 7, 9], strict=True)]
    other = [replace(one, verdict="8") if one.order == "d" else one for one in ratings]
    found = compare(BenchmarkSet(several_answers, sets), ratings, other)
    assert found is not None
    assert (found.figures["flip_rate"].value, found.tests, "kappa" in found.figures) == (1 / 4, {}, False)


ITEMS = [make_pair(1), make_pair(2, "B")]


def save(folder: Path, sets: dict[str, Sequence[PreferencePair]], benchmark: str = "pairs") -> Path:
    """A folder with results of a judge that says A in the order ab."""
    for name, pairs in sets.items():
        write_set(folder, name, pairs, [make_judgment(pair.id, "ab", "A") for pair in pairs])
    settings = {"dtype": "float32", "pairs": dict.fromkeys(sets, "x"), "seed": 0}
    write_json(
        folder / RESULTS, {"model": "parent", "benchmarks": dict.fromkeys(sets, benchmark), "settings": settings}
    )
    return folder


def test_settings_that_differ_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sets = {"one": BenchmarkSet("pairs", ITEMS)}
    other = read_other(save(tmp_path / "other", {"one": ITEMS, "more": ITEMS}), tmp_path / "mine", sets)
    said = {"one": judgments({(1, "ab"): "A", (2, "ab"): "B"})}
    found = compare_with(other, sets, said, {"dtype": "bfloat16", "pairs": {"one": "x"}, "seed": 0})
    content = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert content["settings"] == {"dtype": ["float32", "bfloat16"]}
    assert (content["model"], content["folder"]) == ("parent", str(tmp_path / "other"))
    assert content["sets"]["one"]["mcnemar"] == {"judgments": {"only_this": 1, "only_other": 0, "p": 1}}
    assert content["sets"]["one"]["gains"]["accuracy"]["value"] == 0.5
    assert math.isclose(content["sets"]["one"]["flip_rate"]["value"], 0.5)
    found.print()
    printed = capsys.readouterr().out
    assert "dtype: float32 there, bfloat16 here" in printed and "+50.0 points" in printed


@pytest.mark.parametrize(
    ("there", "mine", "complaint"),
    [
        ({"one": ITEMS}, {"one": ITEMS, "two": ITEMS}, "found the sets one, expected two too"),
        ({"one": ITEMS[:1]}, {"one": ITEMS}, "one: found 1 of 2 pairs that differ, expected the same pairs; the first"),
        ({"one": [*ITEMS, make_pair(3)]}, {"one": ITEMS}, "one: found 1 of 3 pairs that differ"),
        ({"one": [ITEMS[0].swapped(), ITEMS[1]]}, {"one": ITEMS}, "one: found 1 of 2 pairs that differ"),
        ({"one": ITEMS}, {}, "found no pairs to judge"),
    ],
)
def test_a_judge_of_other_pairs_is_refused(
    tmp_path: Path, there: dict[str, list[PreferencePair]], mine: dict[str, list[PreferencePair]], complaint: str
) -> None:
    folder = save(tmp_path / "other", there)  # type: ignore[arg-type]
    with pytest.raises(UserError) as error:
        read_other(folder, tmp_path / "mine", {name: BenchmarkSet("pairs", pairs) for name, pairs in mine.items()})
    assert complaint in str(error.value) and "\n" not in str(error.value)


def test_other_benchmarks_folders_and_orders_are_refused(tmp_path: Path, several_answers: str) -> None:
    sets = {"one": BenchmarkSet("pairs", ITEMS)}
    folder = save(tmp_path / "other", {"one": ITEMS})
    with pytest.raises(UserError, match="the folder of these results"):
        read_other(folder, tmp_path / "x" / ".." / "other", sets)
    with pytest.raises(UserError, match="found no results, expected a folder that `judgelit evaluate` has written"):
        read_other(tmp_path / "nowhere", tmp_path, sets)
    with pytest.raises(UserError, match="one: found the benchmark several, expected pairs"):
        read_other(save(tmp_path / "several", {"one": ITEMS}, several_answers), tmp_path, sets)
    other = read_other(folder, tmp_path, sets)
    with pytest.raises(UserError, match="one: found no judgment of the same pair in the same order"):
        compare_with(other, sets, {"one": judgments({(1, "ba"): "A"})}, {})
