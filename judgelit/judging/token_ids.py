"""The parts of a tokenizer that judging uses. `judgelit.batches.tokenizer.ChatTokenizer` implements both."""

from collections.abc import Sequence
from typing import Protocol

from judgelit.records.row_fields import Message


class PromptCounter(Protocol):
    """Counter of the tokens of prompts."""

    @property
    def context(self) -> int:
        """Most tokens of prompt and generated text together."""
        ...

    def count(self, messages: Sequence[Message]) -> int:
        """Number of tokens of a conversation, up to the point where the assistant begins."""
        ...


class PromptTokenizer(Protocol):
    """Tokenizer of prompts and generated ids."""

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a conversation, up to the point where the assistant begins."""
        ...

    def raw_text(self, ids: Sequence[int]) -> str:
        """Text of ids, with control tokens."""
        ...
