import json
import math
import random
import subprocess
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from statistics import mean

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from judgelit.evaluation.metrics import METRICS, Estimate, Gain, JudgeMetrics, estimates, gains, outcomes
from judgelit.records.records import Judgment, Label, PreferencePair, swap_label
from tests.support import make_judgment, make_pair

Found = Mapping[str, Estimate | Gain]
Judged = tuple[list[PreferencePair], list[Judgment]]


@st.composite
def judged(draw: st.DrawFn, judges: int = 1) -> tuple[list[PreferencePair], list[list[Judgment]]]:
    """Pairs, several to a question at times, and what some judges said of them, in one order or in both."""
    pairs, said = [], [[] for _ in range(judges)]
    for number in range(draw(st.integers(1, 8))):
        label = draw(st.sampled_from(["A", "B", "tie"]))
        question = draw(st.sampled_from(["one?", "two?", "three?", " ONE?"]))
        right, wrong = (draw(st.text("xy", max_size=3)) for _ in range(2))
        pairs.append(make_pair(number, label, right, wrong, question=question))
        for order in draw(st.sampled_from([("ab", "ba"), ("ba", "ab"), ("ab",), ("ba",), ()])):
            for of_judge in said:
                verdict = draw(st.sampled_from(["A", "B", "tie", None]))
                of_judge.append(make_judgment(f"p{number}", order, verdict))
    return pairs, [draw(st.permutations(of_judge)) for of_judge in said]


def ratio(hits: list[bool]) -> float:
    return mean(hits) if hits else math.nan


def naive(pairs: list[PreferencePair], judgments: list[Judgment]) -> dict[str, tuple[float, int]]:
    """Every metric as its definition reads, and how many judgments or pairs it is over."""
    by_id = {pair.id: pair for pair in pairs}
    right: list[bool] = []
    longer_better: list[bool] = []
    shorter_better: list[bool] = []
    winners: dict[str, dict[str, Label | None]] = {}
    for judgment in judgments:
        pair = by_id[judgment.pair_id]
        winner = judgment.verdict
        if judgment.order == "ba" and winner is not None:
            winner = swap_label(winner)
        winners.setdefault(pair.id, {})[judgment.order] = winner
        right.append(winner == pair.label)
        if pair.label != "tie":
            better, worse = pair.answer_a, pair.answer_b
            if pair.label == "B":
                better, worse = worse, better
            if len(better) > len(worse):
                longer_better.append(winner == pair.label)
            elif len(better) < len(worse):
                shorter_better.append(winner == pair.label)
    both = {id: of for id, of in winners.items() if len(of) == 2}
    spoken = [judgment.verdict for judgment in judgments if judgment.verdict is not None]
    return {
        "accuracy": (ratio(right), len(right)),
        "consistent_accuracy": (
            ratio([of["ab"] == of["ba"] == by_id[id].label for id, of in both.items()]),
            len(both),
        ),
        "consistency": (ratio([of["ab"] == of["ba"] is not None for of in both.values()]), len(both)),
        "no_verdict": (ratio([judgment.verdict is None for judgment in judgments]), len(judgments)),
        "share_a": (ratio([said == "A" for said in spoken]), len(spoken)),
        "length_bias": (ratio(longer_better) - ratio(shorter_better), len(longer_better) + len(shorter_better)),
    }


def rows_of(pairs: list[PreferencePair], judgments: list[Judgment]) -> np.ndarray:
    return outcomes(pairs, judgments).numpy()


def plain(found: Found) -> dict[str, dict[str, float | int | None]]:
    """Figures that can be compared, as NaN cannot."""
    return {name: figure.to_dict() for name, figure in found.items()}


@given(judged())
@settings(max_examples=150)
def test_every_metric_is_what_its_definition_says(drawn: tuple[list[PreferencePair], list[list[Judgment]]]) -> None:
    pairs, (judgments,) = drawn
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = estimates(rows_of(pairs, judgments))
    expected = naive(pairs, judgments)
    assert set(found) == set(METRICS) == set(expected)
    for name, estimate in found.items():
        value, n = expected[name]
        assert estimate.value == pytest.approx(value, nan_ok=True), name
        assert estimate.n == n, name
        if math.isnan(value):
            assert estimate.to_dict() == {"value": None, "low": None, "high": None, "n": n}
        else:
            assert estimate.low <= estimate.value <= estimate.high, name


def test_figures_by_hand() -> None:
    pairs = [
        make_pair(1, "A", "long answer", "short"),
        make_pair(2, "B", "brief", "a longer one"),
        make_pair(3, "tie"),
        make_pair(4, "A", question="question 1?"),
    ]
    judgments = [
        make_judgment("p1", "ab", "A"),
        make_judgment("p1", "ba", "B"),  # answer_a again: right in both orders
        make_judgment("p2", "ab", "A"),  # wrong
        make_judgment("p2", "ba", "A"),  # answer_b: right
        make_judgment("p3", "ab", "tie"),
        make_judgment("p3", "ba", None),
        make_judgment("p4", "ba", None),  # one order only
    ]
    found = {name: (estimate.value, estimate.n) for name, estimate in estimates(rows_of(pairs, judgments)).items()}
    assert found == {
        "accuracy": (pytest.approx(4 / 7), 7),
        "consistent_accuracy": (pytest.approx(1 / 3), 3),
        "consistency": (pytest.approx(1 / 3), 3),
        "no_verdict": (pytest.approx(2 / 7), 7),
        "share_a": (pytest.approx(3 / 5), 5),
        # The longer answer of p1 and, by one letter, of p4 is better (2 of 3 right), the shorter of p2 (1 of 2).
        "length_bias": (pytest.approx(2 / 3 - 1 / 2), 5),
    }


def test_without_a_verdict_in_both_orders_nothing_is_consistent() -> None:
    found = estimates(rows_of([make_pair(1)], [make_judgment("p1", order, None) for order in ("ab", "ba")]))
    assert (found["consistency"].value, found["no_verdict"].value) == (0, 1)
    assert math.isnan(found["share_a"].value)


def test_of_nothing_every_figure_is_null_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nothing = rows_of([make_pair(1)], [])
        found, gained = plain(estimates(nothing)), plain(gains(nothing, nothing))
    assert found == {name: {"value": None, "low": None, "high": None, "n": 0} for name in METRICS}
    assert gained == {name: {"value": None, "low": None, "high": None, "p": None} for name in METRICS}
    json.dumps([found, gained], allow_nan=False)


def simulated(rng: random.Random, questions: int, skill: float, copies: int = 1) -> Judged:
    """A judge that is right with probability `skill`; a question's `copies` all fare alike."""
    pairs, judgments = [], []
    for question in range(questions):
        right = rng.random() < skill
        for copy in range(copies):
            pair = make_pair(question * copies + copy, question=f"question {question}?")
            pairs.append(pair)
            judgments.append(make_judgment(pair.id, "ab", "A" if right else "B"))
    return pairs, judgments


def test_copies_of_a_judgment_tell_nothing_more() -> None:
    once = estimates(rows_of(*simulated(random.Random(1), 60, 0.7)))["accuracy"]
    copied = estimates(rows_of(*simulated(random.Random(1), 60, 0.7, copies=5)))["accuracy"]
    assert (copied.low, copied.high) == pytest.approx((once.low, once.high))
    # As if each copy were a question of its own: sqrt(5) narrower.
    pairs, judgments = simulated(random.Random(1), 60, 0.7, copies=5)
    apart = [make_pair(number) for number in range(len(pairs))]
    narrow = estimates(rows_of(apart, judgments))["accuracy"]
    assert 1.8 < (copied.high - copied.low) / (narrow.high - narrow.low) < 2.7


def test_questions_that_were_not_judged_change_nothing() -> None:
    pairs, judgments = simulated(random.Random(2), 30, 0.7)
    others = [make_pair(number) for number in range(100, 400)]
    assert plain(estimates(rows_of([*others, *pairs], judgments))) == plain(estimates(rows_of(pairs, judgments)))


def test_95_percent_of_the_intervals_hold_the_truth() -> None:
    rng = random.Random(0)
    held = 0
    for _ in range(200):
        found = estimates(rows_of(*simulated(rng, 80, 0.7, copies=2)))["accuracy"]
        held += found.low <= 0.7 <= found.high
    assert 0.90 <= held / 200 <= 0.99


@given(judged(judges=2))
@settings(max_examples=60)
def test_gains_are_differences_and_antisymmetric(drawn: tuple[list[PreferencePair], list[list[Judgment]]]) -> None:
    pairs, (one, other) = drawn
    before, after = rows_of(pairs, one), rows_of(pairs, other)
    forth, back = gains(before, after), gains(after, before)
    first, second = estimates(before), estimates(after)
    for name in METRICS:
        assert forth[name].value == pytest.approx(second[name].value - first[name].value, nan_ok=True)
        assert forth[name].value == pytest.approx(-back[name].value, nan_ok=True)
        assert forth[name].low == pytest.approx(-back[name].high, abs=1e-9, nan_ok=True)
        assert forth[name].p == pytest.approx(back[name].p, nan_ok=True)


@given(judged())
@settings(max_examples=40)
def test_a_judge_gains_nothing_over_itself(drawn: tuple[list[PreferencePair], list[list[Judgment]]]) -> None:
    pairs, (judgments,) = drawn
    rows = rows_of(pairs, judgments)
    for gain in gains(rows, rows[::-1]).values():
        if not math.isnan(gain.value):
            assert gain.to_dict() == {"value": 0, "low": 0, "high": 0, "p": 1}


def test_gains_are_paired() -> None:
    rng = random.Random(3)
    pairs, before = simulated(rng, 200, 0.5)
    better = set(rng.sample([j.pair_id for j in before if j.verdict == "B"], 20))
    after = [make_judgment(j.pair_id, "ab", "A") if j.pair_id in better else j for j in before]
    rows = rows_of(pairs, before), rows_of(pairs, after)
    gain = gains(*rows)["accuracy"]
    alone = [estimates(of_judge)["accuracy"] for of_judge in rows]
    assert gain.value == pytest.approx(0.1)
    assert alone[0].high > alone[1].low, "unpaired, the two intervals overlap"
    assert gain.low > 0.05
    assert gain.p < 0.01


def test_gains_between_judges_of_different_pairs_are_refused() -> None:
    pairs = [make_pair(1), make_pair(2)]
    one, other = (rows_of(pairs, [make_judgment(id, "ab", "A")]) for id in ("p1", "p2"))
    with pytest.raises(ValueError, match="not asked the same"):
        gains(one, other)


def test_the_bootstrap_is_the_same_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of(*simulated(random.Random(5), 40, 0.6))
    other = rows_of(*simulated(random.Random(6), 40, 0.8))
    first, gained = plain(estimates(rows)), plain(gains(rows, other))
    assert plain(estimates(rows)) == first and plain(gains(rows, other)) == gained
    assert estimates(rows, seed=1)["accuracy"].value == first["accuracy"]["value"]
    monkeypatch.setattr("judgelit.evaluation.metrics._AT_ONCE", 700)
    assert plain(estimates(rows)) == first, "nor does it matter how many draws are held at once"


def test_the_metric_gathers_updates_and_forgets_them() -> None:
    pairs, judgments = simulated(random.Random(6), 12, 0.6)
    rows = outcomes(pairs, judgments)
    metrics = JudgeMetrics()
    for part in (rows[:5], rows[5:5], rows[5:], rows[:3]):  # the last came twice, as samplers do to fill a batch
        metrics.update(part)
    assert plain(metrics.compute()) == plain(estimates(rows.numpy()))
    metrics.reset()
    metrics.update(rows[:0])
    assert metrics.compute()["accuracy"].n == 0
    metrics.update(rows[:4])
    assert plain(metrics.compute()) == plain(estimates(rows[:4].numpy()))


RANK = """
import sys
import torch
import torch.distributed as dist
from judgelit.evaluation.metrics import JudgeMetrics

rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
rows = torch.load(f"{folder}/rows.pt")
metrics = JudgeMetrics()
for _ in range(2):
    metrics.update(rows[rows[:, 2] == rank])  # one order a rank
    torch.save({name: tuple(value) for name, value in metrics.compute().items()}, f"{folder}/found{rank}.pt")
    metrics.reset()
metrics.update(rows if rank == 0 else rows[:0])
torch.save({name: tuple(value) for name, value in metrics.compute().items()}, f"{folder}/idle{rank}.pt")
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_ranks_with_an_order_each_equal_one(tmp_path: Path) -> None:
    rng = random.Random(7)
    pairs = [make_pair(number, rng.choice(["A", "B"]), "x" * rng.randint(1, 5), "yyy") for number in range(20)]
    verdicts: list[Label | None] = ["A", "B", "tie", None]
    judgments = [make_judgment(pair.id, order, rng.choice(verdicts)) for pair in pairs for order in ("ab", "ba")]
    judgments.pop()  # ranks need not hold equally many
    rows = outcomes(pairs, judgments)
    torch.save(rows, tmp_path / "rows.pt")
    script = tmp_path / "rank.py"
    script.write_text(RANK, encoding="utf-8")
    command = [sys.executable, str(script)]
    ranks = [subprocess.Popen([*command, str(rank), str(tmp_path)], stderr=subprocess.PIPE) for rank in (0, 1)]
    errors = [process.communicate(timeout=120)[1].decode() for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], errors
    expected = {name: tuple(value) for name, value in estimates(rows.numpy()).items()}
    for name in ("found0", "found1", "idle0", "idle1"):
        assert torch.load(tmp_path / f"{name}.pt") == expected, name
