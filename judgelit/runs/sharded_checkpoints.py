"""Reading sharded checkpoints: folders to which each rank has written a part. No code in them is ever run."""

import io
import pickle
from pathlib import Path
from typing import IO, Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from judgelit.errors import UserError
from judgelit.runs.checkpoints import META, UNREADABLE, damage_in, usable_instead

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
"""Classes that the index of a checkpoint may contain, by module and name."""


class ShardReader(dcp.FileSystemReader):
    """PyTorch's reader with a check of the index: it is a pickle, and a pickle can run code."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Read the index.

        Raises:
            UnpicklingError: The index contains more than an index needs.
            FileNotFoundError: PyTorch asks for the index of one rank, as it does if there is no index of all ranks.
        """
        if kwargs.get("rank") is not None:
            raise FileNotFoundError("it has no index of all ranks")
        with (Path(self.path) / ".metadata").open("rb") as file:
            _Plain(file).load()
        return super().read_metadata(*args, **kwargs)

    def _slice_file(self, file: Any, sinfo: Any) -> IO[bytes]:
        """One stored value, with its checksums checked: PyTorch does not check them."""
        content = io.BytesIO(super()._slice_file(file, sinfo).read())
        if damage := damage_in(content):
            raise ValueError(f"{sinfo.relative_path}: {damage}")
        content.seek(0)
        return content


class PlainLoads(dcp.DefaultLoadPlanner):
    """PyTorch's planner with a check of values that are no tensors: they are pickles, and a pickle can run code."""

    def load_bytes(self, read_item: Any, value: io.BytesIO) -> None:
        """Read a value that is no tensor, such as a learning rate.

        Raises:
            UnpicklingError: It contains more than plain values.
        """
        torch.load(value, weights_only=True)
        value.seek(0)
        super().load_bytes(read_item, value)


def shapes_in(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights in a sharded checkpoint, by name.

    Raises:
        UserError: The checkpoint is broken.
    """
    return {name: tuple(entry.size) for name, entry in _weights(folder).items()}


def weights_in(folder: Path) -> dict[str, Tensor]:
    """Whole weights of a sharded checkpoint, by name, on the CPU. This process reads the shards of all ranks.

    Raises:
        UserError: The checkpoint is broken.
    """
    found = {name: torch.empty(entry.size, dtype=entry.properties.dtype) for name, entry in _weights(folder).items()}
    load_shards({_WEIGHTS: found}, folder, alone=True)
    return found


def load_shards(state: dict[str, Any], folder: Path, alone: bool = False) -> None:
    """Fill the tensors of `state` from a sharded checkpoint.

    Args:
        state: A nested dictionary of tensors; each is this rank's part.
        folder: The checkpoint.
        alone: True if this process alone calls it; otherwise all ranks must.

    Raises:
        UserError: The checkpoint is broken.
    """
    try:
        dcp.load(state, storage_reader=ShardReader(folder), planner=PlainLoads(), no_dist=alone)
    except (dcp.api.CheckpointException, *UNREADABLE) as error:
        raise _refusal(folder, error) from error


def load_meta(folder: Path) -> dict[str, Any]:
    """The part of a sharded checkpoint that is no tensor.

    Raises:
        UserError: The checkpoint is broken.
    """
    try:
        if damage := damage_in(folder / META):
            raise ValueError(f"{META}: {damage}")
        found: dict[str, Any] = torch.load(folder / META, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise _refusal(folder, error) from error
    return found


class _Plain(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _PLAIN:
            raise pickle.UnpicklingError(f"its index asks for {module}.{name}")
        return super().find_class(module, name)


def _weights(folder: Path) -> dict[str, TensorStorageMetadata]:
    try:
        stored = ShardReader(folder).read_metadata().state_dict_metadata
    except UNREADABLE as error:
        raise _refusal(folder, error) from error
    prefix = f"{_WEIGHTS}."
    return {
        key.removeprefix(prefix): entry
        for key, entry in stored.items()
        if key.startswith(prefix) and isinstance(entry, TensorStorageMetadata)
    }


def _refusal(folder: Path, error: BaseException) -> UserError:
    if isinstance(error, dcp.api.CheckpointException) and error.failures:
        # The message would be little but tracebacks; the first rank's own error says what is wrong.
        error = next(iter(error.failures.values()))[0]
    what = " ".join(str(error).split())[:200] or type(error).__name__
    return UserError(
        f"{folder} cannot be read as a sharded checkpoint ({what}); expected a complete one: name another"
        f"{usable_instead(folder)}"
    )
