"""ReasoningJudgeBench: hard reasoning pairs (Xu et al. 2025, arXiv 2505.13346; `SalesforceAIResearch`)."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from judgelit.evaluation.intervals import Mean, Metric
from judgelit.evaluation.metrics import TIE, Verdicts, pair_metrics
from judgelit.evaluation.protocols.benchmark import Benchmark
from judgelit.evaluation.protocols.comparisons import DOUBLE_BRACKETS, read_comparison
from judgelit.evaluation.protocols.native import id_field, read_native
from judgelit.records.reading import on_drawn_side
from judgelit.records.records import Judgment, PreferencePair
from judgelit.records.row_fields import Row, bad_field, text_field
from judgelit.records.sources import FileSource, Mixture, Sources

SPLITS = {
    "aime_4o_pairwise": "math",
    "aime_pairwise": "math",
    "arc_challenge_pairwise": "multihop",
    "bbeh_be_pairwise": "multihop",
    "bbeh_cu_pairwise": "everyday",
    "bbeh_dq_pairwise": "everyday",
    "bbeh_hyper_pairwise": "everyday",
    "bbeh_ma_pairwise": "math",
    "reclor_pairwise": "multihop",
    "strategy_qa_pairwise": "everyday",
    "folio_pairwise": "multihop",
    "supergpqa_pairwise": "domain",
    "olympiadbench_pairwise": "math",
}
"""The kind of reasoning of each split of the hub's data set, as the authors group them."""
_SPLIT = re.compile("|".join(name.removesuffix("_pairwise") for name in SPLITS))
_VERDICT = re.compile(r".*\bVerdict:", re.S)


def read(value: Sources, limit: int | None) -> list[PreferencePair]:
    """The pairs; the category is the kind of reasoning, the subset the split. A hash of the id decides who is A."""
    return read_native(value, limit, _read_row)


def _read_row(row: Row, at: str) -> list[PreferencePair]:
    identity = id_field(row, "problem_id", at)
    if row.get("label") not in (1, None):
        raise bad_field(at, "label", row["label"], "1, since positive_response is the better answer")
    # The authors' ids hold the name of the split, which is also that of the file or of the hub's split.
    found = _SPLIT.search(identity.rpartition(":")[0]) or _SPLIT.search(Path(at).name)
    if found is None:
        raise bad_field(at, "problem_id", identity, "an id with the name of the split, such as '...-aime_pairwise:...'")
    pair = PreferencePair(
        id=identity,
        question=text_field(row, "instruction", at),
        answer_a=text_field(row, "positive_response", at, empty=True),
        answer_b=text_field(row, "negative_response", at, empty=True),
        label="A",
        category=SPLITS[f"{found[0]}_pairwise"],
        subset=found[0],
        source=text_field(row, "source_id", at, default=""),
    )
    return [on_drawn_side(pair)]


def metrics(pairs: Sequence[PreferencePair], judgments: Sequence[Judgment]) -> dict[str, Metric]:
    """ReasoningJudgeBench's metrics and the usual ones of pairs."""
    verdicts = Verdicts.of(pairs, judgments)
    return {"score": score(verdicts), "agreement": agreement(verdicts), **pair_metrics(pairs, judgments)}


def score(verdicts: Verdicts) -> Metric:
    """Share of pairs that are right in both orders, or right in one and a tie in the other."""
    ab, ba = verdicts.both_orders
    right, tie = verdicts.right, verdicts.winner == TIE
    won = (right[ab] & (right[ba] | tie[ba])) | (tie[ab] & right[ba])
    return [Mean(won, verdicts.question[ab])]


def agreement(verdicts: Verdicts) -> Metric:
    """The benchmark's consistency: share of pairs with two equal verdicts, or a tie in one order.

    As in the authors' scorer, two judgments without a verdict agree.
    """
    ab, ba = verdicts.both_orders
    winner = verdicts.winner
    agree = (winner[ab] == winner[ba]) | (winner[ab] == TIE) | (winner[ba] == TIE)
    return [Mean(np.asarray(agree), verdicts.question[ab])]


def read_verdict(text: str) -> str | None:
    """The verdict in judgelit's form, or as `Verdict: [[A>B]]`, of which the last one counts."""
    return read_comparison(text, DOUBLE_BRACKETS, _VERDICT)


REASONINGJUDGEBENCH: Benchmark[PreferencePair] = Benchmark(
    title="ReasoningJudgeBench, SalesforceAIResearch/ReasoningJudgeBench",
    size="1,483 pairs: math, multi-hop, everyday and domain reasoning",
    licence="CC-BY-NC-4.0",
    convention="Both orders. A pair counts if it is right in both orders, or right in one and a tie in the other. The "
    "mean is over all pairs.",
    read=read,
    metrics=metrics,
    shown={
        "score": "consistent accuracy",
        "agreement": "agreement",
        "accuracy": "accuracy",
        "no_verdict": "no verdict",
    },
    meanings={
        "score": "Share of pairs that are right in both orders, or right in one order and a tie in the other.",
        "agreement": "Share of pairs with the same verdict in both orders, or with a tie in one of them.",
    },
    hub=Mixture([FileSource("Salesforce/ReasoningJudgeBench", split=split) for split in SPLITS]),
    verdict=read_verdict,
)
