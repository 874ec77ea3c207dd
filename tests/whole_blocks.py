"""The tiny models in a size whose rows are whole blocks of 4-bit weights."""

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from judgelit.models.backbone import Backbone
from judgelit.models.lora import LoRA

WIDE = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}


def widened(folder: str, to: Path, **sizes: int) -> str:
    """A model of the same architecture and tokenizer, with new random weights; returns its folder."""
    shutil.copytree(folder, to)
    config = AutoConfig.from_pretrained(folder)
    for name, size in {**WIDE, **sizes}.items():
        setattr(config, name, size)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        AutoModelForCausalLM.from_config(config).save_pretrained(to)
    return str(to)


def save_adapter(model_folder: str, to: Path) -> str:
    """A LoRA adapter on the model whose weights are far from doing nothing; returns its folder."""
    model: Any = Backbone(model_folder, lora=LoRA(r=4, alpha=8)).build()
    with torch.random.fork_rng():
        torch.manual_seed(7)
        for weight in model.parameters():
            if weight.requires_grad:
                torch.nn.init.normal_(weight, std=0.1)
    model.save_pretrained(to)
    return str(to)
