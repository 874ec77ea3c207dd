"""Confidence of judgments, calibration error, accuracy of the most confident judgments."""

import json
import math
from dataclasses import replace
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from judgelit.evaluation.calibration import (
    Confidences,
    calibrate,
    expected_calibration_error,
    selective_accuracy,
)
from judgelit.evaluation.intervals import estimates
from judgelit.records.records import AnswerSet, Judgment, Label, Order
from tests.support import make_judgment, make_pair


def said(pair: int, order: Order, verdict: Label | None, margin: float | None = None, sample: int = 0) -> Judgment:
    return replace(make_judgment(f"p{pair}", order, verdict), margin=margin, sample=sample)


def known(confidence: list[float], right: list[bool]) -> Confidences:
    n = len(right)
    return Confidences(np.array(confidence), np.array(right), np.arange(n), 0, "log-probabilities")


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def test_the_confidence_of_a_judgment_is_that_of_its_letter() -> None:
    pairs = [make_pair(1, "A"), make_pair(2, "B"), make_pair(3, "tie"), make_pair(4, "A")]
    found = Confidences.of(
        [*pairs, AnswerSet("set", "q?", ("a", "b"), right=(0,))],
        [
            said(1, "ab", "A", logit(0.9)),  # right
            said(1, "ba", "A", logit(0.7)),  # wrong: the first answer is B of the pair
            said(2, "ab", "B", logit(0.2)),  # right
            said(2, "ba", "B", logit(0.6)),  # wrong, and less probable than the other letter
            said(3, "ab", "A", 5.0),  # the label is a tie
            said(4, "ab", "tie"),
            said(4, "ba", None),
            replace(make_judgment("set", "ab", "A"), margin=2.0),
        ],
    )
    assert found.confidence == pytest.approx([0.9, 0.7, 0.8, 0.4], abs=1e-12)
    assert found.right.tolist() == [True, False, True, False]
    assert found.questions.tolist() == [0, 0, 1, 1]
    assert (found.unknown, found.source) == (2, "log-probabilities")
    assert found.bins.tolist() == [12, 6, 9, 0]


def test_a_margin_that_is_no_number_is_unknown_and_a_huge_one_is_certain() -> None:
    found = Confidences.of(
        [make_pair(1)], [said(1, "ab", "A", math.nan), replace(said(1, "ba", "B", -1e300), order="ba")]
    )
    assert (found.confidence.tolist(), found.unknown) == ([1.0], 1)


def test_the_confidence_of_a_majority_is_its_share_of_the_votes() -> None:
    votes: dict[Order, list[Label | None]] = {"ab": ["A", "A", "B", "tie", None], "ba": ["A", "B", None, None, None]}
    judgments = [
        said(1, order, verdict, 9.0, sample)
        for order, verdicts in votes.items()
        for sample, verdict in enumerate(verdicts)
    ]
    found = Confidences.of([make_pair(1)], judgments)
    # A has two votes of five, and half of the tie and of the text without a verdict. The other prompt is undecided.
    assert (found.confidence.tolist(), found.right.tolist()) == ([pytest.approx(3 / 5)], [True])
    assert (found.unknown, found.source) == (1, "votes")
    assert found.bins.tolist() == [3], "0.6 stands between two bins"


def test_calibration_error_by_hand() -> None:
    # Bin of 0.9: 0.92 and 0.91, one of two right. Bin of 0.6: three at 0.62, all right. One at 1, right.
    found = known([0.92, 0.91, 0.62, 0.62, 0.62, 1.0], [True, False, True, True, True, True])
    expected = 2 / 6 * abs(0.5 - 0.915) + 3 / 6 * abs(1 - 0.62) + 1 / 6 * 0
    assert estimates({"ece": expected_calibration_error(found)})["ece"].value == pytest.approx(expected, abs=1e-12)


TABLE = st.lists(
    st.tuples(st.one_of(st.sampled_from([0.5, 0.6, 0.8, 1.0]), st.floats(0.5, 1)), st.booleans()),
    min_size=1,
    max_size=25,
)


@given(TABLE, st.sampled_from([0.5, 0.8, 0.9, 1.0]))
@settings(max_examples=50)
def test_figures_by_their_definitions(table: list[tuple[float, bool]], coverage: float) -> None:
    found = known([one for one, _ in table], [right for _, right in table])
    metrics = {"ece": expected_calibration_error(found), "kept": selective_accuracy(found, coverage)}
    values = {name: one.value for name, one in estimates(metrics).items()}
    bins: dict[int, list[tuple[float, bool]]] = {}
    for row in table:
        bins.setdefault(min(14, math.floor(round((row[0] - 0.5) * 30, 9))), []).append(row)
    error = sum(
        len(rows) / len(table) * abs(fmean(right for _, right in rows) - fmean(one for one, _ in rows))
        for rows in bins.values()
    )
    assert values["ece"] == pytest.approx(error, abs=1e-12)
    # Judgments are taken group by group of equal confidence; of the last group the mean, as often as there is room.
    room, total = coverage * len(table), 0.0
    for confidence in sorted({one for one, _ in table}, reverse=True):
        group = [right for one, right in table if one == confidence]
        taken = min(room, len(group))
        total, room = total + taken * fmean(group), room - taken
    assert values["kept"] == pytest.approx(total / (coverage * len(table)), abs=1e-12)


def test_the_whole_of_it_is_json_and_a_sentence() -> None:
    pairs = [make_pair(number) for number in range(40)]
    rng = np.random.default_rng(0)
    confident = rng.uniform(0.55, 0.99, 40)
    judgments = [
        said(number, "ab", "A" if rng.random() < one else "B", logit(one)) for number, one in enumerate(confident)
    ]
    # A wrong verdict B is as confident as a right verdict A.
    judgments = [replace(one, margin=-one.margin) if one.verdict == "B" else one for one in judgments]  # type: ignore[operator]
    found = calibrate(pairs, judgments)
    assert found is not None
    content = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert (content["n"], content["unknown"], content["confidence_from"]) == (40, 0, "log-probabilities")
    # All confidences differ, so the share that is kept is exact.
    assert {share: one["n"] for share, one in content["selective"].items()} == {"0.5": 20, "0.8": 32, "0.9": 36}
    for name in ("accuracy", "confidence", "brier"):
        assert content[name]["low"] < content[name]["value"] < content[name]["high"]
    right = np.array([one.verdict == "A" for one in judgments])
    assert content["brier"]["value"] == pytest.approx(np.mean((confident - right) ** 2))
    bins = content["bins"]
    assert (bins[0]["low"], bins[-1]["high"], len(bins)) == (0.5, 1, 15)
    assert sum(one["n"] for one in bins) == 40
    assert sum(one["n"] * one["accuracy"] for one in bins if one["n"]) == pytest.approx(right.sum())
    error = sum(one["n"] * abs(one["accuracy"] - one["confidence"]) for one in bins if one["n"]) / 40
    assert content["ece"]["value"] == pytest.approx(error)
    assert all(one["accuracy"] is None for one in bins if not one["n"])
    assert "of 40 judgments, from the log-probabilities of A and B; calibration error" in str(found)


def test_without_confidences_there_is_no_calibration() -> None:
    assert calibrate([make_pair(1)], [said(1, "ab", "A"), said(1, "ba", None)]) is None
    assert calibrate([make_pair(1)], []) is None
    assert calibrate([AnswerSet("p1", "q?", ("a", "b"))], [said(1, "ab", "A", 1.0)]) is None


def test_a_calibrated_judge_has_a_smaller_error_than_a_sure_one() -> None:
    rng = np.random.default_rng(0)
    confident = rng.uniform(0.5, 1, 1000)
    right = rng.random(1000) < confident
    calibrated = known(confident.tolist(), right.tolist())
    sure = known(np.minimum(1, confident + 0.2).tolist(), right.tolist())
    errors = [estimates({"ece": expected_calibration_error(one)})["ece"] for one in (calibrated, sure)]
    assert errors[0].high < 0.08 < errors[1].low
    # The most confident half, between 0.75 and 1, is right in 7 of 8 cases.
    kept = estimates({"kept": selective_accuracy(calibrated, 0.5)})["kept"]
    assert kept.low < 7 / 8 < kept.high
