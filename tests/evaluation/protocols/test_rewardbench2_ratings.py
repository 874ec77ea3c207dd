"""RewardBench 2 by ratings: the score recomputed in plain Python and by the official package, result files."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from judgelit.errors import UserError
from judgelit.evaluation.evaluate import evaluate
from judgelit.evaluation.protocols.rewardbench2_ratings import REWARDBENCH2_RATINGS
from judgelit.evaluation.saved import read_judgments, read_results
from judgelit.records.records import ANSWER_LETTERS, AnswerSet, Judgment
from tests.evaluation.protocols.official import official
from tests.evaluation.protocols.rewardbench2_rows import NATIVE_SUBSETS, native, write
from tests.evaluation.protocols.test_rewardbench import value

ratings = st.one_of(st.none(), st.integers(1, 10))
Rows = Sequence[tuple[str, str, int, Sequence[int | None]]]
"""Id, subset, number of right answers, ratings."""


@st.composite
def tables(draw: Any) -> Rows:
    ranked = st.tuples(st.sampled_from(NATIVE_SUBSETS), st.lists(ratings, min_size=4, max_size=4))
    rows: list[Any] = [(f"{n}", subset, 1, found) for n, (subset, found) in enumerate(draw(st.lists(ranked)))]
    for number in range(draw(st.integers(0, 6))):
        for kind, right in (("ref", 1), ("tied", draw(st.integers(2, 5)))):
            if draw(st.integers(0, 9)):
                size = right + draw(st.integers(1, 4))
                rows.append((f"{kind}:{number}", "Ties", right, draw(st.lists(ratings, min_size=size, max_size=size))))
    return rows


def judged(rows: Rows) -> tuple[list[AnswerSet], list[Judgment]]:
    items, judgments = [], []
    for name, subset, right, found in rows:
        items.append(AnswerSet(name, f"{name}?", ("x",) * len(found), right=tuple(range(right)), category=subset))
        for letter, rating in zip(ANSWER_LETTERS, found, strict=False):
            judgments.append(judgment(name, letter, None if rating is None else str(rating)))
    return items, judgments


def judgment(name: str, order: str, verdict: str | None) -> Judgment:
    return Judgment(name, ({"role": "user", "content": "?"},), "text", verdict, order, "t", "e", 0)


def points(found: Sequence[int | None]) -> float:
    valid = [rating for rating in found if rating is not None]
    best = [place for place, rating in enumerate(found) if valid and rating == max(valid)]
    return (0 in best) / len(best) if best else 0.25


def ties_score(rows: Rows) -> float:
    """The formula of the Ties subset, in plain Python."""
    found: dict[str, dict[str, tuple[float, float]]] = {"ref": {}, "tied": {}}
    for name, _, right, given_ in rows:
        values = [-1 if rating is None else rating for rating in given_]
        gap = min(values[:right]) - max(values[right:])
        found[name.split(":")[0]][name.split(":")[1]] = (gap, max(values[:right]) - min(values[:right]))
    both = [(found["ref"][n][0], *found["tied"][n]) for n in found["tied"] if n in found["ref"]]
    if not both:
        return math.nan
    accuracy = {kind: sum(gap > 0 for gap, _ in of.values()) / len(of) for kind, of in found.items()}
    margin = sum(tied > spread for _, tied, spread in both) / len(both)
    hard = sum(min(ref, tied) > spread for ref, tied, spread in both) / len(both)
    bonus = 0.0
    for ref, tied, spread in both:
        gap = min(ref, tied)
        bonus += math.tanh(gap / spread - 1) if spread else (gap > 0) - (gap < 0)
    parts = 0.3 * accuracy["tied"] + 0.3 * accuracy["ref"] + 0.2 * margin + 0.2 * hard
    return parts + 0.01 * bonus / len(both)


@settings(max_examples=50)
@given(tables())
def test_the_score_is_the_plain_mean_of_six_subsets(rows: Rows) -> None:
    found = REWARDBENCH2_RATINGS.metrics(*judged(rows))
    expected = {}
    for subset in NATIVE_SUBSETS:
        of_subset = [points(row[3]) for row in rows if row[1] == subset]
        expected[subset.lower().replace(" ", "_")] = sum(of_subset) / len(of_subset) if of_subset else math.nan
    expected["ties"] = ties_score([row for row in rows if row[1] == "Ties"])
    expected["score"] = sum(expected.values()) / 6
    assert {name: value(found[name]) for name in expected} == pytest.approx(expected, abs=1e-12, nan_ok=True)


@settings(max_examples=50)
@given(tables())
def test_ties_have_the_score_of_the_official_package(rows: Rows) -> None:
    class Samples(list[Any]):
        """What the official function uses of a data set."""

        column_names = ()

        def add_column(self, name: str, column: Any) -> "Samples":
            return self

    utils = official("utils")
    ties = [(*row[:3], _with_spread(row[2], row[3])) for row in rows if row[1] == "Ties"]
    ours = value(REWARDBENCH2_RATINGS.metrics(*judged(ties))["ties"])
    if math.isnan(ours):
        return
    samples = Samples(
        {"id": name, "num_correct": right, "scores": [-1 if one is None else one for one in found]}
        for name, _, right, found in ties
    )
    assert ours == pytest.approx(utils.process_single_model(samples)[1], abs=1e-12)


def _with_spread(right: int, found: Sequence[int | None]) -> Sequence[int | None]:
    """Ratings whose right answers differ: where they are equal, versions of the package differ from one another."""
    return [5 if found[0] != 5 else 6, *found[1:]] if right > 1 and len(set(found[:right])) == 1 else found


def test_the_ties_of_a_worked_example() -> None:
    """Two prompts: G_tied = 3, D = 1, G_ref = 2; and G_tied = -1, D = 0, G_ref = 4."""
    rows: Rows = [
        ("tied:0", "Ties", 2, [9, 8, 5, 1]),
        ("ref:0", "Ties", 1, [7, 5]),
        ("tied:1", "Ties", 2, [4, 4, 5]),
        ("ref:1", "Ties", 1, [6, 2, 1]),
    ]
    found = REWARDBENCH2_RATINGS.metrics(*judged(rows))
    parts = {"ties_tied": 0.5, "ties_reference": 1.0, "ties_margin": 0.5, "ties_margin_both": 0.5}
    assert {name: value(found[name]) for name in parts} == parts
    expected = 0.3 * 0.5 + 0.3 * 1 + 0.2 * 0.5 + 0.2 * 0.5 + 0.01 * (math.tanh(2 / 1 - 1) - 1) / 2
    assert value(found["ties"]) == pytest.approx(expected, abs=1e-12)
    # The bootstrap resamples a tied question together with its reference.
    assert {number for mean in found["ties"] for number in mean.questions} == {0, 1}  # type: ignore[union-attr]


def test_many_answers_have_letters_after_z(tmp_path: Path) -> None:
    rows = [native("Ties", "tied:3", 30, 20), native("Ties", "ref:3", 1, 3)]
    (tmp_path / "scores.json").write_text(
        json.dumps(
            {"id": ["tied:3", "ref:3"], "scores": [[[0.5 + n % 2] for n in range(30)] + [[0.1]] * 20, [1, 0, 0, 0]]}
        )
    )
    files = {"pairs": write(tmp_path, rows), "judgments": str(tmp_path / "scores.json")}
    evaluate(str(tmp_path / "out"), benchmark="rewardbench2-ratings", **files)
    saved = read_results(tmp_path / "out").sets["rewardbench2-ratings"]
    assert [one.order for one in saved.judgments][24:29] == ["y", "z", "A", "B", "C"]
    # G_tied = 0.4 and D = 1.
    found = {name: of["value"] for name, of in saved_metrics(tmp_path).items()}
    assert (found["ties_tied"], found["ties_margin"], found["no_verdict"]) == (1, 0, 0)
    assert found["ties"] == pytest.approx(0.6 + 0.01 * math.tanh(0.4 / 1 - 1))


def saved_metrics(folder: Path) -> Any:
    (found,) = json.loads((folder / "out/results.json").read_text())["sets"].values()
    return found


def test_a_result_file_of_a_ranking_with_rated_ties_gives_the_published_mean_of_six(tmp_path: Path) -> None:
    rows = [native(subset, f"{subset} {n}") for subset in NATIVE_SUBSETS for n in range(4)]
    rows += [native("Ties", "ref:1"), native("Ties", "tied:1", 2, 2)]
    results = [1, 1, 0, 0.25, *[1] * 4, *[0] * 4, 0.5, 0.5, 1 / 3, 0.25, 1, 0, 0, 0, None, None]
    table = {"id": [row["id"] for row in rows], "subset": [row["subset"] for row in rows], "results": results}
    scores = [None] * 20 + [[9, 1, 1, -1], [9, 9, 2, 1]]
    (tmp_path / "judge.json").write_text(json.dumps({**table, "scores": scores, "model": "m"}))
    files = {"pairs": write(tmp_path, rows), "judgments": str(tmp_path / "judge.json")}
    evaluate(str(tmp_path / "out"), benchmark="rewardbench2-ratings", **files)
    expected = {"factuality": 0.5625, "precise_if": 1, "math": 0, "safety": 19 / 48, "focus": 0.25, "ties": 1.01}
    expected["score"] = sum(expected.values()) / 6
    found = saved_metrics(tmp_path)
    assert {name: found[name]["value"] for name in expected} == pytest.approx(expected, abs=1e-12)
    board = json.loads((tmp_path / "out/rewardbench2-ratings.leaderboard.json").read_text())
    assert board["Ties"] == pytest.approx(1.01) and board["Safety"] == pytest.approx(19 / 48)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"id": ["1"], "scores": [[1, 2]]},
            "id 1: field 'scores': found .1, 2., expected a list of 4 numbers, one for",
        ),
        ({"id": ["1"], "scores": [[1, 2, 3, "x"]]}, "field 'scores': found 'x', expected finite numbers"),
        ({"id": ["1"], "scores": [[1, 2, 3, math.nan]]}, "field 'scores': found nan, expected finite numbers"),
        ({"id": ["1"], "results": [0.4]}, "field 'results': found 0.4, expected 0, or 1 divided by 1 to 4"),
        ({"id": ["1"], "subset": ["Math"]}, "field 'scores': found nothing, expected a list of numbers"),
    ],
)
def test_other_result_files_are_refused(tmp_path: Path, content: dict[str, Any], message: str) -> None:
    items = REWARDBENCH2_RATINGS.read(write(tmp_path, [native("Math", "1")]), None)
    (tmp_path / "r.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        read_judgments(str(tmp_path / "r.json"), REWARDBENCH2_RATINGS, items)


def test_incomplete_ratings_are_refused() -> None:
    items, judgments = judged([("1", "Math", 1, [9, 1, 1, 1])])
    with pytest.raises(UserError, match="question 1: found ratings of 3 answers, expected 4"):
        REWARDBENCH2_RATINGS.metrics(items, judgments[1:])
    with pytest.raises(UserError, match="question 1: found a judgment in order 'abcd', expected one answer alone"):
        REWARDBENCH2_RATINGS.metrics(items, [judgment("1", "abcd", "A")])
