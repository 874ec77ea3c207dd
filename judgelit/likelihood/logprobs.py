"""log p(completion | prompt): the one function that the policy, the reference and the warm-up all go through."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from judgelit.batches.flat_batch import Batch
from judgelit.likelihood.layouts import Layout, LayoutChoice, choose_layout
from judgelit.models.flat_attention import FlatAttention
from judgelit.models.lora import without_adapter
from judgelit.models.sharding import through_root

_LOGITS_AT_ONCE = 1 << 24
"""Logits that the head computes at once: 64 MB in float32."""


@dataclass(frozen=True)
class LogProbs:
    """Log-probabilities of the K completions of a batch, which has N scored tokens.

    tokens: [N] float32, one for each scored token, completion by completion.
    rows: [N] int64, the completion of each scored token.
    sums: [K] float32, log p(completion | prompt).
    lengths: [K] int64, tokens of each completion.
    """

    tokens: Tensor
    rows: Tensor
    sums: Tensor
    lengths: Tensor

    @classmethod
    def of(cls, tokens: Tensor, batch: Batch) -> Self:
        """Sum [N] float32 log-probabilities of the scored tokens of `batch` for each completion."""
        return cls(tokens, batch.rows, sums_of_rows(tokens, batch.rows, len(batch.lengths)), batch.lengths)


def sums_of_rows(values: Tensor, rows: Tensor, count: int) -> Tensor:
    """Sum [N] float32 values of `count` rows, [count] float32; `rows` [N] int64 says of which row each value is.

    DPO's rewards are small differences of large sums, and a GPU adds in another order each time. The differences that
    this makes in float64 are gone once the sum is rounded to float32.
    """
    # Apple's GPUs have no float64.
    wide = values if values.device.type == "mps" else values.double()
    return torch.zeros(count, dtype=wide.dtype, device=wide.device).index_add(0, rows, wide).to(values.dtype)


class Scorer:
    """A model and the layout in which it scores completions, chosen on the first batch."""

    def __init__(
        self, model: nn.Module, choice: LayoutChoice | Layout = "auto", agree: Callable[[bool], bool] = bool
    ) -> None:
        """Describe it; nothing is computed yet.

        Args:
            model: The model, with its adapter if it has one.
            choice: The user's choice, or the layout if it is known.
            agree: Whether all ranks say so.
        """
        self.model = model
        self._choice = choice
        self._agree = agree

    def layout(self, batch: Batch) -> Layout:
        """The model's layout; `batch` is any batch, on which layouts are tried the first time."""
        if not isinstance(self._choice, Layout):
            self._choice = choose_layout(self.model, self._choice, batch, _score, self._agree)
        return self._choice

    def logprobs(self, batch: Batch) -> LogProbs:
        """Log-probabilities of the completions of a batch."""
        return completion_logprobs(self.model, batch, self.layout(batch))


def completion_logprobs(model: nn.Module, batch: Batch, layout: Layout) -> LogProbs:
    """Log-probabilities that `model` gives to the completions of `batch`.

    The head runs only where a scored token is predicted, some positions at a time: logits of [T x vocabulary] exist
    neither in the forward nor in the backward pass. The log-sum-exp and all sums are in float32, whatever the dtype in
    which the model computes.
    """
    return LogProbs.of(_score(model, batch, layout), batch)


def _score(model: nn.Module, batch: Batch, layout: Layout) -> Tensor:
    """[N] float32, one for each scored token."""
    inner = without_adapter(model)
    return through_root(inner, lambda: _token_logprobs(inner, batch, layout))


def _token_logprobs(inner: Any, batch: Batch, layout: Layout) -> Tensor:
    body = inner if layout.own_head else inner.base_model
    if layout.rows == "shared_prefix":
        out = body(
            input_ids=batch.input_ids[None],
            position_ids=batch.position_ids[None],
            # A 4-D mask is taken unchanged. This one keeps the model from making one of [T x T], which is not needed.
            attention_mask=torch.zeros(1, 1, 1, 1, device=batch.input_ids.device),
            use_cache=False,
            judgelit_attention=FlatAttention(batch.plan),
        )
        predicts = batch.predicts
    else:
        rows = batch.padded
        out = body(input_ids=rows.input_ids, attention_mask=rows.attention_mask, use_cache=False)
        predicts = rows.predicts
    if layout.own_head:
        return _target_logprobs(out.logits.flatten(0, 1)[predicts], batch.targets)
    hidden = out.last_hidden_state.flatten(0, 1).index_select(0, predicts)
    return head_logprobs(hidden, batch.targets, inner.get_output_embeddings(), logit_transform(inner.config))


def head_logprobs(
    hidden: Tensor, targets: Tensor, head: nn.Module, transform: Callable[[Tensor], Tensor], at_once: int | None = None
) -> Tensor:
    """log p(target) at each of N positions, [N] float32, a chunk of positions at a time.

    Only one chunk's logits are in memory at any time; the backward pass computes them again.

    Args:
        hidden: [N, hidden size], any dtype.
        targets: [N] int64.
        head: The language-model head, [N, hidden size] to [N, vocabulary].
        transform: The model's scaling and capping of its head's logits.
        at_once: Positions of a chunk; by default so many that the chunk's logits take 64 MB.
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
    """The scaling and the soft cap (Gemma 2, arXiv 2408.00118) that a model applies to the logits of its head."""
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

    On a CPU, `cross_entropy` loses a digit of the gradient in the sum over a large vocabulary; `logsumexp` loses one
    where the target is almost certain.
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
    """The dtype in which a model computes: that of autocast if it is on, else that of the head's weights."""
    head = without_adapter(model).get_output_embeddings()
    weight = next(head.parameters())
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
