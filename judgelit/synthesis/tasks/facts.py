"""Questions about who has how many of what. The wrong answer takes a number or a person from another fact."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from judgelit.synthesis.tasks.problem import Problem, agrees, differs

# fmt: off
_NAMES = (
    "Ada", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gus", "Hana", "Ivan", "Jon", "Kim", "Lea", "Max", "Nina",
    "Omar", "Pia", "Rosa", "Sam", "Tom", "Uma", "Vera", "Zoe",
)
# fmt: on
_THINGS = ("apples", "books", "coins", "cups", "hats", "keys", "marbles", "pears", "pens", "plums", "shells", "stamps")
_HIGHEST = {1: 9, 2: 9, 3: 15, 4: 30, 5: 60}


@dataclass(frozen=True)
class _Table:
    """How many of each thing each person has; all numbers of a thing differ."""

    people: Sequence[str]
    things: Sequence[str]
    counts: dict[tuple[str, str], int]

    def facts(self) -> str:
        return " ".join(
            f"{name} has {' and '.join(f'{self.counts[name, thing]} {thing}' for thing in self.things)}."
            for name in self.people
        )

    def lines(self, people: Sequence[str], thing: str) -> str:
        """The facts about one thing, in their sequence, one a line."""
        return "".join(f"{name}: {self.counts[name, thing]} {thing}\n" for name in self.people if name in people)


@dataclass(frozen=True)
class _Asked:
    """A question about a table, its solution, a right and a wrong result, and what the wrong one comes from."""

    question: str
    steps: str
    right: str
    wrong: str
    slip: str


def make(rng: random.Random, difficulty: int) -> Problem:
    """Two to six people with two things each. From difficulty 2 on, facts are compared; from 3 on also added up."""
    people = rng.sample(_NAMES, difficulty + 1)
    things = rng.sample(_THINGS, 2)
    counts = {
        (name, thing): number
        for thing in things
        for name, number in zip(people, rng.sample(range(2, _HIGHEST[difficulty] + 1), len(people)), strict=True)
    }
    table = _Table(people, things, counts)
    asks = {1: (_count, _owner), 2: (_count, _more), 3: (_more, _together), 4: (_most, _together)}
    asked = rng.choice(asks.get(difficulty, (_most, _together)))(rng, table)
    ending = rng.choice(("{}", "{}.", "The answer is {}.", "It is {}."))
    return Problem(
        question=f"{table.facts()} {asked.question}",
        correct=ending.format(asked.right),
        wrong=ending.format(asked.wrong),
        steps=f"{asked.steps}The result is {asked.right}.",
        check_correct=agrees(asked.right),
        check_wrong=differs(asked.wrong, asked.right, asked.slip),
    )


def _count(rng: random.Random, table: _Table) -> _Asked:
    """One fact. The wrong answer is another number of the same person or of the same thing."""
    name, thing = rng.choice(table.people), rng.choice(table.things)
    right = table.counts[name, thing]
    others = [
        (other, number)
        for other, number in table.counts.items()
        if number != right and (other[0] == name or other[1] == thing)
    ]
    (person, what), wrong = rng.choice(others)
    return _Asked(
        f"How many {thing} does {name} have?",
        table.lines([name], thing),
        str(right),
        str(wrong),
        f"It is {person} who has {wrong} {what}." if person != name else f"{name} has {wrong} {what}, not {thing}.",
    )


def _owner(rng: random.Random, table: _Table) -> _Asked:
    right, wrong = rng.sample(table.people, 2)
    thing = rng.choice(table.things)
    return _Asked(
        f"Who has {table.counts[right, thing]} {thing}?",
        table.lines(table.people, thing),
        right,
        wrong,
        f"{wrong} has {table.counts[wrong, thing]} {thing}.",
    )


def _more(rng: random.Random, table: _Table) -> _Asked:
    thing, two = rng.choice(table.things), rng.sample(table.people, 2)
    way = rng.choice(("more", "fewer"))
    return _compared(table, thing, two, way, f"Who has {way} {thing}, {two[0]} or {two[1]}?")


def _most(rng: random.Random, table: _Table) -> _Asked:
    thing, way = rng.choice(table.things), rng.choice(("most", "fewest"))
    return _compared(table, thing, table.people, way, f"Who has the {way} {thing}?")


def _compared(table: _Table, thing: str, people: Sequence[str], way: str, question: str) -> _Asked:
    """The person with the largest or the smallest number; the wrong answer is the next one."""
    ranked = sorted(people, key=lambda name: table.counts[name, thing], reverse=way in ("more", "most"))
    right, wrong = ranked[:2]
    first, second = table.counts[right, thing], table.counts[wrong, thing]
    size = "more" if first > second else "less"
    steps = table.lines(people, thing) + (
        f"{first} is {size} than {second}. " if len(people) == 2 else f"{first} is the {way}. "
    )
    return _Asked(question, steps, right, wrong, f"{wrong} has {second} {thing}, and {first} is {size} than {second}.")


def _together(rng: random.Random, table: _Table) -> _Asked:
    """A sum. The wrong one is off by one or by two."""
    thing, some = rng.choice(table.things), rng.sample(table.people, min(len(table.people) - 1, 3))
    numbers = [table.counts[name, thing] for name in table.people if name in some]
    right, off = sum(numbers), rng.choice((-2, -1, 1, 2))
    names = ", ".join(some[:-1]) + f" and {some[-1]}"
    return _Asked(
        f"How many {thing} do {names} have together?",
        f"{table.lines(some, thing)}{' + '.join(map(str, numbers))} = {right}\n",
        str(right),
        str(right + off),
        f"It is {abs(off)} too {'many' if off > 0 else 'few'}.",
    )
