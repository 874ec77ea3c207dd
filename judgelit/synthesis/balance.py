"""Choose judgments so that neither the place nor the length of an answer tells which one is better.

A cell holds the judgments with one label (A or B) and one side: the better answer is longer, shorter or equally long,
in characters. A hash of the pair's id and the seed decides which judgments of a cell stay: the sequence of the pairs
does not matter.
"""

from collections.abc import Mapping, Sequence

from judgelit.records.records import PreferencePair
from judgelit.records.sources import group_score

TOLERANCE = 0.02
"""Within each label, the share of longer better answers is 0.5 up to this, or their number is equal up to one."""

Cell = tuple[str, int]
_CELLS: list[Cell] = [(label, side) for label in "AB" for side in (1, -1, 0)]


def choose_balanced(
    pairs: Sequence[PreferencePair], labels: bool, length: bool, seed: int
) -> tuple[list[int], int, int]:
    """Indices of the chosen pairs, and how many were left out for each balance.

    With `labels`, as many have label A as B. With `length`, as many have a longer better answer as a shorter one. With
    both, these numbers are equal too within each label, up to `TOLERANCE`: otherwise place and length together could
    tell the better answer.

    Args:
        pairs: Pairs in the order of their prompts; none is a tie.
        labels: Balance the labels.
        length: Balance the length of the better answer.
        seed: Seed of the choice.

    Returns:
        The indices, ascending; the number left out for the balance of labels; and that for the balance of length.
    """
    cells = _cells(pairs, seed)
    sizes = {cell: len(members) for cell, members in cells.items()}
    by_label = {label: [cell for cell in _CELLS if cell[0] == label] for label in "AB"}
    for_labels = 0
    if labels:
        for_labels = abs(sum(sizes[cell] for cell in by_label["A"]) - sum(sizes[cell] for cell in by_label["B"]))
    if labels and length:
        kept = [index for cell, size in _balanced_sizes(sizes).items() for index in cells[cell][:size]]
    elif labels:
        of_a, of_b = ([index for cell in by_label[label] for index in cells[cell]] for label in "AB")
        kept = _equal(of_a, of_b, pairs, seed)
    elif length:
        longer, shorter = ([*cells["A", side], *cells["B", side]] for side in (1, -1))
        kept = [*_equal(longer, shorter, pairs, seed), *cells["A", 0], *cells["B", 0]]
    else:
        kept = list(range(len(pairs)))
    return sorted(kept), for_labels, len(pairs) - for_labels - len(kept)


def balanced_units(pairs: Sequence[PreferencePair], labels: bool, seed: int) -> list[tuple[int, ...]]:
    """Indices of the pairs in units of two, in a random sequence. If the pairs are balanced, so is any choice of units.

    The two of a unit have different labels, and if one better answer is longer the other one is shorter. Pairs without
    such a partner are joined with one of the other label or of the other side; others are units of one.

    Args:
        pairs: Pairs in the order of their prompts.
        labels: Whether the labels are balanced; otherwise the length is, or nothing.
        seed: Seed of the sequence.
    """
    cells = _cells(pairs, seed)
    units: list[tuple[int, ...]] = []

    def join(one: list[int], other: list[int]) -> None:
        count = min(len(one), len(other))
        units.extend(zip(one[:count], other[:count], strict=True))
        del one[:count], other[:count]

    for side in (1, -1, 0):
        join(cells["A", side], cells["B", -side])
    left = _by_hash([index for members in cells.values() for index in members], pairs, seed)
    if labels:
        rest = [[i for i in left if pairs[i].label == label] for label in "AB"]
    else:
        rest = [[i for i in left if side_of(pairs[i]) == side] for side in (1, -1, 0)]
    join(rest[0], rest[1])
    units += [(index,) for of in rest for index in of]
    return sorted(units, key=lambda unit: group_score(f"unit/{pairs[unit[0]].id}", seed))


def side_of(pair: PreferencePair) -> int:
    """1 if the better answer is longer than the other one in characters, -1 if shorter, 0 if as long."""
    difference = len(pair.answer_a) - len(pair.answer_b)
    if pair.label == "B":
        difference = -difference
    return (difference > 0) - (difference < 0)


def _balanced_sizes(sizes: Mapping[Cell, int]) -> dict[Cell, int]:
    """The largest sizes of the cells with equal labels, equal sides, and sides near equal within each label."""
    # A longer with B shorter, and A shorter with B longer: the two numbers may differ a little.
    one, other = min(sizes["A", 1], sizes["B", -1]), min(sizes["A", -1], sizes["B", 1])
    less = min(one, other)
    most = max(less + 1, int(less * (0.5 + TOLERANCE) / (0.5 - TOLERANCE) + 1e-9))
    one, other, equal = min(one, most), min(other, most), min(sizes["A", 0], sizes["B", 0])
    return {
        **{("A", 1): one, ("B", -1): one},
        **{("A", -1): other, ("B", 1): other},
        **{("A", 0): equal, ("B", 0): equal},
    }


def _cells(pairs: Sequence[PreferencePair], seed: int) -> dict[Cell, list[int]]:
    """Indices of the pairs by cell, those of a cell in the sequence of their hashes."""
    cells: dict[Cell, list[int]] = {cell: [] for cell in _CELLS}
    for index, pair in enumerate(pairs):
        cells[pair.label, side_of(pair)].append(index)
    return {cell: _by_hash(members, pairs, seed) for cell, members in cells.items()}


def _by_hash(indices: Sequence[int], pairs: Sequence[PreferencePair], seed: int) -> list[int]:
    return sorted(indices, key=lambda index: (group_score(f"balance/{pairs[index].id}", seed), pairs[index].id))


def _equal(one: Sequence[int], other: Sequence[int], pairs: Sequence[PreferencePair], seed: int) -> list[int]:
    """As many of one as of the other."""
    count = min(len(one), len(other))
    return [index for of in (one, other) for index in _by_hash(of, pairs, seed)[:count]]
