"""Log-probabilities of completions: the one function that policy, reference and warm-up all go through."""

import inspect
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from judgelit.data.layout import Batch
from judgelit.modules.backbone import without_adapter


@dataclass(frozen=True)
class CompletionLogProbs:
    """Log-probabilities of the completions of B rows, N tokens in all.

    tokens: [N] float32, one a completion token, row by row.
    rows: [N] int64, the row that each belongs to.
    sums: [B] float32, log p(completion | prompt).
    lengths: [B] int64, completion tokens of each row.
    """

    tokens: Tensor
    rows: Tensor
    sums: Tensor
    lengths: Tensor


def completion_logprobs(model: nn.Module, batch: Batch) -> CompletionLogProbs:
    """Log-probabilities that `model` gives to the completion tokens of `batch`.

    The log-sum-exp and all sums are taken in float32, whatever the compute dtype. Only positions from the first
    completion on go through the language-model head, where the model allows it.
    """
    width = batch.input_ids.shape[1]
    # The token at position t is predicted at t - 1.
    predicts = torch.zeros_like(batch.completion_mask)
    predicts[:, :-1] = batch.completion_mask[:, 1:]
    first = int(predicts.any(dim=0).nonzero()[0])
    keep = {"logits_to_keep": width - first} if _takes_logits_to_keep(model) else {}
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False, **keep).logits
    predicts, input_ids = predicts[:, -logits.shape[1] :], batch.input_ids[:, -logits.shape[1] :]
    rows, columns = predicts.nonzero(as_tuple=True)
    targets = input_ids[rows, columns + 1]
    tokens = -F.cross_entropy(logits[rows, columns].float(), targets, reduction="none")
    count = batch.input_ids.shape[0]
    sums = torch.zeros(count, dtype=torch.float32, device=tokens.device).index_add(0, rows, tokens)
    return CompletionLogProbs(tokens, rows, sums, batch.completion_mask.sum(dim=1))


def _takes_logits_to_keep(model: nn.Module) -> bool:
    return "logits_to_keep" in inspect.signature(without_adapter(model).forward).parameters
