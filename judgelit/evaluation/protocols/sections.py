"""Means over the sections of a benchmark."""

from collections.abc import Iterable

import numpy as np

from judgelit.evaluation.intervals import Mean


def mean_over(parts: Iterable[list[Mean]]) -> list[Mean]:
    """The mean of several metrics with equal weights. Parts without a judgment are left out of it.

    Args:
        parts: The metrics, such as those of the sections of a benchmark; each is a weighted sum of means.
    """
    known = [part for part in parts if all(len(mean.values) for mean in part)]
    if not known:
        return [Mean(np.zeros(0), np.zeros(0, dtype=int))]
    return [mean._replace(weight=mean.weight / len(known)) for part in known for mean in part]
