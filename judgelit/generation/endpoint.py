"""Any OpenAI-compatible server as an engine: vLLM, SGLang, llama.cpp, a paid API."""

import asyncio
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import cached_property
from typing import TYPE_CHECKING, Any

from judgelit.batches.tokenizer import ChatTokenizer
from judgelit.errors import UserError
from judgelit.generation.background import Emit, in_background
from judgelit.generation.endpoint_fields import Fields
from judgelit.generation.endpoint_sender import Endpoint
from judgelit.generation.endpoint_server import CONNECT_SECONDS, RequestError, Server, context_of, import_openai, say
from judgelit.generation.endpoint_session import Answer, Session
from judgelit.generation.endpoint_tokens import EstimatedCounter, ExactCounter
from judgelit.generation.engine import Generated
from judgelit.generation.requests import Key, base_urls
from judgelit.generation.sampling import Sampling
from judgelit.judging.token_ids import PromptCounter
from judgelit.records.row_fields import Message

if TYPE_CHECKING:
    from judgelit.generation.engine import EngineSpec

_UNKNOWN_CONTEXT = 1 << 30


class EndpointEngine:
    """Asks a server; several base URLs share the load."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.name = endpoint.model
        self.tokenizer = endpoint.counter
        self._endpoint = endpoint

    @classmethod
    def connect(cls, spec: "EngineSpec") -> "EndpointEngine":
        """The engine of `spec.endpoint`, after each base URL was asked for its list of models.

        Raises:
            UserError: The key is refused, or no base URL can be reached.
        """
        assert spec.endpoint is not None
        import_openai()
        requests = spec.requests
        key = Key.read(requests.key_variable)
        extra = dict(requests.extra_body or {})
        if spec.chat_template_kwargs:
            extra["chat_template_kwargs"] = dict(spec.chat_template_kwargs)
        if key.mask(text := json.dumps(extra)) != text:
            raise UserError("requests.extra_body: found the key in it, expected it in the environment alone")
        servers = [Server(url, key, backoff=requests.backoff) for url in base_urls(spec.endpoint)]
        tokenizer = None
        if requests.tokenizer is not None:
            # Before the server is asked, so that a wrong name is found at once.
            tokenizer = ChatTokenizer.load(requests.tokenizer, chat_template_kwargs=spec.chat_template_kwargs)

        async def look(emit: Emit[list[int]]) -> None:
            await emit(await _look_at(servers, spec.model))

        (contexts,) = in_background(look, ahead=1)
        context = requests.context or min(contexts, default=tokenizer.context if tokenizer else _UNKNOWN_CONTEXT)
        if context == _UNKNOWN_CONTEXT:
            say(
                f"endpoint {spec.model}: does not say how many tokens prompt and answer may have, so long prompts are "
                "not shortened; set requests.context"
            )
        counter: PromptCounter = ExactCounter(tokenizer, context) if tokenizer else EstimatedCounter(context)
        fields = Fields(spec.model, requests.top_logprobs)
        return cls(Endpoint(servers, spec.model, requests, extra, counter, fields, key))

    @cached_property
    def identity(self) -> str:
        """What the texts depend on: the model's name and the settings that go with each request, but no address."""
        settings = {"model": self.name, "thinking": self._endpoint.requests.thinking, **self._endpoint.extra}
        return f"endpoint {json.dumps(settings, sort_keys=True, ensure_ascii=False)}"

    @property
    def made_from(self) -> Mapping[str, Any]:
        """What results record of the engine."""
        return {"engine": self.identity}

    def answer(
        self,
        conversations: Sequence[Sequence[Message]],
        sampling: Sampling,
        *,
        samples: int = 1,
        seed: int = 0,
        done: Collection[int] = (),
    ) -> Iterator[tuple[int, list[Generated]]]:
        """Yield (index, texts) for every conversation as its answer comes; see `Engine`.

        Raises:
            UserError: The endpoint cannot be asked, the budget is spent, or some conversations have no answer. All
                other answers are yielded before.
        """
        indices = (index for index in range(len(conversations)) if index not in done)
        count = sum(index not in done for index in range(len(conversations)))

        async def work(emit: Emit[Answer]) -> None:
            await Session(self._endpoint, sampling, samples, seed).run(conversations, indices, count, emit)

        if count:
            yield from in_background(work, ahead=self._endpoint.requests.concurrency)


async def _look_at(servers: Sequence[Server], model: str) -> list[int]:
    """Ask all base URLs for their lists of models; returns how many tokens the model can take, where they say so.

    Raises:
        UserError: The key is refused, or none can be reached.
    """

    async def look(server: Server) -> int | RequestError | None:
        async with AsyncExitStack() as client:
            try:
                rows = await server.list_models(await client.enter_async_context(server.connected(1, CONNECT_SECONDS)))
            except RequestError as failure:
                return failure
        return None if rows is None else context_of(rows, model)

    found = await asyncio.gather(*map(look, servers))
    failures = {server: one for server, one in zip(servers, found, strict=True) if isinstance(one, RequestError)}
    for server, failure in failures.items():
        if failure.kind == "fatal" or len(failures) == len(servers):
            raise UserError(f"endpoint {server.url}: {failure}")
    for server, failure in failures.items():
        server.failed(failure, sent=0.0, others_alive=True)
    return [one for one in found if isinstance(one, int)]
