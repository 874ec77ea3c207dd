"""Arrow files of a cache: memory-mapped, with a hash of their content at their end, so that damage is noticed."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import xxhash

from judgelit.atomic import atomic_file
from judgelit.errors import UserError

_HASH = 16
"""Bytes of the hash."""


def write_arrow(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    """Write record batches as a file that appears complete or not at all.

    Raises:
        OSError: The file cannot be written.
    """
    with atomic_file(path) as file:
        with pa.ipc.new_file(file, schema) as writer:
            for batch in batches:
                writer.write_batch(batch)
        file.flush()
        file.write(xxhash.xxh3_128_digest(_map(Path(file.name))))


def map_arrow(path: Path) -> pa.RecordBatchFileReader:
    """Open a file of `write_arrow` memory-mapped. Its content is not verified; see `is_whole`."""
    content = _map(path)
    return pa.ipc.open_file(pa.BufferReader(content.slice(0, content.size - _HASH)))


def is_whole(path: Path) -> bool:
    """Whether the content of a file of `write_arrow` has its hash. This reads the whole file."""
    try:
        content = memoryview(_map(path))
    except OSError:
        return False
    return len(content) > _HASH and xxhash.xxh3_128_digest(content[:-_HASH]) == bytes(content[-_HASH:])


@contextmanager
def cache_errors(folder: Path) -> Iterator[None]:
    """Raise UserError where a folder of the cache cannot be written: a full or read-only disk, or no permission."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written: {error.strerror or error}; choose another folder with data.cache"
        ) from error


def _map(path: Path) -> pa.Buffer:
    return pa.memory_map(str(path)).read_buffer()
