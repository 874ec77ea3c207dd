"""Detect from generated ids that a judgment is finished by its verdict."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from judgelit.judging import quotations, verdict
from judgelit.judging.token_ids import PromptTokenizer

_TAIL = 32
"""Last tokens of a text that are enough for a verdict and the end of its line."""


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
