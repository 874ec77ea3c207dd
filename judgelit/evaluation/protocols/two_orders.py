"""One verdict about a pair that was judged in both orders."""

import numpy as np

from judgelit.evaluation.intervals import Mean, Metric
from judgelit.evaluation.metrics import TIE, Verdicts


def combined_verdicts(verdicts: Verdicts, both_orders: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """The winner of each judged pair if all its judgments name the same one, otherwise a tie.

    A pair that was judged in one order has the winner of that order. A pair without any verdict has no verdict.

    Args:
        verdicts: The verdicts of all judgments.
        both_orders: Leave out pairs that were judged in one order.

    Returns:
        For each of P pairs the place of its first judgment, [P] int64, and its winner, [P] int64: A, B, TIE or
        NO_VERDICT, in the order ab.
    """
    first = np.unique(verdicts.pair, return_index=True)[1]
    if not len(first):
        return first, first
    low = np.minimum.reduceat(verdicts.winner, first)
    high = np.maximum.reduceat(verdicts.winner, first)
    kept = np.isin(first, verdicts.both_orders[0]) if both_orders else np.ones(len(first), dtype=bool)
    return first[kept], np.where(low == high, low, TIE)[kept]


def mean_of_orders(verdicts: Verdicts) -> Metric:
    """Mean of the accuracies of the two orders; of a set that was judged in one order, the accuracy in that order."""
    orders = [order for order in (0, 1) if (verdicts.order == order).any()] or [0]
    return [
        Mean(verdicts.right[verdicts.order == order], verdicts.question[verdicts.order == order], 1 / len(orders))
        for order in orders
    ]
