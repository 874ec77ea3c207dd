"""Couples of a right and a wrong judgment of one prompt."""

import random
from collections import Counter
from collections.abc import Sequence
from itertools import product


def choose_couples(
    right: Sequence[str], wrong: Sequence[str], most: int, similar_length: bool, rng: random.Random
) -> list[tuple[str, str]]:
    """Couples (right, wrong): at most `most`, and none twice.

    A couple of two texts that are in no couple yet comes first, so that the couples show as many texts as they can.
    Among equals, the couple with the smallest difference in length (in characters) comes first if `similar_length` is
    set. The rest is drawn at random.

    Args:
        right: Different texts.
        wrong: Different texts, none of them in `right`.
        most: Most couples.
        similar_length: Whether to prefer couples of similar length.
        rng: Breaks ties.
    """
    open_couples = list(product(right, wrong))
    rng.shuffle(open_couples)
    uses: Counter[str] = Counter()

    def rank(couple: tuple[str, str]) -> tuple[int, int]:
        good, bad = couple
        return uses[good] + uses[bad], abs(len(good) - len(bad)) if similar_length else 0

    chosen: list[tuple[str, str]] = []
    while open_couples and len(chosen) < most:
        best = min(open_couples, key=rank)
        open_couples.remove(best)
        chosen.append(best)
        uses.update(best)
    return chosen
