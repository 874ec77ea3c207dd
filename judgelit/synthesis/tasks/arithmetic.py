"""Calculations in several steps. The wrong answer makes a mistake in one step and continues from it."""

import random
from dataclasses import dataclass

from judgelit.synthesis.tasks.problem import Check, Problem, agrees, counted, differs

_DIGITS = {1: (1, 2), 2: (2, 2), 3: (2, 3), 4: (3, 3), 5: (3, 4)}
_ASKS = ("Compute {}.", "What is {}?", "Work out {}.", "Find the value of {}.")
_ENDINGS = ("The result is {}.", "Answer: {}", "The answer is {}.", "It comes to {}.")


@dataclass(frozen=True)
class _Result:
    """Operand that is the value of an earlier operation."""

    of: int


@dataclass(frozen=True)
class _Operation:
    left: int | _Result
    sign: str
    right: int | _Result


@dataclass(frozen=True)
class _Step:
    """Operation as an answer writes it. `value` may be wrong."""

    left: int
    sign: str
    right: int
    value: int

    @property
    def asked(self) -> str:
        return f"{self.left} {self.sign} {self.right}"

    def __str__(self) -> str:
        return f"{self.asked} = {self.value}"


def make(rng: random.Random, difficulty: int) -> Problem:
    """`difficulty + 1` operations, as one expression or as a list of instructions."""
    draw = rng.choice([_expression, _instructions])
    while True:
        question, operations = draw(rng, difficulty)
        right = _solve(operations)
        at = rng.randrange(len(right))
        delta, why = _slip(rng, right[at])
        wrong = _solve(operations, at, delta)
        # The sign of a negative number would reveal the mistake.
        if min(step.value for step in [*right, *wrong]) >= 0:
            break
    ending, result, found = (
        rng.choice(_ENDINGS),
        str(right[-1].value),
        str(wrong[-1].value),
    )
    slip = f"{right[at].asked} is {right[at].value}, not {wrong[at].value}: {why}."
    if rng.random() < 0.5:
        correct, mistaken = ("\n".join([*map(str, steps), ending.format(steps[-1].value)]) for steps in (right, wrong))
        before = f"Its first {counted(at, 'step')} agree with the working. " if at > 1 else ""
        check_wrong = Check(
            f"{before}Step {at + 1} is a slip: {slip} So it ends in {found} instead of {result}. It is wrong.",
            differs(found, result, slip).short,
        )
    else:
        correct, mistaken = ending.format(result), ending.format(found)
        check_wrong = differs(found, result, f"It is what a slip in step {at + 1} leads to: {slip}")
    return Problem(
        question=question,
        correct=correct,
        wrong=mistaken,
        steps="\n".join([*map(_worked, right), f"The result is {result}."]),
        check_correct=agrees(result),
        check_wrong=check_wrong,
    )


def _number(rng: random.Random, difficulty: int) -> int:
    digits = rng.randint(*_DIGITS[difficulty])
    return rng.randint(max(2, 10 ** (digits - 1)), 10**digits - 1)


def _factor(rng: random.Random, difficulty: int) -> int:
    return rng.randint(2, 9) if difficulty < 4 else rng.randint(11, 49)


def _expression(rng: random.Random, difficulty: int) -> tuple[str, list[_Operation]]:
    """Sums and products in one line, such as `34 + 7 × 12 - 5`. Products come first in the steps."""
    count = difficulty + 1
    products = rng.randint(0 if difficulty == 1 else 1, (count + 1) // 2)
    operations: list[_Operation] = []
    terms: list[int | _Result] = []
    for place in rng.sample(range(count - products + 1), count - products + 1):
        terms.append(_Result(len(operations)) if place < products else _number(rng, difficulty))
        if place < products:
            operations.append(_Operation(_number(rng, difficulty), "×", _factor(rng, difficulty)))
    shown = [
        str(term) if isinstance(term, int) else f"{operations[term.of].left} × {operations[term.of].right}"
        for term in terms
    ]
    text, total = shown[0], terms[0]
    for term, part in zip(terms[1:], shown[1:], strict=True):
        sign = rng.choice("+-")
        text += f" {sign} {part}"
        operations.append(_Operation(total, sign, term))
        total = _Result(len(operations) - 1)
    return rng.choice(_ASKS).format(text), operations


def _instructions(rng: random.Random, difficulty: int) -> tuple[str, list[_Operation]]:
    """A number, and operations on the result so far."""
    total: int | _Result = _number(rng, difficulty)
    sentences, operations = [f"Start with {total}."], []
    times = rng.randrange(difficulty + 1)
    for place in range(difficulty + 1):
        sign = "×" if place == times else rng.choice("+-")
        number = _factor(rng, difficulty) if sign == "×" else _number(rng, difficulty)
        sentences.append({"+": "Add {}.", "-": "Subtract {}.", "×": "Multiply by {}."}[sign].format(number))
        operations.append(_Operation(total, sign, number))
        total = _Result(place)
    return " ".join([*sentences, rng.choice(["What is the result?", "What do you get?"])]), operations


def _solve(operations: list[_Operation], slip_at: int | None = None, delta: int = 0) -> list[_Step]:
    """The steps with their values. The value of step `slip_at` is off by `delta`, and later steps use it."""
    steps: list[_Step] = []
    for place, operation in enumerate(operations):
        left, right = (
            steps[operand.of].value if isinstance(operand, _Result) else operand
            for operand in (operation.left, operation.right)
        )
        value = {"+": left + right, "-": left - right, "×": left * right}[operation.sign]
        steps.append(_Step(left, operation.sign, right, value + (delta if place == slip_at else 0)))
    return steps


def _slip(rng: random.Random, step: _Step) -> tuple[int, str]:
    """The size of a mistake in a step, equally often positive and negative, and its explanation."""
    up = rng.random() < 0.5
    sizes = [(1, "it is one too {}"), (10, "it is ten too {}")]
    if step.value >= 1000:
        sizes.append((100, "it is a hundred too {}"))
    if step.sign == "×":
        sizes.append(
            (
                step.left,
                f"it takes {step.left} one time too {'often' if up else 'seldom'}",
            )
        )
        sizes.append(
            (
                step.right,
                f"it takes {step.right} one time too {'often' if up else 'seldom'}",
            )
        )
    carry = _carry(step)
    # A forgotten carry makes a sum too small, a forgotten borrow makes a difference too large.
    if carry and up == (step.sign == "-"):
        sizes.append(
            (
                carry,
                f"the {'carry' if step.sign == '+' else 'borrowed one'} is forgotten",
            )
        )
    size, why = rng.choice(sizes)
    return size if up else -size, why.format("large" if up else "small")


def _carry(step: _Step) -> int:
    """The place value (10, 100, ...) of the lowest carry or borrow of a sum or difference, or 0."""
    weight = 1
    while step.sign in "+-" and weight <= max(step.left, step.right):
        left, right = step.left // weight % 10, step.right // weight % 10
        if (left + right > 9) if step.sign == "+" else (left < right):
            return weight * 10
        weight *= 10
    return 0


def _worked(step: _Step) -> str:
    """A step as the steps of the judgment show it. A product of larger numbers is split into parts."""
    if step.sign != "×" or step.left < 10:
        return f"{step}."
    digits = str(step.left)
    parts = [int(digit) * 10 ** (len(digits) - 1 - place) for place, digit in enumerate(digits) if digit != "0"]
    if len(parts) < 2:
        return f"{step}."
    detail = ", ".join(f"{part} × {step.right} = {part * step.right}" for part in parts)
    return f"{step}, since {detail} and {' + '.join(str(part * step.right) for part in parts)} = {step.value}."
