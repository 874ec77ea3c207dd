"""PandaLM's test set: pairs of answers of small models with three human labels (Wang et al. 2023, arXiv 2306.05087)."""

from collections.abc import Mapping, Sequence

import numpy as np

from judgelit.evaluation.intervals import Metric
from judgelit.evaluation.metrics import Verdicts, pair_metrics
from judgelit.evaluation.protocols.benchmark import Benchmark, Published
from judgelit.evaluation.protocols.class_scores import Labelled, accuracy, macro_f1, macro_precision, macro_recall
from judgelit.evaluation.protocols.native import id_field, read_native
from judgelit.evaluation.protocols.row_places import coded_label
from judgelit.evaluation.protocols.two_orders import combined_verdicts
from judgelit.records.conversations import read_answer
from judgelit.records.records import Judgment, Label, PreferencePair
from judgelit.records.row_fields import Row, bad_field, text_field
from judgelit.records.sources import Sources

_CODES: dict[str, Label] = {"0": "tie", "1": "A", "2": "B"}
_RESULTS: dict[str, Label] = {**_CODES, "tie": "tie"}
_ANNOTATORS = ("annotator1", "annotator2", "annotator3")
_GARBAGE = "garbage"
"""What the authors' result files say of a text without a verdict."""


def read(where: Sources, limit: int | None) -> list[PreferencePair]:
    """The pairs; the label is the one that at least two of three annotators give, and the source the two models."""
    return read_native(where, limit, _read_row)


def _read_row(row: Row, at: str) -> list[PreferencePair]:
    votes = [coded_label(row, name, at, _CODES) for name in _ANNOTATORS]
    label = max(votes, key=votes.count)
    if votes.count(label) == 1:
        raise bad_field(at, "annotator1 to 3", votes, "two that agree")
    asked = [text_field(row, "instruction", at, empty=True), text_field(row, "input", at, default="")]
    question = "\n\n".join(text for text in asked if text.strip())
    if not question:
        raise bad_field(at, "instruction", row["instruction"], "text that is not empty")
    pair = PreferencePair(
        id=id_field(row, "idx", at),
        question=question,
        answer_a=read_answer(row.get("response1"), "response1", at),
        answer_b=read_answer(row.get("response2"), "response2", at),
        label=label,
        source=text_field(row, "cmp_key", at, default=""),
    )
    return [pair]


def metrics(pairs: Sequence[PreferencePair], judgments: Sequence[Judgment]) -> dict[str, Metric]:
    """PandaLM's metrics and the usual ones of pairs.

    - `score`, `precision`, `recall`, `f1`: the verdict in the order of the file; no verdict counts as a tie, as in the
      authors' parser. Precision, recall and F1 are means over those of A, B and tie that are a label or a
      verdict, with equal weights. The authors divide by three also where one is neither, as in a few pairs.
    - `strict_score`, `strict_f1`: the same, and no verdict is wrong.
    - `combined_score`, `combined_f1`: the winner that both orders name; two different ones, or none, count as a tie.
      Pairs that were judged in one order are left out.
    """
    verdicts = Verdicts.of(pairs, judgments)
    one = np.flatnonzero(verdicts.order == 0) if (verdicts.order == 0).any() else np.arange(len(verdicts.order))
    first, combined = combined_verdicts(verdicts, both_orders=True)
    strict = Labelled(verdicts.label[one], verdicts.winner[one], verdicts.question[one])
    alone = strict.with_ties_for_none()
    both = Labelled(verdicts.label[first], combined, verdicts.question[first]).with_ties_for_none()
    return {
        "score": alone.statistic(accuracy),
        "precision": alone.statistic(macro_precision),
        "recall": alone.statistic(macro_recall),
        "f1": alone.statistic(macro_f1),
        "strict_score": strict.statistic(accuracy),
        "strict_f1": strict.statistic(macro_f1),
        "combined_score": both.statistic(accuracy),
        "combined_f1": both.statistic(macro_f1),
        **pair_metrics(pairs, judgments),
    }


def read_judgments(row: Row, at: str, pairs: Mapping[str, PreferencePair]) -> list[Judgment]:
    """The judgment in a row of the authors' result files, such as `gpt-3.5-turbo-testset-v1.json`.

    A row has `idx` and, for a judge NAME, `NAME_result` (1, 2, 0 or Tie, or garbage: no verdict) and `NAME_reason`. It
    is about the order of the file.

    Args:
        row: A row.
        at: Its place, for error messages.
        pairs: The pairs by id, which are not needed.

    Raises:
        UserError: A field is missing or invalid.
    """
    results = [name for name in row if name.endswith("_result")]
    if len(results) != 1:
        raise bad_field(at, "..._result", results or None, "one field that ends so, such as 'gpt_result'")
    judge = results[0].removesuffix("_result")
    garbage = str(row[results[0]]).strip().lower() == _GARBAGE
    judgment = Judgment(
        pair_id=id_field(row, "idx", at),
        prompt=({"role": "user", "content": ""},),
        text=text_field(row, f"{judge}_reason", at, default=""),
        verdict=None if garbage else coded_label(row, results[0], at, _RESULTS),
        order="ab",
        template=judge,
        engine=judge,
        seed=0,
    )
    return [judgment]


_ONE_ORDER = "accuracy / precision / recall / F1, computed from the authors' result file"

PANDALM: Benchmark[PreferencePair] = Benchmark(
    title="PandaLM's test set, WeOpenML/PandaLM",
    size="999 pairs with the labels of three annotators: 422 first, 472 second, 105 tie",
    licence="Apache-2.0",
    convention="The label is the majority of three annotators, ties included. The authors judge each pair once, in the "
    "order of the file, and read a text without a verdict as a tie; precision, recall and F1 are means over A, B and "
    "tie. strict_score counts no verdict as wrong; combined_score takes the winner of both orders, and a tie where "
    "they differ.",
    read=read,
    metrics=metrics,
    ties_count=True,
    shown={
        "score": "accuracy, one order",
        "f1": "F1",
        "combined_score": "both orders",
        "no_verdict": "no verdict",
    },
    meanings={
        "score": "Share of pairs whose verdict in the order of the file is the label; no verdict counts as a tie.",
        "f1": "Mean of the F1 scores of A, B and tie, of the verdicts in the order of the file.",
        "combined_score": "Share of pairs whose label both orders name. Two different winners are a tie.",
    },
    judgments=read_judgments,
    published=(
        Published("gpt-3.5-turbo", "71.07 / 58.79 / 57.36 / 57.55", _ONE_ORDER),
        Published("PandaLM-7B", "66.77 / 57.38 / 57.50 / 57.43", _ONE_ORDER),
    ),
)
