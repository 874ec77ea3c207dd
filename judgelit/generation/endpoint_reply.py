"""Reading the answers of an OpenAI-compatible server. It may send anything, so nothing is taken for granted."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from judgelit.judging import quotations, verdict
from judgelit.records.unicode import replace_surrogates

_CUT = ("length", "max_tokens", "max_output_tokens")
_BROKEN = ("abort", "aborted", "error", "cancelled", "canceled")
_FILTERED = ("content_filter", "safety", "refusal")
_LONGEST_ERROR = 4000
"""Characters of an error that are read."""
_LARGEST = 1e12
"""No number in a reply is larger."""
_TAG = re.compile(r"<[^<>]*>")


class UnreadableReplyError(Exception):
    """A reply without an answer.

    Attributes:
        reason: Why, in a few words; reports count by it.
        detail: What the server says, as it has sent it; `error_text` makes it fit for a message.
        final: Whether another request would end the same way.
        reply: The reply without answers, which still says what it took.
    """

    def __init__(self, reason: str, detail: object = None, final: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.detail = detail
        self.final = final
        self.reply: Reply | None = None


@dataclass(frozen=True)
class Choice:
    """One answer of a reply."""

    content: str
    reasoning: str
    cut: bool
    """Whether the limit of tokens ended it."""
    raw: str
    """The content as the server sent it, for `letter_margin`."""
    tokens: Sequence[Any] | None
    """The content's tokens with their log-probabilities, if the server has sent them."""


@dataclass(frozen=True)
class Reply:
    """The answers of one request."""

    choices: list[Choice]
    sent: int
    """Number of choices that the server has sent, the unusable ones included."""
    model: str | None
    prompt_tokens: int | None
    new_tokens: int | None
    """Tokens of all choices together."""


def read_reply(body: bytes | str) -> Reply:
    """The usable answers of a reply; there may be fewer than were asked for.

    Raises:
        UnreadableReplyError: There is none.
    """
    try:
        reply = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise UnreadableReplyError("unreadable JSON", str(error)) from None
    if not isinstance(reply, dict):
        raise UnreadableReplyError("no JSON object")
    found = reply.get("choices")
    if not isinstance(found, list) or not found:
        raise UnreadableReplyError("no choices", reply.get("error"))
    choices, problems = [], []
    for one in _by_index(found):
        try:
            choices.append(_read_choice(one))
        except UnreadableReplyError as problem:
            problems.append(problem)
    usage = reply.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    model = reply.get("model")
    read = Reply(
        choices,
        len(found),
        model if isinstance(model, str) and model else None,
        _count(usage.get("prompt_tokens")),
        _new_tokens(usage.get("completion_tokens"), choices),
    )
    if not choices:
        problems[0].reply = read
        raise problems[0]
    return read


def error_text(body: object, mask: Callable[[str], str] = str) -> str:
    """What an error's body says, on one line.

    Args:
        body: Its JSON value, or its text.
        mask: Replaces the key. It sees the whole text, since half of a key at the end would not be found.
    """
    said = body
    for _ in range(4):
        if isinstance(said, Mapping):
            if isinstance(said.get("loc"), list) and isinstance(said.get("msg"), str):  # Servers that use pydantic.
                said = f"{'.'.join(map(str, said['loc']))}: {said['msg']}"
                break
            said = next((said[name] for name in ("message", "error", "detail", "msg") if said.get(name)), None)
        elif isinstance(said, list) and said:
            said = said[0]
    text = said if isinstance(said, str) else "" if said is None else json.dumps(said, default=str)
    text = mask(replace_surrogates(text))[:_LONGEST_ERROR]
    if text.lstrip().startswith("<"):  # A proxy's error is a page of HTML.
        text = _TAG.sub(" ", text)
    return " ".join(text.split())[:300]


def join_reasoning(choice: Choice, thinking: str) -> tuple[str, int]:
    """The text of a judgment, and where the answer begins in it, after the reasoning.

    Args:
        choice: The server's answer.
        thinking: `keep`, `tags` or `drop`, as in `Requests`.
    """
    reasoning = choice.reasoning.strip()
    if thinking == "drop" or not reasoning:
        return choice.content, 0
    plain = f"{reasoning}\n\n"
    said = verdict.parse(choice.content)
    if thinking == "keep" and said is not None and verdict.parse(plain + choice.content) == said:
        return plain + choice.content, len(plain)
    # An answer that was cut while it thought has no content, and its block stays open.
    ended = bool(choice.content) or not choice.cut
    before = f"<think>\n{reasoning}\n" + ("</think>\n\n" if ended else "")
    return before + choice.content, len(before)


def letter_margin(choice: Choice, at: int) -> float | None:
    """log p(A) - log p(B), in nats, at the token that holds the letter of a verdict.

    The other letter's token is the same one with that letter in its place. None if it is not among the most probable
    ones that the server sent.

    Args:
        choice: An answer with the log-probabilities of its tokens.
        at: The letter's index in `choice.content`.
    """
    if choice.tokens is None or not 0 <= at < len(choice.content):
        return None
    tokens = [(_bytes(token), token) for token in choice.tokens]
    # Reasoning that the server has cut off, and blanks that it has stripped, are before and after the content.
    start = b"".join(text for text, _ in tokens).rfind(choice.raw.encode("utf-8", "replace"))
    if start < 0:
        return None
    skipped = len(choice.raw) - len(choice.content)
    if not choice.raw.endswith(choice.content):
        return None
    place = start + len(choice.raw[: skipped + at].encode("utf-8", "replace"))
    letter, number = choice.content[at], 0
    for text, _ in tokens:
        if place < len(text):
            break
        place -= len(text)
        number += 1
    else:
        return None
    token = tokens[number][1]
    size = len(letter.encode())
    if text[place : place + size] != letter.encode():
        return None
    known = dict(_alternatives(token))
    ours = [text[:place] + _as(letter, other).encode() + text[place + size :] for other in "AB"]
    a, b = (known.get(name) for name in ours)
    return None if a is None or b is None else a - b


def _as(letter: str, other: str) -> str:
    """The letter `other`, A or B, in the case of `letter`."""
    return other.lower() if letter.islower() else other


def _alternatives(token: Mapping[str, Any]) -> Iterator[tuple[bytes, float]]:
    """The most probable tokens at a place, and the one that was chosen."""
    top = token.get("top_logprobs")
    for one in [*(top if isinstance(top, list) else []), token]:
        if isinstance(one, Mapping) and (value := read_number(one.get("logprob"))) is not None:
            yield _bytes(one), value


def _bytes(token: Any) -> bytes:
    """The bytes of a token; its text may show only half of a character."""
    if not isinstance(token, Mapping):
        return b""
    found = token.get("bytes")
    if isinstance(found, list) and all(isinstance(one, int) and 0 <= one < 256 for one in found):
        return bytes(found)
    text = token.get("token")
    return text.encode("utf-8", "replace") if isinstance(text, str) else b""


def _read_choice(choice: Any) -> Choice:
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(message, dict):
        raise UnreadableReplyError("no message")
    finish = choice.get("finish_reason")
    content, reasoning = _text(message.get("content")), None
    for name in ("reasoning_content", "reasoning"):
        reasoning = reasoning or _text(message.get(name))
    if finish in _FILTERED or (content is None and message.get("refusal")):
        said = message.get("refusal")
        raise UnreadableReplyError("refused by the server", said or "content filter", final=True)
    if finish in _BROKEN:
        raise UnreadableReplyError("broken off by the server", finish)
    if content is None and not reasoning:
        raise UnreadableReplyError("no text in the answer")
    raw = replace_surrogates(content or "")
    answer = raw
    if not reasoning and (end := quotations.end_of_reasoning(raw)):
        reasoning, answer = quotations.without_tags(raw[:end]), raw[end:].lstrip()
    logprobs = choice.get("logprobs")
    tokens = logprobs.get("content") if isinstance(logprobs, dict) else None
    return Choice(
        answer,
        replace_surrogates(reasoning or ""),
        finish in _CUT,
        raw,
        tokens if isinstance(tokens, list) and tokens else None,
    )


def _text(content: Any) -> str | None:
    """The text of a message's content, which may be a list of parts; None if it has none."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else part for part in content]
        texts = [part for part in parts if isinstance(part, str)]
        return "".join(texts) if texts else None
    return None


def read_number(value: Any) -> float | None:
    """A finite number of a reply; None if it is anything else. JSON's integers may be too large for a float."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not -_LARGEST < value < _LARGEST:
        return None
    return float(value)


def _count(value: Any) -> int | None:
    number = read_number(value)
    return None if number is None or number < 0 else int(number)


def _new_tokens(said: Any, choices: Sequence[Choice]) -> int | None:
    """Tokens of all choices together, as the server says, but no fewer than it has sent.

    llama.cpp's server says those of one choice, whatever `n` is.
    """
    count = _count(said)
    return None if count is None else max(count, sum(len(choice.tokens or ()) for choice in choices))


def _by_index(choices: list[Any]) -> list[Any]:
    """The choices by their index, if each has one of its own: a server may send first what was finished first."""
    indices = [read_number(one.get("index")) if isinstance(one, dict) else None for one in choices]
    places = {index: choice for index, choice in zip(indices, choices, strict=True) if index is not None}
    return [places[index] for index in sorted(places)] if len(places) == len(choices) else choices
