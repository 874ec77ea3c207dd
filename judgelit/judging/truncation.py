"""Shorten the answers of a pair until its prompt fits."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from judgelit.records.records import Message, PreferencePair


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
    that shortening favours neither. The question is never cut.

    Args:
        pair: Pair in the order of the prompt.
        render: Makes the prompt for a pair.
        length: Tokens of a prompt.
        max_tokens: Most tokens of the prompt.
    """
    # No tokenizer fits more than 64 characters into a token on average. Gigabytes of text need not be tokenized.
    ceiling = 64 * max_tokens
    if len(pair.question) + sum(len(turn["content"]) for turn in pair.context) > ceiling:
        return None
    longest = max(len(pair.answer_a), len(pair.answer_b))
    if longest <= ceiling:
        messages = render(pair)
        if length(messages) <= max_tokens:
            return FittedPrompt(messages, shortened=False)
    best = None
    low, high = _SHORTEST_ANSWER, min(longest, ceiling) - 1
    while low <= high:
        limit = (low + high) // 2
        cut = replace(
            pair, answer_a=_without_middle(pair.answer_a, limit), answer_b=_without_middle(pair.answer_b, limit)
        )
        messages = render(cut)
        if length(messages) <= max_tokens:
            best = FittedPrompt(messages, shortened=True)
            low = limit + 1
        else:
            high = limit - 1
    return best


_SHORTEST_ANSWER = 64
"""Fewest characters that an answer keeps: a judgment of less would mean nothing."""


def _without_middle(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    head = (limit + 1) // 2
    tail = limit - head
    return f"{text[:head]}\n[... {len(text) - limit} characters left out ...]\n{text[len(text) - tail :]}"
