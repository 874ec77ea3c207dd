"""How the next token is chosen: the best one, or one drawn as its probability says."""

from dataclasses import dataclass

import torch
from torch import Tensor

from judgelit.errors import UserError

_NUCLEUS = 256
"""Tokens looked at first for the smallest set that holds `top_p`."""


@dataclass(frozen=True)
class Sampling:
    """How judgments are generated."""

    max_new_tokens: int = 1024
    """Longest judgment, in tokens."""
    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    """Sample from the smallest set of tokens that holds this probability."""
    stop_at_verdict: bool = False
    """End a judgment with the line that says its verdict. Off where texts are to be what the model writes by itself."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UserError(f"max_new_tokens: found {self.max_new_tokens}, expected 1 or more")
        if self.temperature < 0:
            raise UserError(f"temperature: found {self.temperature}, expected 0 or more")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p: found {self.top_p}, expected 0 < top_p <= 1")


def choose(logits: Tensor, sampling: Sampling, uniform: Tensor | None) -> Tensor:
    """The next token of each of n texts, [n] int64.

    Args:
        logits: [n, V], any float dtype.
        sampling: Temperature and top-p.
        uniform: [n] float32 in [0, 1), the draw of each text; none is needed where the best token is taken.
    """
    if uniform is None:
        return logits.argmax(-1)
    probabilities = (logits.float() / sampling.temperature).softmax(-1)
    if sampling.top_p == 1:
        return _draw(probabilities, uniform)
    best, tokens = _nucleus(probabilities, sampling.top_p)
    return tokens.gather(1, _draw(best, uniform)[:, None])[:, 0]


def _draw(weights: Tensor, uniform: Tensor) -> Tensor:
    """The place in each row of [n, V] at which the running sum of `weights` passes a share `uniform` of the whole."""
    # Added up in float32 by a GPU's threads, sums need not ascend, and what has no weight could be drawn.
    sums = weights.double().cumsum(-1)
    wanted = uniform.to(sums) * sums[:, -1]
    return torch.searchsorted(sums, wanted[:, None], right=True)[:, 0]


def _nucleus(probabilities: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """The fewest tokens of each row of [n, V] that hold `top_p`: their probabilities, 0 beyond them, and their ids."""
    vocabulary = probabilities.shape[-1]
    size = min(_NUCLEUS, vocabulary)
    while True:
        best, tokens = probabilities.topk(size)
        before = best.cumsum(-1) - best
        # Mostly a few tokens do, and to sort the whole vocabulary would take longer than the model.
        if size == vocabulary or bool((before[:, -1] >= top_p).all()):
            return best.masked_fill(before >= top_p, 0.0), tokens
        size = min(8 * size, vocabulary)
