"""Lists and sentences with constraints. The wrong answer breaks exactly one of them."""

import random

from judgelit.synthesis.tasks.constraint_forms import FORMS, Constraint, Form, Items
from judgelit.synthesis.tasks.problem import Check, Problem


def make(rng: random.Random, difficulty: int) -> Problem:
    """`difficulty + 2` constraints on numbers, words or a sentence."""
    while True:
        form = rng.choice(FORMS)(rng, difficulty)
        rng.shuffle(form.constraints)
        broken = _break_one(rng, form)
        if broken:
            break
    items, constraint = broken
    demands = [f"- {demand.text}" for demand in form.constraints]
    place = form.constraints.index(constraint)
    return Problem(
        question="\n".join([f"{form.ask} that meets all of these constraints:", *demands]),
        correct=form.join(form.items),
        wrong=form.join(items),
        steps=f"There are {len(demands)} constraints, and an answer has to meet all of them, so each is checked.",
        check_correct=_check(form, form.items, "It meets all constraints. It is correct.", "right"),
        check_wrong=_check(form, items, f"It breaks constraint {place + 1}. It is wrong.", "wrong"),
    )


def _check(form: Form, items: Items, result: str, word: str) -> Check:
    """Each constraint with the evidence and whether it is met, and the result."""
    found = [(demand, demand.evidence(items), "met" if demand.met(items) else "broken") for demand in form.constraints]
    lines = [f"{place}. {demand.text}: {why}, {state}." for place, (demand, why, state) in enumerate(found, 1)]
    short = "".join(f"{place}. {why}, {state}. " for place, (_, why, state) in enumerate(found, 1))
    return Check("\n".join([*lines, result]), short + word)


def _break_one(rng: random.Random, form: Form, tries: int = 300) -> tuple[Items, Constraint] | None:
    """Items that break one constraint and meet the others, and that constraint, or None if none were found.

    The constraint is drawn first, so that all are broken equally often. The items are as long as the right ones, or
    drawn from a longer and a shorter version, so that length does not reveal the right answer.
    """
    target = rng.choice(form.constraints)
    found: dict[str, Items] = {}
    for _ in range(tries):
        items = form.items
        for _ in range(rng.randint(1, 3)):
            items = form.change(rng, items)
        if items and [demand for demand in form.constraints if not demand.met(items)] == [target]:
            longer = len(form.join(items)) - len(form.join(form.items))
            if longer == 0:
                return items, target
            found.setdefault("longer" if longer > 0 else "shorter", items)
            if len(found) == 2:
                return found[rng.choice(["longer", "shorter"])], target
    return None
