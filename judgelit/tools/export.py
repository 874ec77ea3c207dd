"""A trained model as a Hugging Face folder."""

from pathlib import Path
from typing import TYPE_CHECKING

from judgelit.data.tokenization import ChatTokenizer

if TYPE_CHECKING:
    from judgelit.modules.backbone import CausalLM


def save_model(model: "CausalLM", tokenizer: ChatTokenizer, folder: Path) -> None:
    """Write weights (safetensors), tokenizer, chat template and generation config; of a LoRA model only the adapter."""
    if hasattr(model, "peft_config"):
        # A DPO policy also holds the reference's adapter, which is not what was trained.
        model.save_pretrained(str(folder), selected_adapters=["default"], save_embedding_layers=False)
    else:
        model.generation_config.eos_token_id = list(tokenizer.stop_ids)
        model.generation_config.pad_token_id = tokenizer.pad_id
        model.save_pretrained(str(folder))
    tokenizer.hf.save_pretrained(folder)
