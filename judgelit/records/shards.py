"""Shards: parts of the questions, one for each of several machines."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from judgelit.errors import UserError
from judgelit.records.records import AnswerSet, PreferencePair

R = TypeVar("R", PreferencePair, AnswerSet)


@dataclass(frozen=True)
class Shard:
    """The part of the questions that one of several machines works on.

    A question is in one shard for any data: its number is a hash of the question and its context. So all pairs of a
    question, in both orders, are in one shard.
    """

    number: int
    """From 1."""
    count: int

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """The shard `I/N`, such as 1/4.

        Raises:
            UserError: The text names none.
        """
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text.strip())
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            raise UserError(f"shard: found {text!r}, expected I/N with I from 1 to N, such as 1/4")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def part(self, items: Sequence[R]) -> list[R]:
        """The pairs or answer sets whose question is in this shard, in their sequence."""
        return [item for item in items if _place(item.question_key, self.count) == self.number]


def _place(question_key: str, count: int) -> int:
    """The number of a question's shard, 1 to `count`."""
    return 1 + int.from_bytes(hashlib.sha256(f"shard/{question_key}".encode()).digest()[:8]) % count
