"""Checkpoints that are folders, a part from each process: read whole or in part, and never trusted to run code."""

import io
import pickle
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from judgelit.errors import UserError
from judgelit.runs.checkpoints import META

_WEIGHTS = "state_dict"
_METADATA = "torch.distributed.checkpoint.metadata"
_PLAIN = {
    *((_METADATA, name) for name in ("BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex")),
    *((_METADATA, name) for name in ("StorageMeta", "TensorProperties", "TensorStorageMetadata")),
    (_METADATA, "_MEM_FORMAT_ENCODING"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    ("torch", "Size"),
    ("pathlib", "PosixPath"),
    ("pathlib", "WindowsPath"),
    *(("torch", name) for name, value in vars(torch).items() if isinstance(value, torch.dtype)),
}
"""All that the index of a checkpoint is made of, by module and name."""


class ShardReader(dcp.FileSystemReader):
    """PyTorch's reader, which would execute whatever the index of a checkpoint, a pickle, says."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Read the index.

        Raises:
            UnpicklingError: It holds more than an index does.
            FileNotFoundError: A rank's own index is asked for, as PyTorch does where it finds none of all ranks.
        """
        if kwargs.get("rank") is not None:
            raise FileNotFoundError("it has no index of all ranks")
        with (Path(self.path) / ".metadata").open("rb") as file:
            _Plain(file).load()
        return super().read_metadata(*args, **kwargs)


class PlainLoads(dcp.DefaultLoadPlanner):
    """PyTorch's planner, which would execute whatever stands in place of a number in a shard, a pickle too."""

    def load_bytes(self, read_item: Any, value: io.BytesIO) -> None:
        """Read what is no tensor, such as a learning rate.

        Raises:
            UnpicklingError: It is more than plain values.
        """
        torch.load(value, weights_only=True)
        value.seek(0)
        super().load_bytes(read_item, value)


def shapes_in(folder: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights in a sharded checkpoint.

    Raises:
        UserError: It is broken.
    """
    return {name: tuple(entry.size) for name, entry in _weights(folder).items()}


def weights_in(folder: Path) -> dict[str, Tensor]:
    """The whole weights in a sharded checkpoint, by name, on the host; no other process is needed.

    Raises:
        UserError: It is broken.
    """
    found = {name: torch.empty(entry.size, dtype=entry.properties.dtype) for name, entry in _weights(folder).items()}
    load_shards({_WEIGHTS: found}, folder, alone=True)
    return found


def load_shards(state: dict[str, Any], folder: Path, alone: bool = False) -> None:
    """Fill the tensors of `state`, each of this process's part, from a sharded checkpoint.

    Args:
        state: A nested dictionary of tensors.
        folder: The checkpoint.
        alone: Whether this process loads by itself, rather than all of them together.

    Raises:
        UserError: The checkpoint is broken.
    """
    try:
        dcp.load(state, storage_reader=ShardReader(folder), planner=PlainLoads(), no_dist=alone)
    except (dcp.api.CheckpointException, *_BROKEN) as error:
        raise _refusal(folder, error) from error


def load_meta(folder: Path) -> dict[str, Any]:
    """What a sharded checkpoint holds beside tensors.

    Raises:
        UserError: It is broken.
    """
    try:
        found: dict[str, Any] = torch.load(folder / META, map_location="cpu", weights_only=True)
    except _BROKEN as error:
        raise _refusal(folder, error) from error
    return found


_BROKEN = (OSError, RuntimeError, ValueError, EOFError, KeyError, TypeError, AttributeError, pickle.UnpicklingError)


class _Plain(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _PLAIN:
            raise pickle.UnpicklingError(f"its index asks for {module}.{name}")
        return super().find_class(module, name)


def _weights(folder: Path) -> dict[str, TensorStorageMetadata]:
    try:
        stored = ShardReader(folder).read_metadata().state_dict_metadata
    except _BROKEN as error:
        raise _refusal(folder, error) from error
    prefix = f"{_WEIGHTS}."
    return {
        key.removeprefix(prefix): entry
        for key, entry in stored.items()
        if key.startswith(prefix) and isinstance(entry, TensorStorageMetadata)
    }


def _refusal(folder: Path, error: BaseException) -> UserError:
    if isinstance(error, dcp.api.CheckpointException) and error.failures:
        # Of each rank the error itself and a traceback, which would be all that can be seen of the message.
        error = next(iter(error.failures.values()))[0]
    what = " ".join(str(error).split())[:200] or type(error).__name__
    return UserError(f"{folder} cannot be read as a sharded checkpoint ({what}); expected a whole one: name another")
