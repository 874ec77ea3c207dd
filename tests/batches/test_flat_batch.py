"""Rows to batches: what stands where, by hand and by property; padding that no mask mistakes for text."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from judgelit.batches.flat_batch import (
    Batch,
    PreferenceBatch,
    Segment,
    TokenizedCompletion,
    TokenizedPreference,
    flatten_completions,
    flatten_preferences,
    pad_prompts,
)

# A few ids, so that prompts and completions are often equal.
IDS = st.lists(st.integers(1, 3), max_size=4)
COMPLETIONS = st.lists(
    st.builds(TokenizedCompletion, st.just("c"), IDS, st.lists(st.integers(1, 3), min_size=1, max_size=4)), min_size=1
)


def tensors(batch: Any) -> dict[str, Tensor]:
    return {name: value for name, value in vars(batch).items() if isinstance(value, Tensor)}


def completions_of(batch: Batch) -> list[tuple[list[int], list[int]]]:
    """Each completion with its prompt, read off the segments."""
    ids = batch.input_ids.tolist()
    cut = [ids[segment.start : segment.stop] for segment in batch.segments]
    return [(cut[s.prompt], cut[i]) for i, s in enumerate(batch.segments) if s.prompt is not None]


class TestCompletions:
    def test_by_hand(self) -> None:
        rows = [
            TokenizedCompletion("x", [1, 2], [7, 8]),
            TokenizedCompletion("y", [3], [9]),
            TokenizedCompletion("z", [1, 2], [5]),
        ]
        batch = flatten_completions(rows)
        assert batch.input_ids.tolist() == [1, 2, 7, 8, 5, 3, 9]
        assert batch.position_ids.tolist() == [0, 1, 2, 3, 2, 0, 1]
        # 7 and 5 are both predicted by the prompt's end.
        assert batch.predicts.tolist() == [1, 2, 1, 5]
        assert batch.targets.tolist() == [7, 8, 5, 9]
        assert batch.rows.tolist() == [0, 0, 1, 2]
        assert batch.lengths.tolist() == [2, 1, 1]
        assert batch.segments == (
            Segment(0, 2),
            Segment(2, 2, prompt=0),
            Segment(4, 1, prompt=0),
            Segment(5, 1),
            Segment(6, 1, prompt=3),
        )
        assert batch.ids == ("x", "y", "z")
        assert batch.tokens == 9
        assert batch.unpadded_tokens == 4 + 3 + 2
        assert batch.padded_tokens == 3 * 4
        assert {tensor.dtype for tensor in tensors(batch).values()} == {torch.long}

    def test_nothing_predicts_the_first_token_after_an_empty_prompt(self) -> None:
        rows = [TokenizedCompletion("x", [], [4, 5, 6]), TokenizedCompletion("y", [], [7])]
        batch = flatten_completions(rows)
        assert batch.input_ids.tolist() == [4, 5, 6, 7]
        assert batch.position_ids.tolist() == [0, 1, 2, 0]
        assert batch.predicts.tolist() == [0, 1]
        assert batch.targets.tolist() == [5, 6]
        assert batch.rows.tolist() == [0, 0]
        assert batch.lengths.tolist() == [3, 1]

    def test_equal_examples_are_each_computed(self) -> None:
        # One that the epoch visits twice counts twice.
        batch = flatten_completions([TokenizedCompletion("x", [1], [2])] * 2)
        assert batch.input_ids.tolist() == [1, 2, 2]
        assert batch.rows.tolist() == [0, 1]

    def test_tags_are_numbered_in_the_order_of_the_completions(self) -> None:
        rows = [
            TokenizedCompletion("x", [1], [2], tag="b"),
            TokenizedCompletion("y", [3], [4]),
            TokenizedCompletion("z", [1], [5], tag="a"),
        ]
        batch = flatten_completions(rows, ("a", "b", "c"))
        assert batch.input_ids.tolist() == [1, 2, 5, 3, 4]
        assert (batch.tags, batch.tagged.tolist()) == (("a", "b", "c"), [1, 0, -1])
        assert flatten_completions(rows).tags == ()

    @given(rows=COMPLETIONS)
    def test_all_examples_are_there_and_each_prompt_once(self, rows: list[TokenizedCompletion]) -> None:
        batch = flatten_completions(rows)
        found = completions_of(batch)
        assert sorted(found) == sorted((list(row.prompt), list(row.completion)) for row in rows)
        prompts = {tuple(row.prompt) for row in rows}
        assert len(batch.input_ids) == sum(map(len, prompts)) + sum(len(row.completion) for row in rows)
        assert batch.tokens == sum(len(row) for row in rows)
        assert batch.lengths.tolist() == [len(completion) for _, completion in found]

    @given(rows=COMPLETIONS)
    def test_a_token_is_predicted_by_the_one_before_it(self, rows: list[TokenizedCompletion]) -> None:
        batch = flatten_completions(rows)
        targets, rows_of, before = [], [], []
        for number, (prompt, completion) in enumerate(completions_of(batch)):
            whole = prompt + completion
            for place in range(max(1, len(prompt)), len(whole)):
                targets.append(whole[place])
                before.append((whole[place - 1], place - 1))
                rows_of.append(number)
        assert batch.targets.tolist() == targets
        assert batch.rows.tolist() == rows_of
        ids, positions = batch.input_ids[batch.predicts], batch.position_ids[batch.predicts]
        assert list(zip(ids.tolist(), positions.tolist(), strict=True)) == before


class TestPreferences:
    def test_by_hand(self) -> None:
        rows = [TokenizedPreference("x", [1, 2], [3, 9], [4]), TokenizedPreference("y", [5], [6], [7, 8, 9])]
        batch = flatten_preferences(rows)
        assert batch.input_ids.tolist() == [1, 2, 3, 9, 4, 5, 6, 7, 8, 9]
        assert batch.position_ids.tolist() == [0, 1, 2, 3, 2, 0, 1, 1, 2, 3]
        assert batch.predicts.tolist() == [1, 2, 1, 5, 5, 7, 8]
        assert batch.rows.tolist() == [0, 0, 1, 2, 3, 3, 3]
        assert batch.chosen.tolist() == [0, 2]
        assert batch.rejected.tolist() == [1, 3]
        assert batch.lengths.tolist() == [2, 1, 1, 3]
        assert batch.ids == ("x", "y")
        assert batch.pairs == 2
        assert batch.tokens == 4 + 3 + 2 + 4
        assert batch.unpadded_tokens == 13 and batch.padded_tokens == 16
        assert batch.reference is None
        assert batch.chosen.dtype == batch.rejected.dtype == torch.long

    def test_general_examples_are_beside_the_pairs(self) -> None:
        rows = [
            TokenizedCompletion("g", [1], [2, 3], tag="general"),
            TokenizedPreference("p", [1], [2, 3], [4], [-1.0, -2.0, -3.0], tag="hard"),
            TokenizedCompletion("h", [5], [6]),
        ]
        batch = flatten_preferences(rows, ("hard", "general"))
        # The completion of "g" is the chosen one of "p", which stands apart all the same.
        assert batch.input_ids.tolist() == [1, 2, 3, 4, 2, 3, 5, 6]
        assert (batch.chosen.tolist(), batch.rejected.tolist(), batch.general.tolist()) == ([0], [1], [2, 3])
        assert (batch.pairs, batch.ids, batch.tokens) == (1, ("p", "g", "h"), 2 + 2 + 1 + 3 + 2)
        assert batch.tagged.tolist() == [0, 1, -1]
        assert batch.reference is not None
        assert batch.reference.tolist() == [-1.0, -2.0, -3.0, 0.0, 0.0, 0.0]

    def test_a_batch_may_hold_general_examples_alone(self) -> None:
        batch = flatten_preferences([TokenizedCompletion("g", [1], [2, 3])])
        assert (batch.pairs, batch.chosen.tolist(), batch.general.tolist()) == (0, [], [0])
        assert batch.chosen.dtype == batch.rejected.dtype == batch.general.dtype == torch.long
        assert batch.reference is not None and batch.reference.tolist() == [0.0, 0.0]

    def test_what_pairs_of_a_prompt_have_in_common_stands_once(self) -> None:
        rows = [
            TokenizedPreference("x", [1], [2], [3]),
            TokenizedPreference("y", [4], [2], [3]),
            TokenizedPreference("z", [1], [5], [2]),
        ]
        batch = flatten_preferences(rows)
        assert batch.input_ids.tolist() == [1, 2, 3, 5, 4, 2, 3]
        assert batch.chosen.tolist() == [0, 3, 2]
        assert batch.rejected.tolist() == [1, 4, 0]
        # What training on them one by one would read.
        assert batch.tokens == 12
        assert batch.unpadded_tokens == 5 * 2

    @given(rows=st.lists(st.builds(TokenizedPreference, st.just("p"), IDS, IDS, IDS), min_size=1))
    def test_each_pair_finds_its_own_completions(self, rows: list[TokenizedPreference]) -> None:
        batch = flatten_preferences(rows)
        found = completions_of(batch)
        for row, chosen, rejected in zip(rows, batch.chosen.tolist(), batch.rejected.tolist(), strict=True):
            assert found[chosen] == (list(row.prompt), list(row.chosen))
            assert found[rejected] == (list(row.prompt), list(row.rejected))
        assert len(found) == len({(tuple(prompt), tuple(completion)) for prompt, completion in found})

    def test_reference_values_go_with_their_tokens(self) -> None:
        rows = [
            TokenizedPreference("x", [1], [2, 3], [4], [-0.2, -0.3, -0.4]),
            TokenizedPreference("y", [], [5, 6], [7, 8], [-0.6, -0.8]),
            TokenizedPreference("z", [1], [9], [2, 3], [-0.9, -0.2, -0.3]),
            TokenizedPreference("u", [], [7, 8], [5, 6], [-0.8, -0.6]),
        ]
        batch = flatten_preferences(rows)
        assert batch.reference is not None and batch.reference.dtype == torch.float32
        # Each value names its token.
        assert (batch.reference * -10).round().int().tolist() == batch.targets.tolist() == [2, 3, 4, 9, 6, 8]


class TestPadded:
    def test_by_hand(self) -> None:
        rows = [TokenizedPreference("x", [1, 2], [3, 9], [4]), TokenizedPreference("y", [], [6, 5], [7])]
        padded = flatten_preferences(rows).padded
        real = padded.input_ids * padded.attention_mask
        assert real.tolist() == [[1, 2, 3, 9], [1, 2, 4, 0], [6, 5, 0, 0], [7, 0, 0, 0]]
        assert padded.attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]]
        # 3, 9, 4 and 5; nothing predicts 6 and 7.
        assert padded.predicts.tolist() == [1, 2, 5, 8]

    def test_masks_come_from_lengths_where_pad_is_also_a_token(self) -> None:
        # 1 pads here, and stands within prompt and completion: only the lengths tell which is which.
        rows = [TokenizedCompletion("x", [1, 9, 1], [7, 1]), TokenizedCompletion("y", [1], [1])]
        assert flatten_completions(rows).padded.attention_mask.tolist() == [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]

    @given(rows=COMPLETIONS)
    def test_holds_the_same_completions(self, rows: list[TokenizedCompletion]) -> None:
        batch = flatten_completions(rows)
        padded = batch.padded
        mask = padded.attention_mask.bool()
        kept = [ids[row].tolist() for ids, row in zip(padded.input_ids, mask, strict=True)]
        assert kept == [prompt + completion for prompt, completion in completions_of(batch)]
        assert mask.numel() == batch.padded_tokens and int(mask.sum()) == batch.unpadded_tokens
        # What predicts a token in one predicts it in the other.
        ids = padded.input_ids.flatten()
        assert torch.equal(ids[padded.predicts], batch.input_ids[batch.predicts])
        assert torch.equal(ids[padded.predicts + 1], batch.targets)
        assert torch.equal(padded.predicts // mask.shape[1], batch.rows)

    def test_prompts_are_completed_on_the_left(self) -> None:
        input_ids, attention_mask = pad_prompts([[1, 9], [2, 3, 4]], 9)
        assert input_ids.tolist() == [[9, 1, 9], [2, 3, 4]]
        assert attention_mask.tolist() == [[0, 1, 1], [1, 1, 1]]


class TestMoving:
    @pytest.fixture
    def batch(self) -> PreferenceBatch:
        return flatten_preferences([TokenizedPreference("x", [1], [2], [3, 4], [-1.0, -2.0, -3.0])])

    def test_to_a_device_takes_every_tensor_along(self, batch: PreferenceBatch) -> None:
        moved = batch.to("meta")
        assert isinstance(moved, PreferenceBatch)
        assert len(tensors(moved)) == len(tensors(batch)) == 11
        assert {tensor.device.type for tensor in tensors(moved).values()} == {"meta"}
        assert (moved.segments, moved.ids, moved.tokens) == (batch.segments, batch.ids, batch.tokens)
        for name, tensor in tensors(batch.to("cpu")).items():
            assert torch.equal(tensor, getattr(batch, name))

    def test_what_is_not_there_stays_away(self) -> None:
        batch = flatten_preferences([TokenizedPreference("x", [1], [2], [3])])
        assert batch.to("meta").reference is None

    def test_a_batch_is_a_value(self, batch: PreferenceBatch) -> None:
        before = {name: tensor.clone() for name, tensor in tensors(batch).items()}
        batch.to("meta")
        copy.deepcopy(batch)
        assert batch.padded.input_ids.ndim == 2
        with pytest.raises(AttributeError):
            batch.tokens = 3  # type: ignore[misc]
        assert all(torch.equal(tensor, before[name]) for name, tensor in tensors(batch).items())


def test_lengths_of_rows() -> None:
    assert len(TokenizedCompletion("x", [1, 2], [3])) == 3
    assert len(TokenizedPreference("x", [1, 2], [3], [4, 5, 6])) == 5
