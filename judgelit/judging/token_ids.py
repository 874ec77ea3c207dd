"""What judging needs of a tokenizer; `judgelit.batches.tokenizer.ChatTokenizer` is one."""

from collections.abc import Sequence
from typing import Protocol

from judgelit.records.records import Message


class PromptTokenizer(Protocol):
    """Turns a prompt into ids and generated ids into text."""

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Ids of the rendered conversation up to where the assistant begins to speak."""
        ...

    def raw_text(self, ids: Sequence[int]) -> str:
        """The text of ids, control tokens included."""
        ...
