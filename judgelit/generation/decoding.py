"""Decoding of several prompts and texts in a flat batch without padding, for models that support a block mask.

The prompts of a batch are computed together, with common prefixes once. The keys and values of a prompt are kept once
for all its texts. A step computes one token for each unfinished text; finished texts cost nothing.
"""

from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from judgelit.generation.kv_cache import Filling, KVCache
from judgelit.generation.margins import Watch
from judgelit.generation.prefixes import flat_prompts, split_by_tokens
from judgelit.generation.sampling import Sampling, choose_tokens
from judgelit.likelihood.layouts import cannot_share
from judgelit.likelihood.logprobs import logit_transform
from judgelit.models.flat_attention import FlatAttention
from judgelit.models.lora import without_adapter
from judgelit.models.sharding import through_root

PREFILL_TOKENS = 4096
"""Prompt tokens that are computed at once (a longer prompt alone), which bounds the memory of activations."""


@torch.no_grad()
def decode(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    finished: Callable[[Sequence[int]], bool],
    uniform: Tensor | None,
    samples: int,
    watch: Watch | None = None,
) -> list[list[list[int]]]:
    """New ids of `samples` texts for each prompt.

    Args:
        model: The model in eval mode, with its adapter if it has one; see `can_decode`.
        prompts: Ids of each prompt, at least one.
        sampling: Length, temperature, top-p.
        finished: Whether a text with these ids is complete.
        uniform: [prompts * samples, max_new_tokens] float32 in [0, 1), the random numbers of each text; None takes the
            most probable tokens.
        samples: Texts for each prompt.
        watch: Called after each step.
    """
    texts: list[list[int]] = [[] for _ in range(len(prompts) * samples)]
    decoder = FlatDecoder(model, prompts, samples)
    active = [prompt * samples + sample for prompt in decoder.sequence for sample in range(samples)]
    logits = decoder.begin()
    for step in range(sampling.max_new_tokens):
        draws = None if uniform is None else uniform[active, step].to(logits.device)
        chosen = choose_tokens(logits, sampling, draws).tolist()
        if watch is not None:
            watch(active, step, chosen, logits)
        for text, token in zip(active, chosen, strict=True):
            texts[text].append(token)
        unfinished = [place for place, text in enumerate(active) if not finished(texts[text])]
        if not unfinished or step + 1 == sampling.max_new_tokens:
            break
        if len(unfinished) < len(active):
            active = [active[place] for place in decoder.keep(unfinished)]
        positions = [len(prompts[text // samples]) + step for text in active]
        logits = decoder.next([texts[text][-1] for text in active], positions)
    return [texts[start : start + samples] for start in range(0, len(texts), samples)]


@torch.no_grad()
def can_decode(model: nn.Module, prompts: Sequence[Sequence[int]]) -> bool:
    """Whether `decode` gives the model's own logits.

    The model's configuration must allow a block mask. Then a few ids of `prompts` are tried, once for each model.
    """
    if cannot_share(without_adapter(model)) is not None:
        return False
    if model not in _TRIED:
        _TRIED[model] = _agrees(model, prompts)
        if not _TRIED[model]:
            rank_zero_info(
                "generation: by transformers with padding, since decoding in a flat batch changes this model's logits"
            )
    return _TRIED[model]


_TRIED: "WeakKeyDictionary[nn.Module, bool]" = WeakKeyDictionary()


class FlatDecoder:
    """The logits of a model, token by token, for P prompts with K texts each."""

    def __init__(self, model: nn.Module, prompts: Sequence[Sequence[int]], samples: int) -> None:
        """Create an empty cache.

        Args:
            model: The model in eval mode.
            prompts: Ids of each of the P prompts.
            samples: Texts for each prompt, K.
        """
        inner = without_adapter(model)
        self._root: Any = inner
        self._transform = logit_transform(inner.config)
        self._device = inner.get_input_embeddings().weight.device
        # Sorted, neighbours have the longest common prefixes.
        self.sequence = sorted(range(len(prompts)), key=lambda index: list(prompts[index]))
        """The indices of the prompts, as they follow each other in the flat batch."""
        self._prompts = [prompts[index] for index in self.sequence]
        self._samples = samples
        self._cache = KVCache([len(prompt) for prompt in self._prompts], samples, self._device)

    def begin(self) -> Tensor:
        """Logits of the first token of each text, [P * K, V]; the texts of a prompt follow each other."""
        parts: list[Tensor] = []
        done = 0
        for part in split_by_tokens(self._prompts, PREFILL_TOKENS):
            parts.append(self._prefill(part, done))
            done += len(part)
        return torch.cat(parts).repeat_interleave(self._samples, 0)

    def next(self, ids: Sequence[int], positions: Sequence[int]) -> Tensor:
        """Logits after one more token of each of n texts, [n, V].

        Args:
            ids: The token of each text.
            positions: The position of this token in prompt and text.
        """
        logits = self._logits(torch.tensor(ids), torch.tensor(positions), self._cache)
        self._cache.advance()
        return logits

    def keep(self, places: Sequence[int]) -> list[int]:
        """Drop all texts but those at these places of the flat batch; returns the places in their new sequence."""
        return self._cache.keep(places)

    def _prefill(self, prompts: Sequence[Sequence[int]], first: int) -> Tensor:
        """Logits after each of p prompts, [p, V]; `first` is the number of the first prompt in the cache."""
        batch, spans = flat_prompts(prompts)
        width = max(map(len, spans))
        places = torch.tensor([[*span, *[span[-1]] * (width - len(span))] for span in spans]).to(self._device)
        batch = batch.to(self._device)
        attention = Filling(self._cache, FlatAttention(batch.plan), first, places)
        return self._logits(batch.input_ids, batch.position_ids, attention, [span[-1] for span in spans])

    def _logits(
        self, ids: Tensor, positions: Tensor, attention: Filling | KVCache, places: Sequence[int] | None = None
    ) -> Tensor:
        """Logits of a flat batch of T tokens at n places, [n, V]; at all places if none are given.

        Args:
            ids: [T] int64.
            positions: [T] int64.
            attention: How the tokens attend.
            places: Between 0 and T.
        """

        def forward() -> Tensor:
            # A given 4-D mask keeps the model from making its own.
            out = self._root.base_model(
                input_ids=ids.to(self._device)[None],
                position_ids=positions.to(self._device)[None],
                attention_mask=torch.zeros(1, 1, 1, 1, device=self._device),
                use_cache=False,
                judgelit_attention=attention,
            )
            hidden = out.last_hidden_state[0]
            return self._transform(self._root.get_output_embeddings()(hidden if places is None else hidden[places]))

        return through_root(self._root, forward)


def _agrees(model: nn.Module, prompts: Sequence[Sequence[int]]) -> bool:
    """Whether the logits of two texts for each of two short prompts are those of the plain forward pass."""
    long, short = list(prompts[0][-24:]), list(prompts[-1][-7:])
    tokens = [*long[:2], *short[:2]] if len(long) > 1 and len(short) > 1 else [long[0]] * 4
    decoder = FlatDecoder(model, [long, short], 2)
    prompt_of_text = [[long, short][index] for index in decoder.sequence for _ in range(2)]
    found = [decoder.begin(), decoder.next(tokens, [len(prompt) for prompt in prompt_of_text])]
    worst = 0.0
    for text, (prompt, token) in enumerate(zip(prompt_of_text, tokens, strict=True)):
        plain = model(input_ids=torch.tensor([[*prompt, token]]).to(found[0].device), use_cache=False).logits[0, -2:]
        ours = torch.stack([logits[text] for logits in found])
        worst = max(worst, float((ours.float().log_softmax(-1) - plain.float().log_softmax(-1)).abs().mean()))
    # Half precision keeps about eight bits of a logit, so kernels that sum in another sequence differ visibly.
    return worst <= (1e-3 if plain.dtype in (torch.float32, torch.float64) else 0.1)
