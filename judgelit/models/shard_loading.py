"""Models without weights, and where the weights come from once each process knows which of them it keeps."""

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from judgelit.errors import UserError
from judgelit.models.sharding import local_part, reshard

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def build_without_weights(make: Callable[[], "PreTrainedModel"]) -> "PreTrainedModel":
    """A model whose parameters have shape and dtype but no memory, and whose buffers are real.

    Parameters are one number seen from everywhere, on the host: unlike on the meta device, adapters that are added to
    them are real. Buffers that the model cannot compute again hold NaN (or the least number); see `unfilled`.

    Args:
        make: Builds the model with its random weights.
    """
    with torch.device("meta"):
        model = make()
    hollow: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                if weight not in hollow:
                    shell = torch.zeros((), dtype=weight.dtype).expand(weight.shape)
                    hollow[weight] = nn.Parameter(shell, weight.requires_grad)
                    # transformers then leaves it as it is.
                    hollow[weight]._is_hf_initialized = True  # type: ignore[attr-defined]
                module._parameters[name] = hollow[weight]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.full(buffer.shape, _nothing(buffer.dtype), dtype=buffer.dtype)
        if module._buffers:
            # A model that would draw the weights too cannot: then its buffers are as they were.
            with torch.no_grad(), contextlib.suppress(RuntimeError):
                model._init_weights(module)
    return model


def unfilled(model: nn.Module) -> list[str]:
    """Names of a hollow model's buffers that are still to be given their values."""
    empty = [
        name
        for name, buffer in model.named_buffers()
        if bool((buffer.isnan() if buffer.is_floating_point() else buffer == _nothing(buffer.dtype)).any())
    ]
    # A tensor that is neither parameter nor buffer has been left on the meta device.
    return empty + [
        f"{prefix}.{name}"
        for prefix, module in model.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, Tensor) and value.is_meta
    ]


class FileWeights:
    """Weights of a hollow model out of safetensors files, of which each process reads only its rows."""

    def __init__(self, places: Mapping[nn.Parameter, tuple[str, Path]]) -> None:
        """Describe them: each weight's key and file."""
        self._places = dict(places)

    @classmethod
    def of(cls, model: "PreTrainedModel", name_or_path: str) -> "FileWeights | None":
        """The weights in the files of a model, if they hold just what a hollow `model` needs under its own names."""
        files = _keys_to_files(name_or_path)
        if files is None or _converts(model):
            return None
        names: dict[nn.Parameter, list[str]] = {}
        for name, weight in model.named_parameters(remove_duplicate=False):
            names.setdefault(weight, []).append(name)
        places = {}
        for weight, known_as in names.items():
            stored = [name for name in known_as if name in files]
            # Of a tied weight that is stored twice, transformers unties the copies where they differ.
            if len(stored) != 1 or _shape(files[stored[0]], stored[0]) != tuple(weight.shape):
                return None
            places[weight] = (stored[0], files[stored[0]])
        for name, buffer in model.named_buffers():
            if name in files:
                buffer.copy_(_opened(files[name]).get_tensor(name))
        return None if unfilled(model) else cls(places)

    def has(self, name: str, weight: nn.Parameter) -> bool:
        """Whether a weight is one of the model's own, rather than an adapter's."""
        return weight in self._places

    def fill(self, name: str, weight: nn.Parameter, whole: Tensor, mine: slice) -> None:
        """Read this process's rows."""
        key, path = self._places.pop(weight)
        whole[mine] = _opened(path).get_slice(key)[mine].to(whole.device, whole.dtype)


class FirstRankWeights:
    """Weights of a hollow model that the first rank has built as a whole and sends to the others one by one."""

    def __init__(self, model: "PreTrainedModel", built: Callable[[], "PreTrainedModel"], device: torch.device) -> None:
        """Build on the first rank, and send the buffers.

        Args:
            model: The hollow model.
            built: Builds the whole one; what it raises is raised on all ranks.
            device: This process's device, over which weights are sent.
        """
        self._names = {weight: name for name, weight in model.named_parameters()}
        self._whole: dict[str, Tensor] = {}
        refused: list[str | None] = [None]
        if torch.distributed.get_rank() == 0:
            try:
                source = built()
                self._whole = dict(source.named_parameters(remove_duplicate=False))
                self._whole |= dict(source.named_buffers(remove_duplicate=False))
                if missing := sorted(self._names.values() - self._whole.keys()):
                    raise UserError(f"{type(source).__name__} cannot be sharded: its weight {missing[0]} is not there")
            except Exception as error:
                torch.distributed.broadcast_object_list([f"the first process: {error}"], 0)
                raise
        torch.distributed.broadcast_object_list(refused, 0)
        if refused[0] is not None:
            raise UserError(refused[0])
        for name, buffer in model.named_buffers():
            buffer.copy_(self._send(name, torch.empty_like(buffer, device=device)))

    def has(self, name: str, weight: nn.Parameter) -> bool:
        """Whether a weight is one of the model's own, rather than an adapter's."""
        return weight in self._names

    def fill(self, name: str, weight: nn.Parameter, whole: Tensor, mine: slice) -> None:
        """Take the whole weight from the first rank."""
        self._send(self._names.pop(weight), whole)

    def _send(self, name: str, whole: Tensor) -> Tensor:
        if self._whole:
            whole.copy_(self._whole.pop(name))
        torch.distributed.broadcast(whole, 0)
        return whole


class TwinWeights:
    """The weights that another model of the same structure has now, sharded over the same ranks, adapters too."""

    def __init__(self, twin: nn.Module) -> None:
        reshard(twin)
        self._shards = dict(twin.named_parameters())

    def has(self, name: str, weight: nn.Parameter) -> bool:
        """Always."""
        return True

    def fill(self, name: str, weight: nn.Parameter, whole: Tensor, mine: slice) -> None:
        """Copy the twin's rows of this process."""
        whole[mine] = local_part(self._shards[name].detach())[0]


def _keys_to_files(name_or_path: str) -> dict[str, Path] | None:
    """In which safetensors file each weight is, None where there are no such files."""
    import json

    from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

    def find(name: str) -> Path | None:
        found = cached_file(
            name_or_path,
            name,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        return None if found is None else Path(found)

    if (single := find(SAFE_WEIGHTS_NAME)) is not None:
        return dict.fromkeys(_opened(single).keys(), single)
    if (index := find(SAFE_WEIGHTS_INDEX_NAME)) is None:
        return None
    listed: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    files = {name: find(name) for name in sorted(set(listed.values()))}
    return {key: path for key, name in listed.items() if (path := files[name]) is not None}


def _opened(path: Path) -> Any:
    from safetensors import safe_open

    return safe_open(path, framework="pt")


def _shape(path: Path, key: str) -> tuple[int, ...]:
    return tuple(_opened(path).get_slice(key).get_shape())


def _converts(model: "PreTrainedModel") -> bool:
    """Whether transformers changes this model's stored weights, not only their names, when it loads them."""
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter
    except ImportError:  # another version keeps them elsewhere: nothing is known
        return True
    return any(isinstance(step, WeightConverter) for step in get_model_conversion_mapping(model))


def _nothing(dtype: torch.dtype) -> float | int | bool:
    if dtype.is_floating_point:
        return float("nan")
    return False if dtype == torch.bool else torch.iinfo(dtype).min
