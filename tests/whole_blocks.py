"""Variants of the tiny models: rows of whole 4-bit blocks, LoRA adapters with random weights."""

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from judgelit.models.backbone import Backbone
from judgelit.models.lora import LoRA

WIDE = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}


def widened(folder: str, to: Path, **sizes: int) -> str:
    """Save a wider model with the same architecture and tokenizer and random weights; return its folder.

    Each row of its weights is a whole number of blocks of 4-bit quantization.
    """
    shutil.copytree(folder, to)
    config = AutoConfig.from_pretrained(folder)
    for name, size in {**WIDE, **sizes}.items():
        setattr(config, name, size)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        AutoModelForCausalLM.from_config(config).save_pretrained(to)
    return str(to)


def save_adapter(model_folder: str, to: Path, target_modules: str | list[str] = "all-linear") -> str:
    """Save a LoRA adapter for the model, with weights that clearly change its outputs; return its folder."""
    model: Any = Backbone(model_folder, lora=LoRA(r=4, alpha=8, target_modules=target_modules)).build()
    with torch.random.fork_rng():
        torch.manual_seed(7)
        for weight in model.parameters():
            if weight.requires_grad:
                torch.nn.init.normal_(weight, std=0.1)
    model.save_pretrained(to)
    return str(to)
