"""One to three operations on the letters of a text. The wrong answer makes a mistake in one and continues from it."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from judgelit.synthesis.tasks.problem import Problem, agrees, differs
from judgelit.synthesis.tasks.words import VOWELS, WORDS, coined

_SHAPES = {1: (1, 4, 7), 2: (1, 8, 11), 3: (2, 7, 10), 4: (2, 11, 14), 5: (3, 13, 16)}
"""For each difficulty the number of operations, and the shortest and longest text."""
_ENDINGS = ("{}", "Result: {}", "The result is {}", "You get {}")
_ALPHABET = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class _Operation:
    """Operation on a text: its instruction, the right result, and a mistake.

    `slip` returns a wrong result and the explanation.
    """

    instruction: str
    apply: Callable[[str], str]
    slip: Callable[[random.Random, str], tuple[str, str]]


def make(rng: random.Random, difficulty: int) -> Problem:
    """Operations on a word, an invented word, or two words joined."""
    count, low, high = _SHAPES[difficulty]
    while True:
        text = _text(rng, low, high)
        operations = [draw(rng, text) for draw in rng.sample(_DRAWS, count)]
        right = _apply(text, operations)
        at = rng.randrange(count)
        slipped, why = operations[at].slip(rng, right[at])
        wrong = [*right[: at + 1], *_apply(slipped, operations[at + 1 :])]
        # A later operation may undo the mistake, and an operation may change nothing.
        if right[-1] != wrong[-1] and len(set(right)) == count + 1 and min(map(len, right)) > 2:
            break
    instructions = "; then ".join(operation.instruction for operation in operations)
    found, result = wrong[-1], right[-1]
    steps = [f"{operation.instruction}: {value}" for operation, value in zip(operations, right[1:], strict=True)]
    if count > 1 and rng.random() < 0.5:
        correct, mistaken = " -> ".join(right), " -> ".join(wrong)
    else:
        ending = rng.choice(_ENDINGS)
        correct, mistaken = ending.format(result), ending.format(found)
    slip = f"It goes wrong from {right[at]} to {right[at + 1]}, in operation {at + 1}: {why}."
    return Problem(
        question=f"Take the text '{text}'. Do this: {instructions}. What is the result?",
        correct=correct,
        wrong=mistaken,
        steps="\n".join([f"Start: {text}", *steps, f"The result is {result}."]),
        check_correct=agrees(result),
        check_wrong=differs(found, result, slip),
    )


def _text(rng: random.Random, low: int, high: int) -> str:
    while True:
        words = [coined(rng, rng.randint(2, 4)) if rng.random() < 0.5 else rng.choice(WORDS) for _ in range(2)]
        text = rng.choice([words[0], "".join(words)])
        if low <= len(text) <= high:
            return text


def _apply(text: str, operations: list[_Operation]) -> list[str]:
    """The text before and after each operation."""
    texts = [text]
    for operation in operations:
        texts.append(operation.apply(texts[-1]))
    return texts


def _exchanged(rng: random.Random, text: str) -> tuple[str, str]:
    """The text with two different neighbours exchanged (unchanged if there are none), and the explanation."""
    places = [place for place in range(len(text) - 1) if text[place] != text[place + 1]]
    if not places:
        return text, ""
    at = rng.choice(places)
    return text[:at] + text[at + 1] + text[at] + text[at + 2 :], f"'{text[at : at + 2]}' comes out in the wrong order"


def _misplacing(
    apply: Callable[[str], str],
) -> Callable[[random.Random, str], tuple[str, str]]:
    return lambda rng, text: _exchanged(rng, apply(text))


def _reverse(rng: random.Random, text: str) -> _Operation:
    def apply(text: str) -> str:
        return text[::-1]

    return _Operation("reverse it", apply, _misplacing(apply))


def _letterwise(
    instruction: str,
    concerned: Callable[[str], bool],
    change: Callable[[str], str],
    done: str,
) -> _Operation:
    """An operation on some letters. The mistake leaves one of them out or changes one too many."""

    def apply(text: str) -> str:
        return "".join(change(letter) if concerned(letter) else letter for letter in text)

    def slip(rng: random.Random, text: str) -> tuple[str, str]:
        spare = rng.random() < 0.5
        places = [place for place, letter in enumerate(text) if concerned(letter) == spare]
        if not places:
            return apply(text), ""
        at = rng.choice(places)
        middle = text[at] if spare else change(text[at])
        why = (
            f"letter {at + 1}, '{text[at]}', is {'not ' if spare else ''}{done}, but should {'' if spare else 'not '}be"
        )
        return apply(text[:at]) + middle + apply(text[at + 1 :]), why

    return _Operation(instruction, apply, slip)


def _replace(rng: random.Random, text: str) -> _Operation:
    old = rng.choice(text)
    new = rng.choice([letter for letter in _ALPHABET if letter not in text])
    return _letterwise(
        f"replace every '{old}' with '{new}'",
        old.__eq__,
        lambda letter: new,
        "replaced",
    )


def _remove(rng: random.Random, text: str) -> _Operation:
    if rng.random() < 0.5:
        return _letterwise(
            "remove all vowels (a, e, i, o, u)",
            VOWELS.__contains__,
            lambda letter: "",
            "removed",
        )
    gone = rng.choice(text)
    return _letterwise(f"remove every '{gone}'", gone.__eq__, lambda letter: "", "removed")


def _double(rng: random.Random, text: str) -> _Operation:
    twice = rng.choice(text)
    return _letterwise(f"double every '{twice}'", twice.__eq__, lambda letter: 2 * letter, "doubled")


def _shift(rng: random.Random, text: str) -> _Operation:
    by = rng.randint(1, 3)

    def moved(letter: str, by: int = by) -> str:
        return _ALPHABET[(_ALPHABET.index(letter) + by) % 26]

    def apply(text: str) -> str:
        return "".join(map(moved, text))

    def slip(rng: random.Random, text: str) -> tuple[str, str]:
        at, off = rng.randrange(len(text)), rng.choice([-1, 1])
        letter = text[at]
        why = f"'{letter}' becomes '{moved(letter, by + off)}' and should become '{moved(letter)}'"
        return apply(text[:at]) + moved(letter, by + off) + apply(text[at + 1 :]), why

    places = "1 place" if by == 1 else f"{by} places"
    return _Operation(f"move every letter {places} on in the alphabet (after z comes a)", apply, slip)


def _rotate(rng: random.Random, text: str) -> _Operation:
    by = rng.randint(2, 4)

    def slip(rng: random.Random, text: str) -> tuple[str, str]:
        off = by + rng.choice([-1, 1])
        return text[off:] + text[:off], f"{off} letters are moved instead of {by}"

    return _Operation(
        f"move the first {by} letters to the end",
        lambda text: text[by:] + text[:by],
        slip,
    )


def _ends(rng: random.Random, text: str) -> _Operation:
    def apply(text: str) -> str:
        return text[-1] + text[1:-1] + text[0]

    return _Operation("exchange its first and last letter", apply, _misplacing(apply))


def _halves(rng: random.Random, text: str) -> _Operation:
    """The letters at odd places, followed by those at even places."""

    def apply(text: str) -> str:
        return text[::2] + text[1::2]

    return _Operation(
        "write its 1st, 3rd, 5th, ... letter, followed by its 2nd, 4th, 6th, ... letter",
        apply,
        _misplacing(apply),
    )


def _interleave(rng: random.Random, text: str) -> _Operation:
    others = "".join(rng.sample(_ALPHABET, 3))

    def apply(text: str) -> str:
        return "".join(letter + other for letter, other in zip(text, others, strict=False)) + text[3:]

    order = "its 1st letter, '{}', its 2nd letter, '{}', its 3rd letter, '{}', then what is left of it".format(*others)
    return _Operation(f"interleave it with '{others}' ({order})", apply, _misplacing(apply))


_DRAWS: list[Callable[[random.Random, str], _Operation]] = [
    _reverse,
    _replace,
    _remove,
    _double,
    _shift,
    _rotate,
    _ends,
    _halves,
    _interleave,
]
