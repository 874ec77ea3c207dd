"""Packing: rows into batches within a limit. First-fit with length groups, repacking, cutting, stratified draws.

A unit is a run of rows that stays in one batch: the rows of one prompt, if they fit.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Array = np.ndarray
Draw = Callable[[int], Array]
"""Returns that many random numbers."""

_POOL = 64
"""Length groups: rows are sorted by length within pools of this many batches. Batches then need little padding and
still differ from epoch to epoch."""
_OPEN = 8
"""Batches that first-fit packing keeps open."""
_REPACKED = (4, 16, 64)
"""Batches to take apart, in turn, in an epoch that first-fit packs into too many: few, so that lengths stay grouped."""


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
class Costs:
    """What rows cost: a batch costs the prompt cost of each of its prompts and the row cost of each of its rows."""

    prompt: Array
    """[R] the number of each row's prompt, 0 to P - 1."""
    prompt_cost: Array
    """[R] cost of each row's prompt."""
    row_cost: Array
    """[R] cost of each row beside its prompt."""
    limit: int
    """Most that a batch costs. A row that costs more is a batch by itself."""

    @classmethod
    def of(cls, lengths: Array, batch_size: int, tokens_per_batch: int | None, prompts: Prompts | None) -> "Costs":
        """Costs in tokens if there is a limit of tokens. Otherwise each row costs 1 and prompts cost nothing."""
        rows = len(lengths)
        prompt = np.arange(rows) if prompts is None else np.unique(prompts.keys, return_inverse=True)[1]
        free: Array = np.broadcast_to(0, rows)
        # Sums stay within 64 bits for any limit.
        limit = min(batch_size if tokens_per_batch is None else tokens_per_batch, 1 << 48)
        if tokens_per_batch is None:
            return cls(prompt, free, np.broadcast_to(1, rows), limit)
        if prompts is None:
            return cls(prompt, free, lengths, limit)
        return cls(prompt, prompts.prompt_tokens, prompts.completion_tokens, limit)


@dataclass(frozen=True)
class Batches:
    """Rows in batches."""

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


def random_bits(*of: object) -> Draw:
    """Random numbers that depend on the arguments alone: raw bits are the same in every version of numpy."""
    bits = np.random.PCG64([*"/".join(map(str, of)).encode()])
    return lambda count: bits.random_raw(count)


def draw_stratified(lengths: Array, count: int, draw: Draw) -> Array:
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


def pack_in_order(costs: Costs) -> Batches:
    """Pack the rows in their own order, next-fit."""
    starts, used, there = [], 0, set[int]()
    each = zip(costs.prompt.tolist(), costs.prompt_cost.tolist(), costs.row_cost.tolist(), strict=True)
    for row, (prompt, prompt_cost, row_cost) in enumerate(each):
        used += row_cost + (0 if prompt in there else prompt_cost)
        if used > costs.limit or not there:
            starts.append(row)
            used, there = prompt_cost + row_cost, set()
        there.add(prompt)
    rows = np.arange(len(costs.prompt))
    return Batches(rows, np.array(starts, dtype=np.int64), rows)


def pack(rows: Array, passes: Array, costs: Costs, lengths: Array | None, draw: Draw, most: int | None) -> Batches:
    """Pack visits of rows, in random order, into the batches that they need.

    Args:
        rows: [V] the row of each visit.
        passes: [V] the pass of each visit. A batch holds visits of one pass, and a pass visits no row twice.
        costs: Costs of all rows.
        lengths: [R] tokens of all rows, to put rows of similar length into a batch. None: lengths do not matter.
        draw: Random numbers.
        most: Number of batches to reach by repacking, if the units fit. None: as many as first-fit needs.

    Returns:
        The batches, not yet shuffled.
    """
    prompts = int(costs.prompt.max()) + 1
    unit = passes * prompts + costs.prompt[rows]
    order = np.lexsort((draw(len(rows)), draw(prompts * (int(passes.max()) + 1))[unit], passes))
    rows, unit = rows[order], unit[order]
    starts, unit_costs = _units(rows, np.flatnonzero(np.diff(unit, prepend=-1)), costs)
    passes = unit[starts] // prompts
    longest = None if lengths is None else np.maximum.reduceat(lengths[rows], starts)
    number = _first_fit(unit_costs, passes, longest, costs.limit)
    for repacked in _REPACKED:
        if most is not None and number.max() >= most:
            number = _repack(number, unit_costs, passes, costs.limit, most, repacked)
    by_batch = np.argsort(number, kind="stable")
    sizes = np.diff(starts, append=len(rows))[by_batch]
    rows, starts = rows[_ranges(starts[by_batch], sizes)], np.cumsum(sizes) - sizes
    return Batches(rows, starts[np.flatnonzero(np.diff(number[by_batch], prepend=-1))], starts)


def _units(rows: Array, starts: Array, costs: Costs) -> tuple[Array, Array]:
    """Return where units begin, and their costs. `starts`: where the prompt changes."""
    prompt_cost, row_cost = costs.prompt_cost[rows], costs.row_cost[rows]
    found = np.add.reduceat(row_cost, starts, dtype=np.int64) + prompt_cost[starts]
    ends = np.append(starts[1:], len(rows))
    cuts = []
    for unit in np.flatnonzero(found > costs.limit).tolist():
        used = prompt_cost[starts[unit]]
        for place in range(starts[unit], ends[unit]):
            if used + row_cost[place] > costs.limit and place > starts[unit]:
                cuts.append(place)
                used = prompt_cost[place]
            used += row_cost[place]
    if cuts:
        starts = np.union1d(starts, cuts)
        found = np.add.reduceat(row_cost, starts, dtype=np.int64) + prompt_cost[starts]
    return starts, found


def _first_fit(costs: Array, passes: Array, longest: Array | None, limit: int) -> Array:
    """Return the batch of each unit: first-fit over the last 8 open batches.

    Length groups: units are sorted by their longest row within pools. Every second pool is sorted in falling order, so
    that a batch across the border of two pools holds similar lengths too.
    """
    order = np.arange(len(costs))
    if longest is not None:
        pool = (np.cumsum(costs) - costs) // (_POOL * limit)
        order = np.lexsort((np.where(pool % 2, -longest, longest), pool, passes))
    numbers, count = [], 0
    borders = np.flatnonzero(np.diff(passes[order], prepend=-1)).tolist()
    for start, end in zip(borders, [*borders[1:], len(order)], strict=True):
        rooms: list[list[int]] = []  # [room, number] of each open batch
        for cost in costs[order[start:end]].tolist():
            batch = next((room for room in rooms if cost <= room[0]), None)
            if batch is None:
                batch = [max(limit, cost), count]
                count += 1
                rooms = [*rooms[-_OPEN + 1 :], batch]
            batch[0] -= cost
            numbers.append(batch[1])
            if not batch[0]:
                rooms.remove(batch)
    return np.array(numbers)[np.argsort(order)]


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


def cut_and_shuffle(batches: Batches, count: int, draw: Draw) -> Batches:
    """Shuffle batches, after some have been cut in two until there are `count`."""
    starts = _cut(batches, count - len(batches), draw)
    order = np.argsort(draw(len(starts)))
    sizes = np.diff(starts, append=len(batches.rows))[order]
    rows = batches.rows[_ranges(starts[order], sizes)]
    return Batches(rows, np.cumsum(sizes) - sizes, batches.units)


def _cut(batches: Batches, more: int, draw: Draw) -> Array:
    """Return where batches begin after `more` random cuts, each of a batch in two; within a unit only if need be."""
    if not more:
        return batches.starts
    between = np.setdiff1d(batches.units, batches.starts)
    within = np.setdiff1d(np.arange(len(batches.rows)), batches.units)
    cuts = np.concatenate([places[np.argsort(draw(len(places)))] for places in (between, within)])
    return np.union1d(batches.starts, cuts[:more])


def _ranges(starts: Array, sizes: Array) -> Array:
    """The numbers of the ranges that begin at `starts`, one range after the other."""
    return np.repeat(starts - (np.cumsum(sizes) - sizes), sizes) + np.arange(sizes.sum())
