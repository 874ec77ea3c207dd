"""A cache of keys and values in which each prompt is kept once for all its texts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from judgelit.models.flat_attention import FlatAttention

BLOCK = 64
"""Buffers grow by places for this many tokens of each text."""


class KVCache:
    """Keys and values of P prompts with K texts each, and the attention of the texts, layer by layer.

    A layer has a buffer for keys and one for values, [P, G, C, D], with G key-value heads and C places. The first W
    places are the prompt's, where W is the length of the longest prompt. Then follow K places for each token of the
    texts, one for each text. So the keys of a prompt are kept once for all its texts, and one call computes the
    attention of all of them: a text attends to the places of its prompt and to its own.

    All texts have the same number of tokens. Text k of prompt p has the number p * K + k. The numbers of finished texts
    are unused until `keep` closes the gaps.
    """

    def __init__(self, lengths: Sequence[int], texts: int, device: torch.device) -> None:
        """Create an empty cache.

        Args:
            lengths: Number of tokens of each of the P prompts.
            texts: Texts for each prompt, K.
            device: The model's device.
        """
        self.width = max(lengths)
        self.prompts = len(lengths)
        self.texts = texts
        self.tokens = 0
        """Number of tokens of each text."""
        self._lengths = torch.tensor(lengths, device=device)
        self._room = BLOCK
        self._numbers = list(range(len(lengths) * texts))
        """The numbers of the texts in the flat batch, ascending."""
        self._alive: Tensor | None = None
        """The same as [n] int64; None if no number is unused."""
        self.buffers: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        """The buffers of keys and of values, by the layer's attention module."""
        self._masks: dict[int, Tensor] = {}

    @property
    def places(self) -> int:
        """Number of places in use after the next token, W + K * (tokens + 1)."""
        return self.width + self.texts * (self.tokens + 1)

    def fill(self, module: nn.Module, first: int, spans: Tensor, key: Tensor, value: Tensor) -> None:
        """Store a layer's keys and values of p prompts.

        Args:
            module: The layer's attention module.
            first: Number of the first of these prompts; the others follow it.
            spans: [p, w] int64, the places of each prompt's tokens in the flat batch; any place beyond its length.
            key: [1, G, T, D] of the flat batch.
            value: [1, G, T, E]; the sizes D and E may differ.
        """
        if module not in self.buffers:
            self.buffers[module] = (self._empty(key.to(value.dtype)), self._empty(value))
        count, width = spans.shape
        for buffer, part in zip(self.buffers[module], (key, value), strict=True):
            rows = part[0].index_select(1, spans.flatten()).unflatten(1, (count, width))
            buffer[first : first + count, :, :width] = rows.transpose(0, 1)

    def advance(self) -> None:
        """Count one more token of each text, and grow the buffers if the next has no place."""
        self.tokens += 1
        if self.tokens == self._room:
            self._room += BLOCK
            self._masks = {}
            for module, (keys, values) in self.buffers.items():
                self.buffers[module] = (self._grown(keys), self._grown(values))

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float | None, dropout: float, module: nn.Module
    ) -> Tensor:
        """Store keys and values of the next token of n texts, and compute its attention.

        Args:
            query: [1, H, n, D], with H heads.
            key: [1, G, n, D].
            value: [1, G, n, E].
            scale: Factor of the scores; None: 1 / sqrt(D).
            dropout: Dropout on the attention weights.
            module: The layer's attention module.

        Returns:
            [1, n, H, E].
        """
        keys, values = self.buffers[module]
        first, used = self.places - self.texts, self.places
        keys[: self.prompts, :, first:used] = self._by_prompt(key).transpose(1, 2)
        values[: self.prompts, :, first:used] = self._by_prompt(value).transpose(1, 2)
        # The H / G heads and the K texts that share keys are the queries of one row.
        groups = key.shape[1]
        queries = self._by_prompt(query.to(values.dtype)).unflatten(2, (groups, -1)).permute(0, 2, 3, 1, 4)
        heads = queries.shape[2]
        out = F.scaled_dot_product_attention(
            queries.flatten(2, 3),
            keys[: self.prompts, :, :used],
            values[: self.prompts, :, :used],
            attn_mask=self._mask(heads, values.dtype)[..., :used],
            dropout_p=dropout,
            scale=scale,
        )
        out = out.unflatten(2, (heads, self.texts)).permute(0, 3, 1, 2, 4).flatten(2, 3).flatten(0, 1)
        return (out if self._alive is None else out.index_select(0, self._alive))[None]

    def keep(self, places: Sequence[int]) -> list[int]:
        """Drop all texts but those at `places` of the flat batch, and the prompts without texts.

        The last prompts move to the places of dropped ones. K becomes the largest number of texts of any prompt.

        Args:
            places: At least one, ascending.

        Returns:
            `places` in the new sequence of the flat batch.
        """
        left: dict[int, list[int]] = {}
        for place in places:
            left.setdefault(self._numbers[place] // self.texts, []).append(place)
        rows = list(range(len(left)))
        for hole, last in _moves(list(left), self.prompts):
            rows[hole] = last
            self._lengths[hole] = self._lengths[last]
            for buffer in self._tensors():
                buffer[hole, :, : self.places] = buffer[last, :, : self.places]
        by_row = [left[row] for row in rows]
        texts = [[self._numbers[place] % self.texts for place in of_prompt] for of_prompt in by_row]
        most = max(map(len, texts))
        if len(rows) < self.prompts or most < self.texts:
            self.prompts, self._masks = len(rows), {}
        if most < self.texts:
            self._narrow(texts, most)
            texts = [list(range(len(of_prompt))) for of_prompt in texts]
        self._numbers = [row * most + text for row, of_prompt in enumerate(texts) for text in of_prompt]
        full = len(self._numbers) == self.prompts * self.texts
        self._alive = None if full else torch.tensor(self._numbers, device=self._lengths.device)
        return [place for of_prompt in by_row for place in of_prompt]

    def _narrow(self, left: Sequence[Sequence[int]], most: int) -> None:
        """Move the remaining texts of each prompt together, so that K can be `most`."""
        padded = torch.tensor([[*texts, *[texts[0]] * (most - len(texts))] for texts in left])
        chosen = padded.to(self._lengths.device)[:, None, None, :, None]
        old, new = self.width + self.texts * self.tokens, self.width + most * self.tokens
        for buffer in self._tensors():
            part = buffer[: self.prompts]
            own = part[:, :, self.width : old].unflatten(2, (self.tokens, self.texts))
            index = chosen.expand(-1, own.shape[1], self.tokens, -1, own.shape[-1])
            part[:, :, self.width : new] = own.gather(3, index).flatten(2, 3)
        self.texts = most

    def _by_prompt(self, part: Tensor) -> Tensor:
        """[1, h, n, D] of the flat batch to [P, K, h, D]; zeros for finished texts."""
        rows = part[0].transpose(0, 1)
        if self._alive is not None:
            rows = rows.new_zeros(self.prompts * self.texts, *rows.shape[1:]).index_copy_(0, self._alive, rows)
        return rows.unflatten(0, (self.prompts, self.texts))

    def _mask(self, heads: int, dtype: torch.dtype) -> Tensor:
        """The mask that is added to the scores, [P, 1, heads * K or 1, C]; kept until the buffers change."""
        if heads not in self._masks:
            device = self._lengths.device
            prompt = torch.arange(self.width, device=device) < self._lengths[: self.prompts, None, None]
            own = torch.eye(self.texts, dtype=torch.bool, device=device).repeat(1, self._room)
            sees = torch.cat([prompt.expand(-1, self.texts, -1), own.expand(self.prompts, -1, -1)], dim=-1)
            if self.texts > 1:
                sees = sees.repeat(1, heads, 1)
            mask = torch.zeros(sees.shape, dtype=dtype, device=device).masked_fill_(~sees, float("-inf"))
            self._masks[heads] = mask[:, None]
        return self._masks[heads]

    def _tensors(self) -> Iterator[Tensor]:
        for keys, values in self.buffers.values():
            yield from (keys, values)

    def _empty(self, part: Tensor) -> Tensor:
        # A masked place has weight 0, and 0 times a number that is not finite would be NaN.
        return part.new_zeros(self.prompts, part.shape[1], self.width + self.texts * self._room, part.shape[-1])

    def _grown(self, buffer: Tensor) -> Tensor:
        """A larger copy of a buffer."""
        used = self.width + self.texts * self.tokens
        grown = self._empty(buffer)
        grown[:, :, :used] = buffer[: self.prompts, :, :used]
        return grown


@dataclass(frozen=True)
class Filling:
    """Attention of prompts in a flat batch that also stores their keys and values; see `KVCache.fill`."""

    cache: KVCache
    attention: FlatAttention
    first: int
    spans: Tensor

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float | None, dropout: float, module: nn.Module
    ) -> Tensor:
        """Store keys and values, then attend by the plan."""
        self.cache.fill(module, self.first, self.spans, key, value)
        return self.attention.attend(query, key, value, scale, dropout)


def _moves(left: Sequence[int], count: int) -> Iterator[tuple[int, int]]:
    """(place, row) pairs that move the rows `left` of `count` rows to the front, with the fewest moves."""
    gone = sorted(set(range(count)).difference(left))
    last = [row for row in left if row >= len(left)]
    yield from zip((place for place in gone if place < len(left)), last, strict=True)
