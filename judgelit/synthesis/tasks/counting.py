"""Counting letters, words and numbers. The wrong answer is off by one, equally often too high and too low."""

import random
from collections.abc import Callable, Sequence

from judgelit.synthesis.tasks.problem import Problem, agrees, counted, differs, listed
from judgelit.synthesis.tasks.words import THEMES, VOWELS, WORDS, coined, spelled

_TOTALS = ("Total: {}", "So the count is {}.", "That makes {}.")


def make(rng: random.Random, difficulty: int) -> Problem:
    """Count letters in `difficulty + 1` words, or items of a list that meet a condition."""
    return rng.choice([_letters, _numbers, _words, _repeats])(rng, difficulty)


def _target_and_slip(rng: random.Random, low: int, high: int) -> tuple[int, int]:
    """A right count and the error of the wrong one, such that each number is right as often as wrong."""
    less = rng.randint(low, high - 1)
    return (less, 1) if rng.random() < 0.5 else (less + 1, -1)


def _letters(rng: random.Random, difficulty: int) -> Problem:
    target, off = _target_and_slip(rng, 1, difficulty + 1)
    letters: list[str] = []
    while not letters:
        words = [
            coined(rng, rng.randint(2, 3)) if rng.random() < 0.3 else rng.choice(WORDS) for _ in range(difficulty + 1)
        ]
        text = "".join(words)
        letters = sorted({letter for letter in text if text.count(letter) == target})
    letter = rng.choice(letters)
    counts = [word.count(letter) for word in words]
    # Prefer a wrong count of 0 or 1, so that wrong counts do not look rarer than right ones.
    places = [place for place, count in enumerate(counts) if count + off >= 0]
    usual = [place for place in places if counts[place] + off in (0, 1)]
    at = rng.choice(usual or places)
    slipped = list(counts)
    slipped[at] += off
    right, wrong = sum(counts), sum(slipped)
    total = rng.choice(_TOTALS)
    correct, mistaken = total.format(right), total.format(wrong)
    slip = f"It is one too {'many' if wrong > right else 'few'}."
    if rng.random() < 0.5:
        correct, mistaken = (
            "\n".join(
                [
                    *(f"{word}: {count}" for word, count in zip(words, row, strict=True)),
                    text,
                ]
            )
            for row, text in ((counts, correct), (slipped, mistaken))
        )
        occurs = f"'{letter}' occurs {counted(counts[at], 'time')}"
        slip = f"It counts {slipped[at]} in '{words[at]}' ({spelled(words[at])}), but there {occurs}."
    spelling = [f"{word}: {spelled(word)}, {count}" for word, count in zip(words, counts, strict=True)]
    adding = " + ".join(map(str, counts))
    return Problem(
        question=f"How many times does the letter '{letter}' occur in '{' '.join(words)}'?",
        correct=correct,
        wrong=mistaken,
        steps=f"Word by word, how often '{letter}' occurs:\n" + "\n".join([*spelling, f"Total: {adding} = {right}"]),
        check_correct=agrees(str(right)),
        check_wrong=differs(str(wrong), str(right), slip),
    )


def _numbers(rng: random.Random, difficulty: int) -> Problem:
    top = (50, 100, 200, 500, 1000)[difficulty - 1]
    divisor, bound = rng.choice([3, 4, 5, 6, 7]), rng.randint(top // 3, top // 2)
    properties: list[tuple[str, Callable[[str], bool]]] = [
        ("even", lambda number: int(number) % 2 == 0),
        ("odd", lambda number: int(number) % 2 == 1),
        (f"divisible by {divisor}", lambda number: int(number) % divisor == 0),
        (f"greater than {bound}", lambda number: int(number) > bound),
    ]
    name, meets = rng.choice(properties)
    pool = list(map(str, range(1, top)))
    return _chosen(
        rng,
        difficulty,
        f"How many of these numbers are {name}?",
        f"are {name}",
        pool,
        meets,
    )


def _words(rng: random.Random, difficulty: int) -> Problem:
    letter, size = rng.choice("aeionrt"), rng.randint(6, 7)
    properties: list[tuple[str, Callable[[str], bool]]] = [
        (f"contain the letter '{letter}'", lambda word: letter in word),
        (f"have more than {size} letters", lambda word: len(word) > size),
        ("end in a vowel (a, e, i, o, u)", lambda word: word[-1] in VOWELS),
    ]
    name, meets = rng.choice(properties)
    return _chosen(rng, difficulty, f"How many of these words {name}?", name, WORDS, meets)


def _chosen(
    rng: random.Random,
    difficulty: int,
    ask: str,
    name: str,
    pool: Sequence[str],
    meets: Callable[[str], bool],
) -> Problem:
    """Count the items of a list that meet a condition. The mistake leaves one out or counts one too many."""
    size = 4 + 3 * difficulty
    target, off = _target_and_slip(rng, 1, 2 * difficulty + 3)
    inside, outside = [item for item in pool if meets(item)], [item for item in pool if not meets(item)]
    items = rng.sample(inside, target) + rng.sample(outside, size - target)
    rng.shuffle(items)
    hits = [item for item in items if meets(item)]
    if off < 0:
        odd_one = rng.choice(hits)
        slip = f"It overlooks {odd_one}, which is one of those that {name}."
    else:
        odd_one = rng.choice([item for item in items if item not in hits])
        slip = f"It counts {odd_one}, which is not one of those that {name}."
    picked = [item for item in items if (item in hits) != (item == odd_one)]
    right, wrong = str(len(hits)), str(len(picked))
    total = rng.choice(_TOTALS)
    listing = rng.random() < 0.5
    correct, mistaken = (
        f"{listed(row)}. {total.format(len(row))}" if listing else total.format(len(row)) for row in (hits, picked)
    )
    if not listing:
        slip = f"It is one too {'many' if len(picked) > len(hits) else 'few'}."
    return Problem(
        question=f"{ask} {listed(items)}",
        correct=correct,
        wrong=mistaken,
        steps="Item by item:\n"
        + "\n".join(f"{item}: {'yes' if item in hits else 'no'}" for item in items)
        + f"\nThose that {name}: {listed(hits)}.\nTotal: {right}",
        check_correct=agrees(right),
        check_wrong=differs(wrong, right, slip),
    )


def _repeats(rng: random.Random, difficulty: int) -> Problem:
    """Count one item in a list with repeated items."""
    kinds = rng.sample(rng.choice(list(THEMES.values())), 2 + difficulty)
    right, off = _target_and_slip(rng, 1, difficulty + 2)
    items = [*kinds[:1] * right, *kinds[1:], *rng.choices(kinds[1:], k=4 * difficulty + 4 - right)]
    rng.shuffle(items)
    places = [place for place, item in enumerate(items, 1) if item == kinds[0]]
    wrong = right + off
    total = rng.choice([*_TOTALS, "{}"])
    return Problem(
        question=f"How many times does '{kinds[0]}' stand in this list? {listed(items)}",
        correct=total.format(right),
        wrong=total.format(wrong),
        steps=f"The list has {len(items)} items; '{kinds[0]}' is at places {listed(places)}.\nTotal: {right}",
        check_correct=agrees(str(right)),
        check_wrong=differs(str(wrong), str(right), f"It is one too {'many' if off > 0 else 'few'}."),
    )
