"""Keys and values of prompts and of the texts that go on from them, each prompt's kept once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from judgelit.models.flat_attention import FlatAttention

_BLOCK = 64
"""Tokens a text for which a layer's buffers grow at once."""


class KVCache:
    """What decoding keeps of P prompts and K texts of each, and the attention over it, layer by layer.

    A layer has a buffer for keys and one for values, [P, G, C, D], with G groups of heads and C places. The first W of
    them are the prompt's, W being the longest prompt's length; then come K for each token that the texts have got,
    one a text. So a prompt's keys stand there once for all its texts, and one call attends for all of them: a text sees
    its prompt's places and its own.

    All texts have equally many tokens. Text k of prompt p is number p * K + k. Numbers of finished texts stay unused
    until `keep` closes the gaps.
    """

    def __init__(self, lengths: Sequence[int], texts: int, device: torch.device) -> None:
        """An empty cache.

        Args:
            lengths: Tokens of each prompt.
            texts: Texts of each prompt, K.
            device: Where the model is.
        """
        self.width = max(lengths)
        self.prompts = len(lengths)
        self.texts = texts
        self.tokens = 0
        """Tokens that each text has got."""
        self._lengths = torch.tensor(lengths, device=device)
        self._room = _BLOCK
        self._numbers = list(range(len(lengths) * texts))
        """Those of the texts in the flat row, ascending."""
        self._alive: Tensor | None = None
        """The same as [n] int64; None if they are all there."""
        self._buffers: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        self._masks: dict[int, Tensor] = {}

    @property
    def places(self) -> int:
        """Places in use, of W + K * tokens, once the next token is in."""
        return self.width + self.texts * (self.tokens + 1)

    def fill(self, module: nn.Module, first: int, spans: Tensor, key: Tensor, value: Tensor) -> None:
        """Take over a layer's keys and values of some prompts.

        Args:
            module: The layer's attention.
            first: Number of the first of these p prompts; the others follow it.
            spans: [p, w] int64, the places in the flat row of each prompt's tokens, and anything beyond its length.
            key: [1, G, T, D] of the flat row.
            value: The same, with D of its own.
        """
        if module not in self._buffers:
            self._buffers[module] = (self._empty(key.to(value.dtype)), self._empty(value))
        count, width = spans.shape
        for buffer, part in zip(self._buffers[module], (key, value), strict=True):
            rows = part[0].index_select(1, spans.flatten()).unflatten(1, (count, width))
            buffer[first : first + count, :, :width] = rows.transpose(0, 1)

    def advance(self) -> None:
        """Count a token of each text as in, and make room for the next."""
        self.tokens += 1
        if self.tokens == self._room:
            self._room += _BLOCK
            self._masks = {}
            for module, (keys, values) in self._buffers.items():
                self._buffers[module] = (self._grown(keys), self._grown(values))

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float | None, dropout: float, module: nn.Module
    ) -> Tensor:
        """Attention of the next token of n texts, whose keys and values are kept: [1, H or G, n, D] to [1, n, H, D]."""
        keys, values = self._buffers[module]
        first, used = self.places - self.texts, self.places
        keys[: self.prompts, :, first:used] = self._by_prompt(key).transpose(1, 2)
        values[: self.prompts, :, first:used] = self._by_prompt(value).transpose(1, 2)
        # All that share keys, R heads of a group and K texts of a prompt, are queries of one row.
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
        """Drop all texts but those at `places` of the flat row, and prompts that no text is left of.

        The last prompts move to where others go, and K falls where no prompt has all its K texts any more.

        Args:
            places: At least one, ascending.

        Returns:
            `places` in the new order of the flat row.
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
        order = [left[row] for row in rows]
        texts = [[self._numbers[place] % self.texts for place in of_prompt] for of_prompt in order]
        most = max(map(len, texts))
        if len(rows) < self.prompts or most < self.texts:
            self.prompts, self._masks = len(rows), {}
        if most < self.texts:
            self._narrow(texts, most)
            texts = [list(range(len(of_prompt))) for of_prompt in texts]
        self._numbers = [row * most + text for row, of_prompt in enumerate(texts) for text in of_prompt]
        full = len(self._numbers) == self.prompts * self.texts
        self._alive = None if full else torch.tensor(self._numbers, device=self._lengths.device)
        return [place for of_prompt in order for place in of_prompt]

    def _narrow(self, left: Sequence[Sequence[int]], most: int) -> None:
        """Move each prompt's texts `left` together, so that `most` numbers a prompt do."""
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
        """[1, h, n, D] of the flat row as [P, K, h, D]."""
        rows = part[0].transpose(0, 1)
        if self._alive is not None:
            rows = rows.new_zeros(self.prompts * self.texts, *rows.shape[1:]).index_copy_(0, self._alive, rows)
        return rows.unflatten(0, (self.prompts, self.texts))

    def _mask(self, heads: int, dtype: torch.dtype) -> Tensor:
        """What to add to the scores of queries by heads and texts, [P, 1, heads * K or 1, C], made once a length."""
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
        for keys, values in self._buffers.values():
            yield from (keys, values)

    def _empty(self, part: Tensor) -> Tensor:
        # Zeros, since a place that no text sees still counts for nothing only if it is finite.
        return part.new_zeros(self.prompts, part.shape[1], self.width + self.texts * self._room, part.shape[-1])

    def _grown(self, buffer: Tensor) -> Tensor:
        """A buffer with the room that there should be."""
        used = self.width + self.texts * self.tokens
        grown = self._empty(buffer)
        grown[:, :, :used] = buffer[: self.prompts, :, :used]
        return grown


@dataclass(frozen=True)
class Filling:
    """Attention of some prompts in a flat row, whose keys and values go into a cache on the way; see `KVCache.fill`."""

    cache: KVCache
    attention: FlatAttention
    first: int
    spans: Tensor

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float | None, dropout: float, module: nn.Module
    ) -> Tensor:
        """As `FlatAttention.attend`."""
        self.cache.fill(module, self.first, self.spans, key, value)
        return self.attention.attend(query, key, value, scale, dropout)


def _moves(left: Sequence[int], count: int) -> Iterator[tuple[int, int]]:
    """(place, row) pairs that bring the rows `left` of `count` to the front, moving as few as possible."""
    gone = sorted(set(range(count)).difference(left))
    last = [row for row in left if row >= len(left)]
    yield from zip((place for place in gone if place < len(left)), last, strict=True)
