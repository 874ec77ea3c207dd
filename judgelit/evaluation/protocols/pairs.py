"""Labelled pairs of any source: judgelit's own prompts and metrics."""

from judgelit.evaluation.metrics import pair_metrics
from judgelit.evaluation.protocols.benchmark import Benchmark
from judgelit.records.records import PreferencePair
from judgelit.records.sources import read_pairs

PAIRS: Benchmark[PreferencePair] = Benchmark(
    title="labelled pairs of any source",
    size="as many as you give",
    licence="that of the pairs",
    convention="Both orders. Accuracy is the mean of the two; pairs labelled tie are left out of it and counted.",
    read=read_pairs,
    metrics=pair_metrics,
    shown={
        "accuracy": "accuracy",
        "consistent_accuracy": "right in both orders",
        "consistency": "consistent",
        "no_verdict": "no verdict",
    },
)
