"""Near-duplicates: different questions that are almost alike, and pairs that repeat another one.

Two questions are near-duplicates if the Jaccard similarity of their word 5-grams reaches a threshold. All of them are
found, by prefix filtering (Chaudhuri et al. 2006; Bayardo et al. 2007, "Scaling up all pairs similarity search"):
two sets of n and m elements with a similarity of t or more have a common element among the n - ceil(t n) + 1 and
m - ceil(t m) + 1 rarest ones. Rare 5-grams are in few questions, so the time grows about linearly with their number.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from judgelit.records.records import PreferencePair
from judgelit.records.sources import group_score
from judgelit.synthesis.question_words import conversation_text, ngrams, words

SIZE = 5
"""Words of an n-gram."""
_ROUNDING = 1e-9


def drop_near_duplicates(
    pairs: Sequence[PreferencePair], threshold: float, seed: int
) -> tuple[list[PreferencePair], int, int]:
    """The pairs without repeated pairs and without those of near-duplicate questions.

    Several pairs of one question stay if their answers differ. Of pairs with the same question and answers one stays,
    of near-duplicate questions one with all its pairs. The seed decides which, not the sequence of the pairs.

    Args:
        pairs: Pairs to choose from.
        threshold: Similarity from which two questions are near-duplicates, above 0, at most 1.
        seed: Seed of the choice.

    Returns:
        The kept pairs in their sequence; the number of repeated pairs; that of pairs of near-duplicate questions.
    """
    first: dict[tuple[str, ...], PreferencePair] = {}
    for pair in sorted(pairs, key=lambda pair: (group_score(f"repeat/{pair.id}", seed), pair.id)):
        first.setdefault((pair.question_key, *sorted((pair.answer_a, pair.answer_b))), pair)
    chosen = {pair.id for pair in first.values()}
    different = [pair for pair in pairs if pair.id in chosen]
    doubles = near_duplicates({pair.question_key: conversation_text(pair) for pair in different}, threshold, seed)
    kept = [pair for pair in different if pair.question_key not in doubles]
    return kept, len(pairs) - len(different), len(different) - len(kept)


def near_duplicates(questions: Mapping[str, str], threshold: float, seed: int = 0) -> dict[str, str]:
    """The questions to drop, each with the kept question that it is almost like.

    Questions are visited in a random sequence that their keys and the seed decide. One is dropped if a kept one is
    near it.

    Args:
        questions: Texts by key.
        threshold: Similarity from which two questions are near-duplicates, above 0, at most 1.
        seed: Seed of the sequence.
    """
    grams = {key: shingles(text) for key, text in questions.items()}
    frequency = Counter(gram for of_question in grams.values() for gram in of_question)
    kept_with: dict[int, list[str]] = {}
    dropped: dict[str, str] = {}
    for key in sorted(grams, key=lambda key: (group_score(f"near/{key}", seed), key)):
        own = grams[key]
        rarest = sorted(own, key=lambda gram: (frequency[gram], gram))
        prefix = rarest[: len(rarest) - math.ceil(threshold * len(rarest) - _ROUNDING) + 1]
        candidates = dict.fromkeys(other for gram in prefix for other in kept_with.get(gram, ()))
        near = next((other for other in candidates if similarity(own, grams[other]) >= threshold - _ROUNDING), None)
        if near is not None:
            dropped[key] = near
            continue
        for gram in prefix:
            kept_with.setdefault(gram, []).append(key)
    return dropped


def shingles(text: str) -> frozenset[int]:
    """Hashes of the word 5-grams of a text; of the whole text if it has fewer words."""
    tokens = words(text, signs=True)
    return frozenset(ngrams(tokens, min(SIZE, len(tokens)))) if tokens else frozenset()


def similarity(one: Iterable[int], other: Iterable[int]) -> float:
    """Jaccard similarity of two sets, 0 to 1."""
    one, other = frozenset(one), frozenset(other)
    common = len(one & other)
    return common / (len(one) + len(other) - common) if one or other else 0.0
