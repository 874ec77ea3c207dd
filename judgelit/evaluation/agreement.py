"""Agreement of two raters of the same things: Cohen's kappa and McNemar's test."""

import numpy as np

from judgelit.evaluation.intervals import Statistic


def cohens_kappa(first: np.ndarray, second: np.ndarray, classes: int, questions: np.ndarray) -> Statistic:
    """Cohen's kappa: agreement beyond that of two raters who draw from their own shares of the classes.

    kappa = (agreement - chance) / (1 - chance), where chance is the sum over classes of the product of both shares
    (Cohen 1960, "A Coefficient of Agreement for Nominal Scales", Educational and Psychological Measurement 20, page
    40). It is undefined where both raters give one and the same class to everything.

    Args:
        first: [n] int, the classes that the first rater gives, from 0.
        second: [n] int, those of the second rater.
        classes: Number of classes, K.
        questions: [n] int: the number of the question that each is about.
    """
    columns = np.column_stack([first == second, _one_hot(first, classes), _one_hot(second, classes)])

    def kappa(totals: np.ndarray) -> np.ndarray:
        """[R, 1 + 2 K] to [R]."""
        of_first, of_second = np.split(totals[:, 1:], 2, axis=1)
        n = of_first.sum(axis=1)
        # Multiplied by n squared, all terms are whole numbers, and chance is recognised exactly where it is 1.
        chance = (of_first * of_second).sum(axis=1)
        undefined = np.full(n.shape, np.nan)
        return np.divide(totals[:, 0] * n - chance, n * n - chance, out=undefined, where=n * n > chance)

    return Statistic(columns, questions, kappa)


def mcnemar(only_first: int, only_second: int) -> float:
    """The p-value of McNemar's exact test, two-sided.

    Of the cases in which just one of two judges is right, each is as likely to be right if they are equally good. So
    the number of one of them is binomial with probability 1/2 (McNemar 1947, Psychometrika 12, pages 153-157).

    Args:
        only_first: Cases in which only the first judge is right.
        only_second: Cases in which only the second judge is right.
    """
    n, fewer = only_first + only_second, min(only_first, only_second)
    ways = term = 1
    for k in range(fewer):
        term = term * (n - k) // (k + 1)
        ways += term
    return min(1.0, 2 * ways / 2**n)


def _one_hot(values: np.ndarray, classes: int) -> np.ndarray:
    """[n] int to [n, K] bool."""
    return values[:, None] == np.arange(classes)
