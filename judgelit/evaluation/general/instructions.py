"""A small set of prompts with verifiable instructions, and how answers to them are scored.

Scores are those of IFEval (Zhou et al. 2023, arXiv 2311.07911): a prompt counts if its answer follows all of its
instructions. An answer follows an instruction loosely if it does so with its first line, its last line or its asterisks
left out.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Self

import numpy as np

from judgelit.evaluation.general.checks import KINDS, Check
from judgelit.evaluation.intervals import Estimate, Mean, estimates
from judgelit.generation.engine import Generated
from judgelit.records.row_fields import Message

_ASKS = (
    "Describe how to make a cup of tea.",
    "Explain why the sky looks blue.",
    "Write a short letter that invites a friend to a picnic.",
    "Tell a short story about a lost key.",
    "Give advice to someone who starts a new job.",
    "Explain how a bicycle stays upright.",
    "Describe a day in a small town.",
    "Write a note to a neighbour about loud music.",
    "Explain to a child what a computer program is.",
    "Describe the seasons of the year.",
    "Name ways to save water at home.",
    "Write an advertisement for a small bakery.",
    "Explain how to grow tomatoes.",
    "Describe a walk along a beach.",
    "Write a message that thanks a teacher.",
    "Explain where rain comes from.",
    "Describe how to pack for a short trip.",
    "Write a short speech for a birthday.",
    "Compare cats and dogs as pets.",
    "Explain why sleep matters.",
    "Describe a busy market.",
    "Give advice on learning a language.",
    "Write a review of an imaginary film.",
    "Explain how to clean a window.",
)
_PROMPTS_OF_EACH = 4
_MOST_CHECKS = 3


@dataclass(frozen=True)
class Instructed:
    """A prompt with one or more verifiable instructions."""

    id: str
    text: str
    checks: tuple[Check, ...]

    @property
    def messages(self) -> tuple[Message, ...]:
        return ({"role": "user", "content": self.text},)


@dataclass(frozen=True)
class Followed:
    """Which instructions of a prompt an answer follows."""

    id: str
    """Of the prompt."""
    prompt: str
    text: str
    """The answer."""
    finish: str
    """How the answer ended; see `Generated.finish`."""
    engine: str
    """The name of the model."""
    instructions: tuple[str, ...]
    strict: tuple[bool, ...]
    """Whether the answer follows each instruction."""
    loose: tuple[bool, ...]
    """Whether it does so by the loose rule."""

    @classmethod
    def of(cls, asked: Instructed, answer: Generated, engine: str) -> Self:
        """Check an answer. Reasoning before it, up to `</think>`, is not part of it."""
        text = answer_part(answer.text)
        variants = [one for one in loose_variants(text) if one.strip()]
        strict = tuple(bool(text.strip()) and check.followed(text) for check in asked.checks)
        loose = tuple(any(map(check.followed, variants)) for check in asked.checks)
        texts = tuple(check.text for check in asked.checks)
        return cls(asked.id, asked.text, answer.text, answer.finish, engine, texts, strict, loose)

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))


def answer_part(text: str) -> str:
    """The text after a model's reasoning; empty if the reasoning has not ended."""
    _, end, after = text.rpartition("</think>")
    if end:
        return after
    return "" if text.lstrip().startswith("<think>") else text


def loose_variants(text: str) -> list[str]:
    """The answer with and without its first line, its last line and its asterisks: eight texts, as in IFEval."""
    lines = text.split("\n")
    kept = [text, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return [*kept, *(part.replace("*", "") for part in kept)]


def builtin_instructions() -> list[Instructed]:
    """The built-in set: 96 prompts with one, two or three instructions in turn. It is the same at each call."""
    made = []
    for number, (turn, ask) in enumerate(product(range(_PROMPTS_OF_EACH), _ASKS)):
        rng = random.Random(f"judgelit instructions {number}")
        checks = _draw(rng, 1 + (number + turn) % _MOST_CHECKS)
        text = "\n".join([ask, *(check.text for check in checks)])
        made.append(Instructed(f"instructions-{number}", text, checks))
    return made


def _draw(rng: random.Random, count: int) -> tuple[Check, ...]:
    """Instructions of different kinds that do not restrict the same."""
    while True:
        kinds = [KINDS[name] for name in rng.sample(list(KINDS), count)]
        if len(frozenset().union(*(kind.about for kind in kinds))) == sum(len(kind.about) for kind in kinds):
            return tuple(kind.make(rng) for kind in kinds)


def instruction_estimates(answers: Sequence[Followed]) -> dict[str, Estimate]:
    """The scores of answers, with intervals over prompts.

    `instructions`: share of prompts whose answer follows all instructions. `instructions_loose`: the same by the loose
    rule. `each_instruction` and `each_instruction_loose`: share of instructions that are followed.
    `instructions_cut`: share of answers that reached the greatest length.
    """
    prompts = np.arange(len(answers))

    def each(values: list[tuple[bool, ...]]) -> list[Mean]:
        sizes = [len(of_prompt) for of_prompt in values]
        return [Mean(np.array([one for of in values for one in of], dtype=bool), np.repeat(prompts, sizes))]

    def every(values: list[tuple[bool, ...]]) -> list[Mean]:
        return [Mean(np.array([all(of) for of in values], dtype=bool), prompts)]

    strict, loose = [answer.strict for answer in answers], [answer.loose for answer in answers]
    return estimates(
        {
            "instructions": every(strict),
            "instructions_loose": every(loose),
            "each_instruction": each(strict),
            "each_instruction_loose": each(loose),
            "instructions_cut": [
                Mean(np.array([answer.finish == "length" for answer in answers], dtype=bool), prompts)
            ],
        }
    )
