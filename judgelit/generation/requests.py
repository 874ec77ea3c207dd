"""Settings of the requests to an endpoint, and the checks of its address and key. Imports no HTTP library."""

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal
from urllib.parse import urlsplit, urlunsplit

from judgelit.errors import UserError

KEY_VARIABLE = "OPENAI_API_KEY"
_SHORTEST_SECRET = 6
"""Keys with fewer characters, such as `EMPTY`, are placeholders of servers without keys and are not masked."""
_MOST_AT_ONCE = 4096
_OURS = {
    *("model", "messages", "n", "seed", "stream", "max_tokens", "max_completion_tokens", "temperature", "top_p"),
    *("logprobs", "top_logprobs", "chat_template_kwargs"),
}
"""Fields of a request that other settings decide."""


@dataclass(frozen=True)
class Requests:
    """How an endpoint is asked. The key is read from an environment variable and is written nowhere."""

    concurrency: int = 32
    """Most requests at a time, over all base URLs."""
    requests_per_minute: float | None = None
    """Most requests that are started in a minute, repeated ones included, evenly spaced."""
    tokens_per_minute: float | None = None
    """Most tokens in a minute, of prompts and answers. A request counts with its prompt and max_new_tokens until its
    answer says what it took."""
    retries: int = 8
    """How often a request is repeated after a temporary failure: HTTP 408, 409, 429 and 5xx, a timeout, a cut
    connection, an unreadable answer. HTTP 429 does not count while the server answers other requests."""
    backoff: float = 0.5
    """Seconds before the first repetition. Each further one waits twice as long, up to 60 times this, less a random
    part of up to half. A server that says when it wants to be asked again (Retry-After) decides itself."""
    deadline: float = 600.0
    """Seconds after which a request is given up and repeated. No pause that a server asks for may be longer."""
    prompt_price: float | None = None
    """Price of a million tokens of prompts, in any currency."""
    completion_price: float | None = None
    """Price of a million generated tokens, in the same currency."""
    budget: float | None = None
    """Most that one command may spend, in the same currency. A prompt is asked only if the budget covers its longest
    answers. A request without an answer counts if the server says what it took."""
    thinking: Literal["keep", "drop", "tags"] = "keep"
    """The reasoning that the server sends beside the answer (`reasoning_content`, `reasoning`, or a <think> block in
    the text): tags puts it before the answer between <think> and </think>, drop leaves it out. keep puts it there as
    plain text, if the answer's own verdict is then that of the whole text; otherwise as tags does, so that a verdict
    that was only thought of counts nowhere."""
    top_logprobs: int = 5
    """Ask for the log-probabilities of this many tokens at each place, from which the margin of a verdict is computed.
    0 does not ask, and no margin is known. A server that has none is asked without."""
    refused: Literal["error", "empty"] = "error"
    """A prompt that the server refuses, such as by a content filter: the command asks all others and ends with an
    error, or the answer is empty, which has no verdict."""
    context: int | None = None
    """Tokens that prompt and answer may have together; by default what the server's list of models says."""
    tokenizer: str | None = None
    """Hub name or folder of the model's tokenizer, for exact counts of tokens; by default an estimate on the high
    side."""
    answers_as: str | None = None
    """The model's name in the answers, where the server calls it otherwise than the request."""
    extra_body: dict[str, Any] | None = None
    """Further fields of each request, such as {top_k: 20, reasoning_effort: high}."""
    key_variable: str = KEY_VARIABLE
    """Name of the environment variable that holds the key. A server without keys needs none."""

    def __post_init__(self) -> None:
        if not 1 <= self.concurrency <= _MOST_AT_ONCE:
            raise UserError(f"requests.concurrency: found {self.concurrency}, expected 1 to {_MOST_AT_ONCE}")
        for name in ("requests_per_minute", "tokens_per_minute", "backoff", "deadline", "context"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"requests.{name}: found {value}, expected a number above 0")
        for name in ("retries", "prompt_price", "completion_price", "top_logprobs"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise UserError(f"requests.{name}: found {value}, expected 0 or more")
        if self.top_logprobs > 20:
            raise UserError(f"requests.top_logprobs: found {self.top_logprobs}, expected 0 to 20")
        if self.budget is not None and not 0 < self.budget < math.inf:
            raise UserError(f"requests.budget: found {self.budget}, expected a sum above 0; nothing was asked")
        if self.budget is not None and (self.prompt_price is None or self.completion_price is None):
            raise UserError(
                "requests.budget: found no prices, expected requests.prompt_price and requests.completion_price "
                "(of a million tokens)"
            )
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", self.key_variable):
            # The text may be the key itself, so the message does not repeat it.
            raise UserError("requests.key_variable: expected the name of an environment variable, not the key itself")
        for name in self.extra_body or {}:
            if name in _OURS:
                raise UserError(
                    f"requests.extra_body.{name}: expected a field that judgelit does not set; use judgelit's setting"
                )
        try:
            json.dumps(self.extra_body)
        except (TypeError, ValueError) as error:
            raise UserError(f"requests.extra_body: expected values that JSON can hold: {error}") from error

    def changed(self) -> list[str]:
        """Names of the settings that differ from their defaults."""
        return [one.name for one in fields(self) if getattr(self, one.name) != getattr(Requests, one.name, None)]


def base_urls(endpoint: str | list[str]) -> list[str]:
    """The base URLs of an endpoint, without a slash at the end. One without a path gets `/v1`.

    Raises:
        UserError: One of them is no URL of a server, or holds a password.
    """
    found = []
    for url in [endpoint] if isinstance(endpoint, str) else endpoint:
        try:
            parts = urlsplit(url.strip())
            _ = parts.port
        except ValueError:
            parts = urlsplit("")
        shown = without_password(url)
        if "@" in parts.netloc:
            raise UserError(
                f"endpoint: found a user or password in {shown}, expected a URL without them; put the key into the "
                f"environment variable {KEY_VARIABLE}"
            )
        if parts.scheme not in ("http", "https") or not parts.hostname or re.search(r"\s", url.strip()):
            raise UserError(f"endpoint: found {shown!r}, expected a base URL such as http://127.0.0.1:8000/v1")
        if parts.query or parts.fragment:
            raise UserError(
                f"endpoint: found {shown}?..., expected a base URL without ? and #; put further fields into "
                "requests.extra_body"
            )
        path = parts.path.rstrip("/").removesuffix("/chat/completions")
        found.append(urlunsplit((parts.scheme, parts.netloc, path or "/v1", "", "")))
    if not found:
        raise UserError("endpoint: found an empty list, expected one or more base URLs")
    return list(dict.fromkeys(found))


def without_password(url: str) -> str:
    """A URL for messages: without user, password and query."""
    head, slashes, rest = url.strip().partition("://")
    # A password may hold any character, unescaped by mistake.
    place = (rest if slashes else head).rpartition("@")[2].split("?")[0].split("#")[0]
    return (f"{head}://" if slashes else "") + place[:200]


@dataclass(frozen=True)
class Key:
    """The key of an endpoint. Its text stands in no `repr`."""

    variable: str
    _text: str = field(repr=False, default="")

    @classmethod
    def read(cls, variable: str, environment: Mapping[str, str] = os.environ) -> "Key":
        """Read the key from the environment; a variable that is not set means a server without keys.

        Raises:
            UserError: The user names a variable that is not set, or it holds no key.
        """
        text = environment.get(variable, "").strip()
        if not text and variable != KEY_VARIABLE:
            # The name is not repeated: it might be the key itself.
            raise UserError("requests.key_variable: found no environment variable of this name, or an empty one")
        if not (text.isascii() and text.isprintable()) or " " in text:
            raise UserError(f"environment variable {variable}: expected a key of printable ASCII without spaces")
        return cls(variable, text)

    @property
    def given(self) -> bool:
        """Whether there is a key."""
        return bool(self._text)

    def secret(self) -> str:
        """The key, for the request alone."""
        return self._text or "EMPTY"

    def mask(self, text: str) -> str:
        """`text` with *** in place of the key."""
        return text.replace(self._text, "***") if len(self._text) >= _SHORTEST_SECRET else text
