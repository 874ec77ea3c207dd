"""Batch sampler: which rows an epoch visits, limits of batches, ranks and resuming."""

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from judgelit.batches.packing import Prompts
from judgelit.batches.sampler import BatchSampler


def lengths_of(rows: int) -> list[int]:
    return [1 + (row * 7919) % 997 for row in range(rows)]


def epoch_of(batches: BatchSampler, epoch: int = 0) -> list[list[int]]:
    batches.set_epoch(epoch)
    return list(batches)


def order(rows: int, size: int = 4, epoch: int = 0, **settings: Any) -> list[list[int]]:
    return epoch_of(BatchSampler(lengths_of(rows), size, **settings), epoch)


SIZES = {"rows": st.integers(0, 300), "size": st.integers(1, 9), "seed": st.integers(0, 5), "epoch": st.integers(0, 5)}


# Rows whose prompts differ.


@given(**SIZES, grouped=st.booleans())
def test_an_epoch_visits_every_row_once(rows: int, size: int, seed: int, epoch: int, grouped: bool) -> None:
    batches = order(rows, size, epoch, seed=seed, group_by_length=grouped)
    assert sorted(row for batch in batches for row in batch) == list(range(rows))
    assert len(batches) == len(BatchSampler(lengths_of(rows), size)) == -(-rows // size)
    assert all(1 <= len(batch) <= size for batch in batches)
    assert sum(len(batch) < size for batch in batches) <= 1


def test_batches_are_a_function_of_seed_and_epoch() -> None:
    assert order(100, seed=3, epoch=2) == order(100, seed=3, epoch=2)
    distinct = {str(order(100, seed=seed, epoch=epoch)) for seed in (-1, 0, 1, 2) for epoch in range(4)}
    assert len(distinct) == 16


def test_batches_are_equal_on_every_machine() -> None:
    # A run may continue with another version of numpy, which may draw other permutations.
    assert order(9, 2, seed=5, epoch=1) == [[3, 2], [7, 6], [4, 5], [8, 0], [1]]


def test_an_epoch_does_not_depend_on_earlier_ones() -> None:
    batches = BatchSampler(lengths_of(50), 4, seed=1)
    first = list(batches)
    assert epoch_of(batches, 1) == order(50, seed=1, epoch=1) != first


def test_without_shuffling_rows_keep_their_order() -> None:
    assert order(10, 4, shuffle=False) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert order(10, 4, epoch=3, shuffle=False) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


@given(**SIZES, done=st.integers(0, 40), world=st.integers(1, 3))
def test_resuming_gives_exactly_the_rest(rows: int, size: int, seed: int, epoch: int, done: int, world: int) -> None:
    for rank in range(world):
        place = {"seed": seed, "rank": rank, "world_size": world}
        batches = BatchSampler(lengths_of(rows), size, **place)  # type: ignore[arg-type]
        batches.resume(epoch, done)
        assert list(batches) == order(rows, size, epoch, **place)[done:]
        # The epoch after is whole again.
        assert epoch_of(batches, epoch + 1) == order(rows, size, epoch + 1, **place)


@given(**SIZES, world=st.integers(1, 5), settings=st.sampled_from([{}, {"shuffle": False}, {"tokens_per_batch": 1500}]))
def test_any_number_of_ranks_sees_the_same_batches_in_turn(
    rows: int, size: int, seed: int, epoch: int, world: int, settings: dict[str, Any]
) -> None:
    alone = order(rows, size, epoch, seed=seed, **settings)
    parts = [order(rows, size, epoch, seed=seed, rank=rank, world_size=world, **settings) for rank in range(world)]
    dealt = [batch for turn in zip(*parts, strict=True) for batch in turn]
    assert dealt == alone + [[]] * (-len(alone) % world)


def test_weight_two_is_twice_and_a_half_is_another_half_every_epoch() -> None:
    shares = [(10, 2.0), (20, 0.5), (5, 1.0), (4, 0.0)]
    seen = [Counter(row for batch in order(39, 4, epoch, shares=shares) for row in batch) for epoch in range(4)]
    for count in seen:
        assert all(count[row] == 2 for row in range(10))
        assert sum(count[row] for row in range(10, 30)) == 10
        assert all(count[row] <= 1 for row in range(10, 30))
        assert all(count[row] == 1 for row in range(30, 35))
        assert all(count[row] == 0 for row in range(35, 39))
    halves = {frozenset(row for row in range(10, 30) if count[row]) for count in seen}
    assert len(halves) == 4


def test_two_and_a_half() -> None:
    count = Counter(row for batch in order(8, 3, shares=[(8, 2.5)]) for row in batch)
    assert sorted(count.values()) == [2, 2, 2, 2, 3, 3, 3, 3]


def test_sources_of_different_weights_are_mixed() -> None:
    # A source of weight 4 and one of weight 1: a quarter of the visits to the first is mixed with the second.
    batches = order(400, 8, shares=[(200, 4.0), (200, 1.0)], group_by_length=False)
    mixed = sum(any(row < 200 for row in batch) and any(row >= 200 for row in batch) for batch in batches)
    assert mixed > 0.7 * len(batches)


def test_rows_of_a_batch_are_of_similar_length() -> None:
    lengths = np.array(lengths_of(1024))
    batches = order(1024, 8)
    # Lengths run to 997; a batch of random rows would spread over some 780 of them.
    assert np.mean([np.ptp(lengths[batch]) for batch in batches]) < 40
    # And long batches do not all come together, as they would in one sorted epoch.
    means = [lengths[batch].mean() for batch in batches]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.3
    apart = [np.ptp(lengths[batch]) for batch in order(1024, 8, group_by_length=False)]
    assert np.mean(apart) > 600


@pytest.mark.parametrize("world", [1, 2])
def test_lightning_sets_the_epoch_through_sampler(world: int) -> None:
    batches = BatchSampler(lengths_of(20), 4, world_size=world)
    batches.sampler.set_epoch(5)
    assert list(batches) == order(20, epoch=5, world_size=world)


# Rows that share prompts, and budgets of tokens.


class Rows:
    """Rows by their prompt's number and the tokens of its completions; prompt `p` has `10 * (p + 1)` tokens."""

    def __init__(self, rows: Sequence[tuple[int, int]]) -> None:
        self.rows = rows

    def batches(self, size: int = 4, **settings: Any) -> BatchSampler:
        keys, completions = np.array(self.rows, dtype=np.int64).reshape(-1, 2).T
        # Keys are hashes: far apart, in no order.
        prompts = Prompts(keys * 7919 % 10007 - 5000, 10 * (keys + 1), completions)
        return BatchSampler(10 * (keys + 1) + completions, size, prompts=prompts, **settings)

    def cost(self, batch: Sequence[int]) -> int:
        prompts = {self.rows[row][0] for row in batch}
        return sum(10 * (prompt + 1) for prompt in prompts) + sum(self.rows[row][1] for row in batch)


some_rows = st.lists(st.tuples(st.integers(0, 12), st.integers(1, 60)), min_size=1, max_size=80)
weights = st.sampled_from([0.5, 1.0, 1.7, 2.0, 3.25])
budgets = st.sampled_from([1, 40, 90, 200, 1000])


@given(
    rows=some_rows,
    parts=st.lists(weights, min_size=1, max_size=3),
    budget=st.none() | budgets,
    size=st.integers(1, 9),
    seed=st.integers(0, 3),
    grouped=st.booleans(),
)
def test_an_epoch_is_complete_and_every_batch_within_its_limit(
    rows: list[tuple[int, int]], parts: list[float], budget: int | None, size: int, seed: int, grouped: bool
) -> None:
    counts = [len(some) for some in np.array_split(np.arange(len(rows)), len(parts))]
    made = Rows(rows)
    shares = list(zip(counts, parts, strict=True))
    settings = {"tokens_per_batch": budget, "shares": shares, "seed": seed, "group_by_length": grouped}
    batches = made.batches(size, **settings)
    for epoch in range(4):
        found = epoch_of(batches, epoch)
        visits = Counter(row for batch in found for row in batch)
        first = 0
        for count, weight in shares:
            times = [visits[row] for row in range(first, first + count)]
            assert set(times) <= {int(weight), math.ceil(weight)}
            assert sum(times) == count * int(weight) + round(count * (weight % 1))
            first += count
        assert all(len(set(batch)) == len(batch) > 0 for batch in found), "no row twice"
        if budget is None:
            assert all(len(batch) <= size for batch in found)
        else:
            assert all(made.cost(batch) <= budget or len(batch) == 1 for batch in found)
        # Trainers count the batches once and divide by that.
        assert len(found) == len(batches)


@given(rows=some_rows, budget=st.none() | budgets, size=st.integers(1, 9), epoch=st.integers(0, 3))
def test_rows_of_a_prompt_are_in_one_batch_if_they_fit(
    rows: list[tuple[int, int]], budget: int | None, size: int, epoch: int
) -> None:
    made = Rows(rows)
    found = epoch_of(made.batches(size, tokens_per_batch=budget), epoch)
    for prompt in {prompt for prompt, _ in rows}:
        together = [row for row, (of, _) in enumerate(rows) if of == prompt]
        pieces = [batch for batch in found if set(batch) & set(together)]
        if (len(together) <= size) if budget is None else (made.cost(together) <= budget):
            assert len(pieces) == 1
        elif budget is None:
            assert sorted(len(set(batch) & set(together)) for batch in pieces)[1:] == [size] * (len(pieces) - 1)


@given(rows=some_rows, budget=budgets)
def test_validation_fills_batches_in_the_rows_own_order(rows: list[tuple[int, int]], budget: int) -> None:
    made = Rows(rows)
    found = list(made.batches(tokens_per_batch=budget, shuffle=False))
    assert [row for batch in found for row in batch] == list(range(len(rows)))
    for batch, after in itertools.pairwise(found):
        assert made.cost(batch) <= budget or len(batch) == 1
        assert made.cost([*batch, after[0]]) > budget


def test_a_prompt_counts_once_for_all_its_rows_in_a_batch() -> None:
    # Two pairs of a prompt of 100 tokens: 100 + 20 + 20 fits where 120 + 120 would not.
    assert sorted(*Rows([(9, 20), (9, 20)]).batches(tokens_per_batch=140)) == [0, 1]
    assert len(list(Rows([(9, 20), (9, 20)]).batches(tokens_per_batch=139))) == 2


def test_a_prompt_of_many_rows_is_split_into_full_batches_that_each_hold_it() -> None:
    # 50 + 20 + 20 of 100.
    assert [len(batch) for batch in Rows([(4, 20)] * 10).batches(tokens_per_batch=100)] == [2] * 5
    assert sorted(len(batch) for batch in Rows([(4, 20)] * 10).batches(4)) == [2, 4, 4]


def test_batches_hold_different_rows_in_every_epoch() -> None:
    rows = Rows([(number % 40, 5 + number % 97) for number in range(3000)])
    for budget in (None, 800):
        epochs = [{frozenset(batch) for batch in epoch_of(rows.batches(6, tokens_per_batch=budget), n)} for n in (0, 1)]
        assert len(epochs[0] & epochs[1]) < 0.1 * len(epochs[0])


def test_token_budgets_are_filled() -> None:
    draw = np.random.default_rng(0)
    made = Rows(list(zip(draw.integers(0, 120, 900).tolist(), draw.integers(5, 200, 900).tolist(), strict=True)))
    for grouped in (True, False):
        batches = made.batches(tokens_per_batch=8000, group_by_length=grouped)
        assert np.mean([made.cost(batch) for batch in batches]) > 0.85 * 8000


def test_an_epoch_whose_rows_do_not_fit_takes_the_batches_of_epoch_0_in_another_order() -> None:
    # Two prompts of 70 tokens and completions that fill their batches only in some orders.
    rows = Rows([(6, completion) for completion in (30, 30, 29, 1) * 6])
    batches = rows.batches(tokens_per_batch=130)
    epochs = [epoch_of(batches, epoch) for epoch in range(20)]
    assert all(len(found) == len(batches) for found in epochs)
    assert len({str(found) for found in epochs}) == 20


def test_a_part_of_a_source_is_no_likelier_to_hold_short_rows() -> None:
    long, epochs = 1000, 20
    shares = []
    for seed in range(20):
        batches = BatchSampler([100] * 20 + [long] * 20, 1, tokens_per_batch=4 * long, shares=[(40, 0.25)], seed=seed)
        for epoch in range(1, epochs):
            batches.set_epoch(epoch)
            rows = [row for batch in batches for row in batch]
            shares.append(sum(row >= 20 for row in rows) / len(rows))
    # The mean of 380 parts of 10 rows has a standard deviation of 0.007.
    assert abs(sum(shares) / len(shares) - 0.5) < 0.03
