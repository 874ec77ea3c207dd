"""A folder of results and a run with judged text that tries to leave its place."""

import json
from pathlib import Path
from typing import Any

import pytest

from judgelit.evaluation.intervals import as_json
from judgelit.evaluation.judged_folder import BenchmarkSet, write_set
from judgelit.evaluation.protocols.pairs import PAIRS
from judgelit.records.files import write_records
from judgelit.records.records import Judgment, PreferencePair

HOSTILE = [
    "</script><script>window.hit = 1; alert(1)</script>",
    "<!--<script>",
    "<img src=x onerror='window.hit=1;alert(2)'><iframe src='https://example.com/'></iframe>",
    "\u202eright to left\u2066 and \u2028\u2029 lines \x00",
    "Z" + "\u0301\u0324\u035c" * 60 + "algo",
    "]]> {{ 7*7 }} ${alert(3)} javascript:alert(4) &lt;b&gt;",
    "W" * 900,
]


def pairs_and_judgments(count: int, judge: str = "nano") -> tuple[list[PreferencePair], list[Judgment]]:
    """`count` pairs, each with a judgment in both orders. Every third pair is judged wrongly in the order ba."""
    pairs, judgments = [], []
    for number in range(count):
        text = HOSTILE[number % len(HOSTILE)]
        category = "<b>maths</b>" if number % 2 else "prose"
        pairs.append(
            PreferencePair(
                f"p{number}", f"question {number} {text}", f"yes {text}", f"no {text}", "A", category, context=()
            )
        )
        for order in ("ab", "ba"):
            verdict = "A" if order == "ab" or number % 3 == 0 else "B"
            verdict = None if number % 50 == 7 else verdict
            finish: Any = "length" if verdict is None else "stop"
            prompt = ({"role": "user", "content": "?"},)
            judged = f"reason {number} {text} [[{verdict}]]"
            margin = 2.0 if verdict == "A" else -2.0
            judgments.append(
                Judgment(
                    f"p{number}",
                    prompt,
                    judged,
                    verdict,
                    order,
                    "t",
                    judge,
                    0,
                    None if verdict is None else margin,
                    finish,
                )
            )
    return pairs, judgments


def write_results(folder: Path, count: int, model: str = "nano", **more: Any) -> Path:
    """A folder as `judgelit evaluate` writes it."""
    pairs, judgments = pairs_and_judgments(count, model)
    one = BenchmarkSet("pairs", pairs)
    write_set(folder, "mine", pairs, judgments)
    content = {
        "judgelit": "0.1.0",
        "model": model,
        "settings": {"seed": 0},
        "benchmarks": {"mine": "pairs"},
        "sets": as_json({"mine": one.benchmark.estimates(pairs, judgments)}),
        "groups": as_json({"mine": one.benchmark.estimates_by_group(pairs, judgments)}),
        **more,
    }
    (folder / "results.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def write_run(folder: Path, stages: dict[str, str], trained: bool = True) -> Path:
    """A run folder whose judges have judged one set; {judge: name of its stage}."""
    pairs, judgments = pairs_and_judgments(12)
    write_records(folder / "stages" / "01-pairs" / "mine.jsonl", pairs)
    (folder / "config.yaml").write_text("seed: 3\n", encoding="utf-8")
    for stage in stages.values():
        write_records(folder / "stages" / stage / "mine.jsonl", judgments)
    if trained:
        log = folder / "stages" / "04-sft" / "csv" / "version_0" / "metrics.csv"
        log.parent.mkdir(parents=True)
        rows = [f"{step},{2.0 / (step + 1)},{100 + step}" for step in range(4000)]
        log.write_text("\n".join(["step,train/loss,train/device/items_per_sec", *rows]) + "\n", encoding="utf-8")
    figures = as_json({"mine": PAIRS.estimates(pairs, judgments)})
    gain = {
        "from": "base",
        "to": "sft",
        "set": "mine",
        "metric": "accuracy",
        "value": 0.125,
        "low": 0.1,
        "high": 0.2,
        "p": 0.01,
    }
    content = {
        "judgelit": "0.1.0",
        "seed": 3,
        "stages": dict.fromkeys(stages, figures),
        "gains": [gain] if len(stages) > 1 else [],
        "cost": {"01-pairs": {"seconds": 2.0, "tokens": 0, "peak_memory_bytes": 1e9}},
    }
    (folder / "results.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """5,000 pairs, judged in both orders."""
    return write_results(tmp_path_factory.mktemp("report") / "results", 5000)
