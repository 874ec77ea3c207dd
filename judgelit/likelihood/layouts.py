"""The layout in which a model scores a batch: read from the model's configuration, then tried on the first batch."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from judgelit.batches.flat_batch import Batch, TokenizedCompletion, flatten_completions
from judgelit.errors import UserError
from judgelit.models.flat_attention import NAME
from judgelit.models.lora import without_adapter

Rows = Literal["shared_prefix", "concatenated"]
LayoutChoice = Literal["auto", "shared_prefix", "concatenated"]


@dataclass(frozen=True)
class Layout:
    """How the completions of a batch stand in a model's input, and how logits are computed."""

    rows: Rows = "concatenated"
    """shared_prefix: one flat row, each prompt once. concatenated: a padded row [prompt | completion] for each."""
    own_head: bool = False
    """Take the logits from the model's own forward pass, at every position: its head is more than a linear layer."""


Score = Callable[[nn.Module, Batch, Layout], Tensor]
"""Log-probabilities of the scored tokens of a batch, [N] float32, in a layout."""

_PADDED = Layout("concatenated", own_head=True)
"""The model's own forward pass, over padded rows."""
_PADDING_MATTERS = 10
"""Padding may change log-probabilities by this many times the tolerance; beyond it, batches are wrong."""


def choose_layout(
    model: nn.Module, choice: LayoutChoice, batch: Batch, score: Score, agree: Callable[[bool], bool] = bool
) -> Layout:
    """Choose the fastest layout in which the model gives its own log-probabilities.

    Each layout is tried on a few tokens of `batch` and compared with the model's plain forward pass over each
    completion alone.

    Args:
        model: The model, with its adapter if it has one.
        choice: The user's choice.
        batch: The first batch.
        score: Computes log-probabilities in a layout.
        agree: Whether all ranks say so; all ranks must take the same layout.

    Raises:
        UserError: The choice is `shared_prefix` and the model cannot take it; or padded rows are wrong too.
    """
    inner = without_adapter(model)
    why_not = None if choice == "concatenated" else cannot_share(inner)
    probe = _probe(batch.input_ids.tolist(), batch.input_ids.device)
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            expected, tolerance = _plain_logprobs(model, probe)

            def gap(layout: Layout) -> float:
                return largest_gap(score(model, probe, layout), expected, probe)

            # Rounding alone makes a difference, which half precision shows.
            noise = gap(_PADDED)
            if not agree(not noise > _PADDING_MATTERS * tolerance):
                raise UserError(
                    f"{type(inner).__name__} gives completions in padded rows other log-probabilities than alone (here "
                    f"{noise:.2g} nats a token), so it cannot be trained in batches; use another model"
                )
            tolerance = max(tolerance, 2 * noise)
            for layout in _candidates(inner, choice, why_not):
                if layout == _PADDED or agree(gap(layout) <= tolerance):
                    break
                if layout.rows == "shared_prefix" and layout.own_head:
                    why_not = "its log-probabilities differ from those of its plain forward pass"
    finally:
        for module, training in modes.items():
            module.training = training
    if layout.rows == "concatenated" and choice != "concatenated":
        if choice == "shared_prefix":
            raise UserError(f"layout 'shared_prefix': this model cannot take it: {why_not}; use 'auto'")
        rank_zero_info(f"layout: concatenated, a padded row for each completion, since {why_not}")
    if layout.own_head:
        rank_zero_info("head: the model's own at every position, since it is more than a linear layer's scaled logits")
    return layout


def cannot_share(model: Any) -> str | None:
    """Why a model cannot take a flat row, as far as its configuration tells; None if nothing speaks against it."""
    config = model.config.get_text_config()
    if getattr(model, "_is_stateful", False):
        return "it has state-space layers"
    kinds = sorted({kind for kind in getattr(config, "layer_types", None) or () if kind != "full_attention"})
    if kinds:
        return f"it has layers of the kind {', '.join(kinds)}"
    if getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True):
        return "it attends in a sliding window"
    if config._attn_implementation == "sdpa":
        return f"{type(model).__name__} does not let another attention replace its own"
    if config._attn_implementation != NAME:
        return f"attention {config._attn_implementation!r} does not support a block mask, expected 'sdpa'"
    return None


def largest_gap(found: Tensor, expected: Tensor, batch: Batch) -> float:
    """The largest mean difference, in nats a token, that a completion of the batch has.

    The mean over all completions would hide an error: a prompt's first completion is right in any layout.

    Args:
        found: [N], log-probabilities of the scored tokens.
        expected: [N], what they should be.
        batch: Says which tokens belong to which completion.
    """
    sums = torch.zeros(len(batch.lengths), device=found.device).index_add(0, batch.rows, (found - expected).abs())
    return (sums / batch.lengths).max().item()


def _candidates(model: Any, choice: LayoutChoice, why_not: str | None) -> Iterator[Layout]:
    """Layouts to try, the fastest first."""
    # Llama 4's `base_model` is the whole model, head included.
    has_body = model.base_model is not model
    if choice != "concatenated" and why_not is None:
        if has_body:
            yield Layout("shared_prefix")
        yield Layout("shared_prefix", own_head=True)
    if choice != "shared_prefix" and has_body:
        yield Layout("concatenated")
    yield _PADDED


def _probe(ids: list[int], device: torch.device) -> Batch:
    """A batch of some ids: two prompts, of which the first has two completions, all of different lengths."""
    ids = (ids * (96 // len(ids) + 1))[:96]
    rows = [
        TokenizedCompletion("", ids[:24], ids[24:50]),
        TokenizedCompletion("", ids[:24], ids[50:70]),
        TokenizedCompletion("", ids[70:84], ids[84:]),
    ]
    return flatten_completions(rows).to(device)


def _plain_logprobs(model: nn.Module, batch: Batch) -> tuple[Tensor, float]:
    """Log-probabilities of the scored tokens, [N] float32, each completion alone; and the tolerance to compare with."""
    found = []
    for own in batch.segments:
        if own.prompt is not None:
            prompt = batch.segments[own.prompt]
            ids = torch.cat([batch.input_ids[s.start : s.stop] for s in (prompt, own)])
            logits = model(input_ids=ids[None], use_cache=False).logits[0]
            scored = logits[prompt.length - 1 : -1].float()
            found.append(-F.cross_entropy(scored, ids[prompt.length :], reduction="none"))
    # Half precision keeps about eight bits of a logit, so kernels that add in another order differ visibly.
    return torch.cat(found), 1e-3 if logits.dtype in (torch.float32, torch.float64) else 0.05
