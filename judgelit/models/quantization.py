"""4-bit NormalFloat weights (Dettmers et al. 2023, arXiv 2305.14314): made while a model loads, hashed, and undone."""

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

# It regrets a kernel for inference in bfloat16 that `prepare_4bit_layers` keeps away from models anyway.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

_NOTE = "judgelit.json"


def nf4(dtype: torch.dtype) -> "BitsAndBytesConfig":
    """NormalFloat of blocks of 64 weights, their scales quantised once more, computed with in `dtype`.

    The 4-bit codes are kept in tensors that claim to be of `dtype`: one dtype throughout can be sharded together.
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
    """Whether a model of transformers was loaded with 4-bit weights."""
    return bool(getattr(model, "is_loaded_in_4bit", False))


def prepare_4bit_layers(model: nn.Module, dtype: torch.dtype) -> None:
    """Make the 4-bit layers of a model just loaded compute in `dtype`, the same in evaluation and in training.

    On CPUs with bfloat16 instructions, a first forward pass in eval mode would reorder a layer's codes for a kernel
    that rounds to bfloat16, has no gradient, and takes only some shapes; they would stay so when training goes on.

    Raises:
        UserError: A layer on the CPU has rows that end within a block; bitsandbytes 0.50 gives such the wrong scales.
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
        # On the host it may be a view of the file it was read from, which then stays in memory as a whole.
        if weight.device.type == "cpu" and type(weight) is nn.Parameter:
            weight.data = weight.data.clone()


def dequantize(model: Any) -> None:
    """Put ordinary layers in place of a model's 4-bit ones, with the weights that the codes stand for, in place."""
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit
    from transformers.pytorch_utils import Conv1D

    layers: list[tuple[str, Any]] = [one for one in model.named_modules() if isinstance(one[1], Linear4bit)]
    while layers:
        # Nothing holds on to a layer once it has been replaced.
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
    """Note in an adapter's folder that its base was in NF4; PEFT's own settings have no place for it."""
    write_json(folder / _NOTE, {"quantization": "nf4"})


def noted(folder: Path) -> Literal["nf4"] | None:
    """What the base of the adapter in `folder` was quantised to, as far as `write_note` has noted it.

    Raises:
        UserError: The note is broken.
    """
    path = folder / _NOTE
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["quantization"]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: found no note of a quantization; remove it, or export the adapter again") from error
    if found != "nf4":
        raise UserError(f"{path}: field 'quantization': found {found!r}, expected 'nf4'")
    return found


def scales(weight: Tensor) -> dict[str, Tensor]:
    """What a 4-bit weight consists of beside its codes, by name; nothing for an ordinary weight."""
    state: Any = getattr(weight, "quant_state", None)
    return {} if state is None else state.as_dict(packed=True)
