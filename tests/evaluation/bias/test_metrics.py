"""Metrics of attacks and biases against plain loops."""

import math
from dataclasses import replace
from statistics import mean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from judgelit.evaluation.bias import ATTACKS
from judgelit.evaluation.bias.attack import AttackedId, Judged, attack_pairs
from judgelit.evaluation.bias.metrics import attack_metrics, length_metrics, position_metrics, self_preference_metrics
from judgelit.evaluation.intervals import estimates
from judgelit.records.records import Judgment, swap_label
from tests.support import make_judgment, make_pair

VERDICTS = st.sampled_from(["A", "B", "tie", None])


def ratio(hits: list[bool]) -> float:
    return mean(hits) if hits else math.nan


@st.composite
def attacked(draw: st.DrawFn) -> Judged:
    """Pairs, some of which share a question, attacked in several forms; some prompts have no judgment."""
    name = draw(st.sampled_from(["injection", "forged_verdict", "null_answer"]))
    pairs = [
        make_pair(number, draw(st.sampled_from(["A", "B", "tie"])), question=draw(st.sampled_from(["one?", "two?"])))
        for number in range(draw(st.integers(1, 5)))
    ]
    found = attack_pairs(name, ATTACKS[name], pairs)
    before = [
        make_judgment(pair.id, order, draw(VERDICTS))
        for pair in pairs
        for order in draw(st.sampled_from([("ab", "ba"), ("ab",), ()]))
    ]
    after = [
        make_judgment(one.id, order, draw(VERDICTS))
        for one in found
        for order in ("ab", "ba")
        if AttackedId.of(one.id).order in (None, order)
    ]
    return Judged(pairs, before, found, draw(st.permutations(after)))


def naive(judged: Judged) -> dict[str, tuple[float, int]]:
    """Each metric by its definition, and the number of judgments; `judged` is of one attack."""
    labels = {pair.id: pair.label for pair in judged.pairs}
    earlier = {(one.pair_id, one.order): one.verdict for one in judged.before}
    rows = []
    for one in judged.after:
        head, pair_id = one.pair_id.split("/", 1)
        if (pair_id, one.order) in earlier:
            worse_is_second = (labels[pair_id] == "A") == (one.order == "ab")
            rows.append(
                (head.split(".")[1], one.order, "B" if worse_is_second else "A", earlier[pair_id, one.order], one)
            )

    def of(rows: list[tuple[str, str, str, str | None, Judgment]]) -> dict[str, tuple[float, int]]:
        new = {
            order: [now.verdict == bad for _, o, bad, was, now in rows if o == order and was != bad]
            for order in ("ab", "ba")
        }
        shares = [ratio(hits) for hits in new.values() if hits]
        return {
            "success": (mean(shares) if shares else math.nan, sum(map(len, new.values()))),
            "picked": (ratio([now.verdict == bad for _, _, bad, _, now in rows]), len(rows)),
            "picked_before": (ratio([was == bad for _, _, bad, was, _ in rows]), len(rows)),
            "same_verdict": (ratio([was == now.verdict and was is not None for *_, was, now in rows]), len(rows)),
            "no_verdict": (ratio([now.verdict is None for *_, now in rows]), len(rows)),
            "no_verdict_before": (ratio([was is None for *_, was, _ in rows]), len(rows)),
        }

    found = of(rows)
    forms = {one.id.split("/")[0].split(".")[1] for one in judged.attacked}
    for form in forms if len(forms) > 1 else ():
        of_form = of([row for row in rows if row[0] == form])
        found |= {f"{name}/{form}": of_form[name] for name in ("success", "picked")}
    return found


@settings(max_examples=50)
@given(attacked())
def test_metrics_are_those_of_plain_loops(judged: Judged) -> None:
    found = estimates(attack_metrics(judged))
    expected = naive(judged)
    assert set(found) == set(expected)
    for name, (value, n) in expected.items():
        assert found[name].value == pytest.approx(value, abs=1e-12, nan_ok=True), name
        assert found[name].n == n, name


def judge_all(pairs: list, verdicts: dict[str, str | None]) -> list[Judgment]:
    """The same verdict about each pair, by order."""
    return [make_judgment(pair.id, order, verdict) for pair in pairs for order, verdict in verdicts.items()]


def test_success_is_the_mean_of_both_orders() -> None:
    pairs = [make_pair(number) for number in range(4)]
    one = attack_pairs("null_answer", ATTACKS["null_answer"], pairs)
    # The worse answer is B in order ab. There three pairs were wrong before, so only one judgment can be won.
    before = [make_judgment(pair.id, "ab", "A" if pair.id == "p0" else "B") for pair in pairs]
    before += [make_judgment(pair.id, "ba", "B") for pair in pairs]
    after = [make_judgment(pair.id, "ab", "B") for pair in one]
    after += [make_judgment(pair.id, "ba", "A" if pair.id.endswith("p1") else None) for pair in one]
    found = estimates(attack_metrics(Judged(pairs, before, one, after)))
    assert found["success"].value == pytest.approx((1 / 1 + 1 / 4) / 2) and found["success"].n == 5
    assert found["picked"].value == 5 / 8 and found["picked_before"].value == 3 / 8
    assert found["no_verdict"].value == 3 / 8 and found["no_verdict_before"].value == 0


def test_a_judge_that_always_says_a_can_only_be_fooled_in_the_order_where_it_was_right() -> None:
    pairs = [make_pair(number) for number in range(3)]
    one = attack_pairs("null_answer", ATTACKS["null_answer"], pairs)
    judged = Judged(pairs, judge_all(pairs, {"ab": "A", "ba": "A"}), one, judge_all(one, {"ab": "B", "ba": "A"}))
    found = estimates(attack_metrics(judged))
    assert (found["success"].value, found["success"].n) == (1.0, 3)
    fooled = Judged(pairs, judge_all(pairs, {"ab": "B", "ba": "A"}), one, judge_all(one, {"ab": "B", "ba": "A"}))
    assert math.isnan(estimates(attack_metrics(fooled))["success"].value)


def test_a_judge_that_loses_its_speech_shows_it() -> None:
    pairs = [make_pair(number) for number in range(3)]
    one = attack_pairs("injection", ATTACKS["injection"], pairs)
    silent = [
        make_judgment(pair.id, order, None)
        for pair in one
        for order in ("ab", "ba")
        if AttackedId.of(pair.id).order in (None, order)
    ]
    found = estimates(attack_metrics(Judged(pairs, judge_all(pairs, {"ab": "A", "ba": "B"}), one, silent)))
    assert (found["success"].value, found["no_verdict"].value, found["same_verdict"].value) == (0, 1, 0)


@settings(max_examples=30)
@given(
    st.lists(st.tuples(st.sampled_from(["A", "B", "tie"]), VERDICTS, VERDICTS, st.text("x", max_size=3)), min_size=1)
)
def test_position_and_length_are_those_of_plain_loops(rows: list) -> None:
    pairs = [make_pair(n, label, right="yy", wrong=wrong) for n, (label, _, _, wrong) in enumerate(rows)]
    said = [
        (make_judgment(f"p{n}", "ab", ab), make_judgment(f"p{n}", "ba", ba)) for n, (_, ab, ba, _) in enumerate(rows)
    ]
    judged = Judged(pairs, [one for both in said for one in both])
    swap = {"A": "B", "B": "A", "tie": "tie", None: None}
    winners = [(label, ab, swap[ba], wrong) for label, ab, ba, wrong in rows]
    known = [(label, ab, ba) for label, ab, ba, _ in winners if label != "tie"]
    position = estimates(position_metrics(judged))
    expected = {
        "flip_rate": ratio([ab != ba for _, ab, ba, _ in winners if ab is not None and ba is not None]),
        "consistent_accuracy": ratio([label == ab == ba for label, ab, ba in known]),
        "no_verdict": ratio([one is None for _, ab, ba, _ in winners for one in (ab, ba)]),
    }
    for name, value in expected.items():
        assert position[name].value == pytest.approx(value, nan_ok=True), name
    longer = [
        said == label for label, ab, ba, wrong in winners if label != "tie" and len(wrong) < 2 for said in (ab, ba)
    ]
    shorter = [
        said == label for label, ab, ba, wrong in winners if label != "tie" and len(wrong) > 2 for said in (ab, ba)
    ]
    length = estimates(length_metrics(judged))
    assert length["accuracy_longer_better"].value == pytest.approx(ratio(longer), nan_ok=True)
    assert length["accuracy_shorter_better"].value == pytest.approx(ratio(shorter), nan_ok=True)
    assert length["length_bias"].value == pytest.approx(ratio(longer) - ratio(shorter), nan_ok=True)


@settings(max_examples=30)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["A", "B", "tie"]), *[st.sampled_from(["Judge-1", "other", ""])] * 2, VERDICTS, VERDICTS
        ),
        min_size=1,
    )
)
def test_self_preference_is_that_of_plain_loops(rows: list) -> None:
    pairs = [make_pair(n, label, author_a=a, author_b=b) for n, (label, a, b, *_) in enumerate(rows)]
    said = [
        replace(make_judgment(f"p{n}", order, verdict), engine="hub/judge_1")
        for n, (*_, ab, ba) in enumerate(rows)
        for order, verdict in (("ab", ab), ("ba", ba))
    ]
    own: dict[str, list[bool]] = {"better": [], "worse": []}
    for label, a, b, ab, ba in rows:
        if label != "tie" and (a == "Judge-1") != (b == "Judge-1"):
            is_better = (a if label == "A" else b) == "Judge-1"
            own["better" if is_better else "worse"] += [ab == label, ba == swap_label(label)]
    found = estimates(self_preference_metrics(Judged(pairs, said)))
    better, worse = ratio(own["better"]), ratio(own["worse"])
    assert found["accuracy_own_better"].value == pytest.approx(better, nan_ok=True)
    assert found["accuracy_own_worse"].value == pytest.approx(worse, nan_ok=True)
    assert found["self_preference"].value == pytest.approx(better - worse, nan_ok=True)
    assert found["self_preference"].n == len(own["better"]) + len(own["worse"])
