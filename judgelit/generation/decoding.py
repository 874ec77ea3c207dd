"""Decoding of several prompts and texts in flat rows without padding, for models that can be told who sees whom.

The prompts of a batch are computed together, what they begin with in common once, and each prompt's keys and values are
kept once for all its texts. A step computes one token of each text that is not finished; a finished one costs nothing.
"""

from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from judgelit.generation.kv_cache import Filling, KVCache
from judgelit.generation.prefixes import flat_prompts, runs
from judgelit.generation.sampling import Sampling, choose
from judgelit.likelihood.layouts import cannot_share
from judgelit.likelihood.logprobs import logit_transform
from judgelit.models.flat_attention import FlatAttention
from judgelit.models.lora import without_adapter
from judgelit.models.sharding import through_root

_PREFILL_TOKENS = 4096
"""Tokens of prompts that are computed at once, but for a longer prompt: bounds what activations take."""


@torch.no_grad()
def decode(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    finished: Callable[[Sequence[int]], bool],
    uniform: Tensor | None,
    samples: int,
) -> list[list[list[int]]]:
    """New ids for each prompt, `samples` each.

    Args:
        model: The model in eval mode, with its adapter if it has one; see `can_decode`.
        prompts: Ids, at least one each.
        sampling: Length, temperature, top-p.
        finished: Whether the ids of a text so far are all of it.
        uniform: [prompts * samples, max_new_tokens] float32 in [0, 1), the draws of each text; none is needed where the
            best token is always taken.
        samples: Texts a prompt.
    """
    texts: list[list[int]] = [[] for _ in range(len(prompts) * samples)]
    steps = _Steps(model, prompts, samples)
    active = [prompt * samples + sample for prompt in steps.order for sample in range(samples)]
    logits = steps.begin()
    for step in range(sampling.max_new_tokens):
        draws = None if uniform is None else uniform[active, step].to(logits.device)
        for text, token in zip(active, choose(logits, sampling, draws).tolist(), strict=True):
            texts[text].append(token)
        unfinished = [place for place, text in enumerate(active) if not finished(texts[text])]
        if not unfinished or step + 1 == sampling.max_new_tokens:
            break
        if len(unfinished) < len(active):
            active = [active[place] for place in steps.keep(unfinished)]
        positions = [len(prompts[text // samples]) + step for text in active]
        logits = steps.next([texts[text][-1] for text in active], positions)
    return [texts[start : start + samples] for start in range(0, len(texts), samples)]


@torch.no_grad()
def can_decode(model: nn.Module, prompts: Sequence[Sequence[int]]) -> bool:
    """Whether `decode` gives a model's own logits: by its configuration, and tried once on a few ids of `prompts`."""
    if cannot_share(without_adapter(model)) is not None:
        return False
    if model not in _TRIED:
        _TRIED[model] = _agrees(model, prompts)
        if not _TRIED[model]:
            rank_zero_info(
                "generation: that of transformers, since decoding in flat rows gives this model other logits"
            )
    return _TRIED[model]


_TRIED: "WeakKeyDictionary[nn.Module, bool]" = WeakKeyDictionary()


class _Steps:
    """A model's logits, token by token, for P prompts and K texts of each."""

    def __init__(self, model: nn.Module, prompts: Sequence[Sequence[int]], samples: int) -> None:
        inner = without_adapter(model)
        self._root: Any = inner
        self._transform = logit_transform(inner.config)
        self._device = inner.get_input_embeddings().weight.device
        # In this order, neighbours have the most in common.
        self.order = sorted(range(len(prompts)), key=lambda index: list(prompts[index]))
        """The prompts as they stand in the flat row."""
        self._prompts = [prompts[index] for index in self.order]
        self._samples = samples
        self._cache = KVCache([len(prompt) for prompt in self._prompts], samples, self._device)

    def begin(self) -> Tensor:
        """Logits of the first token of each text, [P * K, V], the texts of a prompt together."""
        parts: list[Tensor] = []
        done = 0
        for run in runs(self._prompts, _PREFILL_TOKENS):
            parts.append(self._prefill(run, done))
            done += len(run)
        return torch.cat(parts).repeat_interleave(self._samples, 0)

    def next(self, ids: Sequence[int], positions: Sequence[int]) -> Tensor:
        """Logits after a further token of each of n texts, [n, V]; `ids` and `positions` are that token's."""
        logits = self._logits(torch.tensor(ids), torch.tensor(positions), self._cache)
        self._cache.advance()
        return logits

    def keep(self, places: Sequence[int]) -> list[int]:
        """Go on with the texts at these places of the flat row; the places in their new order."""
        return self._cache.keep(places)

    def _prefill(self, prompts: Sequence[Sequence[int]], first: int) -> Tensor:
        """Logits after each prompt, [p, V]; `first` is the first one's number in the cache."""
        batch, spans = flat_prompts(prompts)
        width = max(map(len, spans))
        places = torch.tensor([[*span, *[span[-1]] * (width - len(span))] for span in spans]).to(self._device)
        batch = batch.to(self._device)
        attention = Filling(self._cache, FlatAttention(batch.plan), first, places)
        return self._logits(batch.input_ids, batch.position_ids, attention, [span[-1] for span in spans])

    def _logits(
        self, ids: Tensor, positions: Tensor, attention: Filling | KVCache, places: Sequence[int] | None = None
    ) -> Tensor:
        """Logits at some places of a flat row, [places, V]; at all of them if none are named."""

        def forward() -> Tensor:
            # A 4-D mask is taken as it is: this one keeps the model from making one of its own.
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
    """Whether the logits of two texts of each of two prompts are those of the plain forward pass."""
    long, short = list(prompts[0][-24:]), list(prompts[-1][-7:])
    tokens = [*long[:2], *short[:2]] if len(long) > 1 and len(short) > 1 else [long[0]] * 4
    steps = _Steps(model, [long, short], 2)
    asked = [[long, short][index] for index in steps.order for _ in range(2)]
    found = [steps.begin(), steps.next(tokens, [len(prompt) for prompt in asked])]
    worst = 0.0
    for text, (prompt, token) in enumerate(zip(asked, tokens, strict=True)):
        plain = model(input_ids=torch.tensor([[*prompt, token]]).to(found[0].device), use_cache=False).logits[0, -2:]
        ours = torch.stack([logits[text] for logits in found])
        worst = max(worst, float((ours.float().log_softmax(-1) - plain.float().log_softmax(-1)).abs().mean()))
    # Half precision keeps some eight bits of a logit, so kernels that add in another order differ visibly.
    return worst <= (1e-3 if plain.dtype in (torch.float32, torch.float64) else 0.1)
