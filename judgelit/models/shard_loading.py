"""Load a sharded model: each process reads its part of the files, or receives it from the first process."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, TensorStorageMetadata

from judgelit.errors import UserError
from judgelit.models.sharding import reshard

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def build_without_weights(build: Callable[[], "PreTrainedModel"]) -> "PreTrainedModel":
    """Build a model whose parameters take no memory until it is sharded; its buffers have their values.

    Each parameter is a single zero on the host, expanded to the parameter's shape. They are not on the meta device,
    because PEFT would put the weights of a new adapter there too.

    Args:
        build: Builds the model with random weights.
    """
    from accelerate import init_empty_weights
    from transformers.initialization import no_init_weights

    with init_empty_weights(include_buffers=False), no_init_weights():
        model = build()
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                zero = torch.zeros((), dtype=weight.dtype)
                module._parameters[name] = nn.Parameter(zero.expand(weight.shape), weight.requires_grad)
    model.tie_weights()
    return model


@dataclass(frozen=True)
class FileWeights:
    """Safetensors files that hold exactly the weights of a model, under the model's own names."""

    folder: str
    """Folder of the files."""
    keys: dict[str, str]
    """Name of each parameter and stored buffer in the model, and its key in the files."""

    @classmethod
    def find(cls, model: "PreTrainedModel", name_or_path: str) -> "FileWeights | None":
        """Find the files of a model built without weights; None if they do not match it one to one."""
        folder = _safetensors_folder(name_or_path)
        if folder is None or _converts_weights(model):
            return None
        stored = HuggingFaceStorageReader(folder).read_metadata().state_dict_metadata
        names_of: dict[Tensor, list[str]] = {}
        for name, tensor in model.state_dict(keep_vars=True).items():
            names_of.setdefault(tensor, []).append(name)
        keys = {}
        for tensor, names in names_of.items():
            found = [name for name in names if name in stored]
            if not found and not isinstance(tensor, nn.Parameter):
                continue  # a buffer that the model computes itself
            # transformers unties tied weights that are stored twice with different values: leave those to it.
            if len(found) != 1 or not _is_one_tensor(stored[found[0]], tensor.shape):
                return None
            keys.update(dict.fromkeys(names, found[0]))
        return cls(folder, keys)

    def load_into(self, model: nn.Module) -> None:
        """Read this process's shards into the sharded model, which may have an adapter by now."""
        values, names = model.state_dict(), _present_names(model)
        state = {key: values[names[name]] for name, key in self.keys.items()}
        dcp.load(state, storage_reader=HuggingFaceStorageReader(self.folder))


class FirstRankWeights:
    """Weights that the first rank loads as a whole on its host and then sends to the others, one tensor at a time."""

    def __init__(self, model: "PreTrainedModel", load: Callable[[], "PreTrainedModel"]) -> None:
        """Load the whole model on the first rank.

        Args:
            model: The same model, built without weights.
            load: Loads the whole model.

        Raises:
            UserError: `load` failed, or it gave a model with other parameters; raised on all ranks.
        """
        self._whole: dict[str, Tensor] = {}
        failure: list[str | None] = [None]
        if torch.distributed.get_rank() == 0:
            try:
                whole = load()
                _check_same_parameters(model, whole)
                self._whole = whole.state_dict()
            except Exception as error:
                torch.distributed.broadcast_object_list([f"the first process: {error}"], 0)
                raise
        torch.distributed.broadcast_object_list(failure, 0)
        if failure[0] is not None:
            raise UserError(failure[0])

    def load_into(self, model: nn.Module) -> None:
        """Send each rank its shards of the sharded model, which may have an adapter by now."""
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

        names = _present_names(model)
        whole: dict[str, Any] = {names[name]: value for name, value in self._whole.items()}
        # Not strict, because the weights of an adapter are not sent.
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=False)
        set_model_state_dict(model, whole, options=options)


@torch.no_grad()
def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Copy the present weights and buffers of a model to another one of the same structure and sharding."""
    reshard(source)
    ours, theirs = (chain(model.parameters(), model.buffers()) for model in (target, source))
    for tensor, value in zip(ours, theirs, strict=True):
        tensor.copy_(value)


def _present_names(model: nn.Module) -> dict[str, str]:
    """Name of each parameter and stored buffer, by the name that it had before PEFT wrapped its layer."""
    return {name.replace(".base_layer.", "."): name for name in model.state_dict()}


def _is_one_tensor(entry: TensorStorageMetadata | BytesStorageMetadata, shape: torch.Size) -> bool:
    """Whether a key stands for one tensor of a shape, and not in two files for two."""
    return isinstance(entry, TensorStorageMetadata) and entry.size == shape and len(entry.chunks) == 1


def _check_same_parameters(model: nn.Module, loaded: nn.Module) -> None:
    expected, found = ({name for name, _ in one.named_parameters()} for one in (model, loaded))
    if different := sorted(expected ^ found):
        raise UserError(
            f"{type(loaded).__name__} cannot be sharded: its files and its configuration disagree about {different[0]}"
        )


def _safetensors_folder(name_or_path: str) -> str | None:
    """Folder of a model's safetensors files, which are downloaded first if need be; None if it has none."""
    from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file
    from transformers.utils.hub import get_checkpoint_shard_files

    optional = {
        "_raise_exceptions_for_gated_repo": False,
        "_raise_exceptions_for_missing_entries": False,
        "_raise_exceptions_for_connection_errors": False,
    }
    file = cached_file(name_or_path, SAFE_WEIGHTS_NAME, **optional)
    if file is None:
        index = cached_file(name_or_path, SAFE_WEIGHTS_INDEX_NAME, **optional)
        if index is None:
            return None
        file = get_checkpoint_shard_files(name_or_path, index)[0][0]
    return str(Path(file).parent)


def _converts_weights(model: "PreTrainedModel") -> bool:
    """Whether transformers changes the values of this model's stored weights, not only their names."""
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter
    except ImportError:  # Other versions keep them elsewhere. Then it is not known.
        return True
    return any(isinstance(step, WeightConverter) for step in get_model_conversion_mapping(model))
