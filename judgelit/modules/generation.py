"""Sampling from a model, ids in and ids out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from judgelit.errors import UserError
from judgelit.modules.backbone import without_adapter

if TYPE_CHECKING:
    from judgelit.modules.backbone import CausalLM


@dataclass(frozen=True)
class Sampling:
    """How judgments are generated."""

    max_new_tokens: int = 1024
    """Longest judgment, in tokens."""
    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    """Sample from the smallest set of tokens that holds this probability."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UserError(f"max_new_tokens: found {self.max_new_tokens}, expected 1 or more")
        if self.temperature < 0:
            raise UserError(f"temperature: found {self.temperature}, expected 0 or more")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p: found {self.top_p}, expected 0 < top_p <= 1")


@torch.no_grad()
def generate(
    model: "CausalLM",
    input_ids: Tensor,
    attention_mask: Tensor,
    sampling: Sampling,
    *,
    stop_ids: Sequence[int],
    pad_id: int,
    samples: int = 1,
) -> list[list[list[int]]]:
    """New ids for each of B prompts, `samples` each, the stop id included where one was reached.

    Args:
        model: The model; its training mode is left as it was found.
        input_ids: [B, T] int64, padded on the left.
        attention_mask: [B, T] int64.
        sampling: Length, temperature, top-p.
        stop_ids: Ids that end a text.
        pad_id: Id that fills finished rows.
        samples: Texts a prompt.
    """
    from transformers import GenerationConfig

    greedy = sampling.temperature == 0
    config = GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        do_sample=not greedy,
        temperature=None if greedy else sampling.temperature,
        top_p=None if greedy else sampling.top_p,
        top_k=None if greedy else 0,
        num_beams=1,
        num_return_sequences=1 if greedy else samples,
        repetition_penalty=1.0,
        eos_token_id=list(stop_ids),
        pad_token_id=pad_id,
    )
    # What `config` leaves unsaid, transformers takes from the model's own generation config: a minimum length, words
    # to suppress. None of that may slip in, so `config` stands in its place for the while.
    inner = without_adapter(model)
    generate_ids: Any = model.generate
    was_training, was_config = model.training, inner.generation_config
    model.eval()
    inner.generation_config = config
    try:
        rows = generate_ids(input_ids=input_ids, attention_mask=attention_mask, generation_config=config)
    finally:
        inner.generation_config = was_config
        model.train(was_training)
    stops = set(stop_ids)
    texts = [_until_stop(row, stops) for row in rows[:, input_ids.shape[1] :].tolist()]
    if greedy:
        return [[text] * samples for text in texts]
    return [texts[start : start + samples] for start in range(0, len(texts), samples)]


def _until_stop(ids: list[int], stops: set[int]) -> list[int]:
    for index, token in enumerate(ids):
        if token in stops:
            return ids[: index + 1]
    return ids
