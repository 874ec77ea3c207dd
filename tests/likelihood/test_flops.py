"""Operations of a step against PyTorch's own count of what a forward pass did."""

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from judgelit.batches.flat_batch import Batch, TokenizedCompletion, flatten_completions
from judgelit.likelihood.flops import forward_flops, passes, step_flops
from judgelit.likelihood.layouts import Layout
from judgelit.likelihood.logprobs import completion_logprobs
from judgelit.models.backbone import Backbone
from judgelit.models.lora import LoRA

ROWS = [
    TokenizedCompletion("a", range(30), range(30, 37)),
    TokenizedCompletion("b", range(30), range(40, 52)),
    TokenizedCompletion("c", range(7), range(90, 91)),
]
BATCH = flatten_completions(ROWS)


def counted(model: Any, batch: Batch) -> dict[str, int]:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        completion_logprobs(model, batch, Layout("shared_prefix"))
    found: dict[str, int] = {}
    for operation, count in counter.get_flop_counts()["Global"].items():
        kind = "attention" if "attention" in str(operation) else "linear"
        found[kind] = found.get(kind, 0) + count
    return found


@pytest.mark.parametrize("lora", [None, LoRA(r=4)])
def test_linear_layers_are_what_pytorch_counts(model_folder: str, lora: LoRA | None) -> None:
    model = Backbone(model_folder, lora=lora).build()
    config: Any = model.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    # Causal: 37 places of the first trunk and 8 of the other; 12 of the branch after a prompt of 30.
    pairs = 37 * 38 // 2 + 8 * 9 // 2 + 12 * 30 + 12 * 13 // 2
    attention = 4 * config.num_hidden_layers * config.num_attention_heads * width * pairs
    assert forward_flops(model, BATCH) == counted(model, BATCH)["linear"] + attention


def test_a_step_is_some_forward_passes(llama: str) -> None:
    # Forward, gradients of activations, gradients of trained weights; and the reference's forward pass.
    assert (passes(uses_lora=False, reference=False), passes(uses_lora=False, reference=True)) == (3, 4)
    assert (passes(uses_lora=True, reference=False), passes(uses_lora=True, reference=True)) == (2, 3)
    model = Backbone(llama).build()
    assert step_flops(model, BATCH, uses_lora=False, reference=True) == 4 * forward_flops(model, BATCH)
