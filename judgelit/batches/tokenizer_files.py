"""Files of a tokenizer: which folder holds it, how it is loaded, and how many tokens its model can take."""

import json
from pathlib import Path
from typing import Any

from judgelit.errors import UserError, first_line

NANO = "nano"
NANO_FOLDER = Path(__file__).parent / "nano"
"""The built-in model for a start from scratch: its configuration and tokenizer, no weights."""

ADAPTER_CONFIG = "adapter_config.json"
"""File that makes a folder that of an adapter."""
_TOKENIZER_FILES = ("*token*", "vocab*", "merges.txt", "*.model", "*.tiktoken")


def model_folder(name_or_path: str) -> str:
    """Return the name or folder for Hugging Face's loaders: `nano` stands for the built-in folder."""
    return str(NANO_FOLDER) if name_or_path == NANO else name_or_path


def tokenizer_folder(name_or_path: str, adapter: str | None) -> str:
    """Return where to look for the tokenizer of a model: in the folder of its adapter, if there is one.

    Args:
        name_or_path: The model's hub name, folder or `nano`.
        adapter: The folder of its adapter; None if it has none.
    """
    return adapter if adapter is not None and holds_adapter(adapter) else name_or_path


def holds_tokenizer(folder: Path) -> bool:
    return any(file for kind in _TOKENIZER_FILES for file in folder.glob(kind))


def load_files(name_or_path: str, base: str | None, trust_remote_code: bool) -> tuple[Any, Any]:
    """Load a tokenizer, and the text configuration of the model in the same place or of `base`."""
    from transformers import AutoConfig, AutoTokenizer

    folder = model_folder(name_or_path)
    local = Path(folder)
    try:
        hf = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
        config = AutoConfig.from_pretrained(model_folder(base or folder), trust_remote_code=trust_remote_code)
    except Exception as error:
        # transformers raises many kinds of errors for files that it cannot read.
        if not local.exists() and local.parent != Path() and local.parent.is_dir():
            raise UserError(f"tokenizer {name_or_path!r}: no such folder") from error
        if not local.exists() and isinstance(error, OSError) and "gated" not in str(error):
            raise UserError(
                f"tokenizer {name_or_path!r}: no such folder, and the hub could not be reached or has no such model"
            ) from error
        raise UserError(f"tokenizer {name_or_path!r}: cannot be loaded: {first_line(error)}") from error
    return hf, config.get_text_config()


def holds_adapter(folder: str | Path) -> bool:
    """Whether a folder holds the settings of a PEFT adapter."""
    return (Path(folder) / ADAPTER_CONFIG).is_file()


def base_of_adapter(folder: Path) -> str | None:
    """The base model that a folder of a LoRA adapter names; None if the folder holds no adapter."""
    return adapter_settings(folder).get("base_model_name_or_path") if holds_adapter(folder) else None


def adapter_settings(folder: Path) -> dict[str, Any]:
    """The content of an adapter's adapter_config.json.

    Raises:
        UserError: It holds no settings of an adapter.
    """
    path = folder / ADAPTER_CONFIG
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: found no JSON, expected the settings of a PEFT adapter") from error
    if not isinstance(settings, dict):
        raise UserError(f"{path}: found {type(settings).__name__}, expected the settings of a PEFT adapter")
    base = settings.get("base_model_name_or_path")
    if base is not None and not isinstance(base, str):
        raise UserError(f"{path}: field 'base_model_name_or_path': found {base!r}, expected the base model's name")
    return settings


def row_limit(config: Any) -> int:
    """Return the most tokens for which a row's result does not depend on the other rows of its batch.

    LongRoPE and dynamic scaling change all position embeddings of a batch if one of its rows is longer than the
    model's original context (arXiv 2402.13753).
    """
    context: int = getattr(config, "max_position_embeddings", None) or 1 << 30
    rope = getattr(config, "rope_parameters", None) or {}
    for one in [rope, *(value for value in rope.values() if isinstance(value, dict))]:
        if one.get("rope_type") in ("longrope", "dynamic"):
            context = min(context, one.get("original_max_position_embeddings") or context)
    return context
