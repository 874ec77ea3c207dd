"""One base URL of an endpoint: its requests through the `openai` client, and whether it can be asked now."""

import asyncio
import json
import math
import sys
import time
from collections.abc import Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from judgelit.console import printable
from judgelit.errors import UserError, first_line
from judgelit.generation.endpoint_reply import Reply, UnreadableReplyError, error_text, read_number, read_reply
from judgelit.generation.requests import Key

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from openai import AsyncOpenAI

CONNECT_SECONDS = 10.0
_FIRST_PAUSE, _LONGEST_PAUSE = 15.0, 300.0
"""Seconds for which a dead server is left out, the first time and at most."""
_LONGEST_BACKOFF = 120
"""The longest wait for a busy server that does not say for how long, in units of the first one."""
_SHORTEST_WAIT = 0.05
"""Seconds; a busy server that asks for less is not believed."""
_FAILURES_IN_A_ROW = 5
"""A server that fails so often in a row counts as dead."""
_CONTEXT_NAMES = ("max_model_len", "n_ctx", "context_length", "max_context_length", "context_window", "n_ctx_train")
"""Fields in which servers say how many tokens a model can take."""

Kind = Literal["temporary", "unreachable", "busy", "refused", "fatal"]


class RequestError(Exception):
    """A request without an answer.

    Attributes:
        kind: `temporary`, `unreachable` and `busy` (HTTP 429) may be repeated. A `refused` prompt gets no answer, but
            others may. After a `fatal` failure no request can succeed.
        reason: Why, in a few words; reports count by it.
        detail: What the server says, without the key.
        status: The HTTP status, if there is one.
        retry_after: Seconds that the server asks to wait.
        reply: A reply without answers, if it is one.
    """

    def __init__(
        self,
        kind: Kind,
        reason: str,
        detail: str = "",
        status: int | None = None,
        retry_after: float | None = None,
        reply: Reply | None = None,
    ) -> None:
        super().__init__(reason)
        self.kind = kind
        self.reason = reason
        self.detail = detail
        self.status = status
        self.retry_after = retry_after
        self.reply = reply

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


@dataclass(eq=False)
class Server:
    """A base URL and its state."""

    url: str
    key: Key
    models: tuple[str, ...] | None = None
    """Names of its models, if it lists them."""
    answered: bool = False
    """Whether the right model has answered."""
    other_names: int = 0
    """Answers of another model, until the right one has answered."""
    in_flight: int = 0
    paused_until: float = 0.0
    """Monotonic time before which it wants no request."""
    backoff: float = 0.5
    """Seconds to wait the first time when it is busy and does not say for how long."""
    busy: int = 0
    """How often it was busy since its last answer."""
    busy_at: float = 0.0
    """Monotonic time at which it was busy last."""
    failures: int = 0
    """Failures in a row."""
    dead_until: float | None = None
    """None: it is alive. Otherwise one request tries it again after this time."""
    pause: float = _FIRST_PAUSE

    @asynccontextmanager
    async def connected(self, connections: int, deadline: float) -> "AsyncIterator[AsyncOpenAI]":
        """A client for the present event loop.

        Args:
            connections: Most connections at a time.
            deadline: Seconds for a request.
        """
        openai = import_openai()
        local = _is_loopback(self.url)
        limits = type(openai.DEFAULT_CONNECTION_LIMITS)(max_connections=connections, max_keepalive_connections=None)
        http = openai.DefaultAsyncHttpxClient(
            limits=limits,
            timeout=openai.Timeout(deadline, connect=min(CONNECT_SECONDS, deadline)),
            trust_env=not local,  # A proxy cannot reach this machine's own addresses.
            verify=not local or self.url.startswith("https"),  # Loading certificates takes time.
            follow_redirects=False,  # The key goes to the given address alone.
        )
        async with openai.AsyncOpenAI(
            api_key=self.key.secret(), base_url=self.url, max_retries=0, http_client=http
        ) as client:
            yield client

    async def chat(
        self, client: "AsyncOpenAI", fields: Mapping[str, Any], extra: Mapping[str, Any], deadline: float
    ) -> Reply:
        """Ask for a chat completion.

        Args:
            client: A client of this base URL.
            fields: Arguments of the client's call.
            extra: Further fields of the request.
            deadline: Seconds after which the request is given up.

        Raises:
            RequestError: It has no answer.
        """
        openai = import_openai()
        try:
            async with asyncio.timeout(deadline):
                create: Any = client.chat.completions.with_raw_response.create
                # As `extra_body` the fields are sent as they are; checking their types would take a third of the time.
                raw = await create(model=fields["model"], messages=[], extra_body={**fields, **extra})
                body = raw.http_response.content
            reply = read_reply(body)
        except (TimeoutError, openai.APITimeoutError):
            raise RequestError("temporary", "timeout") from None
        except openai.APIStatusError as error:
            raise self._status_failure(error) from None
        except openai.APIConnectionError as error:
            raise self._connection_failure(error) from None
        except UnreadableReplyError as error:
            kind: Kind = "refused" if error.final else "temporary"
            raise RequestError(kind, error.reason, self._said(error.detail), reply=error.reply) from None
        return reply

    async def list_models(self, client: "AsyncOpenAI") -> list[Mapping[str, Any]] | None:
        """What the server says of its models; None if it does not list them.

        Raises:
            RequestError: It cannot be reached, or refuses the key.
        """
        openai = import_openai()
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                raw = await client.models.with_raw_response.list()
                listed = read_json(raw.http_response.content)
        except TimeoutError:
            return None
        except openai.APIStatusError as error:
            if error.status_code in (401, 403):
                raise self._status_failure(error) from None
            return None
        except openai.APIConnectionError as error:
            failure = self._connection_failure(error)
            if failure.kind == "unreachable":
                raise failure from None
            return None
        rows = listed.get("data") if isinstance(listed, dict) else None
        if not isinstance(rows, list):
            return None
        rows = [row for row in rows if isinstance(row, dict) and isinstance(row.get("id"), str)]
        self.models = tuple(self.key.mask(row["id"]) for row in rows)
        return rows

    def lacks(self, model: str) -> bool:
        """Whether it lists its models without this one, and has not answered as this one."""
        return self.models is not None and model not in self.models and not self.answered

    def succeeded(self) -> None:
        """Note an answer."""
        if self.dead_until is not None:
            say(f"endpoint {self.url}: answers again")
        self.answered = True
        self.failures = self.busy = 0
        self.dead_until, self.pause = None, _FIRST_PAUSE

    def failed(self, failure: RequestError, sent: float, others_alive: bool) -> None:
        """Note a failure: wait if the server asks to, leave it out if it is dead.

        Args:
            failure: What happened.
            sent: Monotonic time at which the request was sent.
            others_alive: Whether another base URL can be asked meanwhile.
        """
        now = time.monotonic()
        wait = failure.retry_after or 0.0
        if failure.kind == "busy" and sent > self.busy_at:  # Requests that were sent together count once.
            self.busy += 1
            self.busy_at = now
            if wait < _SHORTEST_WAIT:
                wait = self.backoff * min(2 ** (self.busy - 1), _LONGEST_BACKOFF)
        self.paused_until = max(self.paused_until, now + wait)
        if failure.kind not in ("temporary", "unreachable"):
            return
        self.failures += 1
        dead = failure.kind == "unreachable" or self.failures >= _FAILURES_IN_A_ROW
        if dead and others_alive and self.dead_until is None:
            say(f"endpoint {self.url}: left out ({failure}); it is tried again in {self.pause:.0f} s")
            self.dead_until = now + self.pause

    def begin_trial(self) -> None:
        """Note that a request tries a dead server again, so that others wait for its end."""
        self.pause = min(2 * self.pause, _LONGEST_PAUSE)
        self.dead_until = time.monotonic() + self.pause

    def _said(self, body: object) -> str:
        """What the body of an error says, on one line, without the key."""
        return error_text(body, self.key.mask)

    def _status_failure(self, error: Any) -> RequestError:
        status = int(error.status_code)
        detail = self._said(error.response.text if error.body is None else error.body)
        wait = read_retry_after(error.response.headers)
        reason = f"HTTP {status}"
        if status in (401, 403):
            advice = (
                f"the key in the environment variable {self.key.variable} is refused"
                if self.key.given
                else f"it wants a key; put it into the environment variable {self.key.variable}"
            )
            return RequestError("fatal", f"{reason}, {advice}", detail, status)
        if status == 402 or (status == 429 and error.code == "insufficient_quota"):
            return RequestError("fatal", f"{reason}, no credit is left", detail, status)
        if 300 <= status < 400 and (location := error.response.headers.get("location")):
            place = self._said(location.split("?")[0])
            return RequestError("fatal", f"{reason}, it redirects to {place}; give that address", "", status)
        if status == 429:
            return RequestError("busy", reason, detail, status, wait)
        if status in (408, 409, 425) or status >= 500 or status < 400:
            return RequestError("temporary", reason, detail, status, wait)
        return RequestError("refused", reason, detail, status)

    def _connection_failure(self, error: Any) -> RequestError:
        cause: BaseException = error
        names = set()
        while cause.__cause__ is not None or cause.__context__ is not None:
            cause = cause.__cause__ or cause.__context__  # type: ignore[assignment]
            names.add(type(cause).__name__)
        detail = self.key.mask(first_line(cause))[:200]
        if names & {"ConnectError", "ConnectTimeout", "ProxyError", "UnsupportedProtocol"}:
            return RequestError("unreachable", "no connection", detail)
        if names & {"ReadTimeout", "WriteTimeout", "PoolTimeout"}:
            return RequestError("temporary", "timeout")
        return RequestError("temporary", "cut connection", detail)


def context_of(rows: list[Mapping[str, Any]], model: str) -> int | None:
    """Tokens that a model can take, from a server's list of models; None if the list does not say so."""
    for row in rows:
        if row["id"] == model or len(rows) == 1:
            places = [row, row.get("meta")]
            for name in _CONTEXT_NAMES:
                for place in places:
                    value = place.get(name) if isinstance(place, Mapping) else None
                    if (tokens := read_number(value)) is not None and tokens >= 1:
                        return int(tokens)
    return None


def read_retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait: a number, or a date (RFC 9110, section 10.2.3). None if it does not ask."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        value = headers.get(name, "").strip()
        try:
            seconds = float(value) * unit
        except ValueError:
            try:
                seconds = parsedate_to_datetime(value).timestamp() - time.time()
            except (ValueError, TypeError, OverflowError):
                continue
        if math.isfinite(seconds):
            return max(0.0, seconds)
    return None


def read_json(body: bytes) -> Any:
    """The JSON value of a body; None if it has none."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def import_openai() -> Any:
    """The `openai` package.

    Raises:
        UserError: It is not installed.
    """
    try:
        import openai
    except ImportError as error:
        raise UserError("endpoint: needs the package openai; pip install 'judgelit[endpoint]'") from error
    return openai


def say(line: str) -> None:
    """Print a line about an endpoint on standard error, where progress is shown too."""
    print(printable(line), file=sys.stderr, flush=True)


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
