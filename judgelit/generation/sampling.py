"""How the next token of a text is chosen: the most probable one, or a random draw."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from judgelit.errors import UserError

FIRST_CANDIDATES = 256
"""How many of the most probable tokens are searched first for the smallest set that holds `top_p`."""

_COLDEST = 1e-6
"""Lowest temperature; logits divided by lower ones may exceed float32."""


@dataclass(frozen=True)
class Sampling:
    """How judgments are generated."""

    max_new_tokens: int = 1024
    """Longest judgment, in tokens."""
    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    """Sample from the smallest set of tokens that holds this probability (Holtzman et al. 2020, arXiv 1904.09751)."""
    stop_at_verdict: bool = True
    """End a judgment with the line that says its verdict, in evaluation, sampling and teaching alike. If not set, the
    model ends the text itself."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UserError(f"max_new_tokens: found {self.max_new_tokens}, expected 1 or more")
        if self.temperature != 0 and not _COLDEST <= self.temperature < math.inf:
            raise UserError(f"temperature: found {self.temperature}, expected 0 (greedy) or {_COLDEST} or more")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p: found {self.top_p}, expected 0 < top_p <= 1")


def random_numbers(prompts: Sequence[Sequence[int]], samples: int, length: int, seed: int) -> Tensor:
    """Random numbers for `samples` texts of each of B prompts, [B * samples, length] float32 in [0, 1).

    A row depends only on the seed, the ids of its prompt and the number of its sample. So a text does not depend on its
    batch, and parts of a set of prompts give the same texts as the whole set.
    """
    rows = []
    for prompt in prompts:
        digest = hashlib.blake2b(np.asarray(prompt, np.int64).tobytes(), digest_size=16)
        digest.update(str(seed).encode())
        stream = np.random.Generator(np.random.Philox(key=int.from_bytes(digest.digest())))
        rows.append(stream.random((samples, length), np.float32))
    return torch.from_numpy(np.concatenate(rows))


def choose_tokens(logits: Tensor, sampling: Sampling, uniform: Tensor | None) -> Tensor:
    """The next token of each of n texts, [n] int64.

    Args:
        logits: [n, V], any float dtype.
        sampling: Temperature and top-p.
        uniform: [n] float32 in [0, 1), one random number for each text; None takes the most probable token.

    Raises:
        UserError: Logits are not numbers, because weights are broken or too large for their dtype.
    """
    if not bool(logits.amax(-1).isfinite().all()):
        raise UserError(
            "the model computes logits that are not finite numbers; its weights are broken, or too large for their "
            "dtype: try dtype float32 or bfloat16"
        )
    if uniform is None:
        return logits.argmax(-1)
    probabilities = (logits.float() / sampling.temperature).softmax(-1)
    if sampling.top_p == 1:
        return _draw(probabilities, uniform)
    candidates, tokens = _nucleus(probabilities, sampling.top_p)
    return tokens.gather(1, _draw(candidates, uniform)[:, None])[:, 0]


def _draw(weights: Tensor, uniform: Tensor) -> Tensor:
    """Draw an index for each text by inverting the cumulative distribution.

    Args:
        weights: [n, C] float32, at least 0; they need not sum to 1.
        uniform: [n] float32 in [0, 1).

    Returns:
        [n] int64.
    """
    # In float32 on a GPU, cumulative sums may decrease, and an index of weight 0 could be drawn.
    sums = weights.double().cumsum(-1)
    wanted = uniform.to(sums) * sums[:, -1]
    return torch.searchsorted(sums, wanted[:, None], right=True)[:, 0]


def _nucleus(probabilities: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """The smallest set of tokens that holds `top_p`.

    Args:
        probabilities: [n, V] float32.
        top_p: Above 0, below 1.

    Returns:
        [n, C] float32 probabilities, descending, 0 outside of the set; [n, C] int64 token ids.
    """
    vocabulary = probabilities.shape[-1]
    size = min(FIRST_CANDIDATES, vocabulary)
    while True:
        best, tokens = probabilities.topk(size)
        before = best.cumsum(-1) - best
        # The set is mostly small, and sorting the whole vocabulary would take longer than the model.
        if size == vocabulary or bool((before[:, -1] >= top_p).all()):
            return best.masked_fill(before >= top_p, 0.0), tokens
        size = min(8 * size, vocabulary)
