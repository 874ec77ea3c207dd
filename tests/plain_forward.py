"""What the tests of layouts compare with: each completion by itself, through the model's plain forward pass."""

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
    """log p of each completion token that something stands before, [tokens] float64, with its gradient."""
    ids = torch.tensor([[*prompt, *completion]])
    logits = model(input_ids=ids, use_cache=False).logits[0].double()
    places = torch.arange(max(1, len(prompt)), ids.shape[1])
    return logits.log_softmax(-1)[places - 1].gather(1, ids[0, places, None])[:, 0]


def plain_of(model: Any, rows: Sequence[TokenizedCompletion]) -> Tensor:
    """The same of several completions, one after the other."""
    return torch.cat([plain_logprobs(model, row.prompt, row.completion) for row in rows])


def plain_copy(backbone: Backbone, model: Any) -> Any:
    """The same weights with transformers' own attention, written out."""
    plain: Any = replace(backbone, attention="eager", activation_checkpointing=False).build()
    plain.to(next(model.parameters()).dtype).load_state_dict(model.state_dict())
    return plain


def trained(model: Any) -> dict[str, Tensor]:
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def gradients(model: Any) -> dict[str, Tensor]:
    """The gradients of all trained weights, which are taken off them."""
    found = {name: weight.grad for name, weight in trained(model).items()}
    model.zero_grad()
    return found


def ragged_pairs() -> list[TokenizedPreference]:
    """Pairs whose prompts and completions differ so much that they are not computed together; some share a prompt.

    Among them are an empty prompt, completions of one token, and one that two pairs have in common.
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
    """The chosen and the rejected completion of each pair in turn."""
    return [
        TokenizedCompletion(pair.id, pair.prompt, completion)
        for pair in pairs
        for completion in (pair.chosen, pair.rejected)
    ]


@contextmanager
def float64_throughout() -> Iterator[None]:
    """Computes in float64 what models compute in float32 whatever their dtype (norms, softmax, log-probabilities).

    What differs by rounding alone then agrees to 1e-9, and any other difference shows.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "float32", torch.float64)
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        yield
