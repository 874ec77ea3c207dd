"""Batch sampler: which rows an epoch visits, in which batches and in which order, on each rank."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

import numpy as np
from torch.utils.data import Sampler

from judgelit.batches.packing import (
    Array,
    Batches,
    Costs,
    Draw,
    Prompts,
    cut_and_shuffle,
    draw_stratified,
    pack,
    pack_in_order,
    random_bits,
)

_SPARE = 200
"""One spare batch for this many. The numbers of batches that large epochs need differ by less."""


class BatchSampler(Sampler[list[int]]):
    """Batches of row numbers: shuffled, of similar length, different in every epoch, equal for equal seeds.

    A batch holds at most `batch_size` rows or `tokens_per_batch` tokens: each of its prompts once, and all its
    completions. Rows of one prompt are in one batch if they fit. A row that is longer than `tokens_per_batch` is a
    batch by itself. No batch holds a row twice.

    The batches are a pure function of (seed, epoch), so a run that stopped after `k` batches continues with batch `k`.
    Rank r takes batches r, r + world_size, ...: the global batches are the same for any number of ranks.

    All epochs have the same number of batches, which trainers and schedules rely on. Epoch 0 sets it: the batches that
    first-fit packing needs, and a few spare ones. An epoch that needs fewer has some batches cut in two. In an epoch
    that needs more, the emptiest batches are packed again, more tightly (best-fit decreasing). If that is not enough,
    the epoch takes the batches of epoch 0 in another order. All ranks have the same number of batches too: in the last
    turn, a rank for which no batch is left gets an empty one.

    Args:
        lengths: Tokens of each row.
        batch_size: Rows of a batch on one rank.
        tokens_per_batch: Tokens of a batch, in place of `batch_size`.
        prompts: Which rows share a prompt. None: no rows do, and a row costs its length.
        shares: (rows, weight) of each source, in the order of the rows. An epoch visits each row `weight` times. For a
            fraction, it visits a random part of the source of that size, drawn anew in every epoch.
        seed: Seed of the order.
        rank: Rank of this process.
        world_size: Number of processes.
        shuffle: Whether to shuffle. If not, rows come once each in their own order.
        group_by_length: Whether a shuffled batch holds rows of similar length.
    """

    def __init__(
        self,
        lengths: Sequence[int] | Array,
        batch_size: int,
        *,
        tokens_per_batch: int | None = None,
        prompts: Prompts | None = None,
        shares: Sequence[tuple[int, float]] | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
        group_by_length: bool = True,
    ) -> None:
        self.lengths = np.asarray(lengths, dtype=np.int64)
        self.shares = shares or [(len(lengths), 1.0)]
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.shuffle = shuffle
        self.group_by_length = group_by_length
        self.epoch = 0
        self._resume = (0, 0)
        self._current: tuple[int, Batches] | None = None
        # Lightning calls `set_epoch` on a loader's `batch_sampler.sampler`.
        self.sampler = self
        self._costs = Costs.of(self.lengths, batch_size, tokens_per_batch, prompts)
        self._passes = max(math.ceil(weight) for _, weight in self.shares)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration."""
        self.epoch = epoch

    def resume(self, epoch: int, batches: int) -> None:
        """Start in `epoch`, after the first `batches` batches of this rank."""
        self.epoch = epoch
        self._resume = (epoch, batches)

    def __len__(self) -> int:
        return math.ceil(self._count / self.world_size)

    def __iter__(self) -> Iterator[list[int]]:
        epoch, done = self._resume
        batches = self._batches(self.epoch)
        for turn in range(done if epoch == self.epoch else 0, len(self)):
            number = turn * self.world_size + self.rank
            yield batches[number] if number < len(batches) else []

    def _batches(self, epoch: int) -> Batches:
        if self._current is None or self._current[0] != epoch:
            self._current = (epoch, self._shuffled(epoch) if self.shuffle else self._in_order)
        return self._current[1]

    @cached_property
    def _in_order(self) -> Batches:
        return pack_in_order(self._costs)

    @cached_property
    def _first(self) -> Batches:
        """The batches of epoch 0, before they are shuffled and cut."""
        return self._packed(0)

    @cached_property
    def _count(self) -> int:
        """Batches of every epoch, all ranks together."""
        if not self.shuffle:
            return len(self._in_order)
        needed, visits = len(self._first), len(self._first.rows)
        spare = 0 if needed == math.ceil(visits / self._costs.limit) else needed // _SPARE
        if any(weight < self._passes for _, weight in self.shares):
            # Which rows are in which pass is random, and each pass may end with a batch that is not full.
            spare += self._passes - 1
        if visits and any(weight % 1 for _, weight in self.shares):
            # The tokens of two draws seldom differ by more than two of the longest rows; see `draw_stratified`.
            spare += math.ceil(2 * np.ptp(self._costs.prompt_cost + self._costs.row_cost) / self._costs.limit)
        return min(needed + spare, visits)

    def _shuffled(self, epoch: int) -> Batches:
        batches = self._packed(epoch, self._count) if epoch else self._first
        if len(batches) > self._count:
            batches = self._first
        return cut_and_shuffle(batches, self._count, random_bits(self.seed, epoch, "batches"))

    def _packed(self, epoch: int, most: int | None = None) -> Batches:
        """Pack the rows of an epoch into the batches that they need, not yet shuffled: `most` of them, if they fit."""
        draw = random_bits(self.seed, epoch, 0)
        rows, turn = self._visits(draw)
        if not len(rows):
            return Batches(rows, rows, rows)
        # An epoch is as many passes as its heaviest source needs. The rows of a prompt begin with a random pass, and
        # the visits of a row are in different passes.
        prompt = self._costs.prompt
        first = (draw(int(prompt.max()) + 1) % self._passes).astype(np.int64)[prompt[rows]]
        lengths = self.lengths if self.group_by_length else None
        return pack(rows, (first + turn) % self._passes, self._costs, lengths, draw, most)

    def _visits(self, draw: Draw) -> tuple[Array, Array]:
        """Return the rows that an epoch visits and, for each visit, how many the row had before."""
        rows, turns, first = [np.arange(0)], [np.arange(0)], 0
        for count, weight in self.shares:
            whole, part = int(weight), visits(count, weight % 1)
            drawn = first + draw_stratified(self.lengths[first : first + count], part, draw)
            rows += [np.tile(np.arange(first, first + count), whole), drawn]
            turns += [np.repeat(np.arange(whole), count), np.full(part, whole)]
            first += count
        return np.concatenate(rows), np.concatenate(turns)


class ResumableBatchSampler(BatchSampler):
    """BatchSampler that continues at the trainer's place.

    Lightning's own epoch number does not tell the place: after resuming it may skip an epoch that is done, and it
    counts an epoch that `max_steps` cut short as a whole one. The number of trained batches tells it.
    """

    place: Callable[[], tuple[int, int]]
    """Returns the trainer's epoch and how many of its batches are done."""

    def set_epoch(self, epoch: int) -> None:
        """Continue at the trainer's place. Lightning calls this at the start of every epoch."""
        self.resume(*self.place())


def visits(rows: int, weight: float) -> int:
    """Visits of an epoch to a source of this many rows."""
    return int(weight) * rows + round(rows * (weight % 1))
