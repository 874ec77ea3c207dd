"""Sentences for the constraint tasks. A word can be replaced by another of its class."""

import random

from judgelit.synthesis.tasks.words import THEMES

_WORDS = {
    "determiner": "the this that every one some another",
    "adjective": (
        "brave calm clever cold dark friendly gentle happy hungry little lonely lucky modest nervous noisy old "
        "patient polite proud quiet serious shy silent sleepy small strange strong tall tired warm wise young"
    ),
    "verb": ("arrived danced dreamed jumped lingered played rested sang slept stood waited walked whistled"),
    "adverb": ("alone briefly calmly early gladly happily late often quietly slowly today twice yesterday"),
    "preposition": "behind beside near outside inside below",
    "mark": ". !",
}
CLASSES: dict[str, tuple[str, ...]] = {name: tuple(words.split()) for name, words in _WORDS.items()} | {
    "creature": THEMES["animals"] + THEMES["professions"],
    "place": THEMES["places"],
}
_CLASS_OF = {word: name for name, words in CLASSES.items() for word in words}


def draw(rng: random.Random, extras: int) -> list[str]:
    """The words and the final mark of a sentence with `extras` adjectives and adverbs, at most 5."""
    shape = [
        "determiner",
        "creature",
        "verb",
        "preposition",
        "determiner",
        "place",
        "mark",
    ]
    for place in sorted(rng.sample([1, 1, 3, 5, 5], extras), reverse=True):
        shape.insert(place, "adverb" if place == 3 else "adjective")
    return [rng.choice(CLASSES[name]) for name in shape]


def change(rng: random.Random, words: list[str]) -> list[str]:
    """The sentence with one word replaced by another of its class, or one adjective removed or added."""
    words, at = list(words), rng.randrange(len(words))
    kind = rng.choice(["replace", "leave out", "add"])
    if kind == "leave out" and _CLASS_OF[words[at]] in ("adjective", "adverb"):
        del words[at]
    elif kind == "add" and _CLASS_OF[words[at]] in ("creature", "place"):
        words.insert(at, rng.choice(CLASSES["adjective"]))
    else:
        words[at] = rng.choice(CLASSES[_CLASS_OF[words[at]]])
    return words


def join(words: list[str]) -> str:
    """`The old baker slept.`"""
    return " ".join(words[:-1]).capitalize() + words[-1]
