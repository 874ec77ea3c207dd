"""LoRA adapters: add a new one to a model, or load one to continue from."""

import copy
import re
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from judgelit.batches.tokenizer_files import ADAPTER_CONFIG, adapter_settings, holds_adapter
from judgelit.errors import UserError, first_line

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class LoRA:
    """A low-rank adapter (Hu et al. 2021, arXiv 2106.09685); its weights are float32 on a model of any dtype."""

    r: int = 16
    """Rank of the update: more can learn more, and needs more memory."""
    alpha: int = 32
    """The update is scaled by alpha / r."""
    dropout: float = 0.0
    """Dropout on the adapter's input. DPO switches it off, because policy and reference must agree at the start."""
    target_modules: str | list[str] = "all-linear"
    """Layers to adapt: `all-linear`, a list of names such as [q_proj, v_proj], or a regular expression that must match
    the full name of a layer."""
    rslora: bool = False
    """Scale the update by alpha / sqrt(r) instead (Kalajdzievski 2023, arXiv 2312.03732)."""

    def __post_init__(self) -> None:
        if self.r < 1:
            raise UserError(f"lora.r: found {self.r}, expected 1 or more")
        if self.alpha <= 0:
            raise UserError(f"lora.alpha: found {self.alpha}, expected more than 0")
        if not 0 <= self.dropout < 1:
            raise UserError(f"lora.dropout: found {self.dropout}, expected 0 <= dropout < 1")


def add_adapter(model: "PreTrainedModel", lora: LoRA, name: str) -> "PeftModel":
    """Add a new adapter to a model.

    Args:
        model: The model; its layers are wrapped in place.
        lora: Settings of the adapter.
        name: What error messages call the model.

    Raises:
        UserError: A target matches no layer that can be adapted.
    """
    from peft import LoraConfig, TaskType, get_peft_model

    settings = asdict(lora)
    config = LoraConfig(
        r=settings["r"],
        lora_alpha=settings["alpha"],
        lora_dropout=settings["dropout"],
        target_modules=settings["target_modules"],
        use_rslora=settings["rslora"],
        task_type=TaskType.CAUSAL_LM,
    )
    linear = sorted({path.rsplit(".", 1)[-1] for path, m in model.named_modules() if isinstance(m, nn.Linear)})
    advice = f"cannot be adapted in {name!r}; its linear layers are named {', '.join(linear)}"
    if not isinstance(lora.target_modules, str):
        # If only some names of a list match, PEFT leaves out the others without a word.
        ends = {"." + path for path, _ in model.named_modules()}
        for target in lora.target_modules:
            if not any(end.endswith("." + target) for end in ends):
                raise UserError(f"lora.target_modules: {target!r} {advice}")
    try:
        return get_peft_model(model, config)
    except re.error as error:
        raise UserError(f"lora.target_modules: {lora.target_modules!r}: not a regular expression: {error}") from error
    except ValueError as error:
        raise UserError(f"lora.target_modules: {lora.target_modules!r} {advice}") from error


def start_from_adapter(model: "PreTrainedModel", adapter: str, name: str) -> "PeftModel":
    """Load an adapter onto a model, to train it further.

    Args:
        model: The model; its layers are wrapped in place.
        adapter: Folder of the adapter.
        name: What error messages call the model.

    Raises:
        UserError: The folder holds no adapter, or one of another model.
    """
    from peft import PeftModel

    folder = loadable_adapter(adapter)
    try:
        # PEFT repeats the initialisation of the adapter, which edits the base's weights in some (PiSSA). Where it draws
        # random numbers, they must be the same each time the adapter is loaded, and on all ranks.
        with torch.random.fork_rng(), warnings.catch_warnings():
            torch.manual_seed(0)
            # PEFT would give these weights random values.
            warnings.filterwarnings("error", message="Found missing adapter keys")
            return PeftModel.from_pretrained(model, folder, is_trainable=True)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        # PEFT raises many kinds of errors for settings and weights that it cannot use.
        said = first_line(error)
        # PEFT names all layers of the adapter between the first and the last words.
        said = said if len(said) <= 300 else f"{said[:150]} ... {said[-140:]}"
        raise UserError(f"adapter {folder!r} does not fit {name!r}: {said}") from error


def copy_adapter(model: "PeftModel", name: str) -> None:
    """Add a frozen copy of the adapter `default` under another name.

    The copy's weights come from the model, not from files. Loading the files again would repeat the adapter's
    initialisation, which edits the base's weights in some (PiSSA, OLoRA, LoftQ).

    Args:
        model: A model whose adapter `refusal_to_copy` accepts.
        name: Name of the copy.
    """
    settings = copy.deepcopy(model.peft_config["default"])
    settings.inference_mode = True
    if hasattr(settings, "init_lora_weights"):
        settings.init_lora_weights = True
    with torch.random.fork_rng():
        model.add_adapter(name, settings)
    weights = dict(model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for path, weight in weights.items():
            if ".default." in f"{path}.":
                weights[f"{path}.".replace(".default.", f".{name}.").removesuffix(".")].copy_(weight)
    # The new adapter's parameters may be marked as trainable.
    model.set_adapter("default")


def refusal_to_copy(adapter: str) -> str | None:
    """Why a model cannot hold an adapter twice; None if it can.

    Args:
        adapter: Folder of the adapter.
    """
    bias = _settings(adapter).get("bias", "none")
    if bias != "none":
        return f"trains the model's own biases (bias {bias!r})"
    return "ties its weights to each other (ensure_weight_tying)" if ties_weights(adapter) else None


def ties_weights(adapter: str) -> bool:
    """Whether an adapter of the embeddings is also that of the head."""
    return bool(_settings(adapter).get("ensure_weight_tying"))


def trains_base_weights(adapter: str) -> bool:
    """Whether an adapter trains weights of the model itself: copies of whole modules, or biases.

    PEFT keeps these in the model's dtype; low-rank weights are float32.
    """
    settings = _settings(adapter)
    return bool(settings.get("modules_to_save")) or settings.get("bias", "none") != "none"


def edits_base_weights(adapter: str) -> bool:
    """Whether the initialisation of an adapter, which PEFT repeats when it loads it, changes the base's weights."""
    return (
        str(_settings(adapter).get("init_lora_weights", True)).lower().startswith(("pissa", "olora", "corda", "loftq"))
    )


def replaces_base_weights(adapter: str) -> bool:
    """Whether an adapter's files also hold weights of the model itself, such as embeddings that were trained fully."""
    from safetensors import SafetensorError, safe_open

    file = Path(adapter_folder(adapter)) / "adapter_model.safetensors"
    try:
        with safe_open(file, framework="pt") as content:
            return any("lora_" not in name for name in content.keys())  # noqa: SIM118
    except (OSError, SafetensorError):
        # Assume so. PEFT then reads another file format or reports the error.
        return True


def _settings(adapter: str) -> dict[str, Any]:
    """The content of an adapter's adapter_config.json."""
    return adapter_settings(Path(adapter_folder(adapter)))


def adapter_folder(adapter: str) -> str:
    """Return the folder, if it holds an adapter.

    Raises:
        UserError: It holds none, or PEFT does not know its kind.
    """
    from peft import PeftType

    folder = Path(adapter)
    if not holds_adapter(folder):
        raise UserError(
            f"adapter {adapter!r}: no adapter_config.json there; give the folder of a PEFT adapter with "
            "model.backbone.adapter"
        )
    if (kind := adapter_settings(folder).get("peft_type")) not in list(PeftType):
        raise UserError(
            f"{folder / ADAPTER_CONFIG}: field 'peft_type': found {kind!r}, expected a kind that the installed PEFT "
            "knows, such as 'LORA'"
        )
    return adapter


def loadable_adapter(adapter: str) -> str:
    """Return the folder, if it holds an adapter with its weights.

    Raises:
        UserError: It holds none, its weights are missing, or PEFT does not know its kind.
    """
    folder = Path(adapter_folder(adapter))
    if not any((folder / name).is_file() for name in ("adapter_model.safetensors", "adapter_model.bin")):
        raise UserError(
            f"adapter {adapter!r}: found no adapter_model.safetensors there, expected the adapter's weights"
        )
    return adapter


def without_adapter(model: nn.Module) -> Any:
    """Return the causal language model itself, without its PEFT wrapper if it has one."""
    get_base_model: Any = getattr(model, "get_base_model", None)
    return model if get_base_model is None else get_base_model()
