"""Attention over a flat row against a dense mask made token by token, and against FlexAttention."""

import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import create_mask, flex_attention

from judgelit.batches.flat_batch import Batch, TokenizedCompletion, flatten_completions, flatten_preferences
from judgelit.models.backbone import Backbone
from judgelit.models.flat_attention import FlatAttention
from tests.plain_forward import ragged_pairs, some_ids

LENGTHS = st.one_of(st.integers(0, 4), st.integers(30, 90))
TREES = st.lists(st.tuples(LENGTHS, st.lists(LENGTHS, max_size=4)), min_size=1, max_size=5)


def batch_of(tree: list[tuple[int, list[int]]]) -> Batch:
    """Prompts and completions of the given lengths; the last one's is made one token longer, lest there be none."""
    rows = []
    for number, (prompt, lengths) in enumerate(tree):
        # No two prompts are equal, lest they be one, but those that are empty.
        ids = [number] * prompt
        rows += [TokenizedCompletion("", ids, [7] * length) for length in lengths]
    return flatten_completions([*rows, TokenizedCompletion("", [99], [99])])


def visible(batch: Batch) -> Tensor:
    """[T, T] bool, whether the token of a row sees that of a column: its prompt and itself, up to its own place."""
    mask = torch.zeros(len(batch.input_ids), len(batch.input_ids), dtype=torch.bool)
    for own in batch.segments:
        for query in range(own.start, own.stop):
            mask[query, own.start : query + 1] = True
            if own.prompt is not None:
                above = batch.segments[own.prompt]
                mask[query, above.start : above.stop] = True
    return mask


def qkv(tokens: int, heads: int, groups: int, width: int, value_width: int) -> list[Tensor]:
    """Query, key and value of a row, [1, heads or groups, T, width] float64, that require a gradient."""
    torch.manual_seed(tokens)
    sizes = [(heads, width), (groups, width), (groups, value_width)]
    return [torch.randn(1, h, tokens, w, dtype=torch.float64, requires_grad=True) for h, w in sizes]


def dense(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Attention written out, [1, T, H, D]."""
    key, value = (part.repeat_interleave(query.shape[1] // part.shape[1], dim=1) for part in (key, value))
    scores = (query @ key.transpose(-1, -2)) * scale
    return (scores.masked_fill(~mask, -torch.inf).softmax(-1) @ value).transpose(1, 2)


@settings(max_examples=40)
@given(tree=TREES, groups=st.sampled_from([1, 2, 4]), value_width=st.sampled_from([8, 6]))
def test_attend_is_attention_under_the_dense_mask(tree: Any, groups: int, value_width: int) -> None:
    batch = batch_of(tree)
    inputs = qkv(len(batch.input_ids), 4, groups, 8, value_width)
    out = FlatAttention(batch.plan).attend(*inputs, scale=0.7, dropout=0.0)
    wanted = dense(*inputs, visible(batch), 0.7)
    torch.testing.assert_close(out, wanted, rtol=0, atol=1e-12)
    weights = torch.randn_like(wanted)
    found = torch.autograd.grad((out * weights).sum(), inputs)
    for gradient, other in zip(found, torch.autograd.grad((wanted * weights).sum(), inputs), strict=True):
        torch.testing.assert_close(gradient, other, rtol=0, atol=1e-11)


def test_the_scale_is_that_of_the_head_if_none_is_given() -> None:
    batch = flatten_preferences(ragged_pairs())
    inputs = qkv(len(batch.input_ids), 2, 2, 16, 16)
    out = FlatAttention(batch.plan).attend(*inputs, scale=None, dropout=0.0)
    torch.testing.assert_close(out, dense(*inputs, visible(batch), 0.25), rtol=0, atol=1e-12)


def test_dropout_is_applied_and_keeps_the_mean() -> None:
    batch = batch_of([(6, [5, 4])])
    inputs = [part.detach() for part in qkv(len(batch.input_ids), 2, 2, 8, 8)]
    plan = FlatAttention(batch.plan)
    drawn = torch.stack([plan.attend(*inputs, scale=None, dropout=0.2) for _ in range(800)])
    assert not torch.equal(drawn[0], drawn[1])
    torch.testing.assert_close(drawn.mean(0), plan.attend(*inputs, scale=None, dropout=0.0), rtol=0, atol=0.1)


@given(tree=TREES)
def test_stretches_computed_together_are_of_similar_length(tree: Any) -> None:
    batch = batch_of(tree)
    computed: list[int] = []
    for group in batch.plan.groups:
        # Padding repeats a place, and what a stretch sees is its prompt and itself.
        sizes = [len(set(keys)) for keys in group.keys.view(group.size, -1).tolist()]
        assert min(sizes) >= min(0.8 * max(sizes), max(sizes) - 32)
        computed += set(group.queries.tolist())
    assert sorted(computed) == list(range(len(batch.input_ids)))


class TestBlockMask:
    @settings(max_examples=25)
    @given(tree=TREES)
    def test_is_the_dense_mask(self, tree: Any) -> None:
        batch = batch_of(tree)
        block_mask, length = batch.plan.block_mask, len(batch.input_ids)
        mask = visible(batch)
        assert torch.equal(create_mask(block_mask.mask_mod, None, None, length, length, device="cpu")[0, 0], mask)
        # Blocks that are left out hold no pair that sees each other.
        blocks = -(-length // 128)
        padded = torch.zeros(blocks * 128, blocks * 128, dtype=torch.bool)
        padded[:length, :length] = mask
        occupied = padded.view(blocks, 128, blocks, 128).any(3).any(1)
        assert torch.equal(block_mask.to_dense()[0, 0].bool(), occupied)

    def test_flex_attention_under_it_is_attend(self) -> None:
        batch = flatten_preferences(ragged_pairs())
        assert len(batch.input_ids) > 3 * 128
        plan = batch.plan
        with torch.no_grad():
            query, key, value = (part.detach() for part in qkv(len(batch.input_ids), 4, 2, 8, 8))
            flex = flex_attention(query, key, value, block_mask=plan.block_mask, scale=0.3, enable_gqa=True)
            found = FlatAttention(plan).attend(query, key, value, 0.3, 0.0)
        assert isinstance(flex, Tensor)
        torch.testing.assert_close(flex.transpose(1, 2), found, rtol=0, atol=1e-6)


def test_without_a_plan_it_is_the_models_own_attention(model_folder: str) -> None:
    model: Any = Backbone(model_folder).build().eval()
    assert model.config._attn_implementation == "judgelit"
    plain: Any = Backbone(model_folder, attention="eager").build().eval()
    ids = torch.tensor([some_ids(random.Random(0), 12)] * 2)
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    with torch.no_grad():
        found, wanted = (each(input_ids=ids, attention_mask=mask).logits[mask.bool()] for each in (model, plain))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_only_sdpa_is_replaced(llama: str, attention: Any) -> None:
    model: Any = Backbone(llama, attention=attention).build()
    assert model.config._attn_implementation == {"eager": "eager", "sdpa": "judgelit"}[attention]
