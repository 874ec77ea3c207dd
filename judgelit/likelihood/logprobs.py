"""Log-probabilities of completions: the one function that policy, reference and warm-up all go through."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from judgelit.batches.flat_batch import Batch
from judgelit.models.flat_attention import Plan
from judgelit.models.lora import without_adapter
from judgelit.models.sharding import through_root

Layout = Literal["shared_prefix", "concatenated"]
_LOGITS_AT_ONCE = 1 << 24
"""Logits that the head computes at once: 64 MB in float32."""


@dataclass(frozen=True)
class Scoring:
    """How a model's log-probabilities are computed; which of it a model can take is found out by `settle`."""

    layout: Layout = "concatenated"
    """shared_prefix: all completions in one row, each prompt once. concatenated: a padded row for each completion."""
    own_head: bool = False
    """Take the model's own logits, of all positions at once, since its head does more than we know of."""


@dataclass(frozen=True)
class LogProbs:
    """Log-probabilities of the K completions of a batch, N scored tokens in all.

    tokens: [N] float32, one a scored token, completion by completion.
    rows: [N] int64, the completion that each belongs to.
    sums: [K] float32, log p(completion | prompt).
    lengths: [K] int64, tokens of each completion.
    """

    tokens: Tensor
    rows: Tensor
    sums: Tensor
    lengths: Tensor

    @classmethod
    def of(cls, tokens: Tensor, batch: Batch) -> "LogProbs":
        """What [N] float32 log-probabilities of the scored tokens of `batch` come to."""
        sums = torch.zeros(len(batch.lengths), dtype=torch.float32, device=tokens.device)
        return cls(tokens, batch.rows, sums.index_add(0, batch.rows, tokens), batch.lengths)


def completion_logprobs(model: nn.Module, batch: Batch, scoring: Scoring) -> LogProbs:
    """Log-probabilities that `model` gives to the completion tokens of `batch`.

    The head runs only where a scored token is predicted, a chunk of positions at a time, so that logits of
    [T x vocabulary] exist neither in the forward nor in the backward pass. The log-sum-exp and all sums are taken in
    float32, whatever the compute dtype.
    """
    inner = without_adapter(model)
    return LogProbs.of(through_root(inner, lambda: _token_logprobs(inner, batch, scoring)), batch)


def _token_logprobs(inner: Any, batch: Batch, scoring: Scoring) -> Tensor:
    """[N] float32, one a scored token."""
    body = inner if scoring.own_head else inner.base_model
    if scoring.layout == "shared_prefix":
        # A 4-D mask is taken as it is: this one keeps the model from making a [T x T] one, which the plan replaces.
        out = body(
            input_ids=batch.input_ids[None],
            position_ids=batch.position_ids[None],
            attention_mask=torch.zeros(1, 1, 1, 1, device=batch.input_ids.device),
            use_cache=False,
            judgelit_plan=Plan.of(batch),
        )
        predicts = batch.predicts
    else:
        rows = batch.padded()
        out = body(input_ids=rows.input_ids, attention_mask=rows.attention_mask, use_cache=False)
        predicts = rows.predicts
    if scoring.own_head:
        return _target_logprobs(out.logits.flatten(0, 1)[predicts], batch.targets)
    hidden = out.last_hidden_state.flatten(0, 1).index_select(0, predicts)
    return head_logprobs(hidden, batch.targets, inner.get_output_embeddings(), logit_transform(inner.config))


def head_logprobs(
    hidden: Tensor, targets: Tensor, head: nn.Module, transform: Callable[[Tensor], Tensor], at_once: int | None = None
) -> Tensor:
    """log p(target) at each of N positions, [N] float32, with logits of only some positions in memory at any time.

    The backward pass computes each chunk's logits again.

    Args:
        hidden: [N, hidden size], any dtype.
        targets: [N] int64.
        head: The language-model head, [N, hidden size] to [N, vocabulary].
        transform: What the model does to its head's logits.
        at_once: Positions of a chunk; by default as many as make 64 MB of logits.
    """

    def chunk_logprobs(part: Tensor, wanted: Tensor) -> Tensor:
        return _target_logprobs(transform(head(part)), wanted)

    vocabulary = getattr(head, "out_features", None) or 1 << 17
    chunks = zip(
        *(tensor.split(at_once or max(1, _LOGITS_AT_ONCE // vocabulary)) for tensor in (hidden, targets)), strict=True
    )
    if not torch.is_grad_enabled():
        return torch.cat([chunk_logprobs(part, wanted) for part, wanted in chunks])
    return torch.cat([checkpoint(chunk_logprobs, part, wanted, use_reentrant=False) for part, wanted in chunks])


def logit_transform(config: Any) -> Callable[[Tensor], Tensor]:
    """What models do to the logits of their head: scale them, and cap them softly (Gemma 2, arXiv 2408.00118)."""
    config = config.get_text_config()
    scale = next(
        (value for name in _SCALES if (value := getattr(config, name, None)) is not None),
        1.0 if (divisor := getattr(config, "logits_scaling", None)) is None else 1 / divisor,
    )
    cap = next((value for name in _CAPS if (value := getattr(config, name, None)) is not None), None)

    def transform(logits: Tensor) -> Tensor:
        logits = logits if scale == 1.0 else logits * scale
        return logits if cap is None else torch.tanh(logits / cap) * cap

    return transform


_SCALES = ("logit_scale", "output_multiplier", "lm_head_multiplier")
_CAPS = ("final_logit_softcapping", "logits_soft_cap")


class _TargetLogProbs(torch.autograd.Function):
    """log p(target) of [N, vocabulary] float32 logits, [N] float32.

    `cross_entropy` and `logsumexp` each lose a digit of the gradient on a CPU, one in the sum over a large vocabulary,
    the other where the target is all but certain.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        peak = logits.amax(-1, keepdim=True)
        total = (logits - peak).exp_().sum(-1, keepdim=True)
        ctx.save_for_backward(logits, targets, peak, total)
        return (logits.gather(-1, targets[:, None]) - peak - total.log())[:, 0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        logits, targets, peak, total = ctx.saved_tensors
        of_logits = (logits - peak).exp_().mul_(-gradient[:, None] / total)
        return of_logits.scatter_add_(-1, targets[:, None], gradient[:, None]), None


def _target_logprobs(logits: Tensor, targets: Tensor) -> Tensor:
    return cast(Tensor, _TargetLogProbs.apply(logits.float(), targets))


def compute_dtype(model: nn.Module) -> torch.dtype:
    """The dtype in which a model computes: autocast's where that is on, else its head's."""
    head = without_adapter(model).get_output_embeddings()
    weight = next(head.parameters())
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
