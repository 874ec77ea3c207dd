"""Floating-point operations of a training step, from which the share of a device's peak follows."""

from typing import Any

from torch import nn

from judgelit.batches.flat_batch import Batch
from judgelit.models.lora import without_adapter

PEAK_TFLOPS = {
    "B200": 2250,
    "H200": 989,
    "H200 NVL": 835,
    "H100": 989,
    "H100 NVL": 835,
    "H100 PCIE": 756,
    "A100": 312,
    "L40S": 362,
    "L4": 121,
    "4090": 165,
    "3090": 71,
}
"""Dense bfloat16 operations a second, in 10^12, from the makers' data sheets. Names are in capital letters."""


def peak_flops(card: str) -> int | None:
    """Dense bfloat16 operations a second of a GPU, by PyTorch's name for it; None if it is not known."""
    words = set(card.upper().replace("-", " ").split())
    known = [name for name in PEAK_TFLOPS if words.issuperset(name.split())]
    return PEAK_TFLOPS[max(known, key=len)] * 10**12 if known else None


def step_flops(model: nn.Module, batch: Batch, uses_lora: bool, reference: bool) -> int:
    """Operations of a training step's forward and backward passes over a micro-batch.

    Args:
        model: The model.
        batch: The micro-batch.
        uses_lora: Whether an adapter alone is trained.
        reference: Whether a reference computes a forward pass too.
    """
    return forward_flops(model, batch) * passes(uses_lora, reference)


def passes(uses_lora: bool, reference: bool) -> int:
    """The work of a training step, in forward passes.

    A backward pass costs one forward pass for the gradients of activations, and one for those of trained weights.
    """
    return (2 if uses_lora else 3) + reference


def forward_flops(model: nn.Module, batch: Batch) -> int:
    """Operations of one forward pass over a batch in which each prompt is computed once.

    A linear layer costs two for each weight and token; the head, only where a token is scored. Attention costs four for
    each channel of each head and each query and key that see each other. Experts that are not linear layers, norms and
    activations are not counted.
    """
    inner = without_adapter(model)
    head = inner.get_output_embeddings()
    heads = {head, *head.modules()} if head is not None else set()
    body = sum(_weights(layer) for layer in inner.modules() if layer not in heads)
    scored = sum(_weights(layer) for layer in heads)
    config = inner.config.get_text_config()
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    channels = config.num_hidden_layers * config.num_attention_heads * width
    return 2 * body * len(batch.input_ids) + 2 * scored * len(batch.targets) + 4 * channels * _pairs_that_see(batch)


def _weights(layer: Any) -> int:
    # Quantised layers keep their sizes; the shape of their weights differs.
    return layer.in_features * layer.out_features if isinstance(layer, nn.Linear) else 0


def _pairs_that_see(batch: Batch) -> int:
    pairs = 0
    for segment in batch.segments:
        above = 0 if segment.prompt is None else batch.segments[segment.prompt].length
        pairs += segment.length * above + segment.length * (segment.length + 1) // 2
    return pairs
