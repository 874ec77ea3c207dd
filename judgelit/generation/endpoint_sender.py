"""Sending the requests of one call: choice of a server, limits, repetitions."""

import asyncio
import math
import random
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import cycle
from typing import Any

from judgelit.generation.endpoint_fields import Fields, is_about_the_model, is_same_model, request_seed
from judgelit.generation.endpoint_reply import Reply
from judgelit.generation.endpoint_server import RequestError, Server, say
from judgelit.generation.endpoint_tally import Tally
from judgelit.generation.endpoint_tokens import estimate_tokens
from judgelit.generation.pacing import Pace
from judgelit.generation.requests import Key, Requests
from judgelit.generation.sampling import Sampling
from judgelit.judging.token_ids import PromptCounter
from judgelit.records.row_fields import Message

_LONGEST_BACKOFF = 60
"""The longest wait before a repetition, in units of the first one."""
_REQUESTS_PER_CLIENT, _MOST_CLIENTS = 4, 16
"""A client looks at all of its idle connections for each request, so many connections are shared among clients."""
_WRONG_NAMES = 3
"""So many answers of another model, and none of the right one, stop the call."""
_UNLISTED_TRIES = 3
"""So many answers of HTTP 500 for a model that the server does not list, and none else, stop the call."""


class StoppedError(Exception):
    """The call ends before this prompt is answered."""


class LostError(Exception):
    """This prompt gets no answer."""

    def __init__(self, failure: RequestError) -> None:
        super().__init__(str(failure))
        self.failure = failure


@dataclass(frozen=True)
class Endpoint:
    """What all calls of an engine share."""

    servers: Sequence[Server]
    model: str
    requests: Requests
    extra: Mapping[str, Any]
    """Further fields of each request."""
    counter: PromptCounter
    fields: Fields
    key: Key

    def count(self, messages: Sequence[Message]) -> int:
        """Number of tokens of a conversation."""
        return self.counter.count(messages)


class CallState:
    """Whether a call ends early, and news for the tasks that wait for a change."""

    def __init__(self) -> None:
        self.fatal: str | None = None
        """The line that ends the call."""
        self.over_budget = False
        self.end = asyncio.Event()
        """Set after a fatal failure."""
        self.news = asyncio.Event()

    def stop(self, line: str) -> StoppedError:
        """End the call with this line, the first one."""
        self.fatal = self.fatal or line
        self.end.set()
        self.tell()
        return StoppedError()

    def tell(self) -> None:
        """Wake all who wait for news."""
        self.news.set()
        self.news = asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        """Sleep, but no longer than the call lasts.

        Raises:
            StoppedError: The call has ended.
        """
        try:
            async with asyncio.timeout(seconds):
                await self.end.wait()
        except TimeoutError:
            return
        raise StoppedError


class Sender:
    """Sends requests until they have a reply.

    Args:
        endpoint: Whom to ask, and how.
        sampling: Length, temperature, top-p.
        seed: The seeds of requests depend on it.
        tally: Counts tokens and repetitions.
        state: Ends the call after a fatal failure.
    """

    def __init__(self, endpoint: Endpoint, sampling: Sampling, seed: int, tally: Tally, state: CallState) -> None:
        self.replies = 0
        self._endpoint = endpoint
        self._requests = endpoint.requests
        self._sampling = sampling
        self._seed = seed
        self._tally = tally
        self._state = state
        self._clients: dict[str, Iterator[Any]] = {}
        """Clients by base URL, in turn."""
        self._slots = asyncio.Semaphore(self._requests.concurrency)
        self._request_pace = Pace(self._requests.requests_per_minute)
        self._token_pace = Pace(self._requests.tokens_per_minute)

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """Keep connections to all base URLs inside the `with` block."""
        concurrency, deadline = self._requests.concurrency, self._requests.deadline
        count = min(math.ceil(concurrency / _REQUESTS_PER_CLIENT), _MOST_CLIENTS)
        async with AsyncExitStack() as stack:
            for server in self._endpoint.servers:
                connections = [server.connected(concurrency, deadline) for _ in range(count)]
                self._clients[server.url] = cycle([await stack.enter_async_context(one) for one in connections])
            yield

    async def request(self, messages: Sequence[Message], n: int, sample: int) -> Reply:
        """The reply to a request, which is repeated until it has one.

        Raises:
            LostError: It is refused, or was repeated often enough.
            StoppedError: The call has ended.
        """
        fields, tries, left_out = self._endpoint.fields, 0, set[str]()
        seed = request_seed(self._seed, messages, sample)
        while True:
            async with self._slots:
                server = await self._pick()
                sent = fields.make(messages, self._sampling, n, seed, left_out)
                failure, sent_at = await self._send(server, sent, messages)
            if isinstance(failure, Reply):
                for said in fields.answered(sent, left_out):
                    say(f"endpoint {self._endpoint.model}: {said}")
                return failure
            if failure.kind == "fatal":
                raise self._state.stop(f"endpoint {server.url}: {failure}")
            if failure.kind == "refused":
                if (name := fields.to_leave_out(sent, failure.detail)) and failure.status in (400, 422, 501):
                    left_out.add(name)
                    continue
                if not server.answered and (failure.status == 404 or is_about_the_model(failure.detail)):
                    raise self._state.stop(self._unknown_model(server, failure))
                if failure.status != 404:
                    raise LostError(failure)
            others = any(one is not server and one.dead_until is None for one in self._endpoint.servers)
            server.failed(failure, sent_at, others)
            tries += failure.kind != "busy"
            if (server.busy if failure.kind == "busy" else tries) > self._requests.retries:
                raise LostError(failure)
            if tries >= _UNLISTED_TRIES and failure.status == 500 and server.lacks(self._endpoint.model):
                raise self._state.stop(self._unknown_model(server, failure))
            if failure.reply and not self._tally.covers(0.0) and self._tally.spent >= (self._requests.budget or 0.0):
                self._state.over_budget = True
                raise StoppedError
            self._tally.repeated[failure.reason] += 1
            if failure.kind != "busy" and not (server.dead_until and others):
                await self._state.sleep(
                    self._requests.backoff * min(2 ** (tries - 1), _LONGEST_BACKOFF) * random.uniform(0.5, 1)
                )

    async def _send(
        self, server: Server, sent: Mapping[str, Any], messages: Sequence[Message]
    ) -> tuple[Reply | RequestError, float]:
        """Send a request once, when the limits allow it; returns also the monotonic time at which it was sent."""
        most = 0
        if self._requests.tokens_per_minute is not None:
            most = self._endpoint.count(messages) + sent.get("n", 1) * self._sampling.max_new_tokens
        await self._request_pace.wait()
        await self._token_pace.wait(most)
        if self._state.end.is_set():
            raise StoppedError
        server.in_flight += 1
        began = time.monotonic()
        try:
            reply = await server.chat(
                next(self._clients[server.url]), sent, self._endpoint.extra, self._requests.deadline
            )
        except RequestError as failure:
            taken = self._spend(failure.reply, messages) if failure.reply else 0
            if failure.kind != "temporary" or failure.reply:
                self._token_pace.give_back(most - taken)
            return failure, began
        finally:
            server.in_flight -= 1
        self._token_pace.give_back(most - self._spend(reply, messages))
        if wrong := self._wrong_name(server, reply):
            return wrong, began
        server.succeeded()
        self.replies += 1
        return reply, began

    async def _pick(self) -> Server:
        """The server with the fewest requests of those that can be asked now; waits for one.

        Raises:
            StoppedError: The call has ended, or all ask to wait for too long.
        """
        servers = self._endpoint.servers
        while not self._state.end.is_set():
            now = time.monotonic()
            usable = [one for one in servers if one.dead_until is None or one.dead_until <= now] or servers
            if ready := [one for one in usable if one.paused_until <= now]:
                server = min(ready, key=lambda one: (one.in_flight, random.random()))
                if server.dead_until is not None:
                    server.begin_trial()
                return server
            soonest = min(usable, key=lambda one: one.paused_until)
            if (wait := soonest.paused_until - now) > self._requests.deadline:
                raise self._state.stop(
                    f"endpoint {soonest.url}: asks to wait for {wait:.0f} s, expected at most requests.deadline "
                    f"({self._requests.deadline:g} s)"
                )
            await self._state.sleep(wait * random.uniform(1, 1.05))
        raise StoppedError

    def _wrong_name(self, server: Server, reply: Reply) -> RequestError | None:
        """A failure if another model has answered.

        Raises:
            StoppedError: None but others have answered.
        """
        wanted = self._requests.answers_as or self._endpoint.model
        if reply.model is None or is_same_model(wanted, reply.model):
            return None
        found = self._endpoint.key.mask(reply.model)[:100]
        server.other_names += 1
        if not server.answered and server.other_names >= _WRONG_NAMES:
            raise self._state.stop(
                f"model: asked {server.url} for {wanted!r}, found answers of {found!r}; give that name as the model, "
                "or as requests.answers_as if it is the same model"
            )
        return RequestError("temporary", "answer of another model", repr(found))

    def _unknown_model(self, server: Server, failure: RequestError) -> str:
        listed = f"; it lists {', '.join(map(repr, server.models[:8]))}" if server.models else ""
        return f"model: found {self._endpoint.model!r}, which {server.url} does not have ({failure}){listed}"

    def _spend(self, reply: Reply, messages: Sequence[Message]) -> int:
        """Count the tokens of a reply; returns them."""
        new = reply.new_tokens
        if new is None:
            new = sum(estimate_tokens(choice.reasoning + choice.content) for choice in reply.choices)
        prompt = self._endpoint.count(messages) if reply.prompt_tokens is None else reply.prompt_tokens
        self._tally.prompt_tokens += prompt
        self._tally.new_tokens += new
        return prompt + new
