"""The precomputed reference: one pass before training stores its log-probabilities beside the tokenised data."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from judgelit.batches.flat_batch import PreferenceBatch, flatten_preferences
from judgelit.batches.token_store import TokenRows
from judgelit.errors import UserError
from judgelit.likelihood.logprobs import Scorer
from judgelit.models.fingerprint import settings_fingerprint
from judgelit.progress import track
from judgelit.training.reference import AdapterReference, starting_fingerprint
from judgelit.training.reference_store import ReferenceStore, StoredLogProbs

if TYPE_CHECKING:
    import lightning as L

    from judgelit.training.dpo import DPOModule

_SAVE_EVERY = 30.0
"""Seconds of work that a kill may cost."""
_TOKENS = 8192
"""Tokens of a batch of the pass, each prompt counted with each of its pairs."""


@dataclass(frozen=True)
class Ranks:
    """This process among those that compute. `gather` returns a value of each rank; all ranks must call it."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    """Number of this process on its node."""
    local_size: int = 1
    """Number of processes on its node."""
    gather: Callable[[Any], list[Any]] = lambda value: [value]

    @classmethod
    def of(cls, trainer: "L.Trainer") -> "Ranks":
        """The ranks of a run."""
        world_size = trainer.world_size

        def gather(value: Any) -> list[Any]:
            values: list[Any] = [value] * world_size
            if world_size > 1:
                torch.distributed.all_gather_object(values, value)
            return values

        return cls(trainer.global_rank, world_size, trainer.local_rank, trainer.num_devices, gather)


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
        "settings of the model": settings_fingerprint(module.policy.model, module.backbone.adapter is not None),
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

    return stored_logprobs(data.cache_folder / "reference" / part, key, rows, score, part, Ranks.of(trainer))


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

    Killed and called again, it continues where it was. What is stored is verified first; damaged values are computed
    anew, and a line says so. If the nodes do not share `folder`, each node computes all values.

    Args:
        folder: Where stores of any key lie.
        key: All that the values depend on, by name.
        rows: The pairs.
        score: A batch to the log-probabilities of its scored tokens, [N] float32.
        name: Name of the data, for messages.
        ranks: This process among those that compute.

    Raises:
        UserError: `folder` cannot be written to, or values are missing at the end.
    """
    store = ReferenceStore(folder, key, len(rows), name)
    if not all(ranks.gather(store.is_complete())):
        _complete(store, rows, score, ranks)
        if not store.is_complete():
            raise UserError(f"{store.path}: found some of the reference values of {name}, expected all; start again")
    return store.open()


def _complete(store: ReferenceStore, rows: TokenRows, score: Callable[[PreferenceBatch], Tensor], ranks: Ranks) -> None:
    """Compute what is missing, each rank its share, and join it with what is stored."""
    # The ranks that share a folder share the work. Their first rank looks after the folder.
    first, rank, size = 0, ranks.rank, ranks.world_size
    if not _is_shared(store, ranks):
        rank_zero_info(
            f"{store.path} is not shared by the nodes: each computes the reference of {store.name} by itself"
        )
        first, rank, size = ranks.rank - ranks.local_rank, ranks.local_rank, ranks.local_size
    missing = ranks.gather(store.missing() if rank == 0 else None)[first]
    batches = _batches(missing, rows) if len(missing) else []
    # A sharded model needs all ranks in every forward pass, so a rank without work scores a row and drops its values.
    turns = max(ranks.gather(-(-len(batches) // size)))
    mine = range(rank, turns * size, size)
    work = [(batches[number], True) if number < len(batches) else ([0], False) for number in mine]
    if work:
        compute_values(store, track(work, f"reference of {store.name}") if rank == 0 else work, rows, score)
    ranks.gather(None)
    if rank == 0:
        store.join()
    ranks.gather(None)


def _is_shared(store: ReferenceStore, ranks: Ranks) -> bool:
    """Whether all ranks see what the first one writes."""
    name = ranks.gather(f"shared-{uuid4().hex}")[0]
    # A network file system may take a while to show a node a folder that another node has made.
    mark = store.make_folder() / name
    ranks.gather(None)
    if ranks.rank == 0:
        mark.touch()
    ranks.gather(None)
    seen = all(ranks.gather(mark.exists()))
    if ranks.rank == 0:
        mark.unlink(missing_ok=True)
    return seen


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
    store: ReferenceStore,
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
            store.save(found)
            found, saved = {}, time.monotonic()
    store.save(found)
