"""The cache against attention over plain lists of keys, one text at a time, while texts are finished."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from judgelit.batches.flat_batch import TokenizedCompletion, flatten_completions
from judgelit.generation import kv_cache
from judgelit.generation.kv_cache import Filling, KVCache
from judgelit.models.flat_attention import FlatAttention

GROUPS, HEADS, SIZE, VALUE_SIZE = 2, 6, 4, 3


class Reference:
    """The keys and values that each text attends to, as lists of [G, D], by prompt and text."""

    def __init__(self, prompts: list[tuple[Tensor, Tensor]], texts: int) -> None:
        self.prompts = prompts
        self.own: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {
            (prompt, text): [] for prompt in range(len(prompts)) for text in range(texts)
        }

    def attend(self, name: tuple[int, int], query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[H, D] of a text's next token, with its key and value of [G, D], to [H, D]."""
        self.own[name].append((key, value))
        keys, values = self.prompts[name[0]]
        keys = torch.cat([keys, torch.stack([k for k, _ in self.own[name]], 1)], 1)
        values = torch.cat([values, torch.stack([v for _, v in self.own[name]], 1)], 1)
        out = []
        for head in range(HEADS):
            group = head // (HEADS // GROUPS)
            weights = (keys[group] @ query[head] * 0.7).softmax(0)
            out.append(weights @ values[group])
        return torch.stack(out)


def filled(lengths: list[int], texts: int, layers: list[nn.Module]) -> tuple[KVCache, list[Reference]]:
    """A cache of prompts with random keys and values, filled in two calls, and a reference for each layer."""
    cache = KVCache(lengths, texts, torch.device("cpu"))
    references: list[Reference] = []
    half = len(lengths) // 2
    for layer in layers:
        prompts: list[tuple[Tensor, Tensor]] = []
        for first, part in ((0, lengths[:half]), (half, lengths[half:])):
            if not part:
                continue
            batch = flatten_completions([TokenizedCompletion("", [first + i] * n, []) for i, n in enumerate(part)])
            starts = [segment.start for segment in batch.segments if segment.prompt is None]
            width, total = max(part), sum(part)
            spans = torch.tensor([[s + min(i, n - 1) for i in range(width)] for s, n in zip(starts, part, strict=True)])
            key, value = torch.randn(1, GROUPS, total, SIZE), torch.randn(1, GROUPS, total, VALUE_SIZE)
            query = torch.randn(1, HEADS, total, SIZE)
            plan = FlatAttention(batch.plan)
            seen = Filling(cache, plan, first, spans).attend(query, key, value, 0.7, 0.0, layer)
            assert torch.equal(seen, plan.attend(query, key, value, 0.7, 0.0))
            prompts += [(key[0][:, s : s + n], value[0][:, s : s + n]) for s, n in zip(starts, part, strict=True)]
        references.append(Reference(prompts, texts))
    return cache, references


@given(data=st.data(), block=st.sampled_from([1, 2, 3, 64]))
def test_each_text_attends_to_its_prompt_and_itself(data: st.DataObject, block: int) -> None:
    lengths = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    texts = data.draw(st.integers(1, 4))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    layers = [nn.Identity(), nn.Identity()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kv_cache, "BLOCK", block)
        cache, references = filled(lengths, texts, layers)
        row = [(prompt, text) for prompt in range(len(lengths)) for text in range(texts)]
        for _ in range(data.draw(st.integers(1, 7))):
            kept = data.draw(st.lists(st.sampled_from(range(len(row))), min_size=1, unique=True).map(sorted))
            if len(kept) < len(row) and data.draw(st.booleans()):
                row = [row[place] for place in cache.keep(kept)]
            for layer, reference in zip(layers, references, strict=True):
                query, key = torch.randn(1, HEADS, len(row), SIZE), torch.randn(1, GROUPS, len(row), SIZE)
                value = torch.randn(1, GROUPS, len(row), VALUE_SIZE)
                found = cache.attend(query, key, value, 0.7, 0.0, layer)
                for place, name in enumerate(row):
                    wanted = reference.attend(name, query[0, :, place], key[0, :, place], value[0, :, place])
                    torch.testing.assert_close(found[0, place], wanted, rtol=1e-4, atol=1e-5)
            cache.advance()


def sizes(cache: KVCache) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape) for pair in cache.buffers.values() for tensor in pair]


def test_a_prompt_is_kept_once_for_all_its_texts() -> None:
    cache, _ = filled([50, 40, 3], 8, [nn.Identity()])
    room = 50 + 8 * kv_cache.BLOCK
    assert sizes(cache) == [(3, GROUPS, room, SIZE), (3, GROUPS, room, VALUE_SIZE)]


def next_tokens(cache: KVCache, count: int, layer: nn.Module) -> None:
    def part(heads: int, size: int) -> Tensor:
        return torch.randn(1, heads, count, size)

    cache.attend(part(HEADS, SIZE), part(GROUPS, SIZE), part(GROUPS, VALUE_SIZE), None, 0.0, layer)
    cache.advance()


def test_buffers_grow_by_blocks_without_finished_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_cache, "BLOCK", 3)
    layer = nn.Identity()
    cache, _ = filled([5, 4, 3, 2], 2, [layer])
    seen = []
    for _ in range(4):
        next_tokens(cache, 8, layer)
        seen.append(sizes(cache)[0])
    assert seen == [(4, GROUPS, 5 + 6, SIZE)] * 2 + [(4, GROUPS, 5 + 12, SIZE)] * 2
    # One text of each of the first and the last prompt.
    assert cache.keep([0, 7]) == [0, 7]
    for _ in range(2):
        next_tokens(cache, 2, layer)
    assert sizes(cache)[0] == (2, GROUPS, 5 + 9, SIZE)


def attended(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of the keys of all later calls of attention."""
    shapes: list[tuple[int, ...]] = []
    attention = F.scaled_dot_product_attention

    def noted(query: Tensor, key: Tensor, *rest: Any, **more: Any) -> Tensor:
        shapes.append(tuple(key.shape))
        return attention(query, key, *rest, **more)

    monkeypatch.setattr(F, "scaled_dot_product_attention", noted)
    return shapes


def test_finished_texts_take_no_part_in_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.Identity()
    cache, _ = filled([5, 4, 3], 4, [layer])
    shapes = attended(monkeypatch)
    next_tokens(cache, 12, layer)
    assert shapes.pop() == (3, GROUPS, 5 + 4, SIZE)
    # The middle prompt is dropped, and each other one keeps at most two texts.
    assert cache.keep([0, 3, 9]) == [0, 3, 9]
    next_tokens(cache, 3, layer)
    assert shapes.pop() == (2, GROUPS, 5 + 2 * 2, SIZE)


def test_the_last_prompt_takes_the_place_of_a_dropped_one() -> None:
    layer = nn.Identity()
    cache, _ = filled([5, 4, 3], 1, [layer])
    keys = cache.buffers[layer][0]
    first, last = keys[0].clone(), keys[2].clone()
    assert cache.keep([1, 2]) == [2, 1]
    assert torch.equal(cache.buffers[layer][0][0], last)
    assert not torch.equal(first, last)
    assert cache.buffers[layer][0] is keys
