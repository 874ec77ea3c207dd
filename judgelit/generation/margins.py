"""The margin of a verdict: log p(A) - log p(B) at its letter, from the logits of the step that wrote the letter.

It is a difference of two logits of the model's own distribution: temperature and top-p do not change it. Only the steps
that chose a token with a letter A or B are read, two logits each, so the time for it cannot be measured.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from judgelit.batches.tokenizer import ChatTokenizer
from judgelit.judging import verdict

Watch = Callable[[Sequence[int], int, Sequence[int], Tensor], None]
"""Called after each step with the numbers of n texts, the step, the token chosen for each text, and the logits [n, V]
that it was chosen from."""

_ONE_LETTER = re.compile(r"[^0-9A-Za-z]*(?P<letter>[ABab])[^0-9A-Za-z]*")
_OTHER = {"A": "B", "B": "A", "a": "b", "b": "a"}


def letter_tokens(tokenizer: ChatTokenizer) -> dict[int, tuple[int, int]]:
    """Tokens that have one letter, A or B, and signs (`A`, ` B`, `[[A`), if the vocabulary has both letters so.

    Returns:
        For each such token: the id with A and the id with B. One of them is the token itself.
    """
    vocabulary = tokenizer.hf.get_vocab()
    found = {}
    for text, index in vocabulary.items():
        if (match := _ONE_LETTER.fullmatch(text)) is not None:
            start, end = match.span("letter")
            other = vocabulary.get(text[:start] + _OTHER[text[start:end]] + text[end:])
            if other is not None:
                found[index] = (index, other) if text[start] in "Aa" else (other, index)
    return found


class MarginRecord:
    """Margins of the tokens in `letters` that a batch of texts has; a `Watch`."""

    def __init__(self, letters: Mapping[int, tuple[int, int]]) -> None:
        self._letters = letters
        self._margins: dict[int, dict[int, float]] = {}

    def __call__(self, texts: Sequence[int], step: int, chosen: Sequence[int], logits: Tensor) -> None:
        """Record the margins of one step; see `Watch`."""
        rows = [row for row, token in enumerate(chosen) if token in self._letters]
        if not rows:
            return
        sides = torch.tensor([self._letters[chosen[row]] for row in rows], device=logits.device)
        pairs = logits[torch.tensor(rows, device=logits.device)[:, None], sides].float()
        for row, margin in zip(rows, (pairs[:, 0] - pairs[:, 1]).tolist(), strict=True):
            self._margins.setdefault(texts[row], {})[step] = margin

    def of(self, text: int) -> Mapping[int, float]:
        """The margins of a text, by the step that chose the token."""
        return self._margins.get(text, {})


def verdict_margin(ids: Sequence[int], tokenizer: ChatTokenizer, margins: Mapping[int, float]) -> float | None:
    """log p(A) - log p(B) at the letter of a text's verdict, or None.

    None if the text has no verdict or a tie, if the vocabulary does not have both letters in the form of the token that
    holds the letter, or if the margin is not finite.

    Args:
        ids: The text.
        tokenizer: Decodes it.
        margins: Margins of its tokens, by place in `ids`.
    """
    found = verdict.find(tokenizer.decode(ids)) if margins else None
    if found is None or found[0] == "tie":
        return None
    margin = margins.get(_token_with(found[1], ids, tokenizer))
    return margin if margin is not None and math.isfinite(margin) else None


def _token_with(place: int, ids: Sequence[int], tokenizer: ChatTokenizer) -> int:
    """Place in `ids` of the token that writes the character at `place` of the decoded text."""
    without, with_it = 0, len(ids)
    while with_it - without > 1:
        middle = (without + with_it) // 2
        if len(tokenizer.decode(ids[:middle])) > place:
            with_it = middle
        else:
            without = middle
    return without
