"""The part of a tokenizer that judging uses. `judgelit.batches.tokenizer.ChatTokenizer` implements it."""

from collections.abc import Sequence
from typing import Protocol

from judgelit.records.records import Message


class PromptTokenizer(Protocol):
    """Tokenizer of prompts and generated ids."""

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a conversation, up to the point where the assistant begins."""
        ...

    def raw_text(self, ids: Sequence[int]) -> str:
        """Text of ids, with control tokens."""
        ...
