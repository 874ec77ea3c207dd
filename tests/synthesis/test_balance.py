from collections import Counter
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from judgelit.records.records import PreferencePair
from judgelit.synthesis.balance import TOLERANCE, balanced_units, choose_balanced, side_of
from tests.support import make_pair

CELLS = [(label, side) for label in "AB" for side in (1, -1, 0)]
LENGTHS = {1: ("longer", "short"), -1: ("short", "longer"), 0: ("equal", "same.")}


def pairs_of(counts: Sequence[int]) -> list[PreferencePair]:
    """That many pairs of each cell of CELLS."""
    cells = [cell for cell, count in zip(CELLS, counts, strict=True) for _ in range(count)]
    return [make_pair(n, label, *LENGTHS[side]) for n, (label, side) in enumerate(cells)]


def sides(pairs: Sequence[PreferencePair]) -> Counter[int]:
    return Counter(map(side_of, pairs))


any_pairs = st.lists(st.integers(0, 40), min_size=6, max_size=6).map(pairs_of)


@settings(max_examples=200, deadline=None)
@given(any_pairs, st.integers(0, 3))
def test_any_input_gives_exactly_balanced_labels_and_lengths(pairs: list[PreferencePair], seed: int) -> None:
    kept, for_labels, for_length = choose_balanced(pairs, True, True, seed)
    chosen = [pairs[index] for index in kept]
    assert len(kept) + for_labels + for_length == len(pairs) and kept == sorted(set(kept))
    assert for_labels >= 0 and for_length >= 0
    labels = Counter(pair.label for pair in chosen)
    assert labels["A"] == labels["B"]
    assert sides(chosen)[1] == sides(chosen)[-1], "the longer answer is better in exactly half of them"
    for label in "AB":
        here = sides([pair for pair in chosen if pair.label == label])
        decided = here[1] + here[-1]
        assert abs(here[1] - here[-1]) <= max(1, 2 * TOLERANCE * decided + 1e-9), "nor do place and length together"


@settings(max_examples=100, deadline=None)
@given(any_pairs, st.booleans(), st.booleans(), st.randoms(use_true_random=False))
def test_the_choice_does_not_depend_on_the_sequence_of_the_pairs(pairs, labels, length, random) -> None:
    shuffled = random.sample(pairs, len(pairs))

    def ids(of: list[PreferencePair]) -> set[str]:
        return {of[index].id for index in choose_balanced(of, labels, length, 0)[0]}

    assert ids(pairs) == ids(shuffled)

    def units(of: list[PreferencePair]) -> list[list[str]]:
        return [[of[index].id for index in unit] for unit in balanced_units(of, labels, 0)]

    assert units(pairs) == units(shuffled)


@settings(max_examples=100, deadline=None)
@given(any_pairs)
def test_one_balance_alone_drops_no_more_than_it_must(pairs: list[PreferencePair]) -> None:
    labels, both_sides = Counter(pair.label for pair in pairs), sides(pairs)
    kept, for_labels, for_length = choose_balanced(pairs, True, False, 0)
    assert (len(kept), for_length) == (2 * min(labels["A"], labels["B"]), 0)
    assert Counter(pairs[index].label for index in kept)["A"] == len(kept) / 2
    kept, for_labels, for_length = choose_balanced(pairs, False, True, 0)
    assert (len(kept), for_labels) == (2 * min(both_sides[1], both_sides[-1]) + both_sides[0], 0)
    assert sides([pairs[index] for index in kept])[1] == sides([pairs[index] for index in kept])[-1]
    assert choose_balanced(pairs, False, False, 0) == (list(range(len(pairs))), 0, 0)


def test_two_pairs_that_balance_each_other_are_kept() -> None:
    assert choose_balanced(pairs_of([1, 0, 0, 0, 1, 0]), True, True, 0) == ([0, 1], 0, 0)
    # Where A is always the longer one, place and length together would tell the better answer.
    assert len(choose_balanced(pairs_of([30, 0, 0, 0, 30, 0]), True, True, 0)[0]) == 2
    assert choose_balanced(pairs_of([5, 0, 0, 0, 0, 0]), True, True, 0) == ([], 5, 0)
    assert choose_balanced(pairs_of([5, 0, 0, 5, 0, 0]), True, True, 0) == ([], 0, 10)


def test_most_of_a_nearly_balanced_set_stays() -> None:
    pairs = pairs_of([260, 200, 10, 240, 190, 12])
    kept, _, _ = choose_balanced(pairs, True, True, 0)
    assert len(kept) == 2 * (190 + 200 + 10)


def test_the_seed_decides_which_stay() -> None:
    pairs = pairs_of([40, 20, 0, 20, 40, 0])
    assert choose_balanced(pairs, True, True, 0) != choose_balanced(pairs, True, True, 1)


@settings(max_examples=100, deadline=None)
@given(any_pairs, st.booleans(), st.booleans())
def test_units_hold_each_pair_once_and_keep_a_balance(pairs, labels: bool, length: bool) -> None:
    kept = [pairs[index] for index in choose_balanced(pairs, labels, length, 0)[0]]
    units = balanced_units(kept, labels, 0)
    assert sorted(index for unit in units for index in unit) == list(range(len(kept)))
    for unit in units:
        if labels:
            assert Counter(kept[index].label for index in unit)["A"] == 1 == len(unit) / 2
        if length:
            assert sum(side_of(kept[index]) for index in unit) == 0
