"""Detect that a judgment is finished by its verdict: from generated ids, or in a text that went on."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from judgelit.judging import quotations, verdict
from judgelit.judging.token_ids import PromptTokenizer

_TAIL = 32
"""Last tokens of a text that are enough for a verdict and the end of its line."""

_LINE_END = 200
"""Last characters of a line that are enough for the verdict at its end."""


def until_verdict(text: str, start: int = 0) -> str | None:
    """`text` up to the end of the line at which generation would have stopped; None if it would not have.

    Args:
        text: A judgment.
        start: Where its verdict may begin at the earliest, such as the end of its reasoning.
    """
    at = text.find("\n", start)
    while at >= 0:
        # Most lines hold no verdict, so the end of the line is read first.
        if verdict.ends_line(text[max(start, at - _LINE_END) : at + 1]) and verdict.concludes(text[: at + 1]):
            return text[: at + 1]
        at = text.find("\n", at + 1)
    return None


@dataclass(frozen=True)
class VerdictEnd:
    """Whether the ids generated so far end with the line of the verdict; see `verdict.concludes`.

    It is called after every token, so it first looks at the latest token alone: most tokens end no line.
    """

    tokenizer: PromptTokenizer
    _breaks: dict[int, bool] = field(default_factory=dict, repr=False, compare=False)

    def __call__(self, ids: Sequence[int]) -> bool:
        latest = ids[-1]
        if latest not in self._breaks:
            self._breaks[latest] = "\n" in self._decode([latest])
        if not self._breaks[latest] or not verdict.ends_line(self._decode(ids[-_TAIL:])):
            return False
        return verdict.concludes(self._opening + self._decode(ids))

    @cached_property
    def _opening(self) -> str:
        """Text before the generated text: a tag, if the chat template opens the reasoning of the assistant."""
        prompt = self._decode(self.tokenizer.prompt_ids([{"role": "user", "content": "?"}]))
        return "<think>\n" if quotations.reasons(prompt) else ""

    def _decode(self, ids: Sequence[int]) -> str:
        # Reasoning tags are control tokens in some models.
        return self.tokenizer.raw_text(ids)
