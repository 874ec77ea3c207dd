"""The order in which an epoch visits its rows, and how they come in batches."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch.utils.data import Sampler

Array = np.ndarray
Draw = Callable[[int], Array]

_POOL = 64
"""Batches' worth of rows that are sorted by length together: little padding, and batches that are still random."""
_OPEN = 8
"""Batches that are filled at the same time."""
_SMALL = 10_000
"""Visits of an epoch that make it small: the tokens of a random part of its rows then vary visibly."""
_SAMPLED = 32
"""Epochs of which the largest says how many batches all have."""
_TRIES = 100
"""Orders of an epoch that are drawn before one of another epoch is taken again."""


@dataclass(frozen=True)
class Prompts:
    """Which rows share a prompt and what it saves: three [R] integer arrays."""

    keys: Array
    """Equal for rows whose prompts are equal."""
    prompt_tokens: Array
    """Tokens of each row's prompt, which a batch computes once for all its rows that have it."""
    completion_tokens: Array
    """Tokens of each row's completions, all together."""


@dataclass(frozen=True)
class _Batches:
    """Rows, and the places among them where batches begin and where their units begin, which are rather kept whole."""

    rows: Array
    starts: Array
    units: Array

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> list[int]:
        end = self.starts[index + 1] if index + 1 < len(self) else None
        return self.rows[self.starts[index] : end].tolist()


class BatchSampler(Sampler[list[int]]):
    """Batches of row numbers: shuffled, of similar length, different every epoch, the same for equal seeds.

    A batch holds `batch_size` rows, or as many as `tokens_per_batch` pays for: its prompts once each and its
    completions. Rows of one prompt come in the same batch, unless they exceed one; a row that by itself exceeds one is
    a batch of its own; no row is twice in a batch.

    The batches are a pure function of (seed, epoch), so a run that stopped after `k` batches continues with batch `k`,
    and dealt out to ranks in turn they make the same global batches for any number of ranks. All epochs have the same
    number of batches, on which trainers and schedules count; an epoch that would need fewer has some cut in two. Every
    rank sees the same number too: the last turn is completed with batches from the beginning of the epoch.

    Args:
        lengths: Tokens of each row, by which rows of similar length meet.
        batch_size: Rows of a batch on one rank.
        tokens_per_batch: Tokens of a batch, in place of `batch_size`.
        prompts: Which rows share a prompt; none: no two do, and a row costs its length.
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
        self._made: tuple[int, _Batches] | None = None
        self._tried: tuple[tuple[int, int], _Batches] | None = None
        # Lightning calls `set_epoch` on a loader's `batch_sampler.sampler`.
        self.sampler = self
        rows = len(self.lengths)
        # The number of each row's prompt, 0 to P - 1.
        self._prompt = np.arange(rows) if prompts is None else np.unique(prompts.keys, return_inverse=True)[1]
        self._passes = max(math.ceil(weight) for _, weight in self.shares)
        # Whatever the limit, sums stay within 64 bits.
        self._limit = min(batch_size if tokens_per_batch is None else tokens_per_batch, 1 << 48)
        self._once: Array = np.broadcast_to(0, rows)
        self._each: Array = np.broadcast_to(1, rows)
        if tokens_per_batch is not None:
            self._each = self.lengths if prompts is None else prompts.completion_tokens
            self._once = self._once if prompts is None else prompts.prompt_tokens

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration follows."""
        self.epoch = epoch

    def resume(self, epoch: int, batches: int) -> None:
        """Begin with `epoch`, of which the first `batches` batches of this rank are done."""
        self.epoch = epoch
        self._resume = (epoch, batches)

    def __len__(self) -> int:
        return math.ceil(self._count / self.world_size)

    def __iter__(self) -> Iterator[list[int]]:
        epoch, done = self._resume
        batches = self._batches(self.epoch)
        for turn in range(done if epoch == self.epoch else 0, len(self)):
            yield batches[(turn * self.world_size + self.rank) % len(batches)]

    @cached_property
    def _count(self) -> int:
        """Batches of any epoch, all ranks together."""
        if not self.shuffle:
            return len(self._batches(0))
        packed = self._packed(0, 0)
        needed, rows = len(packed), len(packed.rows)
        # Only those parts of a source that fit are ever drawn, and the parts of a small one differ visibly.
        if any(weight % 1 for _, weight in self.shares) and rows < _SMALL:
            needed = max(needed, *(len(self._packed(epoch, 0)) for epoch in range(1, _SAMPLED)))
        # Where the first epoch does not need the fewest that any could, others differ from it by well under 1 in 200.
        return needed if needed == math.ceil(rows / self._limit) else min(needed + needed // 200, rows)

    def _batches(self, epoch: int) -> _Batches:
        if self._made is None or self._made[0] != epoch:
            self._made = (epoch, self._shuffled(epoch) if self.shuffle else self._in_order())
        return self._made[1]

    def _in_order(self) -> _Batches:
        starts, used, there = [], 0, set[int]()
        costs = zip(self._prompt.tolist(), self._once.tolist(), self._each.tolist(), strict=True)
        for row, (prompt, once, each) in enumerate(costs):
            used += each + (0 if prompt in there else once)
            if used > self._limit or not there:
                starts.append(row)
                used, there = once + each, set()
            there.add(prompt)
        rows = np.arange(len(self.lengths))
        return _Batches(rows, np.array(starts, dtype=np.int64), rows)

    def _shuffled(self, epoch: int) -> _Batches:
        tries = (self._packed(epoch, attempt) for attempt in range(_TRIES))
        packed = next((found for found in tries if len(found) <= self._count), None) or self._packed(0, 0)
        draw = _bits(self.seed, epoch, "batches")
        starts = _cut(packed, self._count - len(packed), draw)
        order = np.argsort(draw(len(starts)))
        sizes = np.diff(starts, append=len(packed.rows))[order]
        rows = packed.rows[_ranges(starts[order], sizes)]
        return _Batches(rows, np.cumsum(sizes) - sizes, packed.units)

    def _packed(self, epoch: int, attempt: int) -> _Batches:
        """The rows of an epoch in as many batches as they need, which are yet to be shuffled."""
        if self._tried is None or self._tried[0] != (epoch, attempt):
            self._tried = ((epoch, attempt), self._pack(_bits(self.seed, epoch, attempt)))
        return self._tried[1]

    def _pack(self, draw: Draw) -> _Batches:
        rows, turn = self._visits(draw)
        if not len(rows):
            return _Batches(rows, rows, rows)
        # An epoch is as many passes as its heaviest source needs. The visits of a row fall into different ones, and
        # no batch reaches over two.
        prompts = int(self._prompt.max()) + 1
        passes = (draw(prompts) % self._passes).astype(np.int64)[self._prompt[rows]] + turn
        unit = passes % self._passes * prompts + self._prompt[rows]
        order = np.lexsort((draw(len(rows)), draw(prompts * self._passes)[unit], unit // prompts))
        rows, unit = rows[order], unit[order]
        starts, costs = self._units(rows, np.flatnonzero(np.diff(unit, prepend=-1)))
        number = self._fill(rows, starts, costs, unit[starts] // prompts)
        by_batch = np.argsort(number, kind="stable")
        sizes = np.diff(starts, append=len(rows))[by_batch]
        rows, starts = rows[_ranges(starts[by_batch], sizes)], np.cumsum(sizes) - sizes
        return _Batches(rows, starts[np.flatnonzero(np.diff(number[by_batch], prepend=-1))], starts)

    def _visits(self, draw: Draw) -> tuple[Array, Array]:
        """The rows that an epoch visits, and for each visit how many the row had before."""
        rows, turns, first = [np.arange(0)], [np.arange(0)], 0
        for count, weight in self.shares:
            whole, part = int(weight), visits(count, weight % 1)
            rows += [np.tile(np.arange(first, first + count), whole), first + np.argsort(draw(count))[:part]]
            turns += [np.repeat(np.arange(whole), count), np.full(part, whole)]
            first += count
        return np.concatenate(rows), np.concatenate(turns)

    def _units(self, rows: Array, starts: Array) -> tuple[Array, Array]:
        """Where the units begin that are kept together, and their costs; `starts` is where another prompt begins."""
        once, each = self._once[rows], self._each[rows]
        costs = np.add.reduceat(each, starts, dtype=np.int64) + once[starts]
        ends = np.append(starts[1:], len(rows))
        cuts = []
        for unit in np.flatnonzero(costs > self._limit).tolist():
            used = once[starts[unit]]
            for place in range(starts[unit], ends[unit]):
                if used + each[place] > self._limit and place > starts[unit]:
                    cuts.append(place)
                    used = once[place]
                used += each[place]
        if cuts:
            starts = np.union1d(starts, cuts)
            costs = np.add.reduceat(each, starts, dtype=np.int64) + once[starts]
        return starts, costs

    def _fill(self, rows: Array, starts: Array, costs: Array, passes: Array) -> Array:
        """The batch of each unit: the first of the last open ones that has room for it.

        Units come as they are or, grouped by length, sorted within pools, of which each second one is in falling order,
        so that a batch on the border of two holds similar lengths too.
        """
        order = np.arange(len(starts))
        if self.group_by_length:
            pool = (np.cumsum(costs) - costs) // (_POOL * self._limit)
            longest = np.maximum.reduceat(self.lengths[rows], starts)
            order = np.lexsort((np.where(pool % 2, -longest, longest), pool, passes))
        numbers, count = [], 0
        borders = np.flatnonzero(np.diff(passes[order], prepend=-1)).tolist()
        for start, end in zip(borders, [*borders[1:], len(order)], strict=True):
            rooms: list[list[int]] = []
            for cost in costs[order[start:end]].tolist():
                batch = next((room for room in rooms if cost <= room[0]), None)
                if batch is None:
                    batch = [max(self._limit, cost), count]
                    count += 1
                    rooms = [*rooms[-_OPEN + 1 :], batch]
                batch[0] -= cost
                numbers.append(batch[1])
                if not batch[0]:
                    rooms.remove(batch)
        return np.array(numbers)[np.argsort(order)]


def visits(rows: int, weight: float) -> int:
    """Visits of an epoch to a source of so many rows."""
    return int(weight) * rows + round(rows * (weight % 1))


def _bits(*of: object) -> Draw:
    """Random numbers, which depend on nothing but `of`: raw bits are the same in every version of numpy."""
    bits = np.random.PCG64([*"/".join(map(str, of)).encode()])
    return lambda count: bits.random_raw(count)


def _ranges(starts: Array, sizes: Array) -> Array:
    """The numbers of the ranges that begin at `starts`, one range after the other."""
    return np.repeat(starts - (np.cumsum(sizes) - sizes), sizes) + np.arange(sizes.sum())


def _cut(batches: _Batches, more: int, draw: Draw) -> Array:
    """Where batches begin once `more` of them, drawn at random, are cut in two; units only where there is no other."""
    if not more:
        return batches.starts
    places = np.setdiff1d(batches.units, batches.starts)
    inside = np.setdiff1d(np.arange(len(batches.rows)), batches.units)
    cuts = np.concatenate([some[np.argsort(draw(len(some)))] for some in (places, inside)])
    return np.union1d(batches.starts, cuts[:more])


class ResumableBatchSampler(BatchSampler):
    """BatchSampler that follow a trainer through epochs of any length, wherever it began.

    Lightning's own number of an epoch will not do: on resuming it may pass over one that is done already, and it counts
    one that `max_steps` cut short as a whole one. The batches that it has trained on are what counts.
    """

    place: Callable[[], tuple[int, int]]
    """Tells which epoch the trainer is in, and how many batches of it are done."""

    def set_epoch(self, epoch: int) -> None:
        """Go on where the trainer is; Lightning calls this at the start of every epoch."""
        self.resume(*self.place())
