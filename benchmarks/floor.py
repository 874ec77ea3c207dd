"""Floor of a training step: the time that its necessary arithmetic alone would take.

floor = necessary operations / rate of matrix products

The rate is measured in the same process directly before and after the step, on the matrix products of one decoder
layer, forward and backward, with the step's number of tokens. The necessary operations are:

- 2 for each weight of the decoder layers and each token, in each pass;
- 2 for each weight of the head and each scored token, in each pass;
- 4 for each channel of attention and each pair of a query and a key that it attends to, in each pass.

The passes are the reference's forward pass, the policy's forward pass, the recomputation of activation checkpointing
(without the last product of each layer, which is not computed again), and two for the backward pass. No other work is
counted, so a step cannot reach 100% of its floor.
"""

import time
from typing import Any


def operations(module: Any, batch: Any) -> float:
    """Necessary operations of full fine-tuning on a batch, in the module's layout."""
    layers = linear_layers(module.model)
    body = sum(linear.weight.numel() for layer in layers for linear in layer)
    last = sum(layer[-1].weight.numel() for layer in layers)
    head = module.model.get_output_embeddings().weight.numel()
    config = module.model.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    channels = len(layers) * config.num_attention_heads * width
    tokens, pairs = count_tokens_and_pairs(module, batch)
    forward = 2 * body * tokens + 2 * head * len(batch.targets) + 4 * channels * pairs
    reference = getattr(module, "reference_kind", "precomputed") != "precomputed"
    recomputed = module.backbone.activation_checkpointing
    return (3 + recomputed + reference) * forward - 2 * last * tokens * recomputed


def count_tokens_and_pairs(module: Any, batch: Any) -> tuple[int, int]:
    """Tokens without padding, and pairs of query and key, that the module computes for a batch in its layout."""
    shared = module.policy.layout(batch).rows == "shared_prefix"
    pairs = 0
    for segment in batch.segments:
        own, above = segment.length, 0 if segment.prompt is None else batch.segments[segment.prompt].length
        if shared:
            pairs += own * above + own * (own + 1) // 2
        elif segment.prompt is not None:
            pairs += (above + own) * (above + own + 1) // 2
    return len(batch.input_ids) if shared else batch.tokens, pairs


def matmul_rate(module: Any, batch: Any, seconds: float = 0.3) -> float:
    """Operations a second of one decoder layer's matrix products, forward and backward, in float32."""
    import torch

    tokens, _ = count_tokens_and_pairs(module, batch)
    work = []
    for linear in linear_layers(module.model)[0]:
        weight = linear.weight.detach()
        out, into = weight.shape
        x, y = torch.randn(tokens, into), torch.randn(tokens, out)
        work.append((x, y, weight, torch.empty_like(x), torch.empty_like(y), torch.empty_like(weight)))
    done, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        for x, y, weight, dx, product, dweight in work:
            torch.mm(x, weight.t(), out=product)
            torch.mm(y, weight, out=dx)
            torch.mm(y.t(), x, out=dweight)
            done += 6 * tokens * weight.numel()
    return done / (time.perf_counter() - began)


def linear_layers(model: Any) -> list[list[Any]]:
    """The linear layers of each decoder layer."""
    from torch import nn

    head = model.get_output_embeddings()
    linear = [part for part in model.modules() if isinstance(part, nn.Linear) and part is not head]
    each = len(linear) // model.config.num_hidden_layers
    return [linear[start : start + each] for start in range(0, len(linear), each)]
