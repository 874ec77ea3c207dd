"""Control tokens: which tokens only the chat template may write, and where a text spells one."""

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

BLANKS = " \t\r\n▁"
"""Characters of tokens that are blanks alone. ▁ (U+2581) is the blank of sentencepiece."""


class ControlTokens:
    """The control tokens of a tokenizer.

    These are its special tokens and all added tokens, also those that are not marked special (`<think>`,
    `<tool_call>`). Added tokens of blanks alone (runs of spaces in code) are ordinary text, and so are added tokens of
    one character (letters).
    """

    def __init__(self, ids: Mapping[str, int]) -> None:
        """Store the tokens; `ids` is the id of each one by its text."""
        self.ids = dict(ids)

    @classmethod
    def of(cls, hf: Any) -> "ControlTokens":
        """The control tokens of a transformers tokenizer."""
        ids = {
            token.content: index
            for index, token in hf.added_tokens_decoder.items()
            if token.special or (len(token.content) > 1 and token.content.strip(BLANKS))
        }
        named = set(hf.all_special_tokens) - ids.keys()
        return cls({**ids, **{text: hf.convert_tokens_to_ids(text) for text in sorted(named)}})

    def spelled(self, text: str) -> list[tuple[int, str]]:
        """Start and text of every control token that `text` spells, overlapping ones included.

        The time is linear in the length of the text.
        """
        return [(found.start(), found[1]) for found in self._pattern.finditer(text)]

    def begins(self, text: str) -> bool:
        """Whether `text` begins with a control token."""
        return self._pattern.match(text) is not None

    def may_begin_at_end(self, text: str) -> bool:
        """Whether `text` ends with the first characters of a control token."""
        return text[-self._longest :].endswith(self._beginnings)

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        # A look-ahead also finds overlapping occurrences.
        tokens = sorted(filter(None, self.ids))
        return re.compile(f"(?=({_any_of(tokens)}))" if tokens else "(?!)")

    @cached_property
    def _beginnings(self) -> tuple[str, ...]:
        return tuple({token[:length] for token in self.ids for length in range(1, len(token))})

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self.ids), default=1)


def _any_of(texts: Sequence[str]) -> str:
    """A pattern that matches the longest of some sorted texts, with their common beginnings taken out.

    Some tokenizers have thousands of control tokens with one beginning (`<unused0>`, `<unused1>`, ...). A plain list of
    alternatives would compare each of them at every `<`.
    """
    groups: dict[str, list[str]] = {}
    for text in texts:
        if text:
            groups.setdefault(text[0], []).append(text[1:])
    patterns = [re.escape(first) + _any_of(rests) for first, rests in groups.items()]
    if not patterns:
        return ""
    if len(patterns) == 1 and texts[0]:
        return patterns[0]
    return f"(?:{'|'.join(patterns)})" + ("" if texts[0] else "?")
