"""Tokenised examples on disk, mapped into memory, and the rows of them that a loader reads."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import xxhash
from torch.utils.data import Dataset

from judgelit.batches.flat_batch import TokenizedCompletion, TokenizedPreference
from judgelit.batches.sampler import Prompts

Row = TokenizedCompletion | TokenizedPreference


class TokenStore:
    """The examples of one source as ids, R rows in the source's order.

    The ids stay in the file and are read where they are asked for. It is pickled as its path.

    Raises:
        OSError, pa.ArrowInvalid: The file is not there, or not whole.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        names = reader.schema.names
        self.columns = names[names.index("prompt") :]
        self._batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        self._lists = [
            [(batch[name].offsets.to_numpy(), batch[name].values.to_numpy()) for name in self.columns]
            for batch in self._batches
        ]
        self._ends = list(accumulate(batch.num_rows for batch in self._batches))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __reduce__(self) -> tuple[Any, ...]:
        return TokenStore, (self.path,)

    def row(self, index: int) -> tuple[str, list[list[int]]]:
        """The name of a row, and its ids: those of the prompt, then those of each completion."""
        number = bisect_right(self._ends, index)
        place = index - (self._ends[number - 1] if number else 0)
        ids = [values[offsets[place] : offsets[place + 1]].tolist() for offsets, values in self._lists[number]]
        return self._batches[number]["id"][place].as_py(), ids

    @property
    def key(self) -> str:
        """A hash of all that the rows were made of."""
        return self.path.parent.name

    @cached_property
    def prompt_tokens(self) -> np.ndarray:
        """[R] int32, tokens of each prompt."""
        return self._tokens(0)

    @cached_property
    def completion_tokens(self) -> list[np.ndarray]:
        """For each kind of completion [R] int32, their tokens."""
        return [self._tokens(column) for column in range(1, len(self.columns))]

    @property
    def lengths(self) -> np.ndarray:
        """[R] int32, tokens of each prompt and its longest completion together."""
        return self.prompt_tokens + np.max(self.completion_tokens, axis=0)

    @cached_property
    def prompt_keys(self) -> np.ndarray:
        """[R] int64, a hash of each prompt's ids."""
        return _joined([batch["prompt_key"].to_numpy() for batch in self._batches], np.int64)

    def by_group(self, score: Callable[[str], float]) -> np.ndarray:
        """[R] float64, the `score` of each row's group: of what must stay on one side of a split."""
        scores = []
        for batch in self._batches:
            groups = batch["group"].dictionary_encode()
            found = np.array([score(group) for group in groups.dictionary.to_pylist()])
            scores.append(found[groups.indices.to_numpy()])
        return _joined(scores, np.float64)

    def _tokens(self, column: int) -> np.ndarray:
        return _joined([np.diff(lists[column][0]) for lists in self._lists], np.int32)


class ReferenceValues(Protocol):
    """For each row what `TokenizedPreference.reference` holds."""

    def __getitem__(self, index: int, /) -> Sequence[float]: ...


class TokenRows(Dataset[Row]):
    """Chosen rows of some stores, R in all, one store after the other.

    It holds the rows' numbers; their ids stay on disk. In a loader's process it opens the stores anew.

    Args:
        parts: Stores, each with the numbers of its rows that are chosen, rising.
        kind: What a row is.
    """

    reference: ReferenceValues | None = None
    """The reference's log-probabilities, where they were computed before training."""

    def __init__(self, parts: Sequence[tuple[TokenStore, np.ndarray]], kind: type[Row]) -> None:
        # All rows of a store need no numbers.
        self._parts = [(store, None if len(rows) == len(store) else rows.astype(np.int64)) for store, rows in parts]
        self._kind: Callable[..., Row] = kind
        self._ends = list(accumulate(len(rows) for _, rows in parts))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Row:
        index = range(len(self))[index]
        number = bisect_right(self._ends, index)
        store, rows = self._parts[number]
        place = index - (self._ends[number - 1] if number else 0)
        name, ids = store.row(place if rows is None else int(rows[place]))
        row = self._kind(name, *ids)
        if self.reference is None or not isinstance(row, TokenizedPreference):
            return row
        return replace(row, reference=self.reference[index])

    def __getstate__(self) -> dict[str, Any]:
        # What a loader's process has no use for stays here.
        here = {"lengths", "prompts", "prompt_keys"}
        return {name: value for name, value in vars(self).items() if name not in here}

    @cached_property
    def lengths(self) -> np.ndarray:
        """[R] int32, as `len(row)` is: tokens of the prompt and its longest completion."""
        return self._chosen(lambda store: store.lengths)

    @cached_property
    def prompt_keys(self) -> np.ndarray:
        """[R] int64, a hash of each row's prompt ids."""
        return self.prompts.keys

    @cached_property
    def prompts(self) -> Prompts:
        """Which rows share a prompt, and what they cost in tokens."""
        return Prompts(
            keys=self._chosen(lambda store: store.prompt_keys),
            prompt_tokens=self._chosen(lambda store: store.prompt_tokens),
            completion_tokens=self._chosen(lambda store: np.sum(store.completion_tokens, axis=0)),
        )

    @cached_property
    def fingerprint(self) -> str:
        """A hash of what the stores were made of and which of their rows these are, in order."""
        content = xxhash.xxh3_128()
        for store, rows in self._parts:
            content.update(store.key.encode() + (b"all" if rows is None else rows.tobytes()))
        return content.hexdigest()

    def _chosen(self, column: Callable[[TokenStore], np.ndarray]) -> np.ndarray:
        values = [column(store) if rows is None else column(store)[rows] for store, rows in self._parts]
        return np.concatenate(values) if values else np.empty(0, np.int64)


def _joined(arrays: Sequence[np.ndarray], dtype: type[np.generic]) -> np.ndarray:
    return np.concatenate([np.empty(0, dtype), *arrays])
