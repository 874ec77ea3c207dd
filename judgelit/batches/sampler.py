"""Batch sampler: which rows an epoch visits, how they are packed into batches, and in which order these come."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch.utils.data import Sampler

Array = np.ndarray
Draw = Callable[[int], Array]

_POOL = 64
"""Length groups: rows are sorted by length within pools of this many batches. Batches then need little padding and
still differ from epoch to epoch."""
_OPEN = 8
"""Batches that first-fit packing keeps open."""
_REPACKED = (4, 16, 64)
"""Batches to take apart, in turn, in an epoch that first-fit packs into too many: few, so that lengths stay grouped."""
_SPARE = 200
"""One spare batch for this many. The numbers of batches that large epochs need differ by less."""


@dataclass(frozen=True)
class Prompts:
    """Which rows share a prompt, and their tokens: three [R] integer arrays."""

    keys: Array
    """Equal for rows with equal prompts."""
    prompt_tokens: Array
    """Tokens of each row's prompt. A batch computes them once for all its rows with this prompt."""
    completion_tokens: Array
    """Tokens of each row's completions, added up."""


@dataclass(frozen=True)
class _Batches:
    """Rows in batches. A unit is a run of rows that stays in one batch: the rows of one prompt, if they fit."""

    rows: Array
    """[R] the rows, batch by batch."""
    starts: Array
    """Places in `rows` where batches begin."""
    units: Array
    """Places in `rows` where units begin."""

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> list[int]:
        end = self.starts[index + 1] if index + 1 < len(self) else None
        return self.rows[self.starts[index] : end].tolist()


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
    the epoch takes the batches of epoch 0 in another order. All ranks have the same number of batches too: the last
    turn is completed with batches from the beginning of the epoch.

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
        self._current: tuple[int, _Batches] | None = None
        # Lightning calls `set_epoch` on a loader's `batch_sampler.sampler`.
        self.sampler = self
        rows = len(self.lengths)
        # The number of each row's prompt, 0 to P - 1.
        self._prompt = np.arange(rows) if prompts is None else np.unique(prompts.keys, return_inverse=True)[1]
        self._passes = max(math.ceil(weight) for _, weight in self.shares)
        # Sums stay within 64 bits for any limit.
        self._limit = min(batch_size if tokens_per_batch is None else tokens_per_batch, 1 << 48)
        # A batch costs the prompt cost of each of its prompts and the row cost of each of its rows.
        self._prompt_cost: Array = np.broadcast_to(0, rows)
        self._row_cost: Array = np.broadcast_to(1, rows)
        if tokens_per_batch is not None:
            self._row_cost = self.lengths if prompts is None else prompts.completion_tokens
            self._prompt_cost = self._prompt_cost if prompts is None else prompts.prompt_tokens

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
            yield batches[(turn * self.world_size + self.rank) % len(batches)]

    def _batches(self, epoch: int) -> _Batches:
        if self._current is None or self._current[0] != epoch:
            self._current = (epoch, self._shuffled(epoch) if self.shuffle else self._in_order)
        return self._current[1]

    @cached_property
    def _count(self) -> int:
        """Batches of every epoch, all ranks together."""
        if not self.shuffle:
            return len(self._in_order)
        needed, visits = len(self._first), len(self._first.rows)
        spare = 0 if needed == math.ceil(visits / self._limit) else needed // _SPARE
        if any(weight < self._passes for _, weight in self.shares):
            # Which rows are in which pass is random, and each pass may end with a batch that is not full.
            spare += self._passes - 1
        if visits and any(weight % 1 for _, weight in self.shares):
            # The tokens of two draws seldom differ by more than two of the longest rows; see `_stratified`.
            spare += math.ceil(2 * np.ptp(self._prompt_cost + self._row_cost) / self._limit)
        return min(needed + spare, visits)

    @cached_property
    def _in_order(self) -> _Batches:
        """The rows in their own order, next-fit."""
        starts, used, there = [], 0, set[int]()
        costs = zip(self._prompt.tolist(), self._prompt_cost.tolist(), self._row_cost.tolist(), strict=True)
        for row, (prompt, prompt_cost, row_cost) in enumerate(costs):
            used += row_cost + (0 if prompt in there else prompt_cost)
            if used > self._limit or not there:
                starts.append(row)
                used, there = prompt_cost + row_cost, set()
            there.add(prompt)
        rows = np.arange(len(self.lengths))
        return _Batches(rows, np.array(starts, dtype=np.int64), rows)

    @cached_property
    def _first(self) -> _Batches:
        """The batches of epoch 0, before they are shuffled and cut."""
        return self._pack(0)

    def _shuffled(self, epoch: int) -> _Batches:
        packed = self._pack(epoch, self._count) if epoch else self._first
        if len(packed) > self._count:
            packed = self._first
        draw = _bits(self.seed, epoch, "batches")
        starts = _cut(packed, self._count - len(packed), draw)
        order = np.argsort(draw(len(starts)))
        sizes = np.diff(starts, append=len(packed.rows))[order]
        rows = packed.rows[_ranges(starts[order], sizes)]
        return _Batches(rows, np.cumsum(sizes) - sizes, packed.units)

    def _pack(self, epoch: int, most: int | None = None) -> _Batches:
        """Pack the rows of an epoch into the batches that they need, not yet shuffled: `most` of them, if they fit."""
        draw = _bits(self.seed, epoch, 0)
        rows, turn = self._visits(draw)
        if not len(rows):
            return _Batches(rows, rows, rows)
        # An epoch is as many passes as its heaviest source needs. The visits of a row are in different passes, and a
        # batch is in one pass.
        prompts = int(self._prompt.max()) + 1
        passes = (draw(prompts) % self._passes).astype(np.int64)[self._prompt[rows]] + turn
        unit = passes % self._passes * prompts + self._prompt[rows]
        order = np.lexsort((draw(len(rows)), draw(prompts * self._passes)[unit], unit // prompts))
        rows, unit = rows[order], unit[order]
        starts, costs = self._units(rows, np.flatnonzero(np.diff(unit, prepend=-1)))
        passes = unit[starts] // prompts
        number = self._first_fit(rows, starts, costs, passes)
        for repacked in _REPACKED:
            if most is not None and number.max() >= most:
                number = _repack(number, costs, passes, self._limit, most, repacked)
        by_batch = np.argsort(number, kind="stable")
        sizes = np.diff(starts, append=len(rows))[by_batch]
        rows, starts = rows[_ranges(starts[by_batch], sizes)], np.cumsum(sizes) - sizes
        return _Batches(rows, starts[np.flatnonzero(np.diff(number[by_batch], prepend=-1))], starts)

    def _visits(self, draw: Draw) -> tuple[Array, Array]:
        """Return the rows that an epoch visits and, for each visit, how many the row had before."""
        rows, turns, first = [np.arange(0)], [np.arange(0)], 0
        for count, weight in self.shares:
            whole, part = int(weight), visits(count, weight % 1)
            drawn = first + _stratified(self.lengths[first : first + count], part, draw)
            rows += [np.tile(np.arange(first, first + count), whole), drawn]
            turns += [np.repeat(np.arange(whole), count), np.full(part, whole)]
            first += count
        return np.concatenate(rows), np.concatenate(turns)

    def _units(self, rows: Array, starts: Array) -> tuple[Array, Array]:
        """Return where units begin, and their costs. `starts`: where the prompt changes."""
        prompt_cost, row_cost = self._prompt_cost[rows], self._row_cost[rows]
        costs = np.add.reduceat(row_cost, starts, dtype=np.int64) + prompt_cost[starts]
        ends = np.append(starts[1:], len(rows))
        cuts = []
        for unit in np.flatnonzero(costs > self._limit).tolist():
            used = prompt_cost[starts[unit]]
            for place in range(starts[unit], ends[unit]):
                if used + row_cost[place] > self._limit and place > starts[unit]:
                    cuts.append(place)
                    used = prompt_cost[place]
                used += row_cost[place]
        if cuts:
            starts = np.union1d(starts, cuts)
            costs = np.add.reduceat(row_cost, starts, dtype=np.int64) + prompt_cost[starts]
        return starts, costs

    def _first_fit(self, rows: Array, starts: Array, costs: Array, passes: Array) -> Array:
        """Return the batch of each unit: first-fit over the last 8 open batches.

        Length groups: units are sorted by length within pools. Every second pool is sorted in falling order, so that
        a batch across the border of two pools holds similar lengths too.
        """
        order = np.arange(len(starts))
        if self.group_by_length:
            pool = (np.cumsum(costs) - costs) // (_POOL * self._limit)
            longest = np.maximum.reduceat(self.lengths[rows], starts)
            order = np.lexsort((np.where(pool % 2, -longest, longest), pool, passes))
        numbers, count = [], 0
        borders = np.flatnonzero(np.diff(passes[order], prepend=-1)).tolist()
        for start, end in zip(borders, [*borders[1:], len(order)], strict=True):
            rooms: list[list[int]] = []  # [room, number] of each open batch
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
    """Visits of an epoch to a source of this many rows."""
    return int(weight) * rows + round(rows * (weight % 1))


def _bits(*of: object) -> Draw:
    """Random numbers that depend on the arguments alone: raw bits are the same in every version of numpy."""
    bits = np.random.PCG64([*"/".join(map(str, of)).encode()])
    return lambda count: bits.random_raw(count)


def _stratified(lengths: Array, count: int, draw: Draw) -> Array:
    """Draw `count` rows, each with equal probability, with the mix of lengths that all rows have.

    Stratified sampling: rows of similar length form small strata, and each stratum gives its share. The tokens of an
    epoch therefore hardly depend on the draw.
    """
    rows = len(lengths)
    order = np.lexsort((draw(rows), lengths))
    if not 0 < count < rows:
        return order[:count]
    size = math.ceil(2 * rows / min(count, rows - count))
    edges = np.minimum(np.arange(0, rows + size, size), rows)
    # Rounded up or down at random, so that a row of a small stratum is no likelier either.
    quotas = np.diff((edges * count + int(draw(1)[0]) % rows) // rows)
    stratum = np.arange(rows) // size
    order = order[np.lexsort((draw(rows), stratum))]
    return order[np.arange(rows) % size < quotas[stratum]]


def _ranges(starts: Array, sizes: Array) -> Array:
    """The numbers of the ranges that begin at `starts`, one range after the other."""
    return np.repeat(starts - (np.cumsum(sizes) - sizes), sizes) + np.arange(sizes.sum())


def _repack(number: Array, costs: Array, passes: Array, limit: int, most: int, repacked: int) -> Array:
    """Take the emptiest batches apart and pack their units anew, best-fit decreasing, so that `most` batches are left.

    Args:
        number: Batch of each unit, 0 to B - 1.
        costs: Cost of each unit.
        passes: Pass of each unit; a batch holds units of one pass.
        limit: Cost that a batch can hold.
        most: Number of batches to reach.
        repacked: Batches to take apart, beside those that must go.

    Returns:
        The batch of each unit, numbered anew, or `number` if some unit fits nowhere.
    """
    room = limit - np.bincount(number, costs).astype(np.int64)
    of_pass = np.empty(len(room), np.int64)
    of_pass[number] = passes
    excess = len(room) - most
    emptied = np.argsort(-room, kind="stable")[: excess + repacked]
    units = np.flatnonzero(np.isin(number, emptied))
    room[emptied], of_pass[emptied] = limit, -1
    room[emptied[:excess]] = -1
    found = number.copy()
    for unit in units[np.argsort(-costs[units], kind="stable")].tolist():
        of_this = (of_pass == passes[unit]) | (of_pass == -1)
        # An empty batch also takes a row that is over the limit.
        fitting = np.flatnonzero(of_this & (room >= min(costs[unit], limit)))
        if not len(fitting):
            return number
        best = fitting[np.argmin(room[fitting])]
        room[best] -= costs[unit]
        of_pass[best] = passes[unit]
        found[unit] = best
    return np.unique(found, return_inverse=True)[1]


def _cut(batches: _Batches, more: int, draw: Draw) -> Array:
    """Return where batches begin after `more` random cuts, each of a batch in two; within a unit only if need be."""
    if not more:
        return batches.starts
    between = np.setdiff1d(batches.units, batches.starts)
    within = np.setdiff1d(np.arange(len(batches.rows)), batches.units)
    cuts = np.concatenate([places[np.argsort(draw(len(places)))] for places in (between, within)])
    return np.union1d(batches.starts, cuts[:more])


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
