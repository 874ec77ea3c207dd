"""Labelled pairs of any source: judgelit's own prompts and metrics."""

from judgelit.evaluation.metrics import pair_metrics
from judgelit.evaluation.protocols.benchmark import Benchmark
from judgelit.judging.prompts import judge_prompts
from judgelit.records.sources import read_pairs

PAIRS = Benchmark(
    read=read_pairs,
    prompts=judge_prompts,
    metrics=pair_metrics,
    shown={
        "accuracy": "accuracy",
        "consistent_accuracy": "right in both orders",
        "consistency": "consistent",
        "no_verdict": "no verdict",
    },
)
