"""Forms of the constraint tasks: lists of numbers, lists of words and sentences, with their constraints."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any

from judgelit.synthesis.tasks import sentences
from judgelit.synthesis.tasks.problem import listed
from judgelit.synthesis.tasks.words import THEMES

Items = list[str]


@dataclass(frozen=True)
class Constraint:
    """One constraint: its text, whether items meet it, and the evidence that a check gives."""

    text: str
    met: Callable[[Items], bool]
    evidence: Callable[[Items], str]


@dataclass(frozen=True)
class Form:
    """A request with its constraints, items that meet all of them, and a function that changes items a little."""

    ask: str
    constraints: list[Constraint]
    items: Items
    change: Callable[[random.Random, Items], Items]
    join: Callable[[Items], str]


def _in_order(items: Items, key: Callable[[str], Any], falling: bool = False) -> bool:
    pairs = pairwise([key(item) for item in items])
    return all(a > b if falling else a < b for a, b in pairs)


def _order_evidence(key: Callable[[str], Any], falling: bool = False) -> Callable[[Items], str]:
    def evidence(items: Items) -> str:
        wrong = next(
            (pair for pair in pairwise(items) if not _in_order(list(pair), key, falling)),
            None,
        )
        return f"{wrong[0]} stands before {wrong[1]}" if wrong else "each one stands where it belongs"

    return evidence


def _each(meets: Callable[[str], bool], verb: str) -> tuple[Callable[[Items], bool], Callable[[Items], str]]:
    """Whether every item meets a condition, and the evidence: the first item that does not."""

    def evidence(items: Items) -> str:
        return next(
            (f"{item} {verb}" for item in items if not meets(item)),
            "this holds for every one",
        )

    return lambda items: all(map(meets, items)), evidence


def _has(wanted: str) -> tuple[Callable[[Items], bool], Callable[[Items], str]]:
    return (
        lambda items: wanted in items,
        lambda items: f"it is {'' if wanted in items else 'not '}there",
    )


def _vary(rng: random.Random, items: Items, new: Callable[[], str]) -> Items:
    """`items` with two neighbours exchanged, or one item removed, added or replaced."""
    items, at = list(items), rng.randrange(len(items))
    change = rng.choice(["exchange", "leave out", "add", "replace"])
    if change == "exchange" and at:
        items[at - 1 : at + 1] = items[at], items[at - 1]
    elif change == "leave out" and len(items) > 2:
        del items[at]
    elif change == "add":
        items.insert(at, new())
    else:
        items[at] = new()
    return items


def _numbers(rng: random.Random, difficulty: int) -> Form:
    names = rng.sample(["order", "range", "divisible", "sum", "kept", "smallest"], difficulty + 1)
    ordered, falling = "order" in names, rng.random() < 0.5
    # The right answer must not have a property that the question does not ask for: it would reveal the answer.
    divisor = rng.randint(2, 9) if "divisible" in names else 1
    count, low = difficulty + rng.randint(2, 4), rng.randint(1, 40)
    high = low + max(divisor, 4) * count * rng.randint(3, 5)
    pool = range(low + -low % divisor, high + 1, divisor)
    numbers = rng.sample(pool, count)
    if ordered:
        numbers.sort(reverse=falling)
    kept, total, smallest = str(rng.choice(numbers)), sum(numbers), min(numbers)

    def change(rng: random.Random, items: Items) -> Items:
        if rng.random() < 0.3:
            new = _vary(rng, items, lambda: str(rng.choice(pool)))
        else:
            # One number may lose what another gains, or the sum would hardly ever stay the same.
            values, by = (
                list(map(int, items)),
                rng.choice([1, 2, divisor, 2 * divisor]) * rng.choice([-1, 1]),
            )
            values[rng.randrange(len(values))] += by
            if rng.random() < 0.5:
                values[rng.randrange(len(values))] -= by
            new = [str(abs(value)) for value in values]
        if len(set(new)) < len(new):
            return items
        return sorted(new, key=int, reverse=falling) if ordered and rng.random() < 0.7 else new

    demands = {
        "order": Constraint(
            "The numbers are in descending order" if falling else "The numbers are in ascending order",
            lambda items: _in_order(items, int, falling),
            _order_evidence(int, falling),
        ),
        "range": Constraint(
            f"Every number is between {low} and {high}",
            *_each(lambda item: low <= int(item) <= high, "is not"),
        ),
        "divisible": Constraint(
            f"Every number is divisible by {divisor}",
            *_each(lambda item: int(item) % divisor == 0, "is not"),
        ),
        "sum": Constraint(
            f"The sum of the numbers is {total}",
            lambda items: sum(map(int, items)) == total,
            lambda items: f"{' + '.join(items)} = {sum(map(int, items))}",
        ),
        "kept": Constraint(f"{kept} is one of the numbers", *_has(kept)),
        "smallest": Constraint(
            f"The smallest number is {smallest}",
            lambda items: min(map(int, items)) == smallest,
            lambda items: f"it is {min(map(int, items))}",
        ),
    }
    return Form(
        ask="Give a list of whole numbers",
        constraints=[_exactly(count, "numbers"), *(demands[name] for name in names)],
        items=list(map(str, numbers)),
        change=change,
        join=listed,
    )


def _words(rng: random.Random, difficulty: int) -> Form:
    names = rng.sample(["order", "letter", "size", "kept", "first", "initials"], difficulty + 1)
    theme = rng.choice(list(THEMES))
    count, letter, at_least = (
        difficulty + rng.randint(2, 4),
        rng.choice("acdeghilmnoprstu"),
        rng.random() < 0.5,
    )
    size = rng.randint(4, 6) if at_least else rng.randint(6, 8)

    def spares(word: str) -> bool:
        return letter not in word

    def fits(word: str) -> bool:
        return len(word) >= size if at_least else len(word) <= size

    pool = [
        word
        for word in THEMES[theme]
        if (spares(word) or "letter" not in names) and (fits(word) or "size" not in names)
    ]
    rng.shuffle(pool)
    words = list({word[0]: word for word in pool}.values() if "initials" in names else pool)[:count]
    if len(words) < count:
        return _words(rng, difficulty)
    if "order" in names:
        words.sort()
    kept, initial = rng.choice(words), words[0][0]

    def change(rng: random.Random, items: Items) -> Items:
        new = _vary(rng, items, lambda: rng.choice(THEMES[theme]))
        if len(set(new)) < len(new):
            return items
        return sorted(new) if "order" in names and rng.random() < 0.7 else new

    def same_initials(items: Items) -> Items:
        return next(([a, b] for a, b in combinations(items, 2) if a[0] == b[0]), [])

    demands = {
        "order": Constraint(
            "The words are in alphabetical order",
            lambda items: _in_order(items, str),
            _order_evidence(str),
        ),
        "letter": Constraint(f"No word has the letter '{letter}'", *_each(spares, "has it")),
        "size": Constraint(
            f"Every word has at {'least' if at_least else 'most'} {size} letters",
            *_each(fits, "does not"),
        ),
        "kept": Constraint(f"'{kept}' is one of the words", *_has(kept)),
        "first": Constraint(
            f"The first word starts with '{initial}'",
            lambda items: items[0][0] == initial,
            lambda items: f"it is {items[0]}",
        ),
        "initials": Constraint(
            "No two words start with the same letter",
            lambda items: not same_initials(items),
            lambda items: " and ".join(same_initials(items)) + " do" if same_initials(items) else "all are different",
        ),
    }
    return Form(
        ask=f"Give a list of {theme}",
        constraints=[_exactly(count, "words"), *(demands[name] for name in names)],
        items=words,
        change=change,
        join=listed,
    )


def _sentence(rng: random.Random, difficulty: int) -> Form:
    words = sentences.draw(rng, difficulty)
    kept, last, mark, longest = (
        rng.choice(words[1:-2]),
        words[-2],
        words[-1],
        max(map(len, words)),
    )
    absent = [letter for letter in "abcdfghiklmnopruvwy" if letter not in "".join(words)]
    if not absent:
        return _sentence(rng, difficulty)
    letter = rng.choice(absent)
    demands = [
        Constraint(
            f"The first word is '{words[0].capitalize()}'",
            lambda items: items[0] == words[0],
            lambda items: f"it is '{items[0].capitalize()}'",
        ),
        Constraint(f"The word '{kept}' is in it", *_has(kept)),
        Constraint(
            f"No word has the letter '{letter}'",
            *_each(lambda word: letter not in word, "has it"),
        ),
        Constraint(
            f"No word has more than {longest} letters",
            *_each(lambda word: len(word) <= longest, "has more"),
        ),
        Constraint(
            f"The last word is '{last}'",
            lambda items: items[-2] == last,
            lambda items: f"it is '{items[-2]}'",
        ),
        Constraint(
            f"It ends with '{mark}'",
            lambda items: items[-1] == mark,
            lambda items: f"it ends with '{items[-1]}'",
        ),
    ]
    count = Constraint(
        f"There are exactly {len(words) - 1} words",
        lambda items: len(items) == len(words),
        lambda items: f"{' '.join(items[:-1])} makes {len(items) - 1}",
    )
    return Form(
        ask="Write a sentence",
        constraints=[count, *rng.sample(demands, difficulty + 1)],
        items=words,
        change=sentences.change,
        join=sentences.join,
    )


def _exactly(count: int, noun: str) -> Constraint:
    return Constraint(
        f"There are exactly {count} {noun}",
        lambda items: len(items) == count,
        lambda items: f"{listed(items)} makes {len(items)}",
    )


FORMS: tuple[Callable[[random.Random, int], Form], ...] = (_numbers, _words, _sentence)
