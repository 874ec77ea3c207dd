"""What a training step would take if it did nothing but the arithmetic that it needs.

The floor of a step is the operations that it needs, at the rate that matrix products reach in the same process right
before and after it: those of one decoder layer, forward and backward, with as many tokens as the step has. Needed are 2
operations for each weight and token in each pass: the reference's forward pass, the policy's, the recomputation of
activation checkpointing (but for each layer's last product, which nothing asks for again) and 2 backward; of the head's
weights only where a token is scored; in attention 4 operations for each channel and each query and key that see each
other, in as many passes. Nothing else counts, so 100% is out of reach.
"""

import time
from typing import Any


def operations(module: Any, batch: Any) -> float:
    """Operations that full fine-tuning of a module needs for a batch in the layout that it computes."""
    each = layers(module.model)
    body = sum(linear.weight.numel() for layer in each for linear in layer)
    last = sum(layer[-1].weight.numel() for layer in each)
    head = module.model.get_output_embeddings().weight.numel()
    config = module.model.config
    channels = len(each) * config.num_attention_heads * config.head_dim
    tokens, pairs = computed(module, batch)
    forward = 2 * body * tokens + 2 * head * len(batch.targets) + 4 * channels * pairs
    reference = getattr(module, "reference_kind", "precomputed") != "precomputed"
    recomputed = module.backbone.activation_checkpointing
    return (3 + recomputed + reference) * forward - 2 * last * tokens * recomputed


def computed(module: Any, batch: Any) -> tuple[int, int]:
    """What the module computes for a batch in its layout: tokens, padding left out, and pairs of query and key."""
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
    """Operations a second of the matrix products of one decoder layer, forward and backward, in float32."""
    import torch

    tokens, _ = computed(module, batch)
    work = []
    for linear in layers(module.model)[0]:
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


def layers(model: Any) -> list[list[Any]]:
    """The linear layers of each decoder layer."""
    from torch import nn

    head = model.get_output_embeddings()
    linear = [part for part in model.modules() if isinstance(part, nn.Linear) and part is not head]
    each = len(linear) // model.config.num_hidden_layers
    return [linear[start : start + each] for start in range(0, len(linear), each)]
