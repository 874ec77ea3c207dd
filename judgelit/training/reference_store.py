"""Store of a precomputed reference: log-probabilities on disk, under a fingerprint of everything they depend on."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
from lightning.pytorch.utilities import rank_zero_info

from judgelit.atomic import write_json
from judgelit.batches.arrow_files import cache_errors, is_whole, map_arrow, write_arrow

_JOINED = "values.arrow"
_SCHEMA = pa.schema([("row", pa.int64()), ("logprobs", pa.list_(pa.float32()))])


class ReferenceStore:
    """Values of R pairs in a folder: parts as they are computed, then one file of them all.

    A part holds some rows. Parts stay when they have been joined, so that a damaged file is made anew from them.
    """

    def __init__(self, folder: Path, key: Mapping[str, str], rows: int, name: str) -> None:
        """Describe the store; nothing is read or written yet.

        Args:
            folder: Where stores of any key lie.
            key: All that the values depend on, by name.
            rows: Number of pairs, R.
            name: Name of the data, for messages.
        """
        self.path = folder / hashlib.sha256(json.dumps(dict(key), sort_keys=True).encode()).hexdigest()[:16]
        self.name = name
        self._key = dict(key)
        self._rows = rows

    def is_complete(self) -> bool:
        """Whether the joined file is undamaged and holds all rows. This reads the whole file."""
        return is_whole(self.path / _JOINED) and self.open().holds(self._rows)

    def open(self) -> "StoredLogProbs":
        """Open the joined file."""
        return StoredLogProbs(self.path / _JOINED)

    def missing(self) -> np.ndarray:
        """Return the rows that no part holds. Damaged parts are removed, and a line says why values are made anew.

        Raises:
            UserError: The folder cannot be written to.
        """
        with cache_errors(self.path):
            if (self.path / _JOINED).exists():
                rank_zero_info(f"reference log-probabilities of {self.name} in {self.path} are damaged: made anew")
            if not (self.path / "key.json").exists():
                if changed := _changes(self.path.parent, self._key):
                    rank_zero_info(f"reference log-probabilities of {self.name} are computed anew: {changed}")
                write_json(self.path / "key.json", self._key)
            missing = np.ones(self._rows, dtype=bool)
            for part in self._parts():
                if is_whole(part):
                    missing[map_arrow(part).read_all()["row"].to_numpy()] = False
                else:
                    part.unlink()
        return np.flatnonzero(missing)

    def save(self, found: Mapping[int, Sequence[float]]) -> None:
        """Add a part: the values of some rows.

        Raises:
            UserError: The folder cannot be written to.
        """
        if found:
            part = pa.record_batch({"row": list(found), "logprobs": list(found.values())}, _SCHEMA)
            with cache_errors(self.path):
                write_arrow(self.path / f"part-{uuid4().hex}.arrow", _SCHEMA, [part])

    def join(self) -> None:
        """Write all parts as one file.

        Raises:
            UserError: The folder cannot be written to.
        """
        files = map(map_arrow, self._parts())
        batches = (file.get_batch(number) for file in files for number in range(file.num_record_batches))
        with cache_errors(self.path):
            write_arrow(self.path / _JOINED, _SCHEMA, batches)

    def make_folder(self) -> Path:
        """Make the folder of the store and return it.

        Raises:
            UserError: It cannot be made.
        """
        with cache_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        return self.path

    def _parts(self) -> list[Path]:
        return sorted(self.path.glob("part-*.arrow"))


class StoredLogProbs:
    """Log-probabilities of each pair's chosen, then rejected tokens, memory-mapped; see `ReferenceStore`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        file = map_arrow(path)
        batches = [file.get_batch(number) for number in range(file.num_record_batches)]
        # The buffers on disk: rows, where each row's values end, and the values.
        self._parts = [(part.column(1).offsets.to_numpy(), part.column(1).values.to_numpy()) for part in batches]
        rows = [np.zeros(0, np.int64), *(part.column(0).to_numpy() for part in batches)]
        # Two runs that computed at the same time may both have stored a row.
        self._rows, self._places = np.unique(np.concatenate(rows), return_index=True)
        self._starts = np.cumsum([0, *(len(part) for part in batches)])

    def __reduce__(self) -> Any:
        # A loader's process maps the file again.
        return StoredLogProbs, (self._path,)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Sequence[float]:
        place = self._places[index]
        part = int(np.searchsorted(self._starts, place, side="right")) - 1
        offsets, values = self._parts[part]
        start, end = offsets[place - self._starts[part] :][:2]
        return values[start:end].tolist()

    def holds(self, rows: int) -> bool:
        """Whether there are values of rows 0 to `rows` - 1 and of no others."""
        return np.array_equal(self._rows, np.arange(rows))


def _changes(folder: Path, key: Mapping[str, str]) -> str:
    """Say in what `key` differs from the most similar store's key; "" if there is no store."""
    others = [other for path in folder.glob("*/key.json") if (other := _read_key(path))]
    if not others:
        return ""
    nearest = max(others, key=lambda other: sum(other.get(part) == value for part, value in key.items()))
    parts = [part for part, value in key.items() if nearest.get(part) != value]
    return ", ".join(f"{part} changed ({nearest.get(part, 'none')} -> {key[part]})" for part in parts)


def _read_key(path: Path) -> dict[str, str]:
    """Read the key of a store; {} if the file is damaged."""
    try:
        key = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return key if isinstance(key, dict) else {}
