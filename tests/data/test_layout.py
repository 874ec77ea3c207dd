"""Rows to batches: padding that no mask mistakes for text, and an order that visits what it should."""

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from judgelit.data.layout import (
    EpochBatches,
    TokenizedCompletion,
    TokenizedPreference,
    pad_completions,
    pad_preferences,
    pad_prompts,
)

PAD = 9


class TestPadding:
    def test_masks_come_from_lengths_where_pad_is_also_a_token(self) -> None:
        # 9 pads, ends the turn and stands within prompts: only the lengths tell which is which.
        rows = [TokenizedCompletion("x", [1, 9, 2], [7, 9]), TokenizedCompletion("y", [3], [9])]
        batch = pad_completions(rows, PAD)
        assert batch.input_ids.tolist() == [[1, 9, 2, 7, 9], [3, 9, 9, 9, 9]]
        assert batch.attention_mask.tolist() == [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]
        assert batch.completion_mask.tolist() == [[False, False, False, True, True], [False, True, False, False, False]]
        assert batch.ids == ["x", "y"]
        assert batch.tokens == 7
        assert batch.input_ids.dtype == batch.attention_mask.dtype == torch.long
        assert batch.completion_mask.dtype == torch.bool

    def test_preferences_are_all_chosen_then_all_rejected(self) -> None:
        rows = [TokenizedPreference("x", [1, 2], [3, 9], [4]), TokenizedPreference("y", [5], [6], [7, 8, 9])]
        batch = pad_preferences(rows, PAD)
        assert batch.input_ids.tolist() == [[1, 2, 3, 9], [5, 6, 9, 9], [1, 2, 4, 9], [5, 7, 8, 9]]
        assert batch.attention_mask.sum(dim=1).tolist() == [4, 2, 3, 4]
        assert batch.completion_mask.int().tolist() == [[0, 0, 1, 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 1, 1, 1]]
        assert batch.pairs == 2
        assert batch.ids == ["x", "y", "x", "y"]
        assert batch.tokens == 13

    def test_prompts_are_completed_on_the_left(self) -> None:
        input_ids, attention_mask = pad_prompts([[1, 9], [2, 3, 4]], PAD)
        assert input_ids.tolist() == [[9, 1, 9], [2, 3, 4]]
        assert attention_mask.tolist() == [[0, 1, 1], [1, 1, 1]]

    def test_lengths_of_rows(self) -> None:
        assert len(TokenizedCompletion("x", [1, 2], [3])) == 3
        assert len(TokenizedPreference("x", [1, 2], [3], [4, 5, 6])) == 5

    def test_moving_keeps_all(self) -> None:
        batch = pad_preferences([TokenizedPreference("x", [1], [2], [3])], PAD).to("cpu")
        assert batch.pairs == 1 and batch.tokens == 4


def lengths_of(rows: int) -> list[int]:
    return [1 + (row * 7919) % 997 for row in range(rows)]


def order(rows: int, size: int = 4, epoch: int = 0, **settings: object) -> list[list[int]]:
    batches = EpochBatches(lengths_of(rows), size, **settings)  # type: ignore[arg-type]
    batches.set_epoch(epoch)
    return list(batches)


SIZES = {"rows": st.integers(0, 300), "size": st.integers(1, 9), "seed": st.integers(0, 5), "epoch": st.integers(0, 5)}


class TestEpochBatches:
    @given(**SIZES)
    def test_an_epoch_visits_every_row_once(self, rows: int, size: int, seed: int, epoch: int) -> None:
        batches = order(rows, size, epoch, seed=seed)
        assert sorted(row for batch in batches for row in batch) == list(range(rows))
        assert len(batches) == len(EpochBatches(lengths_of(rows), size)) == -(-rows // size)
        assert all(1 <= len(batch) <= size for batch in batches)
        assert sum(len(batch) < size for batch in batches) <= 1

    def test_the_order_follows_from_seed_and_epoch(self) -> None:
        assert order(100, seed=3, epoch=2) == order(100, seed=3, epoch=2)
        distinct = {str(order(100, seed=seed, epoch=epoch)) for seed in range(4) for epoch in range(4)}
        assert len(distinct) == 16

    def test_the_next_epoch_is_what_a_fresh_start_at_it_is(self) -> None:
        batches = EpochBatches(lengths_of(50), 4, seed=1)
        first = list(batches)
        batches.set_epoch(1)
        assert list(batches) == order(50, seed=1, epoch=1) != first

    def test_without_shuffling_rows_keep_their_order(self) -> None:
        assert order(10, 4, shuffle=False) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
        assert order(10, 4, epoch=3, shuffle=False) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]

    @given(**SIZES, done=st.integers(0, 40), world=st.integers(1, 3))
    def test_resuming_gives_exactly_the_rest(
        self, rows: int, size: int, seed: int, epoch: int, done: int, world: int
    ) -> None:
        for rank in range(world):
            place = {"seed": seed, "rank": rank, "world_size": world}
            batches = EpochBatches(lengths_of(rows), size, **place)  # type: ignore[arg-type]
            batches.resume(epoch, done)
            assert list(batches) == order(rows, size, epoch, **place)[done:]
            # The epoch after is whole again.
            batches.set_epoch(epoch + 1)
            assert list(batches) == order(rows, size, epoch + 1, **place)

    @given(**SIZES, world=st.integers(1, 5), shuffle=st.booleans())
    def test_ranks_share_an_epoch_evenly(
        self, rows: int, size: int, seed: int, epoch: int, world: int, shuffle: bool
    ) -> None:
        parts = [
            order(rows, size, epoch, seed=seed, rank=rank, world_size=world, shuffle=shuffle) for rank in range(world)
        ]
        lengths = {len(part) for part in parts}
        assert lengths == {len(EpochBatches(lengths_of(rows), size, world_size=world))}
        assert {row for part in parts for batch in part for row in batch} == set(range(rows))
        # Taken in turn, the ranks' batches are one epoch, completed with its first ones.
        dealt = [batch for turn in zip(*parts, strict=True) for batch in turn]
        batches = -(-rows // size)
        assert sorted(row for batch in dealt[:batches] for row in batch) == list(range(rows))
        assert dealt[batches:] == dealt[: len(dealt) - batches]
        assert len(dealt) - batches < world

    def test_weight_two_is_twice_and_a_half_is_another_half_every_epoch(self) -> None:
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

    def test_two_and_a_half(self) -> None:
        count = Counter(row for batch in order(8, 3, shares=[(8, 2.5)]) for row in batch)
        assert sorted(count.values()) == [2, 2, 2, 2, 3, 3, 3, 3]

    @given(
        shares=st.lists(st.tuples(st.integers(0, 40), st.floats(0, 3, allow_nan=False)), min_size=1, max_size=4),
        size=st.integers(1, 9),
        world=st.integers(1, 3),
        epoch=st.integers(0, 3),
    )
    def test_the_length_is_what_comes(self, shares: list[tuple[int, float]], size: int, world: int, epoch: int) -> None:
        rows = sum(count for count, _ in shares)
        batches = EpochBatches(lengths_of(rows), size, shares=shares, world_size=world)
        batches.set_epoch(epoch)
        assert len(list(batches)) == len(batches)

    def test_rows_of_a_batch_are_of_similar_length(self) -> None:
        lengths = lengths_of(1024)
        batches = order(1024, 8)
        spread = [max(lengths[row] for row in batch) - min(lengths[row] for row in batch) for batch in batches]
        # Lengths run to 997; a batch of random rows would spread over some 780 of them.
        assert sum(spread) / len(spread) < 40
        # And long batches do not all come together, as they would in one sorted epoch.
        means = torch.tensor([sum(lengths[row] for row in batch) / len(batch) for batch in batches])
        assert torch.corrcoef(torch.stack([means, torch.arange(len(means))]))[0, 1].abs() < 0.3

    @pytest.mark.parametrize("world", [1, 2])
    def test_lightning_sets_the_epoch_through_sampler(self, world: int) -> None:
        batches = EpochBatches(lengths_of(20), 4, world_size=world)
        batches.sampler.set_epoch(5)
        assert list(batches) == order(20, epoch=5, world_size=world)
