"""Short sums with judgments of few tokens, which a model with a few hundred thousand weights learns in minutes."""

import random

from judgelit.synthesis.tasks.problem import Check, Problem

_SLIPS = (-10, -2, -1, 1, 2, 10)


def make(rng: random.Random, difficulty: int) -> Problem:
    """A sum of `difficulty` + 1 terms, the first with two digits, the others with one."""
    terms = [rng.randint(10, 49), *(rng.randint(1, 9) for _ in range(difficulty))]
    total = terms[0]
    steps = str(total)
    for term in terms[1:]:
        total += term
        steps += f" +{term}={total}"
    wrong = rng.choice([total + slip for slip in _SLIPS if 10 <= total + slip <= 99])
    question = "+".join(map(str, terms)) + "=?"
    return Problem(question, str(total), str(wrong), steps, _check(str(total), total), _check(str(wrong), total))


def _check(answer: str, total: int) -> Check:
    """Comparison of an answer with the total, digit by digit, up to the first difference."""
    compared = []
    for given, worked in zip(answer, str(total), strict=True):
        compared.append(f"{given}={worked}")
        if given != worked:
            break
    check = ",".join(compared) + (" yes" if answer == str(total) else " no")
    return Check(check, check)
