"""Cohen's kappa and McNemar's test."""

import math
from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from judgelit.evaluation.agreement import cohens_kappa, mcnemar
from judgelit.evaluation.intervals import estimates

LABELS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30)


def kappa(first: Sequence[int], second: Sequence[int]) -> float:
    metric = cohens_kappa(np.array(first), np.array(second), 4, np.arange(len(first)))
    return estimates({"kappa": metric})["kappa"].value


def test_a_textbook_example() -> None:
    # Two readers of 50 proposals: 20 accepted and 15 refused by both, 5 only by the first, 10 only by the second.
    first = [1] * 20 + [0] * 15 + [1] * 5 + [0] * 10
    second = [1] * 20 + [0] * 15 + [0] * 5 + [1] * 10
    assert kappa(first, second) == pytest.approx((0.7 - 0.5) / (1 - 0.5), abs=1e-15)


def test_agreement_by_chance_is_0_and_one_class_alone_is_undefined() -> None:
    assert kappa([0, 0, 1, 1], [0, 1, 0, 1]) == 0
    assert kappa([0, 1, 0, 1], [1, 0, 1, 0]) == -1
    assert kappa([2, 0, 1], [2, 0, 1]) == 1
    assert math.isnan(kappa([1, 1], [1, 1]))
    assert kappa([1, 1, 1], [1, 1, 0]) == 0


@given(LABELS)
@settings(max_examples=50)
def test_kappa_by_its_definition(table: list[tuple[int, int]]) -> None:
    first, second = zip(*table, strict=True)
    n = len(table)
    agreement = sum(one == other for one, other in table) / n
    chance = sum(first.count(label) * second.count(label) for label in range(4)) / n**2
    expected = math.nan if chance == 1 else (agreement - chance) / (1 - chance)
    assert kappa(first, second) == pytest.approx(expected, abs=1e-12, nan_ok=True)
    assert kappa(second, first) == pytest.approx(expected, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize(
    ("fewer", "more", "p"), [(0, 0, 1), (3, 3, 1), (0, 5, 1 / 16), (1, 9, 22 / 1024), (0, 2000, 0), (2, 4, 11 / 16)]
)
def test_mcnemar_by_hand(fewer: int, more: int, p: float) -> None:
    assert mcnemar(fewer, more) == mcnemar(more, fewer) == pytest.approx(p, abs=1e-12)


@given(st.integers(0, 9), st.integers(0, 9))
@settings(max_examples=40)
def test_mcnemar_counts_outcomes_that_are_as_far_from_even(one: int, other: int) -> None:
    n = min(one + other, 12)
    one, other = (one, n - one) if one <= n else (n, 0)
    outcomes = [sum(coins) for coins in product((0, 1), repeat=n)]
    as_far = sum(abs(2 * heads - n) >= abs(one - other) for heads in outcomes)
    assert mcnemar(one, other) == pytest.approx(as_far / 2**n, abs=1e-12)


def test_mcnemar_of_many_cases_is_about_normal() -> None:
    # The continuity correction takes half a case from the distance of each side.
    normal = math.erfc((120 - 1) / math.sqrt(6120) / math.sqrt(2))
    assert mcnemar(3000, 3120) == pytest.approx(normal, rel=1e-3)
