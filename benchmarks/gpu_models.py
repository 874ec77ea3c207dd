"""Models of real shapes with random weights, and data of random digits, for `gpu.py`."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
    "0.5b": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14},
    "1.5b": {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12},
    "7b": {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28},
}
"""Sizes of Qwen2.5's models."""
GROUPS = {"tiny": 2, "0.5b": 2, "1.5b": 2, "7b": 4}
VOCABULARY = {"tiny": 512, "0.5b": 151936, "1.5b": 151936, "7b": 152064}
_SHARD_BYTES = 4 << 30


def make_model(folder: Path, shape: str, device: str) -> str:
    """Make a folder with a model's configuration, tokenizer and random bfloat16 weights, if it is not there."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, Qwen2Config

    from judgelit.batches.tokenizer_files import NANO_FOLDER

    target = folder / f"model-{shape}"
    if (target / "config.json").exists():
        return str(target)
    target.mkdir(parents=True, exist_ok=True)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(NANO_FOLDER / file, target)
    settings = json.loads((target / "tokenizer_config.json").read_text(encoding="utf-8"))
    (target / "tokenizer_config.json").write_text(json.dumps({**settings, "model_max_length": 32768}), encoding="utf-8")
    config = Qwen2Config(
        **SHAPES[shape],
        num_key_value_heads=GROUPS[shape],
        vocab_size=VOCABULARY[shape],
        max_position_embeddings=32768,
        tie_word_embeddings=shape != "7b",
        dtype="bfloat16",
        architectures=["Qwen2ForCausalLM"],
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    generator = torch.Generator(device).manual_seed(0)
    shards: list[dict[str, Any]] = [{}]
    filled = 0
    for name, weight in model.named_parameters():
        value = torch.empty(weight.shape, dtype=torch.bfloat16, device=device)
        if weight.ndim == 1:
            value.fill_(0.0 if name.endswith("bias") else 1.0)
        else:
            value.normal_(0.0, 0.02, generator=generator)
        if filled > _SHARD_BYTES:
            shards.append({})
            filled = 0
        shards[-1][name] = value.cpu()
        filled += value.numel() * 2
    files = [f"model-{index + 1:05}-of-{len(shards):05}.safetensors" for index in range(len(shards))]
    for file, shard in zip(files, shards, strict=True):
        save_file(shard, target / file, metadata={"format": "pt"})
    where = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
    index = {"metadata": {}, "weight_map": where}
    (target / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    # Last, since it says that the folder is complete.
    config.save_pretrained(target)
    return str(target)


def make_data(folder: Path, kind: str, count: int, prompt: int, completion: int) -> str:
    """Write `count` SFT or DPO examples with prompts and completions of so many tokens, and return the file."""
    rng = random.Random(0)
    target = folder / f"{kind}-{count}-{prompt}-{completion}.jsonl"

    def digits(length: int) -> str:
        return "".join(rng.choices("0123456789", k=length))

    with target.open("w", encoding="utf-8") as file:
        for _ in range(count):
            row: dict[str, Any] = {"prompt": [{"role": "user", "content": digits(prompt)}]}
            for name in ("completion",) if kind == "sft" else ("chosen", "rejected"):
                # Lengths of real judgments differ.
                row[name] = digits(max(1, round(completion * rng.uniform(0.7, 1.3))))
            file.write(json.dumps(row) + "\n")
    return str(target)
