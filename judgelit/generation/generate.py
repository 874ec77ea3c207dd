"""Sampling from a model, ids in and ids out."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from judgelit.generation.decoding import can_decode, decode
from judgelit.generation.sampling import Sampling
from judgelit.models.lora import without_adapter

if TYPE_CHECKING:
    from judgelit.models.backbone import CausalLM


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
            batches = [(input_ids, attention_mask)]
            if len(prompts) > 1 and _goes_alone(model, prompts, pad_id):
                pairs = zip(input_ids, attention_mask, strict=True)
                batches = [(row[None, mask.bool()], mask[None, mask.bool()]) for row, mask in pairs]
            texts = [
                of_prompt
                for ids, mask in batches
                for of_prompt in _generate_padded(model, ids, mask, sampling, finished, sorted(stops), pad_id, drawn)
            ]
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


def _goes_alone(model: nn.Module, prompts: Sequence[Sequence[int]], pad_id: int) -> bool:
    """Whether a model reads padding, as some recurrent layers do, so that each prompt must be a batch of its own."""
    if model not in _READS_PADDING:
        _READS_PADDING[model] = _reads_padding(model, max(prompts, key=len), pad_id)
        if _READS_PADDING[model]:
            rank_zero_info("generation: one prompt at a time, since padding gives this model other logits")
    return _READS_PADDING[model]


_READS_PADDING: "WeakKeyDictionary[nn.Module, bool]" = WeakKeyDictionary()


def _reads_padding(model: Any, prompt: Sequence[int], pad_id: int) -> bool:
    """Whether a few ids of a prompt get other logits behind padding than without."""
    ids, pads = list(prompt[-8:]), 24
    device = model.get_input_embeddings().weight.device
    more = {
        "max_new_tokens": 2,
        "do_sample": False,
        "num_beams": 1,
        "output_logits": True,
        "return_dict_in_generate": True,
    }
    found = []
    for width in (0, pads):
        rows = torch.tensor([[pad_id] * width + ids], device=device)
        mask = torch.tensor([[0] * width + [1] * len(ids)], device=device)
        logits = model.generate(
            input_ids=rows, attention_mask=mask, pad_token_id=pad_id, eos_token_id=None, synced_gpus=False, **more
        ).logits
        found.append(torch.stack(logits).float().log_softmax(-1))
    # Half precision keeps some eight bits of a logit, so kernels that add in another order differ visibly.
    tolerance = 1e-3 if logits[0].dtype in (torch.float32, torch.float64) else 0.1
    return not float((found[0] - found[1]).abs().mean()) <= tolerance


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
