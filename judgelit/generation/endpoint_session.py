"""One call of an endpoint: many conversations at a time, limits, repeated requests, budget, and a report."""

import asyncio
import random
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from judgelit.errors import UserError
from judgelit.generation.background import Emit
from judgelit.generation.endpoint_fields import Fields, is_about_the_model, is_same_model, request_seed
from judgelit.generation.endpoint_reply import Choice, Reply, join_reasoning, letter_margin
from judgelit.generation.endpoint_server import RequestError, Server, say
from judgelit.generation.endpoint_tally import Tally
from judgelit.generation.endpoint_tokens import estimate_tokens
from judgelit.generation.engine import Generated
from judgelit.generation.pacing import Pace
from judgelit.generation.requests import Key, Requests
from judgelit.generation.sampling import Sampling
from judgelit.judging import verdict
from judgelit.judging.finished import until_verdict
from judgelit.judging.token_ids import PromptCounter
from judgelit.records.records import Finish, Message

Answer = tuple[int, list[Generated]]

_LONGEST_BACKOFF = 60
"""The longest wait before a repetition, in units of the first one."""
_LOST_IN_A_ROW = 5
"""So many prompts that fail for good, with no answer between them, stop the call."""
_WRONG_NAMES = 3
"""So many answers of another model, and none of the right one, stop the call."""
_UNLISTED_TRIES = 3
"""So many answers of HTTP 500 for a model that the server does not list, and none else, stop the call."""
_GRACE = 60.0
"""Seconds to wait for requests in flight after a fatal failure; they may be paid for."""


class _StoppedError(Exception):
    """The call ends before this prompt is answered."""


class _LostError(Exception):
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


class Session:
    """Asks one set of conversations.

    Args:
        endpoint: Whom to ask, and how.
        sampling: Length, temperature, top-p, and whether a text ends with its verdict.
        samples: Texts for each conversation.
        seed: The seeds of requests depend on it.
    """

    def __init__(self, endpoint: Endpoint, sampling: Sampling, samples: int, seed: int) -> None:
        self.tally = Tally(endpoint.requests)
        self._endpoint = endpoint
        self._requests = endpoint.requests
        self._sampling = sampling
        self._samples = samples
        # Greedy samples of a prompt are all the same, so one is asked for.
        self._wanted = 1 if sampling.temperature == 0 else samples
        self._seed = seed
        self._fatal: str | None = None
        self._bug: BaseException | None = None
        self._over_budget = False
        self._first_loss = ""
        self._missing = 0
        """Prompts that have failed for good and get no empty answer."""
        self._lost_in_a_row = 0
        self._replies = 0
        self._outstanding = 0
        """Requests that are sent or wait for their turn."""
        self._clients: dict[str, Any] = {}
        self._news = asyncio.Event()
        self._end = asyncio.Event()
        """Set after a fatal failure."""
        self._slots = asyncio.Semaphore(self._requests.concurrency)
        self._request_pace = Pace(self._requests.requests_per_minute)
        self._token_pace = Pace(self._requests.tokens_per_minute)

    async def run(
        self, conversations: Sequence[Sequence[Message]], indices: Iterable[int], count: int, emit: Emit[Answer]
    ) -> None:
        """Ask the conversations at `indices` and emit (index, texts) as they come.

        Args:
            conversations: All conversations.
            indices: Which ones to ask.
            count: Number of indices.
            emit: Hands over an answer.

        Raises:
            UserError: The endpoint cannot be asked, the budget is spent, or some conversations have no answer. All
                other answers have been emitted.
        """
        self.tally.prompts = count
        tasks: set[asyncio.Task[None]] = set()
        complete = False

        def ended(task: asyncio.Task[None]) -> None:
            tasks.discard(task)
            self._tell()

        async with AsyncExitStack() as clients:
            for server in self._endpoint.servers:
                connections = self._requests.concurrency
                client = await clients.enter_async_context(server.connected(connections, self._requests.deadline))
                self._clients[server.url] = client
            try:
                for index in indices:
                    cost = self._worst_cost(conversations[index])
                    if not await self._may_begin(cost):
                        break
                    self._outstanding += 1
                    self.tally.reserved += cost
                    task = asyncio.create_task(self._answer(index, conversations[index], cost, emit))
                    tasks.add(task)
                    task.add_done_callback(ended)
                    await asyncio.sleep(0)  # The task may add requests of its own.
                while tasks and not self._end.is_set():
                    await self._news.wait()
                if tasks:
                    await asyncio.wait(tasks, timeout=_GRACE if self._replies else 0)
                complete = True
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                if not complete or not (self._fatal or self._over_budget or self._missing):
                    say(f"endpoint {self._endpoint.model}: {self.tally}")
        if self._bug is not None:
            raise self._bug
        self._refuse_if_incomplete()

    def _refuse_if_incomplete(self) -> None:
        again = "what was answered is kept, and the same command asks the rest"
        if self._fatal is not None:
            raise UserError(f"{self._fatal}; {self.tally}; {again}" if self.tally.answered else self._fatal)
        if self._over_budget:
            raise UserError(
                f"requests.budget: found {self._requests.budget:g}, which does not cover the next prompt; "
                f"{self.tally}; {again} with a budget of its own"
            )
        if self._missing:
            raise UserError(
                f"endpoint {self._endpoint.model}: {self.tally}; the first failure: {self._first_loss}; {again}"
            )

    async def _may_begin(self, cost: float) -> bool:
        """Wait until there is room for another conversation; false if the call has ended or the budget is spent."""
        while not self._end.is_set() and not self._over_budget:
            if self._outstanding < self._requests.concurrency and self.tally.covers(cost):
                return True
            if self._outstanding == 0:
                self._over_budget = True
                return False
            await self._news.wait()
        return False

    async def _answer(self, index: int, messages: Sequence[Message], cost: float, emit: Emit[Answer]) -> None:
        """Ask one conversation and emit its texts."""
        try:
            try:
                texts = await self._texts(messages)
            except _LostError as lost:
                texts = self._lose(lost.failure)
            if texts:
                self._lost_in_a_row = 0
                await emit((index, texts))
        except _StoppedError:
            pass
        except Exception as error:
            self._bug = self._bug or error
            self._stop("")
        finally:
            self._outstanding -= 1
            self.tally.reserved = max(0.0, self.tally.reserved - cost)
            self._tell()

    async def _texts(self, messages: Sequence[Message]) -> list[Generated]:
        """All texts of a conversation."""
        found: list[tuple[Choice, int, int]] = []
        while (missing := self._wanted - len(found)) > 1 and "n" not in self._endpoint.fields.refused:
            reply = await self._request(messages, missing, len(found))
            found += self._counted(reply, messages, missing)
            if said := self._endpoint.fields.count_answers(missing, reply.sent):
                say(f"endpoint {self._endpoint.model}: {said}")
        if missing := self._wanted - len(found):
            replies = await self._one_by_one(messages, len(found), missing)
            found += [one for reply in replies for one in self._counted(reply, messages, 1)]
        self.tally.answered += 1
        texts = [self._generated(*one) for one in found]
        if self._wanted < self._samples:
            copy = Generated(texts[0].text, texts[0].finish, texts[0].margin, 0, texts[0].new_tokens)
            texts += [copy] * (self._samples - 1)
        return texts

    async def _one_by_one(self, messages: Sequence[Message], first: int, count: int) -> list[Reply]:
        """Replies to requests of one sample each, sent at the same time."""
        left = count
        self._outstanding += count - 1

        async def ask(sample: int) -> Reply:
            nonlocal left
            try:
                return await self._request(messages, 1, sample)
            finally:
                left -= 1
                if left:
                    self._outstanding -= 1
                    self._tell()

        # All are waited for, since they are paid for.
        replies = await asyncio.gather(*map(ask, range(first, first + count)), return_exceptions=True)
        for reply in replies:
            if isinstance(reply, BaseException):
                raise reply
        return [reply for reply in replies if not isinstance(reply, BaseException)]

    async def _request(self, messages: Sequence[Message], n: int, sample: int) -> Reply:
        """The reply to a request, which is repeated until it has one.

        Raises:
            _LostError: It is refused, or was repeated often enough.
            _StoppedError: The call has ended.
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
                raise self._stop(f"endpoint {server.url}: {failure}")
            if failure.kind == "refused":
                if (name := fields.to_leave_out(sent, failure.detail)) and failure.status in (400, 422, 501):
                    left_out.add(name)
                    continue
                if not server.answered and (failure.status == 404 or is_about_the_model(failure.detail)):
                    raise self._stop(self._unknown_model(server, failure))
                if failure.status != 404:
                    raise _LostError(failure)
            others = any(one is not server and one.dead_until is None for one in self._endpoint.servers)
            server.failed(failure, sent_at, others)
            tries += failure.kind != "busy"
            if (server.busy if failure.kind == "busy" else tries) > self._requests.retries:
                raise _LostError(failure)
            if tries >= _UNLISTED_TRIES and failure.status == 500 and server.lacks(self._endpoint.model):
                raise self._stop(self._unknown_model(server, failure))
            if failure.reply and not self.tally.covers(0.0) and self.tally.spent >= (self._requests.budget or 0.0):
                self._over_budget = True
                raise _StoppedError
            self.tally.repeated[failure.reason] += 1
            if failure.kind != "busy" and not (server.dead_until and others):
                await self._sleep(
                    self._requests.backoff * min(2 ** (tries - 1), _LONGEST_BACKOFF) * random.uniform(0.5, 1)
                )

    async def _send(
        self, server: Server, sent: Mapping[str, Any], messages: Sequence[Message]
    ) -> tuple[Reply | RequestError, float]:
        """Send a request once, when the limits allow it; returns also the monotonic time at which it was sent."""
        most = 0
        if self._requests.tokens_per_minute is not None:
            most = self._count(messages) + sent.get("n", 1) * self._sampling.max_new_tokens
        await self._request_pace.wait()
        await self._token_pace.wait(most)
        if self._end.is_set():
            raise _StoppedError
        server.in_flight += 1
        began = time.monotonic()
        try:
            reply = await server.chat(self._clients[server.url], sent, self._endpoint.extra, self._requests.deadline)
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
        self._replies += 1
        return reply, began

    async def _pick(self) -> Server:
        """The server with the fewest requests of those that can be asked now; waits for one.

        Raises:
            _StoppedError: The call has ended, or all ask to wait for too long.
        """
        servers = self._endpoint.servers
        while not self._end.is_set():
            now = time.monotonic()
            usable = [one for one in servers if one.dead_until is None or one.dead_until <= now] or servers
            if ready := [one for one in usable if one.paused_until <= now]:
                server = min(ready, key=lambda one: (one.in_flight, random.random()))
                if server.dead_until is not None:
                    server.begin_trial()
                return server
            soonest = min(usable, key=lambda one: one.paused_until)
            if (wait := soonest.paused_until - now) > self._requests.deadline:
                raise self._stop(
                    f"endpoint {soonest.url}: asks to wait for {wait:.0f} s, expected at most requests.deadline "
                    f"({self._requests.deadline:g} s)"
                )
            await self._sleep(wait * random.uniform(1, 1.05))
        raise _StoppedError

    def _wrong_name(self, server: Server, reply: Reply) -> RequestError | None:
        """A failure if another model has answered.

        Raises:
            _StoppedError: None but others have answered.
        """
        wanted = self._requests.answers_as or self._endpoint.model
        if reply.model is None or is_same_model(wanted, reply.model):
            return None
        found = self._endpoint.key.mask(reply.model)[:100]
        server.other_names += 1
        if not server.answered and server.other_names >= _WRONG_NAMES:
            raise self._stop(
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
        prompt = self._count(messages) if reply.prompt_tokens is None else reply.prompt_tokens
        self.tally.prompt_tokens += prompt
        self.tally.new_tokens += new
        return prompt + new

    def _counted(self, reply: Reply, messages: Sequence[Message], most: int) -> list[tuple[Choice, int, int]]:
        """The choices of a reply with the tokens of the prompt, for the first one, and of each text."""
        choices = reply.choices[:most]
        sizes = [estimate_tokens(choice.reasoning + choice.content) for choice in choices]
        if reply.new_tokens is not None and (total := sum(sizes)):
            # The server counts all choices together.
            ends = [round(reply.new_tokens * sum(sizes[: at + 1]) / total) for at in range(len(sizes))]
            sizes = [end - start for start, end in zip([0, *ends], ends, strict=False)]
        prompt = self._count(messages) if reply.prompt_tokens is None else reply.prompt_tokens
        return [(choice, 0 if at else prompt, sizes[at]) for at, choice in enumerate(choices)]

    def _generated(self, choice: Choice, prompt_tokens: int, new_tokens: int) -> Generated:
        """A choice as a generated text."""
        text, begin = join_reasoning(choice, self._requests.thinking)
        finish: Finish = "length" if choice.cut else "stop"
        if self._sampling.stop_at_verdict and (ended := until_verdict(text, begin)) is not None:
            text, finish = ended, "verdict"
        found = verdict.find(text) if choice.tokens else None
        margin = None if found is None else letter_margin(choice, found[1] - begin)
        return Generated(self._endpoint.key.mask(text), finish, margin, prompt_tokens, new_tokens)

    def _lose(self, failure: RequestError) -> list[Generated]:
        """Note that a prompt gets no answer. Returns empty texts if the settings say so."""
        self.tally.lost[failure.reason] += 1
        self._first_loss = self._first_loss or str(failure)
        if failure.kind == "refused" and self._requests.refused == "empty" and self._replies:
            return [Generated("", "stop") for _ in range(self._samples)]
        self._missing += 1
        self._lost_in_a_row += 1
        # A server may refuse many prompts in a row; if it never answers, the settings are wrong.
        if self._lost_in_a_row >= _LOST_IN_A_ROW and (failure.kind != "refused" or not self._replies):
            self._stop(f"endpoint {self._endpoint.model}: {self._lost_in_a_row} prompts in a row failed; {failure}")
        return []

    def _stop(self, line: str) -> _StoppedError:
        """End the call with this line, the first one."""
        self._fatal = self._fatal or line
        self._end.set()
        self._tell()
        return _StoppedError()

    def _worst_cost(self, messages: Sequence[Message]) -> float:
        """Most that the texts of a conversation may cost."""
        if self._requests.budget is None:
            return 0.0
        prompts = self._wanted if "n" not in self._endpoint.fields.taken else 1
        return self.tally.price(prompts * self._count(messages), self._wanted * self._sampling.max_new_tokens)

    def _count(self, messages: Sequence[Message]) -> int:
        return self._endpoint.counter.count(messages)

    async def _sleep(self, seconds: float) -> None:
        """Sleep, but no longer than the call lasts.

        Raises:
            _StoppedError: The call has ended.
        """
        try:
            async with asyncio.timeout(seconds):
                await self._end.wait()
        except TimeoutError:
            return
        raise _StoppedError

    def _tell(self) -> None:
        """Wake all who wait for news."""
        self._news.set()
        self._news = asyncio.Event()
