"""The precomputed reference: one pass before training stores its log-probabilities beside the tokenised data."""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from judgelit.atomic import atomic_file, write_json
from judgelit.batches.flat_batch import PreferenceBatch, flatten_preferences
from judgelit.batches.token_store import TokenRows
from judgelit.errors import UserError
from judgelit.likelihood.logprobs import Scorer
from judgelit.progress import track
from judgelit.training.reference import AdapterReference, starting_fingerprint

if TYPE_CHECKING:
    from judgelit.training.dpo import DPOModule

_SAVE_EVERY = 30.0
"""Seconds of work that a kill may cost."""
_TOKENS = 8192
"""Tokens of a batch of the pass, each prompt counted with each of its pairs."""
_MAPPED = "mapped.arrow"
_SCHEMA = pa.schema([("row", pa.int64()), ("logprobs", pa.list_(pa.float32()))])


class StoredLogProbs:
    """Log-probabilities of each pair's chosen, then rejected tokens, memory-mapped; see `stored_logprobs`."""

    def __init__(self, store: Path) -> None:
        """Open a store whose parts are joined."""
        self._store = store
        batches = _open_mapped(store)
        # The buffers on disk: rows, where each row's values end, and the values.
        self._parts = [(part.column(1).offsets.to_numpy(), part.column(1).values.to_numpy()) for part in batches]
        rows = [np.zeros(0, np.int64), *(part.column(0).to_numpy() for part in batches)]
        # Two runs that computed at the same time may both have stored a row.
        self._places = np.unique(np.concatenate(rows), return_index=True)[1]
        self._starts = np.cumsum([0, *(len(part) for part in batches)])

    def __reduce__(self) -> Any:
        # A loader's process maps the file again.
        return StoredLogProbs, (self._store,)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Sequence[float]:
        place = self._places[index]
        part = int(np.searchsorted(self._starts, place, side="right")) - 1
        offsets, values = self._parts[part]
        start, end = offsets[place - self._starts[part] :][:2]
        return values[start:end].tolist()


def _join_parts(store: Path) -> None:
    """Write all parts as one Arrow file, since Parquet cannot be memory-mapped."""
    with atomic_file(store / _MAPPED) as file, pa.ipc.new_file(file, _SCHEMA) as writer:
        for part in _parts(store):
            for batch in pq.ParquetFile(part).iter_batches():
                writer.write_batch(batch)


def _open_mapped(store: Path) -> list[pa.RecordBatch]:
    reader = pa.ipc.open_file(pa.memory_map(str(store / _MAPPED)))
    return [reader.get_batch(number) for number in range(reader.num_record_batches)]


@dataclass(frozen=True)
class Ranks:
    """This process among those that compute."""

    rank: int = 0
    world_size: int = 1
    barrier: Callable[[], None] = lambda: None


def precompute(module: "DPOModule", part: str, rows: TokenRows) -> StoredLogProbs | None:
    """The reference's log-probabilities of a part of a DPODataModule's data, after computing what is missing.

    Args:
        module: The DPO module in its Trainer, its model built.
        part: train, val or test.
        rows: The pairs of that part.

    Returns:
        None if there are no pairs.

    Raises:
        UserError: Values are missing and the weights that training began with are gone.
    """
    if not len(rows):
        return None
    trainer, device = module.trainer, module.device
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    first: Any = rows[0]
    key = {
        "model": module.backbone.name_or_path,
        "weights": module.reference.fingerprint(),
        "tokenizer and template": data.tokenizer.fingerprint,
        "layout": module.policy.layout(flatten_preferences([first]).to(device)).rows,
        "precision": str(trainer.precision),
        "data": rows.fingerprint,
    }
    start: Scorer | AdapterReference | None = None

    @torch.no_grad()
    def score(batch: PreferenceBatch) -> Tensor:
        nonlocal start
        start = start or _starting_scorer(module)
        with trainer.precision_plugin.forward_context():
            return start.logprobs(batch.to(device)).tokens

    ranks = Ranks(trainer.global_rank, trainer.world_size, trainer.strategy.barrier)
    return stored_logprobs(data.cache_folder / "reference" / part, key, rows, score, part, ranks)


def _starting_scorer(module: "DPOModule") -> Scorer | AdapterReference:
    """The policy, or if it has been trained, its start loaded again."""
    backbone, policy, wanted = module.backbone, module.policy, module.reference.fingerprint()
    if backbone.uses_lora and backbone.adapter is None:
        return AdapterReference(policy, has_adapter=False)
    if starting_fingerprint(backbone, policy.model) == wanted:
        return policy
    again: Any = backbone.build(module.sharding, module.before_sharding)
    if starting_fingerprint(backbone, again) != wanted:
        raise UserError(
            "reference 'precomputed': some values are not stored, and the weights that the run began with are gone; "
            "begin anew, or use reference 'frozen'"
        )
    return Scorer(again.to(module.device), module.layout, module.trainer.strategy.reduce_boolean_decision)


def stored_logprobs(
    folder: Path,
    key: Mapping[str, str],
    rows: TokenRows,
    score: Callable[[PreferenceBatch], Tensor],
    name: str,
    ranks: Ranks = Ranks(),
) -> StoredLogProbs:
    """Compute the log-probabilities that are not stored under `key` yet, each rank its share, and open the store.

    Killed and called again, it continues where it was.

    Args:
        folder: Where stores of any key lie.
        key: All that the values depend on, by name.
        rows: The pairs.
        score: A batch to the log-probabilities of its scored tokens, [N] float32.
        name: Name of the data on the progress bar.
        ranks: This process among those that compute.
    """
    store = folder / hashlib.sha256(json.dumps(dict(key), sort_keys=True).encode()).hexdigest()[:16]
    if ranks.rank == 0 and not (store / "key.json").exists():
        if changed := _changes(folder, key):
            rank_zero_info(f"reference log-probabilities of {name} are computed anew: {changed}")
        write_json(store / "key.json", dict(key))
    ranks.barrier()
    done = _done(store)
    missing = np.array([row for row in range(len(rows)) if row not in done], dtype=np.int64)
    ranks.barrier()  # all ranks have looked before any writes
    if len(missing):
        batches = _batches(missing, rows)
        # A sharded model needs all ranks in every forward pass, so a rank without work repeats a batch and drops it.
        turns = -(-len(batches) // ranks.world_size)
        mine = [turn * ranks.world_size + ranks.rank for turn in range(turns)]
        work = [(batches[number % len(batches)], number < len(batches)) for number in mine]
        shown = track(work, f"reference of {name}") if ranks.rank == 0 else work
        compute_values(store, shown, rows, score)
        ranks.barrier()
    if ranks.rank == 0 and (len(missing) or not (store / _MAPPED).exists()):
        _join_parts(store)
    ranks.barrier()
    return StoredLogProbs(store)


def _batches(chosen: np.ndarray, rows: TokenRows) -> list[list[int]]:
    """Put rows of similar length into batches of about `_TOKENS` tokens, those of one prompt together."""
    lengths = np.asarray(rows.lengths)[chosen]
    keys, prompt = np.unique(np.asarray(rows.prompt_keys)[chosen], return_inverse=True)
    longest = np.zeros(len(keys), dtype=np.int64)
    np.maximum.at(longest, prompt, lengths)
    batches: list[list[int]] = []
    room = 0
    for place in np.lexsort((prompt, longest[prompt])):
        room -= lengths[place]
        if room < 0:
            batches.append([])
            room = _TOKENS - lengths[place]
        batches[-1].append(int(chosen[place]))
    return batches


def compute_values(
    store: Path,
    work: Iterable[tuple[Sequence[int], bool]],
    rows: TokenRows,
    score: Callable[[PreferenceBatch], Tensor],
) -> None:
    found: dict[int, list[float]] = {}
    saved = time.monotonic()
    for numbers, keep in work:
        pairs: list[Any] = [rows[number] for number in numbers]
        batch = flatten_preferences(pairs)
        counts = torch.bincount(batch.rows, minlength=len(batch.lengths)).tolist()
        values = score(batch).float().cpu().split(counts)
        if not keep:
            continue
        for number, chosen, rejected in zip(numbers, batch.chosen.tolist(), batch.rejected.tolist(), strict=True):
            found[number] = torch.cat([values[chosen], values[rejected]]).tolist()
        if time.monotonic() - saved > _SAVE_EVERY:
            _save(store, found)
            found, saved = {}, time.monotonic()
    _save(store, found)


def _save(store: Path, found: Mapping[int, list[float]]) -> None:
    """Add a part."""
    if not found:
        return
    table = pa.table({"row": list(found), "logprobs": list(found.values())}, _SCHEMA)
    with atomic_file(store / f"part-{uuid4().hex}.parquet") as file:
        pq.write_table(table, file)


def _parts(store: Path) -> list[Path]:
    return sorted(store.glob("part-*.parquet"))


def _done(store: Path) -> set[int]:
    return {row for part in _parts(store) for row in pq.read_table(part, columns=["row"])["row"].to_pylist()}


def _changes(folder: Path, key: Mapping[str, str]) -> str:
    """Say in what `key` differs from the most similar store's key; "" if there is no store."""
    others = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*/key.json")]
    if not others:
        return ""
    nearest = max(others, key=lambda other: sum(other.get(part) == value for part, value in key.items()))
    parts = [part for part, value in key.items() if nearest.get(part) != value]
    return ", ".join(f"{part} changed ({nearest.get(part, 'none')} -> {key[part]})" for part in parts)
