"""Examples to ids: in this process or, where there are many, in several."""

import multiprocessing
import os
import signal
import sys
import traceback
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, cycle, islice
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from judgelit.batches.tokenizer import ChatTokenizer
from judgelit.errors import UserError
from judgelit.records.records import PreferenceExample, SFTExample

Example = SFTExample | PreferenceExample
Batches = Generator[pa.RecordBatch, None, None]

COMPLETIONS: dict[type[Example], tuple[str, ...]] = {
    SFTExample: ("completion",),
    PreferenceExample: ("chosen", "rejected"),
}
"""The fields of an example that hold its completions."""

_CHUNK = 256
"""Examples of a record batch."""
_FEW = 16
"""Chunks that one process has done before others would have started."""
_MOST = 16
"""Processes beyond which reading the records takes longer than tokenising them."""


def example_ids(example: Example, kind: type[Example], tokenizer: ChatTokenizer) -> list[list[int]]:
    """The ids of an example of `kind`: those of its prompt, then those of each completion."""
    completions = (getattr(example, name) for name in COMPLETIONS[kind])
    return [tokenizer.prompt_ids(example.messages), *map(tokenizer.completion_ids, completions)]


def example_id(example: Example) -> str:
    """The id of the pair that an example is about, "" if it has none."""
    return example.pair_id if isinstance(example, SFTExample) else str(example.meta.get("pair_id") or "")


def schema(kind: type[Example]) -> pa.Schema:
    """The columns of a record batch: `id`, `group`, `prompt_key`, and a list of ids for the prompt and each completion.

    `group` is what must stay on one side of a split; `prompt_key` a hash of the prompt's ids.
    """
    ids = pa.list_(pa.int32())
    fixed = [("id", pa.string()), ("group", pa.string()), ("prompt_key", pa.int64()), ("prompt", ids)]
    return pa.schema([*fixed, *((name, ids) for name in COMPLETIONS[kind])])


def encoded(examples: Iterable[tuple[str, Example]], kind: type[Example], tokenizer: ChatTokenizer) -> Batches:
    """Examples of `kind`, each with its place, as record batches of some hundred rows, in their order.

    One or two batches for each processor core are held at a time, however many examples there are.

    Raises:
        UserError: An example cannot be tokenised; names its place.
    """
    rest = iter(examples)
    chunks = iter(lambda: list(islice(rest, _CHUNK)), [])
    first = list(islice(chunks, _FEW))
    processes = min(_cores(), _MOST)
    if processes > 1 and len(first) == _FEW:
        yield from _in_parallel(chain(first, chunks), kind, tokenizer, processes)
        return
    for chunk in chain(first, chunks):
        yield _encode(chunk, kind, tokenizer)


def _encode(chunk: list[tuple[str, Example]], kind: type[Example], tokenizer: ChatTokenizer) -> pa.RecordBatch:
    columns: list[list[np.ndarray]] = [[] for _ in ("prompt", *COMPLETIONS[kind])]
    for at, example in chunk:
        try:
            ids = example_ids(example, kind, tokenizer)
        except UserError as error:
            raise UserError(f"{at}: {error}") from error
        for column, some in zip(columns, ids, strict=True):
            column.append(np.array(some, dtype=np.int32))
    # The place within its folder names an example that has no id, wherever the folder stands.
    names = [example_id(example) or at.rpartition(os.sep)[2] for at, example in chunk]
    keys = np.array([xxhash.xxh3_64_intdigest(prompt.tobytes()) for prompt in columns[0]], dtype=np.uint64)
    texts = [[_whole_characters(text) for text in column] for column in (names, [x.group for _, x in chunk])]
    return pa.record_batch(
        [*map(pa.array, texts), pa.array(keys.view(np.int64)), *map(_list_array, columns)], schema(kind)
    )


def _list_array(rows: list[np.ndarray]) -> pa.ListArray:
    offsets = np.cumsum([0, *map(len, rows)], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(rows)))


def _whole_characters(text: str) -> str:
    # Halves of surrogate pairs can be neither encoded nor told apart by who reads the name.
    return str(text).encode("utf-8", "replace").decode()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _in_parallel(
    chunks: Iterable[list[tuple[str, Example]]], kind: type[Example], tokenizer: ChatTokenizer, processes: int
) -> Batches:
    workers: list[_Worker] = []
    try:
        for _ in range(processes):
            workers.append(_Worker(kind))
        for worker in workers:
            worker.give(tokenizer)
        # Each works on one chunk at a time, and they take turns, so that results come in order.
        busy: deque[_Worker] = deque()
        for chunk, worker in zip(chunks, cycle(workers), strict=False):
            if len(busy) == processes:
                yield busy.popleft().take()
            worker.give(chunk)
            busy.append(worker)
        while busy:
            yield busy.popleft().take()
    finally:
        for worker in workers:
            worker.stop()


class _Worker:
    """A process that tokenises chunks. It is started afresh: forking one with running threads may block it for ever."""

    def __init__(self, kind: type[Example]) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, kind), daemon=True)
        with _main_left_alone():
            self._process.start()
        theirs.close()

    def give(self, thing: Any) -> None:
        """Send the tokenizer, and then chunks."""
        try:
            self._connection.send(thing)
        except OSError as error:
            raise self._ended() from error

    def take(self) -> pa.RecordBatch:
        """What became of the chunk that was sent last."""
        try:
            found = self._connection.recv()
        except (EOFError, OSError) as error:
            raise self._ended() from error
        if isinstance(found, Exception):
            raise found
        return found

    def stop(self) -> None:
        """End the process, whatever it does."""
        self._process.terminate()
        self._process.join()
        self._connection.close()

    def _ended(self) -> UserError:
        self._process.join()
        return UserError(
            f"a process that tokenises ended with exit code {self._process.exitcode}, perhaps because memory ran out; "
            "start again, and what is missing is made anew"
        )


def _serve(connection: Any, kind: type[Example]) -> None:
    # The process that reads is told of an interrupt too, and ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tokenizer = connection.recv()
    while True:
        try:
            chunk = connection.recv()
        except EOFError:
            return
        try:
            connection.send(_encode(chunk, kind, tokenizer))
        except UserError as error:
            connection.send(error)
        except Exception:
            connection.send(RuntimeError(f"in a process that tokenises:\n{traceback.format_exc()}"))


@contextmanager
def _main_left_alone() -> Iterator[None]:
    """Keep a process from running the user's script again, which may lack `if __name__ == "__main__"`.

    Nothing that the processes are given comes from that script.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
