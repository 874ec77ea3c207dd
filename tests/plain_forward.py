"""Expected log-probabilities for the tests of layouts: each completion alone, through the model's forward pass."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from judgelit.batches.flat_batch import TokenizedCompletion, TokenizedPreference
from judgelit.models.backbone import Backbone


def some_ids(draw: random.Random, count: int) -> list[int]:
    return [draw.randrange(300) for _ in range(count)]


def plain_logprobs(model: Any, prompt: Sequence[int], completion: Sequence[int]) -> Tensor:
    """Log-probability of each completion token (not of the first if the prompt is empty), [tokens] float64."""
    ids = torch.tensor([[*prompt, *completion]])
    logits = model(input_ids=ids, use_cache=False).logits[0].double()
    places = torch.arange(max(1, len(prompt)), ids.shape[1])
    return logits.log_softmax(-1)[places - 1].gather(1, ids[0, places, None])[:, 0]


def plain_of(model: Any, rows: Sequence[TokenizedCompletion]) -> Tensor:
    """`plain_logprobs` of several completions, concatenated."""
    return torch.cat([plain_logprobs(model, row.prompt, row.completion) for row in rows])


def plain_copy(backbone: Backbone, model: Any) -> Any:
    """A copy of the model with transformers' eager attention."""
    plain: Any = replace(backbone, attention="eager", activation_checkpointing=False).build()
    plain.to(next(model.parameters()).dtype).load_state_dict(model.state_dict())
    return plain


def trained(model: Any) -> dict[str, Tensor]:
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def gradients(model: Any) -> dict[str, Tensor]:
    """Return the gradients of all trained weights and clear them."""
    found = {name: weight.grad for name, weight in trained(model).items()}
    model.zero_grad()
    return found


def ragged_pairs() -> list[TokenizedPreference]:
    """Pairs whose lengths differ so much that attention computes them in several calls.

    Some share a prompt, one prompt is empty, some completions have one token, and two pairs share a completion.
    """
    draw = random.Random(0)
    long, short, empty = some_ids(draw, 150), some_ids(draw, 9), []
    good = some_ids(draw, 20)
    return [
        TokenizedPreference("long-1", long, good, some_ids(draw, 75)),
        TokenizedPreference("short-1", short, some_ids(draw, 4), some_ids(draw, 1)),
        TokenizedPreference("long-2", long, some_ids(draw, 1), good),
        TokenizedPreference("empty", empty, some_ids(draw, 60), some_ids(draw, 1)),
        TokenizedPreference("short-2", short, some_ids(draw, 90), some_ids(draw, 3)),
        TokenizedPreference("alone", some_ids(draw, 1), some_ids(draw, 2), some_ids(draw, 7)),
    ]


def both(pairs: Sequence[TokenizedPreference]) -> list[TokenizedCompletion]:
    """The chosen and the rejected completion of each pair, in this order."""
    return [
        TokenizedCompletion(pair.id, pair.prompt, completion)
        for pair in pairs
        for completion in (pair.chosen, pair.rejected)
    ]


@contextmanager
def float64_throughout() -> Iterator[None]:
    """Use float64 where models always use float32 (norms, softmax, log-probabilities).

    Results that differ only by rounding then agree to 1e-9, so that tests find any other difference.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "float32", torch.float64)
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        yield
