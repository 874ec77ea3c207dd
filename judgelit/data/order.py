"""The order in which an epoch visits its rows, and how they come in batches."""

import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence

from torch.utils.data import Sampler


class EpochBatches(Sampler[list[int]]):
    """Batches of row numbers: shuffled, of similar length, different every epoch, the same for equal seeds.

    The order is a pure function of (seed, epoch), so a run that stopped after `k` batches continues with batch `k`
    whatever the number of workers. Every rank sees the same number of batches: the global order is dealt out in turn,
    completed with batches from the beginning of the epoch's order.

    Args:
        lengths: Tokens of each row.
        batch_size: Rows of a batch on one rank.
        shares: (rows, weight) of each source, in the order of the rows. An epoch visits each row of a source `weight`
            times; of a fraction, a random part of the source of that size, another one every epoch.
        seed: Seed of the order.
        rank: This process among `world_size`.
        world_size: Number of processes.
        shuffle: Whether to shuffle; without, rows come in their own order, once each.
        group_by_length: Whether a shuffled batch holds rows of similar length.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        *,
        shares: Sequence[tuple[int, float]] | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
        group_by_length: bool = True,
    ) -> None:
        self.lengths = lengths
        self.batch_size = batch_size
        self.shares = shares or [(len(lengths), 1.0)]
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.shuffle = shuffle
        self.group_by_length = group_by_length
        self.epoch = 0
        self._resume = (0, 0)
        # Lightning calls `set_epoch` on a loader's `batch_sampler.sampler`.
        self.sampler = self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration follows."""
        self.epoch = epoch

    def resume(self, epoch: int, batches: int) -> None:
        """Begin with `epoch`, of which the first `batches` batches of this rank are done."""
        self.epoch = epoch
        self._resume = (epoch, batches)

    def __len__(self) -> int:
        rows = sum(count * int(weight) + round(count * (weight % 1)) for count, weight in self.shares)
        return math.ceil(math.ceil(rows / self.batch_size) / self.world_size)

    def __iter__(self) -> Iterator[list[int]]:
        epoch, done = self._resume
        mine = self._order()[self.rank :: self.world_size]
        yield from mine[done if epoch == self.epoch else 0 :]

    def _order(self) -> list[list[int]]:
        rng = random.Random(f"{self.seed}/{self.epoch}")
        rows = self._visits(rng)
        # Sorting within large pools of a shuffled order keeps padding low and batches random.
        grouped = self.shuffle and self.group_by_length
        pool = 64 * self.batch_size * self.world_size if grouped else self.batch_size
        batches: list[list[int]] = []
        for start in range(0, len(rows), pool):
            part = rows[start : start + pool]
            if grouped:
                part.sort(key=lambda row: self.lengths[row])
            batches += [part[i : i + self.batch_size] for i in range(0, len(part), self.batch_size)]
        if self.shuffle:
            rng.shuffle(batches)
        return list(itertools.islice(itertools.cycle(batches), len(self) * self.world_size))

    def _visits(self, rng: random.Random) -> list[int]:
        rows: list[int] = []
        first = 0
        for count, weight in self.shares:
            source = range(first, first + count)
            rows += [*source] * int(weight) + sorted(rng.sample(source, round(count * (weight % 1))))
            first += count
        if self.shuffle:
            rng.shuffle(rows)
        return rows


class RunBatches(EpochBatches):
    """EpochBatches that follow a trainer through epochs of any length, wherever it began.

    Lightning's own number of an epoch will not do: on resuming it may pass over one that is done already, and it counts
    one that `max_steps` cut short as a whole one. The batches that it has trained on are what counts.
    """

    place: Callable[[], tuple[int, int]]
    """Tells which epoch the trainer is in, and how many batches of it are done."""

    def set_epoch(self, epoch: int) -> None:
        """Go on where the trainer is; Lightning calls this at the start of every epoch."""
        self.resume(*self.place())
