"""Which layout a model can take: read from its configuration, then tried on a few tokens of the first batch."""

from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from judgelit.batches.flat_batch import Batch, TokenizedCompletion, flatten_completions
from judgelit.errors import UserError
from judgelit.likelihood.logprobs import LogProbs, Scoring, completion_logprobs
from judgelit.models.flat_attention import NAME
from judgelit.models.lora import without_adapter

LayoutChoice = Literal["auto", "shared_prefix", "concatenated"]


def choose_layout(
    model: nn.Module, choice: LayoutChoice, batch: Batch, agree: Callable[[bool], bool] = bool
) -> Scoring:
    """The fastest way of computing log-probabilities that gives this model's own.

    Each way is tried on a few tokens of `batch` against the model's plain forward pass, one completion at a time.

    Args:
        model: The model, with its adapter if it has one.
        choice: What the user has asked for.
        batch: The first batch.
        agree: Whether all ranks say so; the same way must be taken on all.

    Raises:
        UserError: `shared_prefix` was asked for, and the model cannot take it; or the model cannot take padding either.
    """
    inner = without_adapter(model)
    why_not = None if choice == "concatenated" else cannot_share(inner)
    probe = _probe(batch.input_ids.tolist(), batch.input_ids.device)
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            expected, tolerance = _plain_logprobs(model, probe)
            # What rounding alone does, which shows in half precision.
            noise = _gap(model, probe, _LAST, expected)
            if not agree(not noise > _BEYOND_ROUNDING * tolerance):
                raise UserError(
                    f"{type(inner).__name__} gives completions in padded rows other log-probabilities than alone (here "
                    f"{noise:.2g} nats a token), so it cannot be trained in batches; use another model"
                )
            tolerance = max(tolerance, 2 * noise)
            for scoring in _ways(inner, choice, why_not):
                if scoring == _LAST:
                    break
                if agree(_gap(model, probe, scoring, expected) <= tolerance):
                    break
                if scoring.layout == "shared_prefix" and scoring.own_head:
                    why_not = "its log-probabilities differ from those of its plain forward pass"
    finally:
        for module, training in modes.items():
            module.training = training
    if scoring.layout == "concatenated" and choice != "concatenated":
        if choice == "shared_prefix":
            raise UserError(f"layout 'shared_prefix': this model cannot take it: {why_not}; use 'auto'")
        rank_zero_info(f"layout: concatenated, a padded row for each completion, since {why_not}")
    if scoring.own_head:
        rank_zero_info(
            "head: the model's own at every position, since it does more than a linear layer's scaled logits"
        )
    return scoring


def cannot_share(model: Any) -> str | None:
    """Why a model's attention cannot be told who sees whom in a flat row, as far as its configuration says."""
    config = model.config.get_text_config()
    if getattr(model, "_is_stateful", False):
        return "it has state-space layers"
    kinds = sorted({kind for kind in getattr(config, "layer_types", None) or () if kind != "full_attention"})
    if kinds:
        return f"it has layers of the kind {', '.join(kinds)}"
    if getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True):
        return "it attends in a sliding window"
    if config._attn_implementation == "sdpa":
        return f"{type(model).__name__} lets no other attention take the place of its own"
    if config._attn_implementation != NAME:
        return f"attention {config._attn_implementation!r} takes no plan of a row, expected 'sdpa'"
    return None


_LAST = Scoring("concatenated", own_head=True)
"""The model's own forward pass but for padding."""
_BEYOND_ROUNDING = 10
"""Times the tolerance that padding may make a difference of."""


def _ways(model: Any, choice: LayoutChoice, why_not: str | None) -> Iterator[Scoring]:
    """Ways to try, the fastest first."""
    # Llama 4 is all head: what stands below it goes by another name than transformers' own.
    has_body = model.base_model is not model
    if choice != "concatenated" and why_not is None:
        if has_body:
            yield Scoring("shared_prefix")
        yield Scoring("shared_prefix", own_head=True)
    if choice != "shared_prefix" and has_body:
        yield Scoring("concatenated")
    yield _LAST


def _probe(ids: list[int], device: torch.device) -> Batch:
    """Some ids, cut into two prompts, the first with two completions, of different lengths."""
    ids = (ids * (96 // len(ids) + 1))[:96]
    rows = [
        TokenizedCompletion("", ids[:24], ids[24:50]),
        TokenizedCompletion("", ids[:24], ids[50:70]),
        TokenizedCompletion("", ids[70:84], ids[84:]),
    ]
    return flatten_completions(rows).to(device)


def _gap(model: nn.Module, batch: Batch, scoring: Scoring, expected: Tensor) -> float:
    """By how much a token's log-probability differs from the expected one, in the mean of the worst completion.

    The mean of all would hide it: the first completion of a prompt stands in the row as it would by itself.
    """
    found = completion_logprobs(model, batch, scoring).tokens
    gaps = LogProbs.of((found - expected).abs(), batch)
    return (gaps.sums / gaps.lengths).max().item()


def _plain_logprobs(model: nn.Module, batch: Batch) -> tuple[Tensor, float]:
    """Log-probabilities of the scored tokens, [N] float32, each completion by itself; and what they may differ by."""
    found = []
    for own in batch.segments:
        if own.prompt is not None:
            prompt = batch.segments[own.prompt]
            ids = torch.cat([batch.input_ids[s.start : s.stop] for s in (prompt, own)])
            logits = model(input_ids=ids[None], use_cache=False).logits[0]
            scored = logits[prompt.length - 1 : -1].float()
            found.append(-F.cross_entropy(scored, ids[prompt.length :], reduction="none"))
    # Half precision keeps some eight bits of a logit, so kernels that add in another order differ visibly.
    return torch.cat(found), 1e-3 if logits.dtype in (torch.float32, torch.float64) else 0.05
