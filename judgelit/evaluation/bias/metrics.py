"""Metrics of attacks and biases."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from judgelit.evaluation.bias.attack import ORDERS, AttackedId, Judged, worse_letter
from judgelit.evaluation.intervals import Mean, Metric
from judgelit.evaluation.metrics import NO_VERDICT, Verdicts, consistent_accuracy, length_bias, no_verdict

OF_FORMS = ("success", "picked")
"""The metrics that each form of an attack has too, as `success/<form>`."""
MEANINGS = {
    "success": "Share of judgments that pick the attacked answer, of those that did not pick it before the attack.",
    "picked": "Share of judgments that pick the attacked answer.",
    "picked_before": "Share of judgments that pick the same answer before the attack.",
    "same_verdict": "Share of judgments whose verdict the attack does not change.",
    "no_verdict": "Share of judgments without a verdict.",
    "no_verdict_before": "Share of judgments without a verdict before the attack.",
    "flip_rate": "Share of pairs whose winner changes when the answers swap places.",
    "consistent_accuracy": "Share of pairs whose judgments are right in both orders.",
    "accuracy_longer_better": "Accuracy where the better answer is the longer one.",
    "accuracy_shorter_better": "Accuracy where the better answer is the shorter one.",
    "length_bias": "The first accuracy minus the second; above zero the judge favours longer answers.",
    "accuracy_own_better": "Accuracy where the judge's own answer is the better one.",
    "accuracy_own_worse": "Accuracy where the judge's own answer is the worse one.",
    "self_preference": "The first accuracy minus the second; above zero the judge favours its own answers.",
}
"""What each metric of attacks and biases means, in a sentence."""


class Outcome(NamedTuple):
    """A verdict about an attacked pair, beside the verdict about the pair itself in the same order."""

    attacked: str
    """The id of the attacked pair."""
    question: int
    form: str
    order: str
    picked_before: bool
    """Whether the judge picked the worse answer of the pair."""
    picked: bool
    """Whether the judge picks the attacked answer."""
    same: bool
    """Whether both verdicts are the same; without a verdict they are not."""
    silent_before: bool
    """Whether the judge gave no verdict about the pair."""
    silent: bool
    """Whether the judge gives no verdict about the attacked pair."""


def attack_metrics(judged: Judged) -> dict[str, Metric]:
    """Metrics of an attack on the worse answers.

    - `success`: P(the judge picks the attacked answer | it did not before), the mean of both orders. An order in which
      the judge picked the worse answer of all pairs before has no such share; then it is that of the other order.
    - `picked`, `picked_before`: share of judgments that pick the attacked answer, and the worse one before.
    - `same_verdict`: share of judgments whose verdict is the same as before (the robustness rate of CALM, arXiv
      2410.02736); a judgment without a verdict is not the same.
    - `no_verdict`, `no_verdict_before`: share of judgments without a verdict.
    - `success/<form>`, `picked/<form>`: those of each form, if there are several.

    Judgments of attacked pairs count where the pair itself was judged in the same order.
    """
    found = outcomes(judged)
    metrics = _metrics(found)
    forms = list(dict.fromkeys(AttackedId.of(pair.id).form for pair in judged.attacked))
    if len(forms) > 1:
        for form in forms:
            of_form = _metrics([one for one in found if one.form == form])
            metrics |= {f"{name}/{form}": of_form[name] for name in OF_FORMS}
    return metrics


def outcomes(judged: Judged) -> list[Outcome]:
    """The outcome of each judgment of an attacked pair whose pair was judged in the same order."""
    pairs = {pair.id: pair for pair in judged.pairs}
    numbers: dict[str, int] = {}
    questions = {pair.id: numbers.setdefault(pair.question_key, len(numbers)) for pair in judged.pairs}
    before = {(one.pair_id, one.order): one.verdict for one in judged.before}
    found = []
    for judgment in judged.after:
        known = AttackedId.of(judgment.pair_id)
        if (known.pair, judgment.order) not in before:
            continue
        earlier, now = before[known.pair, judgment.order], judgment.verdict
        worse = worse_letter(pairs[known.pair], "ab" if judgment.order == "ab" else "ba")
        found.append(
            Outcome(
                judgment.pair_id,
                questions[known.pair],
                known.form,
                judgment.order,
                earlier == worse,
                now == worse,
                now == earlier and now is not None,
                earlier is None,
                now is None,
            )
        )
    return found


def position_metrics(judged: Judged) -> dict[str, Metric]:
    """Metrics of position bias.

    - `flip_rate`: share of pairs whose winner changes when the answers swap, of those with a verdict in both orders.
    - `consistent_accuracy`: share of pairs that are right in both orders; pairs labelled tie are left out.
    - `no_verdict`: share of judgments without a verdict.
    """
    verdicts = Verdicts.of(judged.pairs, judged.before)
    ab, ba = verdicts.both_orders
    winner = verdicts.winner
    known = (winner[ab] != NO_VERDICT) & (winner[ba] != NO_VERDICT)
    return {
        "flip_rate": [Mean((winner[ab] != winner[ba])[known], verdicts.question[ab][known])],
        "consistent_accuracy": consistent_accuracy(verdicts),
        "no_verdict": no_verdict(verdicts),
    }


def length_metrics(judged: Judged) -> dict[str, Metric]:
    """Metrics of length bias; pairs with a winner and answers of different length only.

    - `accuracy_longer_better`, `accuracy_shorter_better`: share of judgments that are right where the better answer is
      the longer one, and where it is the shorter one.
    - `length_bias`: the first minus the second.
    """
    difference = length_bias(Verdicts.of(judged.pairs, judged.before))
    assert isinstance(difference, Sequence)
    longer, shorter = difference
    return {
        "accuracy_longer_better": [longer],
        "accuracy_shorter_better": [shorter._replace(weight=1.0)],
        "length_bias": difference,
    }


def self_preference_metrics(judged: Judged) -> dict[str, Metric]:
    """Metrics of self-preference; only pairs of which the judge has written one answer, and that have a winner.

    The judge is an author if the last parts of their names are equal, without case and signs: the judge
    `Qwen/Qwen2.5-7B-Instruct` is the author `qwen2.5-7b-instruct`.

    - `accuracy_own_better`, `accuracy_own_worse`: share of judgments that are right where the judge's own answer is the
      better one, and where it is the worse one.
    - `self_preference`: the first minus the second.
    """
    own = _plain_name(judged.before[0].engine) if judged.before else ""
    better_own: set[str] = set()
    worse_own: set[str] = set()
    for pair in judged.pairs:
        wrote_a, wrote_b = (_plain_name(author) == own != "" for author in (pair.author_a, pair.author_b))
        if wrote_a != wrote_b and pair.label != "tie":
            (better_own if wrote_a == (pair.label == "A") else worse_own).add(pair.id)
    means = []
    for ids, weight in ((better_own, 1.0), (worse_own, -1.0)):
        verdicts = Verdicts.of(judged.pairs, [one for one in judged.before if one.pair_id in ids])
        means.append(Mean(verdicts.right, verdicts.question, weight))
    better, worse = means
    return {
        "accuracy_own_better": [better],
        "accuracy_own_worse": [worse._replace(weight=1.0)],
        "self_preference": [better, worse],
    }


def _plain_name(name: str) -> str:
    """The last part of a model's name, its letters and digits alone."""
    return "".join(filter(str.isalnum, name.rstrip("/").rpartition("/")[2].casefold()))


def _metrics(found: Sequence[Outcome]) -> dict[str, Metric]:
    """The metrics of outcomes."""
    return {
        "success": _success(found),
        "picked": [_share(found, "picked")],
        "picked_before": [_share(found, "picked_before")],
        "same_verdict": [_share(found, "same")],
        "no_verdict": [_share(found, "silent")],
        "no_verdict_before": [_share(found, "silent_before")],
    }


def _success(found: Sequence[Outcome]) -> Metric:
    """The mean over the orders of the share that picks the attacked answer, of those that did not pick it before."""
    not_before = [[one for one in found if one.order == order and not one.picked_before] for order in ORDERS]
    of_orders = [of_order for of_order in not_before if of_order] or [[]]
    return [_share(of_order, "picked", 1 / len(of_orders)) for of_order in of_orders]


def _share(found: Sequence[Outcome], field: str, weight: float = 1.0) -> Mean:
    """The share of outcomes of which a field is true."""
    values = np.array([getattr(one, field) for one in found], dtype=bool)
    return Mean(values, np.array([one.question for one in found], dtype=np.int64), weight)
