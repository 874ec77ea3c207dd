"""One call of an endpoint: many conversations at a time, their samples, the budget, and a report."""

import asyncio
from collections.abc import Iterable, Sequence

from judgelit.errors import UserError
from judgelit.generation.background import Emit
from judgelit.generation.endpoint_reply import Choice, Reply, join_reasoning, letter_margin
from judgelit.generation.endpoint_sender import CallState, Endpoint, LostError, Sender, StoppedError
from judgelit.generation.endpoint_server import RequestError, say
from judgelit.generation.endpoint_tally import Tally
from judgelit.generation.endpoint_tokens import estimate_tokens
from judgelit.generation.engine import Generated
from judgelit.generation.sampling import Sampling
from judgelit.judging import verdict
from judgelit.judging.finished import until_verdict
from judgelit.records.records import Finish
from judgelit.records.row_fields import Message

Answer = tuple[int, list[Generated]]

_LOST_IN_A_ROW = 5
"""So many prompts that fail for good, with no answer between them, stop the call."""
_GRACE = 60.0
"""Seconds to wait for requests in flight after a fatal failure; they may be paid for."""


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
        self._bug: BaseException | None = None
        self._first_loss = ""
        self._missing = 0
        """Prompts that have failed for good and get no empty answer."""
        self._lost_in_a_row = 0
        self._outstanding = 0
        """Requests that are sent or wait for their turn."""
        self._state = CallState()
        self._sender = Sender(endpoint, sampling, seed, self.tally, self._state)

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
            self._state.tell()

        async with self._sender.connected():
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
                while tasks and not self._state.end.is_set():
                    await self._state.news.wait()
                if tasks:
                    await asyncio.wait(tasks, timeout=_GRACE if self._sender.replies else 0)
                complete = True
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                if not complete or not (self._state.fatal or self._state.over_budget or self._missing):
                    say(f"endpoint {self._endpoint.model}: {self.tally}")
        if self._bug is not None:
            raise self._bug
        self._refuse_if_incomplete()

    def _refuse_if_incomplete(self) -> None:
        again = "what was answered is kept, and the same command asks the rest"
        if self._state.fatal is not None:
            raise UserError(f"{self._state.fatal}; {self.tally}; {again}" if self.tally.answered else self._state.fatal)
        if self._state.over_budget:
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
        while not self._state.end.is_set() and not self._state.over_budget:
            if self._outstanding < self._requests.concurrency and self.tally.covers(cost):
                return True
            if self._outstanding == 0:
                self._state.over_budget = True
                return False
            await self._state.news.wait()
        return False

    async def _answer(self, index: int, messages: Sequence[Message], cost: float, emit: Emit[Answer]) -> None:
        """Ask one conversation and emit its texts."""
        try:
            try:
                texts = await self._texts(messages)
            except LostError as lost:
                texts = self._lose(lost.failure)
            if texts:
                self._lost_in_a_row = 0
                await emit((index, texts))
        except StoppedError:
            pass
        except Exception as error:
            self._bug = self._bug or error
            self._state.stop("")
        finally:
            self._outstanding -= 1
            self.tally.reserved = max(0.0, self.tally.reserved - cost)
            self._state.tell()

    async def _texts(self, messages: Sequence[Message]) -> list[Generated]:
        """All texts of a conversation."""
        found: list[tuple[Choice, int, int]] = []
        while (missing := self._wanted - len(found)) > 1 and "n" not in self._endpoint.fields.refused:
            reply = await self._sender.request(messages, missing, len(found))
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
                return await self._sender.request(messages, 1, sample)
            finally:
                left -= 1
                if left:
                    self._outstanding -= 1
                    self._state.tell()

        # All are waited for, since they are paid for.
        replies = await asyncio.gather(*map(ask, range(first, first + count)), return_exceptions=True)
        for reply in replies:
            if isinstance(reply, BaseException):
                raise reply
        return [reply for reply in replies if not isinstance(reply, BaseException)]

    def _counted(self, reply: Reply, messages: Sequence[Message], most: int) -> list[tuple[Choice, int, int]]:
        """The choices of a reply with the tokens of the prompt, for the first one, and of each text."""
        choices = reply.choices[:most]
        sizes = [estimate_tokens(choice.reasoning + choice.content) for choice in choices]
        if reply.new_tokens is not None and (total := sum(sizes)):
            # The server counts all choices together.
            ends = [round(reply.new_tokens * sum(sizes[: at + 1]) / total) for at in range(len(sizes))]
            sizes = [end - start for start, end in zip([0, *ends], ends, strict=False)]
        prompt = self._endpoint.count(messages) if reply.prompt_tokens is None else reply.prompt_tokens
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
        if failure.kind == "refused" and self._requests.refused == "empty" and self._sender.replies:
            return [Generated("", "stop") for _ in range(self._samples)]
        self._missing += 1
        self._lost_in_a_row += 1
        # A server may refuse many prompts in a row; if it never answers, the settings are wrong.
        if self._lost_in_a_row >= _LOST_IN_A_ROW and (failure.kind != "refused" or not self._sender.replies):
            self._state.stop(
                f"endpoint {self._endpoint.model}: {self._lost_in_a_row} prompts in a row failed; {failure}"
            )
        return []

    def _worst_cost(self, messages: Sequence[Message]) -> float:
        """Most that the texts of a conversation may cost."""
        if self._requests.budget is None:
            return 0.0
        prompts = self._wanted if "n" not in self._endpoint.fields.taken else 1
        return self.tally.price(prompts * self._endpoint.count(messages), self._wanted * self._sampling.max_new_tokens)
