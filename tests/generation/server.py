"""An OpenAI-compatible server on loopback that behaves as a test says: well, or in every wrong way."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

Body = dict[str, Any]
Handler = BaseHTTPRequestHandler
Action = Callable[["StubServer", Handler, Body], None]
"""Sends the response to one request."""


def completion(body: Body, texts: list[str], **more: Any) -> Body:
    """A chat completion with these texts."""
    choices = [
        {"index": at, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        for at, text in enumerate(texts)
    ]
    used = {"prompt_tokens": 10, "completion_tokens": 5 * len(texts)}
    return {"object": "chat.completion", "model": body["model"], "choices": choices, "usage": used, **more}


def send(handler: Handler, status: int, content: bytes, headers: Mapping[str, str] = {}) -> None:
    handler.send_response(status)
    for name, value in {"Content-Type": "application/json", "Content-Length": str(len(content)), **headers}.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(content)


def say(text: str | None = None, **more: Any) -> Action:
    """Answer with a text, or with one that names prompt, seed and number; `more` are fields of the completion."""

    def act(server: "StubServer", handler: Handler, body: Body) -> None:
        made = [f"{prompt_of(body)} {body.get('seed')} {number} [[A]]" for number in range(body.get("n", 1))]
        content = json.dumps(completion(body, made if text is None else [text] * body.get("n", 1), **more)).encode()
        send(handler, 200, content)
        with server.lock:
            server.answered[prompt_of(body)] += 1

    return act


def reply(content: Any) -> Action:
    """Send this JSON value, or these bytes, as a successful response."""
    encoded = content if isinstance(content, bytes) else json.dumps(content).encode()
    return lambda server, handler, body: send(handler, 200, encoded)


def status(number: int, message: str = "no", headers: Mapping[str, str] = {}, **more: Any) -> Action:
    """An error of OpenAI's form."""
    content = json.dumps({"error": {"message": message, **more}}).encode()
    return lambda server, handler, body: send(handler, number, content, headers)


def hang(server: "StubServer", handler: Handler, body: Body) -> None:
    """Never answer."""
    server.closed.wait(30)
    handler.close_connection = True


def cut(server: "StubServer", handler: Handler, body: Body) -> None:
    """Close the connection in the middle of the response."""
    content = json.dumps(completion(body, ["never seen whole [[A]]"])).encode()
    send(handler, 200, content[: len(content) // 2], {"Content-Length": str(len(content))})
    handler.close_connection = True


def drop(server: "StubServer", handler: Handler, body: Body) -> None:
    """Close the connection without a response."""
    handler.close_connection = True


def drip(server: "StubServer", handler: Handler, body: Body) -> None:
    """Send a response byte by byte, for longer than any deadline of a test."""
    content = json.dumps(completion(body, ["x" * 1000])).encode()
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    for byte in content:
        if server.closed.wait(0.05):
            return
        handler.wfile.write(bytes([byte]))
        handler.wfile.flush()


def half_json(server: "StubServer", handler: Handler, body: Body) -> None:
    """Send a whole response with half of a JSON value."""
    send(handler, 200, json.dumps(completion(body, ["half"])).encode()[:40])


def prompt_of(body: Body) -> str:
    return str(body["messages"][-1]["content"])


class StubServer:
    """The server; use it in a `with` block.

    Args:
        behave: Chooses the response to a chat completion, by its body and the number of requests before it for the
            same prompt.
        models: Rows of the list of models; None: it has no such list.
    """

    def __init__(
        self, behave: Callable[[Body, int], Action] = lambda body, before: say(), models: list[Body] | None = None
    ) -> None:
        self.behave = behave
        self.models = models
        self.bodies: list[Body] = []
        self.headers: list[Mapping[str, str]] = []
        self.times: list[float] = []
        self.asked: Counter[str] = Counter()
        """Requests by prompt."""
        self.answered: Counter[str] = Counter()
        """Good answers, sent whole, by prompt."""
        self.most_at_once = 0
        self.at_once = 0
        self.closed = threading.Event()
        self.lock = threading.Lock()
        stub = self

        class Handling(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                if stub.models is None:
                    send(self, 404, b"{}")
                else:
                    send(self, 200, json.dumps({"object": "list", "data": stub.models}).encode())

            def do_POST(self) -> None:
                content = self.rfile.read(int(self.headers["Content-Length"]))
                if not content:
                    self.close_connection = True
                    return
                body = json.loads(content)
                with stub.lock:
                    before = stub.asked[prompt_of(body)]
                    stub.asked[prompt_of(body)] += 1
                    stub.bodies.append(body)
                    stub.headers.append({name.lower(): value for name, value in self.headers.items()})
                    stub.times.append(time.monotonic())
                    stub.at_once += 1
                    stub.most_at_once = max(stub.most_at_once, stub.at_once)
                try:
                    stub.behave(body, before)(stub, self, body)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True
                finally:
                    with stub.lock:
                        stub.at_once -= 1

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Listening(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 256

            def handle_error(self, request: Any, client_address: Any) -> None:
                """Clients may leave at any time."""

        self._http = Listening(("127.0.0.1", 0), Handling)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    def __enter__(self) -> "StubServer":
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closed.set()
        self._http.shutdown()
        self._http.server_close()
