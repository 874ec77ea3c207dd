"""Tokenised examples, made once for the same data, tokenizer and template."""

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

import pyarrow as pa
import xxhash

from judgelit import __version__
from judgelit.batches.encoding import Example, encoded, schema
from judgelit.batches.token_store import TokenStore
from judgelit.batches.tokenizer import ChatTokenizer
from judgelit.errors import UserError
from judgelit.progress import track
from judgelit.records.sources import Source

_FILE = "rows.arrow"
_WRITTEN = 8 << 20
"""Bytes of a batch of rows on disk."""
_STALE = 3600.0
"""Seconds without a write after which an unfinished file is what a killed process left."""


def open_store(source: Source, kind: type[Example], tokenizer: ChatTokenizer, folder: Path, part: str) -> TokenStore:
    """The examples of a source as ids: from `folder` if they are there, else tokenised and left there.

    A store is found again by a hash of the data, the tokenizer with its chat template, and the code; data that the
    source has no hash for is read and hashed itself. A store appears only once it is complete, and if several processes
    build one at a time, any of their equal results stays.

    Args:
        source: What to read.
        kind: SFTExample or PreferenceExample.
        tokenizer: What makes ids of it.
        folder: Where stores are kept.
        part: What the examples are for, in messages.

    Raises:
        UserError: The source cannot be read, an example not tokenised, or `folder` not written to.
    """
    found: Iterable[tuple[str, Example]] = source.stream(kind)
    data = source.fingerprint()
    if data is None:
        found = list(found)
        data = _fingerprint(example for _, example in found)
    path = folder / _key(data, kind, tokenizer) / _FILE
    with suppress(OSError, pa.ArrowInvalid):
        return TokenStore(path)
    with _appearing_whole(path) as handle:
        # Closed, whatever fails: it may have started processes.
        made = closing(encoded(track(found, f"tokenizing {part}"), kind, tokenizer))
        with made as batches, pa.ipc.new_file(handle, schema(kind)) as writer:
            for batch in _merged(batches):
                writer.write_batch(batch)
        if source.fingerprint() not in (None, data):
            raise UserError(f"{part}: the data changed while it was read; start again")
    return TokenStore(path)


def _merged(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The same rows in batches of some `_WRITTEN` bytes, so that what is read at opening lies together."""
    held: list[pa.RecordBatch] = []
    for batch in batches:
        held.append(batch)
        if sum(some.nbytes for some in held) >= _WRITTEN:
            yield from pa.Table.from_batches(held).combine_chunks().to_batches()
            held = []
    if held:
        yield from pa.Table.from_batches(held).combine_chunks().to_batches()


def _fingerprint(examples: Iterable[Example]) -> str:
    content = xxhash.xxh3_128()
    for example in examples:
        content.update(repr(example).encode("utf-8", "surrogatepass"))
    return content.hexdigest()


def _key(data: str, kind: type[Example], tokenizer: ChatTokenizer) -> str:
    versions = (__version__, _code(), *map(version, ("tokenizers", "transformers")))
    return xxhash.xxh3_128(repr((data, kind.__name__, tokenizer.fingerprint, versions)).encode()).hexdigest()


@cache
def _code() -> str:
    """A hash of the code that reads and tokenises: better to do it once too often than to miss a change of it."""
    content = xxhash.xxh3_128()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        content.update(file.read_bytes())
    return content.hexdigest()


@contextmanager
def _appearing_whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which appears as `path` at the end, and not at all if anything fails."""
    part = path.with_name(f"{path.name}.{uuid4().hex}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parents[1].glob("*/*.part"):
            # What a killed process left; one that lives writes every now and then, and may be done any moment.
            with suppress(FileNotFoundError):
                if time.time() - left.stat().st_mtime > _STALE:
                    left.unlink()
        try:
            with part.open("xb") as handle:
                yield handle
                handle.flush()
                os.fsync(handle.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"{path.parent}: cannot be written: {error.strerror or error}; choose another folder with data.cache"
        ) from error
