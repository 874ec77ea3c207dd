"""Judge prompts in the room that there is: what is cut where a pair is too long."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from judgelit.judging.token_ids import PromptTokenizer
from judgelit.records.records import Message, PreferencePair


@dataclass(frozen=True)
class FittedPrompt:
    """A judge prompt that fits, as messages and ids, and whether answers were shortened for it."""

    messages: tuple[Message, ...]
    ids: list[int]
    shortened: bool


def fit_prompt(
    pair: PreferencePair,
    render: Callable[[PreferencePair], tuple[Message, ...]],
    tokenizer: PromptTokenizer,
    max_tokens: int,
) -> FittedPrompt | None:
    """The prompt for `pair` in at most `max_tokens` ids, or None if it cannot fit.

    Where the whole prompt is too long, answers lose their middle: one limit of characters, the largest that fits,
    holds for both, so that shortening favours neither. The question is never cut.
    """
    # No tokenizer packs text so densely that a text beyond this could fit whole; it spares tokenizing gigabytes.
    ceiling = 64 * max_tokens
    if len(pair.question) + sum(len(turn["content"]) for turn in pair.context) > ceiling:
        return None
    longest = max(len(pair.answer_a), len(pair.answer_b))
    if longest <= ceiling:
        messages = render(pair)
        ids = tokenizer.prompt_ids(messages)
        if len(ids) <= max_tokens:
            return FittedPrompt(messages, ids, shortened=False)
    best = None
    low, high = _SHORTEST_ANSWER, min(longest, ceiling) - 1
    while low <= high:
        limit = (low + high) // 2
        cut = replace(
            pair, answer_a=_without_middle(pair.answer_a, limit), answer_b=_without_middle(pair.answer_b, limit)
        )
        messages = render(cut)
        ids = tokenizer.prompt_ids(messages)
        if len(ids) <= max_tokens:
            best = FittedPrompt(messages, ids, shortened=True)
            low = limit + 1
        else:
            high = limit - 1
    return best


_SHORTEST_ANSWER = 64
"""Characters of an answer below which a judgment of it would say nothing."""


def _without_middle(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    head = (limit + 1) // 2
    tail = limit - head
    return f"{text[:head]}\n[... {len(text) - limit} characters left out ...]\n{text[len(text) - tail :]}"
