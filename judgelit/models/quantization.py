"""4-bit NormalFloat (NF4) weights of bitsandbytes (QLoRA; Dettmers et al. 2023, arXiv 2305.14314)."""

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from judgelit.atomic import write_json
from judgelit.errors import UserError

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig

# bitsandbytes warns that a kernel is missing. `prepare_4bit_layers` switches that kernel off.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

_NOTE = "judgelit.json"
"""File in an adapter's folder."""


def nf4(dtype: torch.dtype) -> "BitsAndBytesConfig":
    """Settings for NF4 with double quantisation: blocks of 64 weights, and their scales are quantised too.

    Args:
        dtype: Layers compute in it. The 4-bit codes are also stored in tensors of this dtype, because FSDP2 shards
            only tensors of one dtype together.
    """
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_quant_storage=dtype,
    )


def is_4bit(model: nn.Module) -> bool:
    """Whether transformers loaded the model with 4-bit weights."""
    return bool(getattr(model, "is_loaded_in_4bit", False))


def prepare_4bit_layers(model: nn.Module, dtype: torch.dtype) -> None:
    """Make the 4-bit layers of a newly loaded model compute in `dtype`, in training and evaluation alike.

    This switches off a kernel of bitsandbytes for CPUs with bfloat16 instructions. In the first forward pass in eval
    mode it would reorder a layer's codes for good; it rounds to bfloat16 and has no gradient.

    Raises:
        UserError: On a CPU, a layer's rows are not whole blocks; bitsandbytes 0.50 computes these with wrong scales.
    """
    from bitsandbytes.nn import Linear4bit

    for name, layer in model.named_modules():
        if not isinstance(layer, Linear4bit):
            continue
        weight: Any = layer.weight
        block = weight.quant_state.blocksize
        if weight.device.type == "cpu" and layer.in_features % block:
            raise UserError(
                f"4-bit weights: {name} has rows of {layer.in_features} weights, expected a multiple of {block}, since "
                "bitsandbytes computes others wrongly on a CPU; leave quantization out, or use a GPU"
            )
        layer.support_avx512bf16_for_cpu = False
        layer.compute_dtype = dtype
    for weight in model.parameters():
        # A view of a mapped file would keep the whole file in memory.
        if weight.device.type == "cpu" and type(weight) is nn.Parameter:
            weight.data = weight.data.clone()


def dequantize(model: Any) -> None:
    """Replace a model's 4-bit layers by ordinary ones with the same values, in place."""
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit
    from transformers.pytorch_utils import Conv1D

    layers: list[tuple[str, Any]] = [one for one in model.named_modules() if isinstance(one[1], Linear4bit)]
    while layers:
        # `pop`, so that a replaced layer is freed at once.
        name, layer = layers.pop()
        weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        with torch.device("meta"):
            plain: nn.Module
            if layer.source_cls is Conv1D:
                plain, weight = Conv1D(layer.out_features, layer.in_features), weight.T.contiguous()
            else:
                plain = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None)
        plain.weight = nn.Parameter(weight, requires_grad=False)
        if layer.bias is not None:
            plain.bias = layer.bias
        model.set_submodule(name, plain.train(layer.training))
    model.hf_quantizer.remove_quantization_config(model)
    model.is_loaded_in_4bit = False


def write_note(folder: Path) -> None:
    """Note in an adapter's folder that its base model was in NF4, because PEFT's settings have no field for it."""
    write_json(folder / _NOTE, {"quantization": "nf4"})


def read_note(folder: Path) -> Literal["nf4"] | None:
    """Return the quantization of an adapter's base model that `write_note` noted; None without a note.

    Raises:
        UserError: The note is broken.
    """
    path = folder / _NOTE
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["quantization"]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{path}: found no field 'quantization'; remove the file, or export the adapter again"
        ) from error
    if found != "nf4":
        raise UserError(f"{path}: field 'quantization': found {found!r}, expected 'nf4'")
    return found


def scales(weight: Tensor | nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a 4-bit weight beside its codes, by name; none for an ordinary weight.

    Args:
        weight: The weight, or the layer of a 4-bit weight that is sharded.
    """
    state: Any = getattr(weight, "quant_state", None)
    return {} if state is None else state.as_dict(packed=True)
