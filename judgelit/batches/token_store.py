"""Token store: the examples of one source as token ids, in one Arrow file that is made once and then memory-mapped."""

import logging
import os
import sys
import time
from bisect import bisect_right
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from functools import cached_property
from importlib.metadata import version
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
import xxhash
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from judgelit.atomic import PART
from judgelit.batches.arrow_files import cache_errors, is_whole, map_arrow, write_arrow
from judgelit.batches.flat_batch import TokenizedCompletion, TokenizedPreference
from judgelit.batches.packing import Prompts
from judgelit.batches.tokenizer import ChatTokenizer
from judgelit.errors import UserError, first_line
from judgelit.progress import track
from judgelit.records.records import PreferenceExample, SFTExample
from judgelit.records.sources import Source, group_score, held_out_rows

Example = SFTExample | PreferenceExample
Row = TokenizedCompletion | TokenizedPreference

FORMAT = 2
"""Version of what a store holds. Raise it when the same records would give other ids or columns."""

COMPLETIONS: dict[type[Example], tuple[str, ...]] = {
    SFTExample: ("completion",),
    PreferenceExample: ("chosen", "rejected"),
}
"""The fields of an example that hold its completions."""
_ROWS: dict[tuple[str, ...], type[Row]] = {
    ("prompt", *COMPLETIONS[SFTExample]): TokenizedCompletion,
    ("prompt", *COMPLETIONS[PreferenceExample]): TokenizedPreference,
}
"""The class of a store's rows, by its columns of ids."""

CHUNK = 256
"""Examples that are tokenised and written together."""
PARALLEL_FROM = 4096
"""Examples from which tokenising in several processes is faster than starting them takes."""
MAX_PROCESSES = 16
"""Each process reads all records and tokenises its share. With more processes than this, reading takes longer."""
STALE_SECONDS = 3600.0
"""Age of an unfinished file after which it counts as the remains of a killed process."""


class TokenStore:
    """The examples of one source as ids: R rows in the order of the source.

    The ids stay on disk. The store is pickled as its path.

    Raises:
        OSError: The file does not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._table = map_arrow(path).read_all()
        names = self._table.column_names
        self.columns = names[names.index("prompt") :]
        self.kind = _ROWS[tuple(self.columns)]
        self._ids = [self._table[name] for name in self.columns]
        self._names = self._table["id"]
        self._scores: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return self._table.num_rows

    def __reduce__(self) -> tuple[Any, ...]:
        return TokenStore, (self.path,)

    def row(self, index: int) -> tuple[str, list[list[int]]]:
        """Return the name of a row and its ids: those of the prompt, then those of each completion."""
        return self._names[index].as_py(), [column[index].values.to_numpy().tolist() for column in self._ids]

    @cached_property
    def content_hash(self) -> str:
        """A hash of all ids. Other names, files or versions of libraries that give the same ids have the same hash."""
        content = xxhash.xxh3_128()
        for column in self._ids:
            content.update(pc.list_value_length(column).to_numpy().tobytes())
            for chunk in column.chunks:
                content.update(chunk.flatten().to_numpy())
        return content.hexdigest()

    @cached_property
    def prompt_tokens(self) -> np.ndarray:
        """[R] int32, tokens of each prompt."""
        return pc.list_value_length(self._ids[0]).to_numpy()

    @cached_property
    def completion_tokens(self) -> list[np.ndarray]:
        """Tokens of each completion: [R] int32 for every completion column."""
        return [pc.list_value_length(column).to_numpy() for column in self._ids[1:]]

    @property
    def lengths(self) -> np.ndarray:
        """[R] int32, tokens of each prompt with its longest completion."""
        return self.prompt_tokens + np.max(self.completion_tokens, axis=0)

    @cached_property
    def prompt_keys(self) -> np.ndarray:
        """[R] int64, a hash of each prompt's ids."""
        return self._table["prompt_key"].to_numpy()

    def held_out(self, fraction: float, seed: int) -> np.ndarray:
        """[R] bool, whether each row is held out; all rows of a question are on one side, as in `split_by_group`."""
        if not fraction:
            return np.zeros(len(self), dtype=bool)
        if seed not in self._scores:
            scores = (group_score(group.as_py(), seed) for group in self._table["group"])
            self._scores[seed] = np.fromiter(scores, np.float64, len(self))
        return held_out_rows(self._scores[seed], fraction)


def open_store(source: Source, kind: type[Example], tokenizer: ChatTokenizer, folder: Path, part: str) -> TokenStore:
    """Open the store of a source in `folder`; tokenise the source first if there is no such store.

    The name of the file is a hash of the data, the tokenizer with its chat template, and `FORMAT`. The file appears
    only when it is complete. Its content is verified here; a damaged file is made anew, and a line says so. Several
    processes may build the same store at once: their results are equal.

    Args:
        source: What to read.
        kind: SFTExample or PreferenceExample.
        tokenizer: Turns the examples into ids.
        folder: Where stores are kept.
        part: Name of the data set, for messages: `train`, `val` or `test`.

    Raises:
        UserError: A record cannot be read or tokenised (names its file and line), `folder` cannot be written to, or
            the data changed during the build.
    """
    data = source.fingerprint()
    examples: Callable[[], Iterable[tuple[str, Example]]] = lambda: _read(source, kind, part)  # noqa: E731
    if data is None:
        records = list(examples())
        examples = lambda: records  # noqa: E731
        data = _hash_examples(example for _, example in records)
    path = folder / f"{_key(data, kind, tokenizer)}.arrow"
    if path.exists():
        if is_whole(path):
            return TokenStore(path)
        rank_zero_info(f"{part}: the tokenised examples in {path} are damaged and are made anew")

    def chunks() -> Generator[pa.RecordBatch, None, None]:
        with closing(_encode_all(examples, kind, tokenizer)) as made:
            yield from track(made, f"tokenizing {part}, chunks of {CHUNK} examples")
        if source.fingerprint() not in (None, data):
            raise UserError(f"{part}: the data changed while it was read; start again")

    with cache_errors(folder), closing(chunks()) as made:
        _remove_stale(folder)
        write_arrow(path, _schema(kind), made)
    return TokenStore(path)


def _read(source: Source, kind: type[Example], part: str) -> Iterator[tuple[str, Example]]:
    """Read a source. An error of its disk or network is not one of the cache."""
    try:
        yield from source.stream(kind)
    except OSError as error:
        raise UserError(f"data.{part}: cannot be read: {first_line(error)}") from error


def _key(data: str, kind: type[Example], tokenizer: ChatTokenizer) -> str:
    libraries = tuple(map(version, ("tokenizers", "transformers")))
    made_from = (FORMAT, data, kind.__name__, tokenizer.fingerprint, libraries)
    return xxhash.xxh3_128_hexdigest(repr(made_from).encode())


def _hash_examples(examples: Iterable[Example]) -> str:
    content = xxhash.xxh3_128()
    for example in examples:
        content.update(repr(example).encode("utf-8", "surrogatepass"))
    return content.hexdigest()


def _remove_stale(folder: Path) -> None:
    """Delete unfinished files of killed processes. A process that is alive writes to its file again and again."""
    for part in folder.glob(f".*{PART}"):
        with suppress(FileNotFoundError):
            if time.time() - part.stat().st_mtime > STALE_SECONDS:
                part.unlink()


def _schema(kind: type[Example]) -> pa.Schema:
    ids = pa.list_(pa.int32())
    fixed = [("id", pa.string()), ("group", pa.string()), ("prompt_key", pa.int64()), ("prompt", ids)]
    return pa.schema([*fixed, *((name, ids) for name in COMPLETIONS[kind])])


class _Chunks(IterableDataset[pa.RecordBatch]):
    """Tokenised chunks of examples. Of W loader processes, each makes every W-th chunk.

    The loader takes one chunk from each process in turn, so they come in their order. A UserError comes as an item,
    since the loader would add a traceback to its text.
    """

    def __init__(
        self, examples: Callable[[], Iterable[tuple[str, Example]]], kind: type[Example], tokenizer: ChatTokenizer
    ) -> None:
        self.examples, self.kind, self.tokenizer = examples, kind, tokenizer

    def __iter__(self) -> Iterator[pa.RecordBatch | UserError]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        if first:
            logging.getLogger("judgelit.records").disabled = True  # All processes read all rows; one reports.
        examples = iter(self.examples())
        chunks = iter(lambda: list(islice(examples, CHUNK)), [])
        try:
            for chunk in islice(chunks, first, None, step):
                yield _encode(chunk, self.kind, self.tokenizer)
        except UserError as error:
            yield error


def _encode_all(
    examples: Callable[[], Iterable[tuple[str, Example]]], kind: type[Example], tokenizer: ChatTokenizer
) -> Generator[pa.RecordBatch, None, None]:
    """Tokenise in this process or, if there are many examples, in several; memory does not grow with their number."""
    processes = 0
    # Only forked processes do without running the user's script again.
    if sys.platform == "linux" and sum(1 for _ in islice(examples(), PARALLEL_FROM)) == PARALLEL_FROM:
        cores = len(os.sched_getaffinity(0))
        processes = min(cores, MAX_PROCESSES) if cores > 1 else 0
    loader = DataLoader(
        _Chunks(examples, kind, tokenizer),
        batch_size=None,
        num_workers=processes,
        multiprocessing_context="fork" if processes else None,
        generator=torch.Generator(),  # Otherwise it draws from the global generator, which the run's seed sets.
    )
    chunks = iter(loader)
    try:
        for chunk in chunks:
            if isinstance(chunk, UserError):
                raise chunk
            yield chunk
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker (pid"):
            raise
        raise UserError("a process that tokenises has died, perhaps because memory ran out; start again") from error
    finally:
        del chunks  # This ends the processes.


def _encode(chunk: list[tuple[str, Example]], kind: type[Example], tokenizer: ChatTokenizer) -> pa.RecordBatch:
    columns: dict[str, list[Any]] = {name: [] for name in _schema(kind).names}
    for at, example in chunk:
        try:
            prompt = np.array(tokenizer.prompt_ids(example.messages), np.int32)
            completions = [tokenizer.completion_ids(getattr(example, name)) for name in COMPLETIONS[kind]]
        except UserError as error:
            raise UserError(f"{at}: {error}") from error
        pair_id = example.pair_id if isinstance(example, SFTExample) else example.meta.get("pair_id")
        # An example without an id is named by its place within its folder, so that the folder may be moved.
        name = pair_id or at.rpartition(os.sep)[2]
        key = int.from_bytes(xxhash.xxh3_64_digest(prompt.tobytes()), "big", signed=True)
        row = [_valid_unicode(name), _valid_unicode(example.group), key, prompt, *completions]
        for column, value in zip(columns.values(), row, strict=True):
            column.append(value)
    return pa.record_batch(columns, _schema(kind))


def _valid_unicode(text: Any) -> str:
    """Replace lone surrogates, which UTF-8 cannot encode."""
    return str(text).encode("utf-8", "replace").decode()


class ReferenceValues(Protocol):
    """For each row the value of `TokenizedPreference.reference`."""

    def __getitem__(self, index: int, /) -> Sequence[float]: ...


class TokenRows(Dataset[Row]):
    """Selected rows of several stores: R in all, one store after the other.

    It holds the numbers of the rows; their ids stay on disk. A loader's process opens the stores again.

    Args:
        parts: Stores, each with the numbers of its selected rows, ascending. Stores of pairs come before stores of
            general examples.
        tags: The tag of each store's source; "" without a tag.
    """

    reference: ReferenceValues | None = None
    """Log-probabilities of the reference for the pairs, if they were computed before training."""

    def __init__(self, parts: Sequence[tuple[TokenStore, np.ndarray]], tags: Sequence[str] = ()) -> None:
        # If all rows of a store are selected, their numbers need not be kept.
        self._parts = [(store, None if len(rows) == len(store) else rows.astype(np.int64)) for store, rows in parts]
        self._tags = tags or [""] * len(parts)
        self._ends = list(accumulate(len(rows) for _, rows in parts))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Row:
        index = range(len(self))[index]
        number = bisect_right(self._ends, index)
        store, rows = self._parts[number]
        place = index - (self._ends[number - 1] if number else 0)
        name, ids = store.row(place if rows is None else int(rows[place]))
        kind: Callable[..., Row] = store.kind
        row = kind(name, *ids, tag=self._tags[number])
        if self.reference is None or not isinstance(row, TokenizedPreference):
            return row
        return replace(row, reference=self.reference[index])

    @property
    def tags(self) -> tuple[str, ...]:
        """The tags of the selected rows, in the order of the stores."""
        sizes = np.diff([0, *self._ends])
        return tuple(dict.fromkeys(tag for tag, size in zip(self._tags, sizes, strict=True) if tag and size))

    @property
    def pairs(self) -> "TokenRows":
        """The rows with two completions. They have the same numbers as here."""
        pairs = [(store, rows) for store, rows in self._parts if store.kind is TokenizedPreference]
        return TokenRows([(store, np.arange(len(store)) if rows is None else rows) for store, rows in pairs])

    def __getstate__(self) -> dict[str, Any]:
        # A loader's process does not need the cached arrays.
        cached = {"lengths", "prompts"}
        return {name: value for name, value in vars(self).items() if name not in cached}

    @cached_property
    def lengths(self) -> np.ndarray:
        """[R] int32, `len(row)`: tokens of the prompt with its longest completion."""
        return self._selected(lambda store: store.lengths)

    @property
    def prompt_keys(self) -> np.ndarray:
        """[R] int64, a hash of each row's prompt ids."""
        return self.prompts.keys

    @cached_property
    def prompts(self) -> Prompts:
        """Which rows share a prompt, and their tokens."""
        return Prompts(
            keys=self._selected(lambda store: store.prompt_keys),
            prompt_tokens=self._selected(lambda store: store.prompt_tokens),
            completion_tokens=self._selected(lambda store: np.sum(store.completion_tokens, axis=0)),
        )

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the stores' ids and of which rows are selected, in their order; the names do not count."""
        content = xxhash.xxh3_128()
        for store, rows in self._parts:
            content.update(store.content_hash.encode() + (b"all" if rows is None else rows.tobytes()))
        return content.hexdigest()

    def _selected(self, column: Callable[[TokenStore], np.ndarray]) -> np.ndarray:
        values = [column(store) if rows is None else column(store)[rows] for store, rows in self._parts]
        return np.concatenate(values) if values else np.empty(0, np.int64)
