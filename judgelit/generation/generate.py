"""Generation with a model: ids in, ids out."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from judgelit.generation.decoding import can_decode, decode
from judgelit.generation.margins import Watch
from judgelit.generation.sampling import Sampling, choose_tokens, random_numbers
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
    seed: int = 0,
    ends: Callable[[Sequence[int]], bool] | None = None,
    watch: Watch | None = None,
) -> list[list[list[int]]]:
    """New ids of `samples` texts for each of B prompts, with the stop id if the text has reached one.

    Args:
        model: The model; each of its modules keeps its mode (training or eval).
        input_ids: [B, T] int64, padded on the left.
        attention_mask: [B, T] int64.
        sampling: Length, temperature, top-p, and whether a text stops where `ends` says so.
        stop_ids: Ids that end a text.
        pad_id: Id to pad with.
        samples: Texts for each prompt.
        seed: Seed of the random numbers; those of a text depend on nothing but this, its prompt and its number.
        ends: Whether a text with these ids ends with its verdict.
        watch: Called after each step. Texts are numbered prompt by prompt. Greedy samples of a prompt are all the same,
            so greedy decoding has one text for each prompt.
    """
    stops = frozenset(stop_ids)
    may_end = ends if sampling.stop_at_verdict else None

    def finished(ids: Sequence[int]) -> bool:
        return ids[-1] in stops or (may_end is not None and may_end(ids))

    greedy = sampling.temperature == 0
    drawn = 1 if greedy else samples
    with evaluating(model):
        prompts = [row[mask.bool()].tolist() for row, mask in zip(input_ids, attention_mask, strict=True)]
        uniform = None if greedy else random_numbers(prompts, samples, sampling.max_new_tokens, seed)
        if can_decode(model, prompts):
            texts = decode(model, prompts, sampling, finished, uniform, drawn, watch)
        else:
            batches = [(input_ids, attention_mask, uniform)]
            if len(prompts) > 1 and _reads_padding(model, prompts, pad_id):
                numbers = [None] * len(prompts) if uniform is None else uniform.chunk(len(prompts))
                rows = zip(input_ids, attention_mask, numbers, strict=True)
                batches = [(row[None, mask.bool()], mask[None, mask.bool()], of_row) for row, mask, of_row in rows]
            texts = [
                of_prompt
                for batch, (ids, mask, numbers) in enumerate(batches)
                for of_prompt in _generate_padded(
                    model, ids, mask, sampling, finished, numbers, sorted(stops), pad_id, drawn, watch, batch * drawn
                )
            ]
    return [of_prompt * samples for of_prompt in texts] if greedy else texts


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put all modules in eval mode inside the `with` block; after it each has its earlier mode."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _reads_padding(model: nn.Module, prompts: Sequence[Sequence[int]], pad_id: int) -> bool:
    """Whether padding changes a model's logits, as in some recurrent layers; tried once for each model."""
    if model not in _READS_PADDING:
        _READS_PADDING[model] = _padding_changes_logits(model, max(prompts, key=len), pad_id)
        if _READS_PADDING[model]:
            rank_zero_info("generation: one prompt at a time, since padding changes this model's logits")
    return _READS_PADDING[model]


_READS_PADDING: "WeakKeyDictionary[nn.Module, bool]" = WeakKeyDictionary()


def _padding_changes_logits(model: Any, prompt: Sequence[int], pad_id: int) -> bool:
    """Compare the logits of a few ids of a prompt with and without padding before them."""
    ids, pads = list(prompt[-8:]), 24
    device = model.get_input_embeddings().weight.device
    settings = {
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
            input_ids=rows, attention_mask=mask, pad_token_id=pad_id, eos_token_id=None, synced_gpus=False, **settings
        ).logits
        found.append(torch.stack(logits).float().log_softmax(-1))
    # Half precision keeps about eight bits of a logit, so kernels that sum in another sequence differ visibly.
    tolerance = 1e-3 if logits[0].dtype in (torch.float32, torch.float64) else 0.1
    return not float((found[0] - found[1]).abs().mean()) <= tolerance


def _generate_padded(
    model: "CausalLM",
    input_ids: Tensor,
    attention_mask: Tensor,
    sampling: Sampling,
    finished: Callable[[Sequence[int]], bool],
    uniform: Tensor | None,
    stop_ids: Sequence[int],
    pad_id: int,
    samples: int,
    watch: Watch | None,
    first: int,
) -> list[list[list[int]]]:
    """Generate by transformers in padded rows, which all models support; arguments and result as in `decode`.

    `first` is the number of the first text.
    """
    from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

    config = GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        eos_token_id=list(stop_ids),
        pad_token_id=pad_id,
    )
    width = input_ids.shape[1]

    def choose(rows: Tensor, logits: Tensor) -> Tensor:
        """Logits that leave one token, chosen by the same rule and numbers as in `decode`."""
        step = rows.shape[1] - width
        draws = None if uniform is None else uniform[:, step].to(logits.device)
        chosen = choose_tokens(logits, sampling, draws)
        if watch is not None:
            watch(range(first, first + len(rows)), step, chosen.tolist(), logits)
        return torch.full_like(logits, -torch.inf).scatter(1, chosen[:, None], 0.0)

    def all_finished(rows: Tensor, *_: Any, **__: Any) -> Tensor:
        return torch.tensor([finished(row) for row in rows[:, width:].tolist()], device=rows.device)

    # transformers fills settings that `config` lacks from the model's own generation config (a minimum length, words
    # to suppress), so the model gets `config` as its own during the call.
    inner = without_adapter(model)
    generate_ids: Any = model.generate
    own_config = inner.generation_config
    inner.generation_config = config
    try:
        rows = generate_ids(
            input_ids=input_ids.repeat_interleave(samples, 0),
            attention_mask=attention_mask.repeat_interleave(samples, 0),
            generation_config=config,
            logits_processor=LogitsProcessorList([choose]),
            stopping_criteria=StoppingCriteriaList([all_finished]),
            # With True, the default under sharding, it would wait at each token for ranks that have no text: see
            # `in_lockstep`.
            synced_gpus=False,
        )
    finally:
        inner.generation_config = own_config
    texts = [_until_finished(finished, row) for row in rows[:, width:].tolist()]
    return [texts[start : start + samples] for start in range(0, len(texts), samples)]


def _until_finished(finished: Callable[[Sequence[int]], bool], ids: list[int]) -> list[int]:
    """The ids up to where the text is finished; padding follows there."""
    return next((ids[:stop] for stop in range(1, len(ids)) if finished(ids[:stop])), ids)
