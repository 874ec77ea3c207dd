"""Calibration of a judge: whether it is right as often as its confidence says."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from judgelit.evaluation.intervals import Estimate, Mean, Metric, Statistic, as_json, estimates
from judgelit.evaluation.metrics import question_numbers
from judgelit.evaluation.tables import show
from judgelit.evaluation.votes import majorities, samples_by_prompt
from judgelit.records.records import AnswerSet, Judgment, PreferencePair

BINS = 15
"""Bins of equal width on [0.5, 1], as many as Guo et al. use."""
COVERAGES = (0.5, 0.8, 0.9)
"""Shares of the judgments, the most confident ones, whose accuracy is reported."""


@dataclass(frozen=True)
class Confidences:
    """Verdicts A or B on pairs that have a winner, with the judge's confidence in them; n judgments."""

    confidence: np.ndarray
    """[n] float: probability of the verdict, of the two verdicts A and B."""
    right: np.ndarray
    """[n] bool."""
    questions: np.ndarray
    """[n] int: the number of the question that each judgment is about."""
    unknown: int
    """Judgments of such pairs without a confidence: no verdict, the verdict tie, or no margin."""
    source: Literal["log-probabilities", "votes"]

    @classmethod
    def of(cls, items: Sequence[PreferencePair | AnswerSet], judgments: Sequence[Judgment]) -> "Confidences":
        """Confidences of a judge.

        The confidence of a single judgment is the sigmoid of its margin in favour of its verdict. That of a majority is
        its share of the votes, in which votes for a tie or without a verdict count half for each answer.

        Args:
            items: What was judged, pairs in the order ab. Answer sets and pairs with the label tie are left out.
            judgments: The judgments, with all samples of each prompt.
        """
        questions = question_numbers(items)
        pairs = {item.id: item for item in items if isinstance(item, PreferencePair) and item.label != "tie"}
        by_prompt = samples_by_prompt([one for one in judgments if one.pair_id in pairs])
        rows: list[tuple[float, bool, int]] = []
        for samples in by_prompt.values():
            (decided,) = majorities(samples)
            confidence = _confidence(decided, samples)
            if confidence is not None:
                label = pairs[decided.pair_id].label
                winner_stands_first = (label == "A") == (decided.order == "ab")
                right = (decided.verdict == "A") == winner_stands_first
                rows.append((confidence, right, questions[decided.pair_id]))
        confidences, rights, about = zip(*rows, strict=True) if rows else ((), (), ())
        votes = any(len(samples) > 1 for samples in by_prompt.values())
        return cls(
            np.array(confidences, float),
            np.array(rights, bool),
            np.array(about, int),
            len(by_prompt) - len(rows),
            "votes" if votes else "log-probabilities",
        )

    @property
    def bins(self) -> np.ndarray:
        """The bin of each judgment, [n] int; a confidence below 0.5 belongs to the first."""
        # Shares of votes often stand exactly between two bins: they belong to the upper one, whatever the rounding.
        return np.clip(np.floor(((self.confidence - 0.5) * 2 * BINS).round(9)), 0, BINS - 1).astype(int)


@dataclass(frozen=True)
class Calibration:
    """How well confidence and accuracy of a judge agree on one set."""

    confidences: Confidences
    figures: Mapping[str, Estimate]
    """`accuracy` and mean `confidence` of the judgments whose confidence is known, `ece` and `brier`."""
    selective: Mapping[str, Estimate]
    """Accuracy of the most confident judgments, by their share."""

    def to_dict(self) -> dict[str, Any]:
        """Fields as JSON values, with the bins of the reliability curve. An empty bin has neither mean."""
        found = self.confidences
        bins = []
        for number in range(BINS):
            of_bin = found.bins == number
            n = int(of_bin.sum())
            bins.append(
                {
                    "low": 0.5 + number / (2 * BINS),
                    "high": 0.5 + (number + 1) / (2 * BINS),
                    "n": n,
                    "confidence": float(found.confidence[of_bin].mean()) if n else None,
                    "accuracy": float(found.right[of_bin].mean()) if n else None,
                }
            )
        return {
            "confidence_from": found.source,
            "n": len(found.right),
            "unknown": found.unknown,
            **as_json(self.figures),
            "selective": as_json(self.selective),
            "bins": bins,
        }

    def __str__(self) -> str:
        found = self.confidences
        of = {"log-probabilities": "the log-probabilities of A and B", "votes": "shares of votes"}[found.source]
        parts = ", ".join(f"{show(one)} at {float(share):.0%}" for share, one in self.selective.items())
        left_out = f" ({found.unknown} more have no confidence)" if found.unknown else ""
        return (
            f"mean confidence {100 * self.figures['confidence'].value:.1f}% and accuracy "
            f"{100 * self.figures['accuracy'].value:.1f}% of {len(found.right)} judgments{left_out}, from {of}; "
            f"calibration error {show(self.figures['ece'])}; accuracy of the most confident: {parts}"
        )


def calibrate(items: Sequence[PreferencePair | AnswerSet], judgments: Sequence[Judgment]) -> Calibration | None:
    """Calibration of a judge, or None if no judgment has a confidence.

    Args:
        items: What was judged, pairs in the order ab.
        judgments: The judgments, with all samples of each prompt.
    """
    found = Confidences.of(items, judgments)
    if len(found.right) == 0:
        return None
    figures: dict[str, Metric] = {
        "accuracy": [Mean(found.right, found.questions)],
        "confidence": [Mean(found.confidence, found.questions)],
        "ece": expected_calibration_error(found),
        "brier": [Mean((found.confidence - found.right) ** 2, found.questions)],
    }
    selective = {f"{share:g}": selective_accuracy(found, share) for share in COVERAGES}
    return Calibration(found, estimates(figures), estimates(selective))


def expected_calibration_error(found: Confidences) -> Statistic:
    """ECE: over bins of confidence, the mean of |accuracy - confidence|, weighted by the number of judgments.

    Guo et al. 2017, "On Calibration of Modern Neural Networks" (arXiv 1706.04599), equation 3. Noise within bins adds
    to it, in a bootstrap resample more than in the sample. So the interval of a judge that is calibrated almost
    perfectly may lie above its value.
    """
    one_hot = found.bins[:, None] == np.arange(BINS)
    columns = np.column_stack([one_hot * (found.right - found.confidence)[:, None], np.ones(len(found.right))])

    def error(totals: np.ndarray) -> np.ndarray:
        """[R, BINS + 1] to [R]."""
        n = totals[:, -1]
        return np.divide(np.abs(totals[:, :-1]).sum(axis=1), n, out=np.full(n.shape, np.nan), where=n > 0)

    return Statistic(columns, found.questions, error)


def selective_accuracy(found: Confidences, coverage: float) -> Statistic:
    """Accuracy of the most confident judgments.

    The threshold is that of the whole sample, and the bootstrap keeps it. Judgments with exactly that confidence count
    with the weight that makes the total the wanted share, as if some of them were drawn at random.

    Args:
        found: The judgments.
        coverage: Their share that is kept, above 0 and at most 1.
    """
    wanted = coverage * len(found.confidence)
    threshold = np.sort(found.confidence)[::-1][math.ceil(wanted) - 1]
    above, at = found.confidence > threshold, found.confidence == threshold
    weights = above + at * (wanted - above.sum()) / at.sum()

    def accuracy(totals: np.ndarray) -> np.ndarray:
        """[R, 2] to [R]."""
        right, count = totals.T
        return np.divide(right, count, out=np.full(count.shape, np.nan), where=count > 0)

    kept = weights > 0
    columns = np.column_stack([weights * found.right, weights])
    return Statistic(columns[kept], found.questions[kept], accuracy)


def _confidence(decided: Judgment, samples: Sequence[Judgment]) -> float | None:
    """Probability of the verdict of a prompt, of A and B; None if it is unknown or the verdict is neither."""
    if decided.verdict not in ("A", "B"):
        return None
    if len(samples) > 1:
        verdicts = [one.verdict for one in samples]
        others = sum(verdict not in ("A", "B") for verdict in verdicts)
        return (verdicts.count(decided.verdict) + 0.5 * others) / len(verdicts)
    margin = samples[0].margin
    if margin is None or math.isnan(margin):
        return None
    # The sigmoid without overflow.
    return 0.5 * (1 + math.tanh(0.5 * (margin if decided.verdict == "A" else -margin)))
