"""When a text that is being generated is finished by its verdict, told from its ids."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from judgelit.judging import verdict
from judgelit.judging.token_ids import PromptTokenizer

_TAIL = 32
"""Tokens at the end of a text that hold a verdict and the end of its line."""


@dataclass(frozen=True)
class VerdictEnd:
    """Whether the ids of a text so far end a line that says its verdict; see `verdict.concludes`.

    Asked after every token: most of the time one look at the latest token's own text settles it.
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
        """What stands before the text: a tag, if the chat template has the assistant begin within its reasoning."""
        prompt = self._decode(self.tokenizer.prompt_ids([{"role": "user", "content": "?"}]))
        return "<think>\n" if verdict.reasons(prompt) else ""

    def _decode(self, ids: Sequence[int]) -> str:
        # Tags of reasoning are control tokens in some models.
        return self.tokenizer.raw_text(ids)
