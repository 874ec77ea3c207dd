"""Sorting numbers or words. In the wrong answer one item is misplaced, missing or doubled."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

from judgelit.synthesis.tasks.problem import Check, Problem, listed
from judgelit.synthesis.tasks.words import WORDS

_LENGTHS = {1: 4, 2: 6, 3: 8, 4: 11, 5: 14}
_PREFIXES = ("", "", "Sorted: ", "In order: ", "The list in order is: ")


@dataclass(frozen=True)
class _Sorting:
    """A way of sorting: its instruction, its key, and the groups in which a person would sort."""

    phrase: str
    key: Callable[[str], Any]
    group: Callable[[str], str]
    reverse: bool = False


def make(rng: random.Random, difficulty: int) -> Problem:
    """4 to 14 items. From difficulty 3 on also by unusual keys, and with numbers that are closer to each other."""
    order, items = rng.choice([_numbers, _words])(rng, difficulty)
    result = sorted(items, key=order.key, reverse=order.reverse)
    if items == result:
        items.reverse()
    found, why = _slip(rng, result)
    prefix = rng.choice(_PREFIXES)
    groups = [f"{name}: {listed(list(members))}" for name, members in groupby(result, order.group)]
    return Problem(
        question=f"{order.phrase}: {listed(items)}",
        correct=prefix + listed(result),
        wrong=prefix + listed(found),
        steps="Group by group, each group in order:\n" + "\n".join([*groups, f"Together: {listed(result)}"]),
        check_correct=Check("It has every item in the order of the working. It is correct.", "right"),
        check_wrong=Check(f"It does not agree with the working: {why}. It is wrong.", f"{why}, wrong"),
    )


def _numbers(rng: random.Random, difficulty: int) -> tuple[_Sorting, list[str]]:
    count, modes = _LENGTHS[difficulty], ["plain"]
    if difficulty >= 3:
        modes += ["decimal", "last digit"]
    mode = rng.choice(modes)
    reverse = rng.random() < 0.5
    if mode == "decimal":
        # A common mistake puts 3.9 before 3.11, so there are few whole parts and up to three decimals.
        whole = rng.randint(1, 50)
        values = rng.sample(range(3000), count)
        items = [f"{whole + value // 1000}.{value % 1000:03d}".rstrip("0").rstrip(".") for value in values]
    else:
        low = 1 if difficulty == 1 else rng.randint(1, 10 ** (difficulty - 1) * 5)
        items = list(map(str, rng.sample(range(low, low + 40 * count), count)))
    if mode == "last digit":
        return _Sorting(
            "Sort these numbers by their last digit, and by value where it is equal",
            _last_digit,
            _ending,
        ), items
    phrase = "from largest to smallest" if reverse else "from smallest to largest"
    group = _whole if mode == "decimal" else _tens if difficulty < 3 else _hundreds
    return _Sorting(f"Sort these numbers {phrase}", float, group, reverse), items


def _words(rng: random.Random, difficulty: int) -> tuple[_Sorting, list[str]]:
    count = _LENGTHS[difficulty]
    # Words with the same first letter are harder to sort.
    letters = sorted({word[0] for word in WORDS})
    pool: list[str] = []
    while len(pool) < count * (8 - difficulty):
        letter = letters.pop(rng.randrange(len(letters)))
        pool += [word for word in WORDS if word[0] == letter]
    items = rng.sample(pool, count)
    if difficulty >= 3 and rng.random() < 0.4:
        phrase = "Sort these words by length, shortest first, and alphabetically where the length is equal"
        return _Sorting(phrase, _by_length, _length), items
    if rng.random() < 0.4:
        return _Sorting("Sort these words in reverse alphabetical order", str, _initial, True), items
    return _Sorting("Sort these words in alphabetical order", str, _initial), items


def _slip(rng: random.Random, result: list[str]) -> tuple[list[str], str]:
    """A wrong list and the explanation. Items are left out and doubled equally often, so length reveals nothing."""
    found = list(result)
    # Mistakes are easily overlooked in the middle of a list.
    at = rng.randrange(1, len(result) - 2)
    kind = rng.choice(["swap", "swap", "move", "leave out", "double"])
    if kind == "leave out":
        return found[:at] + found[at + 1 :], f"{result[at]} is missing between {result[at - 1]} and {result[at + 1]}"
    if kind == "double":
        found.insert(at, found[at])
        return found, f"{result[at]} stands there twice and should be there once"
    to = at + 1 if kind == "swap" else rng.choice([place for place in range(len(result)) if abs(place - at) > 1])
    found.insert(to, found.pop(at))
    first, second = next((a, b) for a, b in pairwise(found) if result.index(a) > result.index(b))
    return found, f"{first} stands before {second}, but {second} comes first"


def _last_digit(number: str) -> tuple[int, int]:
    return int(number) % 10, int(number)


def _by_length(word: str) -> tuple[int, str]:
    return len(word), word


def _ending(number: str) -> str:
    return f"ending in {number[-1]}"


def _whole(number: str) -> str:
    return f"{number.partition('.')[0]} or a little more"


def _tens(number: str) -> str:
    low = int(number) // 10 * 10
    return f"{low} to {low + 9}"


def _hundreds(number: str) -> str:
    low = int(number) // 100 * 100
    return f"{low} to {low + 99}"


def _length(word: str) -> str:
    return f"{len(word)} letters"


def _initial(word: str) -> str:
    return f"with {word[0]}"
