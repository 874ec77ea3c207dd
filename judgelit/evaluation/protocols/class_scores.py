"""Accuracy, and macro precision, recall and F1, of verdicts against labels that may be ties."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from judgelit.evaluation.intervals import Statistic
from judgelit.evaluation.metrics import NO_VERDICT, TIE

CLASSES = TIE + 1
"""A, B and tie."""
_WIDTH = NO_VERDICT + 1
Score = Callable[[np.ndarray], np.ndarray]
"""Computes a score from R tables of counts, [R, CLASSES, CLASSES + 1] to [R]: labels by verdicts, the last column no
verdict."""


@dataclass(frozen=True)
class Labelled:
    """Verdicts beside labels; each field is [n] int64."""

    label: np.ndarray
    """A, B or TIE."""
    verdict: np.ndarray
    """A, B, TIE or NO_VERDICT, in the same order of the answers as the label."""
    question: np.ndarray
    """Index of the question."""

    def with_ties_for_none(self) -> "Labelled":
        """The same with a tie in place of no verdict."""
        return replace(self, verdict=np.where(self.verdict == NO_VERDICT, TIE, self.verdict))

    def statistic(self, score: Score) -> Statistic:
        """The metric of a score."""
        cells = self.label * _WIDTH + self.verdict
        columns = cells[:, None] == np.arange(CLASSES * _WIDTH)
        return Statistic(columns, self.question, lambda totals: score(totals.reshape(-1, CLASSES, _WIDTH)))


def accuracy(tables: np.ndarray) -> np.ndarray:
    """Share of verdicts that are the label; no verdict is wrong."""
    return _share(_right(tables).sum(axis=1), tables.sum(axis=(1, 2)), np.nan)


def macro_precision(tables: np.ndarray) -> np.ndarray:
    """Mean over the classes of the share of right verdicts among those that name the class."""
    return _over_classes(_share(_right(tables), _said(tables), 0.0), tables)


def macro_recall(tables: np.ndarray) -> np.ndarray:
    """Mean over the classes of the share of right verdicts among the pairs of the class."""
    return _over_classes(_share(_right(tables), tables.sum(axis=2), 0.0), tables)


def macro_f1(tables: np.ndarray) -> np.ndarray:
    """Mean over the classes of F1, the harmonic mean of precision and recall."""
    return _over_classes(_share(2 * _right(tables), _said(tables) + tables.sum(axis=2), 0.0), tables)


def _right(tables: np.ndarray) -> np.ndarray:
    """The right verdicts of each class, [R, CLASSES]."""
    return np.diagonal(tables, axis1=1, axis2=2)


def _said(tables: np.ndarray) -> np.ndarray:
    """The verdicts that name each class, [R, CLASSES]."""
    return tables[:, :, :CLASSES].sum(axis=1)


def _over_classes(values: np.ndarray, tables: np.ndarray) -> np.ndarray:
    """The mean over the classes that are a label or a verdict at least once, as in scikit-learn; NaN without any."""
    occurs = (_said(tables) + tables.sum(axis=2)) > 0
    return _share((values * occurs).sum(axis=1), occurs.sum(axis=1), np.nan)


def _share(part: np.ndarray, whole: np.ndarray, otherwise: float) -> np.ndarray:
    return np.divide(part, whole, out=np.full(np.shape(part), otherwise), where=whole > 0)
