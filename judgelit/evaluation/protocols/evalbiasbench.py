"""EvalBiasBench: pairs whose wrong answer plays on a bias of judges (Park et al. 2024, arXiv 2407.06551)."""

from collections.abc import Sequence

from judgelit.evaluation.intervals import Metric
from judgelit.evaluation.metrics import Verdicts, pair_metrics
from judgelit.evaluation.protocols.benchmark import Benchmark
from judgelit.evaluation.protocols.native import read_native
from judgelit.evaluation.protocols.row_places import RowNumbers, coded_label, list_of
from judgelit.evaluation.protocols.two_orders import mean_of_orders
from judgelit.records.records import Judgment, Label, PreferencePair
from judgelit.records.row_fields import Row, text_field
from judgelit.records.sources import Sources

_LABELS: dict[str, Label] = {"1": "A", "2": "B"}


def read(where: Sources, limit: int | None) -> list[PreferencePair]:
    """The pairs, with the ids BIAS/NUMBER: the number of the row in the list of its bias, from 1.

    The category is the bias: the name of the list that holds the row, or else its field `bias`.
    """
    numbers = RowNumbers()

    def pair(row: Row, at: str) -> list[PreferencePair]:
        number = numbers.next(at)
        bias = list_of(at) or text_field(row, "bias", at)
        return [
            PreferencePair(
                id=f"{bias}/{number}",
                question=text_field(row, "instruction", at),
                answer_a=text_field(row, "response1", at, empty=True),
                answer_b=text_field(row, "response2", at, empty=True),
                label=coded_label(row, "label", at, _LABELS),
                category=bias,
            )
        ]

    return read_native(where, limit, pair)


def metrics(pairs: Sequence[PreferencePair], judgments: Sequence[Judgment]) -> dict[str, Metric]:
    """The usual metrics of pairs, with accuracy as the mean of both orders."""
    return {**pair_metrics(pairs, judgments), "accuracy": mean_of_orders(Verdicts.of(pairs, judgments))}


EVALBIASBENCH: Benchmark[PreferencePair] = Benchmark(
    title="EvalBiasBench, ncsoft/offsetbias",
    size="80 pairs: length bias 17, concreteness 14, empty reference 13, content continuation 12, nested instruction "
    "12, familiar knowledge preference bias 12",
    licence="BSD-3-Clause",
    convention="Both orders. Accuracy is the share of right judgments (single_accuracy of the authors' script), for "
    "each kind of bias; right in both orders is their pair_accuracy, and consistent their pair_agreement_rate.",
    read=read,
    metrics=metrics,
    shown={
        "accuracy": "accuracy",
        "consistent_accuracy": "right in both orders",
        "consistency": "consistent",
        "no_verdict": "no verdict",
    },
    meanings={
        "accuracy": "Mean of the two orders of the share of right judgments; a tie or no verdict is wrong.",
    },
)
