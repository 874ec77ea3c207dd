"""Folders of results and a run with judged text that tries to leave its place; and a browser that watches a page."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from judgelit.evaluation.bias import find_attacks
from judgelit.evaluation.bias.suite import attack_estimates, attack_sets
from judgelit.evaluation.calibration import calibrate
from judgelit.evaluation.intervals import as_json
from judgelit.evaluation.judged_folder import BenchmarkSet, write_set
from judgelit.evaluation.protocols.pairs import PAIRS
from judgelit.evaluation.votes import vote_shares
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


def write_results(folder: Path, count: int, model: str = "nano", benchmark: str = "pairs", **more: Any) -> Path:
    """A folder as `judgelit evaluate` writes it."""
    pairs, judgments = pairs_and_judgments(count, model)
    one = BenchmarkSet(benchmark, pairs)
    write_set(folder, "mine", pairs, judgments)
    content = {
        "judgelit": "0.1.0",
        "model": model,
        "settings": {"seed": 0},
        "benchmarks": {"mine": benchmark},
        "sets": as_json({"mine": one.benchmark.estimates(pairs, judgments)}),
        "groups": as_json({"mine": one.benchmark.estimates_by_group(pairs, judgments)}),
        **more,
    }
    (folder / "results.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


VOTES: dict[str, tuple[str | None, ...]] = {"ab": ("A", "A", "B", None, "A"), "ba": ("B", "B", "A", "A", None)}
"""Votes about every pair, whose label is A: in the order ab most are right, in the order ba there is no majority."""
LONG = [HOSTILE[0] * (1_000_000 // len(HOSTILE[0])), "W" * 1_000_000]
"""Judgments of about a million characters."""


def write_voted(folder: Path, count: int) -> Path:
    """As `judgelit evaluate --votes 5 --attacks padding` writes it; the attack succeeds on the pairs with even numbers.

    Of the first pairs, one vote is very long.
    """
    pairs, one_vote = pairs_and_judgments(count)
    pairs = [replace(pair, context=()) for pair in pairs]
    sets = {"mine": BenchmarkSet("pairs", pairs)}
    attacks = find_attacks(["padding"])
    attacked = attack_sets(attacks, sets)
    judgments = []
    for number, pair in enumerate(pairs):
        for order, verdicts in VOTES.items():
            for sample, verdict in enumerate(verdicts):
                is_long = number < len(LONG) and sample == 1 and order == "ab"
                text = LONG[number] if is_long else f"vote {sample} {HOSTILE[number % len(HOSTILE)]} [[{verdict}]]"
                judgments.append(
                    replace(
                        one_vote[0],
                        pair_id=pair.id,
                        order=order,
                        sample=sample,
                        verdict=verdict,
                        text=text,
                        margin=None,
                    )
                )
    found = {"mine": judgments, "mine.padding": []}
    for number, pair in enumerate(attacked["mine.padding"].items):
        for order, right in (("ab", "A"), ("ba", "B")):
            for sample in range(5):
                verdict = right if number % 2 else "B" if right == "A" else "A"
                found["mine.padding"].append(
                    replace(one_vote[0], pair_id=pair.id, order=order, sample=sample, verdict=verdict, margin=None)
                )
    for name, one in {**sets, **attacked}.items():
        write_set(folder, name, one.items, found[name])
    calibrated = calibrate(pairs, judgments)
    assert calibrated is not None
    content = {
        "judgelit": "0.1.0",
        "model": "voter",
        "benchmarks": {"mine": "pairs"},
        "sets": as_json({"mine": PAIRS.estimates(pairs, judgments)}),
        "groups": as_json({"mine": PAIRS.estimates_by_group(pairs, judgments)}),
        "votes": as_json({"mine": vote_shares(pairs, judgments)}),
        "calibration": {"mine": calibrated.to_dict()},
        "attacks": as_json(attack_estimates(attacks, sets, attacked, found)),
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


FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


class Opened:
    """A page, with what it has said and asked for."""

    def __init__(self, page: Any, address: str) -> None:
        self.page = page
        self.address = address
        self.bad: list[str] = []
        page.set_default_timeout(5000)
        page.on("console", lambda message: self.bad.append(message.text))
        page.on("pageerror", lambda error: self.bad.append(str(error)))
        page.on("dialog", lambda dialog: self.bad.append(f"dialog {dialog.message}"))
        page.on("request", lambda request: self._note(request.url))

    def _note(self, url: str) -> None:
        if not url.startswith(("file:", "data:")):
            self.bad.append(f"request {url}")

    def go(self, fragment: str = "") -> None:
        self.page.goto("about:blank")
        self.page.goto(self.address + fragment)

    @property
    def count(self) -> str:
        """How many judgments the filter shows."""
        return str(self.page.inner_text("#count"))

    def assert_nothing_bad(self) -> None:
        """No error, no dialog, no request, and no element or script made of judged text."""
        assert self.bad == []
        assert self.page.evaluate("window.hit === undefined")
        assert self.page.locator("iframe, img, #detail b, #list b, #detail script").count() == 0


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=path, args=FLAGS)
        yield launched
        launched.close()
