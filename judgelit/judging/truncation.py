"""Shorten answers until their prompt fits."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from judgelit.records.records import PreferencePair
from judgelit.records.row_fields import Message


@dataclass(frozen=True)
class FittedPrompt:
    """Judge prompt that fits."""

    messages: tuple[Message, ...]
    shortened: bool
    """Whether an answer was shortened."""


def fit_prompt(
    pair: PreferencePair,
    render: Callable[[PreferencePair], tuple[Message, ...]],
    length: Callable[[Sequence[Message]], int],
    max_tokens: int,
) -> FittedPrompt | None:
    """The prompt for `pair` in at most `max_tokens` tokens, or None if it does not fit.

    If the whole prompt is too long, the answers lose their middle. One limit of characters holds for both answers, so
    that shortening favours neither. The question is never cut. An answer is shortened only if that makes it shorter:
    the line that marks the gap takes some characters too. Answers that differ must still differ when they are
    shortened: no verdict about two equal texts is right.

    Args:
        pair: Pair in the order of the prompt.
        render: Makes the prompt for a pair.
        length: Tokens of a prompt.
        max_tokens: Most tokens of the prompt.
    """

    def with_answers(answers: Sequence[str]) -> tuple[Message, ...]:
        return render(replace(pair, answer_a=answers[0], answer_b=answers[1]))

    whole = sum(len(turn["content"]) for turn in pair.context) + len(pair.question)
    return fit_answers((pair.answer_a, pair.answer_b), whole, with_answers, length, max_tokens)


def fit_answers(
    answers: Sequence[str],
    whole: int,
    render: Callable[[Sequence[str]], tuple[Message, ...]],
    length: Callable[[Sequence[Message]], int],
    max_tokens: int,
) -> FittedPrompt | None:
    """The prompt for any number of answers, by the rule of `fit_prompt`, or None if it does not fit.

    Args:
        answers: The answers in the order of the prompt.
        whole: Characters of the question and its context, which stay whole.
        render: Makes the prompt for the answers, whole or shortened.
        length: Tokens of a prompt.
        max_tokens: Most tokens of the prompt.
    """
    # No tokenizer fits more than 64 characters into a token on average. Gigabytes of text need not be tokenized.
    ceiling = 64 * max_tokens
    if whole > ceiling:
        return None
    longest = max(map(len, answers))
    if longest <= ceiling:
        messages = render(answers)
        if length(messages) <= max_tokens:
            return FittedPrompt(messages, shortened=False)

    def shorten(limit: int) -> tuple[int, FittedPrompt | None]:
        """Tokens of the prompt with this limit, and the prompt; None if it makes different answers equal."""
        shown = [_without_middle(answer, limit) for answer in answers]
        messages = render(shown)
        is_usable = len(set(shown)) == len(set(answers))
        return length(messages), FittedPrompt(messages, shortened=True) if is_usable else None

    # Answers that are equal at a limit are equal at all smaller ones, so the largest limit that fits decides.
    best = None
    fewest = math.inf
    low, high = _SHORTEST_ANSWER, min(longest, ceiling) - 1
    while low <= high:
        limit = (low + high) // 2
        tokens, fitted = shorten(limit)
        fewest = min(fewest, tokens)
        if tokens <= max_tokens:
            best, low = fitted, limit + 1
        else:
            high = limit - 1
    if max_tokens < fewest <= max_tokens + _NEAR_MISS:
        # More characters may be fewer tokens, so the shortest text need not be the one that fits.
        for limit in range(_SHORTEST_ANSWER, min(longest, ceiling, _SHORTEST_ANSWER + _NEAR_LIMITS)):
            tokens, fitted = shorten(limit)
            if tokens <= max_tokens and fitted is not None:
                return fitted
    return best


_SHORTEST_ANSWER = 64
"""Fewest characters that an answer keeps: a judgment of less would mean nothing."""
_NEAR_MISS = 16
_NEAR_LIMITS = 128
"""How many limits are tried one by one if the search finds none and has missed by `_NEAR_MISS` tokens or fewer."""


def _without_middle(text: str, limit: int) -> str:
    """The first and last characters of `text`, `limit` in all, around a marker; the whole text if that is as short."""
    head = (limit + 1) // 2
    tail = limit - head
    cut = f"{text[:head]}\n[... {len(text) - limit} characters left out ...]\n{text[len(text) - tail :]}"
    return cut if len(cut) < len(text) else text
