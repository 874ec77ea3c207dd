"""JudgeBench: hard pairs with an objective label (Tan et al. 2024, arXiv 2410.12784; `ScalerLab/JudgeBench`)."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from judgelit.evaluation.intervals import Mean, Metric, Statistic
from judgelit.evaluation.metrics import TIE, Verdicts, consistent_accuracy, pair_metrics
from judgelit.evaluation.protocols.benchmark import Benchmark, Published
from judgelit.evaluation.protocols.comparisons import DOUBLE_BRACKETS, read_comparison
from judgelit.evaluation.protocols.native import id_field, read_native
from judgelit.records.records import UNKNOWN, Judgment, Label, PreferencePair
from judgelit.records.row_fields import Row, bad_field, choice_field, text_field
from judgelit.records.sources import FileSource, Mixture, Sources

_GROUPS = ("mmlu-pro", "livebench-reasoning", "livebench-math", "livecodebench")
_LABELS: dict[str, Label] = {"A>B": "A", "B>A": "B"}
_DECISIONS: dict[str, Label] = {**_LABELS, "A=B": "tie"}
_ODD = re.compile("[AB<>=]+")
"""Decisions beside `_DECISIONS` that the authors' parser of Arena-Hard lets through, such as `A<B`. Their scorer counts
them neither for nor against an answer."""
_ORDERS = ("ab", "ba")


def read(value: Sources, limit: int | None) -> list[PreferencePair]:
    """The pairs; the category is the group of the source, the subset the model that gave both answers."""
    return read_native(value, limit, _read_row)


def _read_row(row: Row, at: str) -> list[PreferencePair]:
    source = text_field(row, "source", at)
    pair = PreferencePair(
        id=id_field(row, "pair_id", at),
        question=text_field(row, "question", at),
        answer_a=text_field(row, "response_A", at, empty=True),
        answer_b=text_field(row, "response_B", at, empty=True),
        label=_LABELS[choice_field(row, "label", at, tuple(_LABELS))],
        category=next((group for group in _GROUPS if source.startswith(group)), source),
        subset=text_field(row, "response_model", at, default=""),
        source=source,
    )
    return [pair]


def metrics(pairs: Sequence[PreferencePair], judgments: Sequence[Judgment]) -> dict[str, Metric]:
    """JudgeBench's metrics and the usual ones of pairs."""
    verdicts = Verdicts.of(pairs, judgments)
    return {
        "score": score(verdicts),
        "strict": consistent_accuracy(verdicts),
        "best_order": best_order(verdicts),
        "inconsistent": inconsistent(verdicts),
        **pair_metrics(pairs, judgments),
    }


def score(verdicts: Verdicts) -> Metric:
    """Share of pairs with more right than wrong verdicts. A tie and no verdict are neither."""
    names_an_answer = verdicts.winner < TIE
    points = verdicts.right.astype(int) - (names_an_answer & ~verdicts.right)
    pairs, first, of_judgment = np.unique(verdicts.pair, return_index=True, return_inverse=True)
    total = np.bincount(of_judgment, points, len(pairs))
    return [Mean(total > 0, verdicts.question[first])]


def best_order(verdicts: Verdicts) -> Metric:
    """The accuracy in the order ab or in the order ba, the higher of the two."""
    in_order = np.stack([verdicts.order == 0, verdicts.order == 1], axis=1)
    columns = np.hstack([in_order & verdicts.right[:, None], in_order])
    return Statistic(columns, verdicts.question, _higher_share)


def _higher_share(totals: np.ndarray) -> np.ndarray:
    """The higher of two shares, from R rows of two numbers of hits and two numbers of trials: [R, 4] to [R]."""
    hits, trials = totals[:, :2], totals[:, 2:]
    shares = np.divide(hits, trials, out=np.full(hits.shape, np.nan), where=trials > 0)
    return np.fmax(shares[:, 0], shares[:, 1])


def inconsistent(verdicts: Verdicts) -> Metric:
    """Share of pairs whose two verdicts differ. A tie and no verdict differ; two without a verdict do not."""
    ab, ba = verdicts.both_orders
    winner = verdicts.winner
    return [Mean(winner[ab] != winner[ba], verdicts.question[ab])]


def read_verdict(text: str) -> str | None:
    """The verdict in judgelit's form or in Arena-Hard's, such as `[[A>>B]]`."""
    return read_comparison(text, DOUBLE_BRACKETS)


def read_judgments(row: Row, at: str, pairs: Mapping[str, PreferencePair]) -> list[Judgment]:
    """The judgments in a row of the authors' output files.

    A row is a pair with the fields `judge_name` and `judgments`: one judgment in each order, or only in the first. A
    judgment is null if its call failed. Its `decision` is about the answers as shown.

    Args:
        row: A row.
        at: Its place, for error messages.
        pairs: The pairs by id.

    Raises:
        UserError: A field is missing or invalid, or the label is not that of the pair.
    """
    pair_id, found = id_field(row, "pair_id", at), row.get("judgments")
    if not isinstance(found, Sequence) or isinstance(found, str) or len(found) not in (1, 2):
        raise bad_field(at, "judgments", found, "a list of one or two judgments")
    pair = pairs.get(pair_id)
    label = choice_field(row, "label", at, tuple(_LABELS))
    if pair is not None and pair.label != _LABELS[label]:
        expected = next(name for name, of_pair in _LABELS.items() if of_pair == pair.label)
        raise bad_field(at, "label", label, f"{expected!r}, the label of pair {pair_id!r}")
    judge = text_field(row, "judge_name", at, default="") or UNKNOWN
    return [
        _judgment(one, f"judgments[{place}]", at, pair_id, order, judge)
        for place, (one, order) in enumerate(zip(found, _ORDERS, strict=False))
    ]


def _judgment(one: Any, name: str, at: str, pair_id: str, order: str, judge: str) -> Judgment:
    if one is not None and (not isinstance(one, Mapping) or "decision" not in one):
        raise bad_field(at, name, one, "a judgment with a decision, or null")
    decision = None if one is None else one["decision"]
    known = decision is None or (isinstance(decision, str) and (decision in _DECISIONS or _ODD.fullmatch(decision)))
    if not known:
        raise bad_field(at, f"{name}.decision", decision, "'A>B', 'B>A', 'A=B' or null")
    given = None if one is None else one.get("judgment")
    texts = given if isinstance(given, Mapping) else {"response": given}
    model = _text(texts.get("judge_model")) or judge
    prompt = ({"role": "user", "content": _text(texts.get("prompt"))},)
    response = _text(texts.get("response"))
    verdict = None if decision is None else _DECISIONS.get(decision)
    return Judgment(pair_id, prompt, response, verdict, order, template=judge, engine=model, seed=0)


def _text(value: object) -> str:
    """The value if it is text; judges of some kinds write no prompt or no response."""
    return value if isinstance(value, str) else ""


_STRICT = "right in both orders, on the 350 GPT-4o pairs"
_UNKNOWN = "by a rule that its source does not state"

JUDGEBENCH: Benchmark[PreferencePair] = Benchmark(
    title="JudgeBench, ScalerLab/JudgeBench",
    size="350 pairs of answers of GPT-4o and 270 of Claude 3.5 Sonnet",
    licence="MIT",
    convention="Both orders. A pair counts if it has more right than wrong verdicts, so one right verdict and one tie "
    "count. Others report pairs that are right in both orders, or the better of the two orders' accuracies. Most "
    "published figures are of the 350 GPT-4o pairs alone: read those of the subset gpt-4o-2024-05-13.",
    read=read,
    metrics=metrics,
    shown={
        "score": "score",
        "strict": "right in both orders",
        "best_order": "better order",
        "inconsistent": "inconsistent",
        "no_verdict": "no verdict",
    },
    meanings={
        "score": "Share of pairs with more right than wrong verdicts of the two orders. A tie is neither.",
        "strict": "Share of pairs whose judgments are right in both orders.",
        "best_order": "Accuracy in the order in which the judge does better on the whole set.",
        "inconsistent": "Share of pairs whose verdicts in the two orders differ.",
    },
    hub=Mixture([FileSource("ScalerLab/JudgeBench", split=split) for split in ("gpt", "claude")]),
    verdict=read_verdict,
    judgments=read_judgments,
    published=(
        Published("RISE-Judge 7B / 32B", "40.5 / 63.9", f"measured by a third party, {_UNKNOWN}"),
        Published("CompassJudger-2 7B / 32B", "63.1 / 65.5", _UNKNOWN),
        Published("J1-Llama-8B / J1-Qwen-32B", "42.0 / 71.4", _STRICT),
        Published("EvalPlanner 8B / 70B", "30.2 / 56.6", _UNKNOWN),
        Published("Qwen3-32B, untrained, thinking", "70.8", _UNKNOWN),
        Published("Skywork-Reward-V2-Llama-3.1-8B", "80.0", "a scalar reward model, which has no order"),
    ),
)
