"""Sampling from a model, ids in and ids out."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from judgelit.modules.backbone import without_adapter
from judgelit.modules.decoding import can_decode, decode
from judgelit.modules.sampling import Sampling

if TYPE_CHECKING:
    from judgelit.modules.backbone import CausalLM


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
    ends: Callable[[Sequence[int]], bool] | None = None,
) -> list[list[list[int]]]:
    """New ids for each of B prompts, `samples` each, the stop id included where one was reached.

    Args:
        model: The model; the modes of its modules are left as they were found.
        input_ids: [B, T] int64, padded on the left.
        attention_mask: [B, T] int64.
        sampling: Length, temperature, top-p, and whether a text stops where it `ends`.
        stop_ids: Ids that end a text.
        pad_id: Id that fills finished rows.
        samples: Texts a prompt.
        ends: Whether the ids of a text so far end with its verdict, so that nothing need follow.
    """
    stops = frozenset(stop_ids)
    may_end = ends if sampling.stop_at_verdict else None

    def finished(ids: Sequence[int]) -> bool:
        return ids[-1] in stops or (may_end is not None and may_end(ids))

    greedy = sampling.temperature == 0
    drawn = 1 if greedy else samples
    with evaluating(model):
        prompts = [row[mask.bool()].tolist() for row, mask in zip(input_ids, attention_mask, strict=True)]
        if can_decode(model, prompts):
            # Each text has draws of its own, so it does not depend on when others finish.
            uniform = None if greedy else torch.rand(len(prompts) * samples, sampling.max_new_tokens)
            texts = decode(model, prompts, sampling, finished, uniform, drawn)
        else:
            texts = _generate_padded(model, input_ids, attention_mask, sampling, finished, sorted(stops), pad_id, drawn)
    return [of_prompt * samples for of_prompt in texts] if greedy else texts


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """All modules in eval mode for the while, and each in its own again after it."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _generate_padded(
    model: "CausalLM",
    input_ids: Tensor,
    attention_mask: Tensor,
    sampling: Sampling,
    finished: Callable[[Sequence[int]], bool],
    stop_ids: Sequence[int],
    pad_id: int,
    samples: int,
) -> list[list[list[int]]]:
    """The same by transformers' own loop over padded rows, which all models can take."""
    from transformers import GenerationConfig, StoppingCriteriaList

    greedy = sampling.temperature == 0
    config = GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        do_sample=not greedy,
        temperature=None if greedy else sampling.temperature,
        top_p=None if greedy else sampling.top_p,
        top_k=None if greedy else 0,
        num_beams=1,
        num_return_sequences=samples,
        repetition_penalty=1.0,
        eos_token_id=list(stop_ids),
        pad_token_id=pad_id,
    )
    width = input_ids.shape[1]

    def all_finished(rows: Tensor, *_: Any, **__: Any) -> Tensor:
        return torch.tensor([finished(row) for row in rows[:, width:].tolist()], device=rows.device)

    # What `config` leaves unsaid, transformers takes from the model's own generation config: a minimum length, words
    # to suppress. None of that may slip in, so `config` stands in its place for the while.
    inner = without_adapter(model)
    generate_ids: Any = model.generate
    was_config = inner.generation_config
    inner.generation_config = config
    try:
        rows = generate_ids(
            input_ids=input_ids,
            attention_mask=attention_mask,
            generation_config=config,
            stopping_criteria=StoppingCriteriaList([all_finished]),
            # Left to itself, it would wait at every token for ranks that may have no text: see `in_lockstep`.
            synced_gpus=False,
        )
    finally:
        inner.generation_config = was_config
    texts = [_until(finished, row) for row in rows[:, width:].tolist()]
    return [texts[start : start + samples] for start in range(0, len(texts), samples)]


def _until(finished: Callable[[Sequence[int]], bool], ids: list[int]) -> list[int]:
    return next((ids[:stop] for stop in range(1, len(ids)) if finished(ids[:stop])), ids)
