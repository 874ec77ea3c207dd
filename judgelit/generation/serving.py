"""A server for a model: a program that is started, asked as an endpoint, and stopped."""

import ctypes
import os
import shlex
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from judgelit.errors import UserError
from judgelit.generation.requests import Requests, base_urls

_LOOKS_EVERY = 0.2
"""Seconds between two questions whether the server answers."""
_GRACE = 30
"""Seconds that a server has to end after SIGTERM."""
_OWN_HOST = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Asks without a proxy: the servers are in the same network."""
_PRCTL = getattr(ctypes.CDLL(None), "prctl", None)
"""Found before the process forks. Other systems than Linux lack it."""
_END_WITH_PARENT = 1
"""Linux's PR_SET_PDEATHSIG."""


@dataclass(frozen=True)
class Serving:
    """A program that serves each judge while texts are generated with it, such as vLLM."""

    command: str
    """Command line of the server. {model} stands for the judge's folder or hub name, as in
    `vllm serve {model} --served-model-name judge --port 8000`."""
    endpoint: list[str] | str
    """Base URL at which it answers, such as http://127.0.0.1:8000/v1; several URLs share the load."""
    name: str = "judge"
    """The model's name at the server."""
    requests: Requests = Requests()  # noqa: RUF009 (frozen)
    """How it is asked."""
    patience: float = 1800.0
    """Seconds to wait until the server answers."""

    def __post_init__(self) -> None:
        if "{model}" not in self.command:
            raise UserError(f"command: found {self.command!r}, expected {{model}} in it, the place of the judge")
        if not self.patience > 0:
            raise UserError(f"patience: found {self.patience}, expected seconds above 0")
        base_urls(self.endpoint)
        try:
            shlex.split(self.command)
        except ValueError as error:
            raise UserError(f"command: found {self.command!r}, expected a command line: {error}") from error

    @property
    def endpoints(self) -> list[str]:
        """The base URLs."""
        return base_urls(self.endpoint)


@contextmanager
def served(serving: Serving, model: str, log: Path) -> Iterator[None]:
    """Serve `model` inside the `with` block.

    Args:
        serving: The program.
        model: Folder or hub name of the model.
        log: File for what the program prints.

    Raises:
        UserError: There is a server at the endpoint already, the program cannot be started, or it ends or does not
            answer in time.
    """
    for url in serving.endpoints:
        if _answers(url):
            raise UserError(
                f"serving.endpoint: found a server at {url} before this run started its own, expected none; stop it, "
                "or choose another port in serving.command and serving.endpoint"
            )
    command = [part.replace("{model}", model) for part in shlex.split(serving.command)]
    print(f"starting {shlex.join(command)} (its output: {log})", flush=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Ctrl-C in a terminal reaches a whole process group; the server is stopped below, after the last text.
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )
        except OSError as error:
            raise UserError(f"serving.command: {command[0]!r} cannot be started: {error.strerror}") from error
    try:
        _wait_for_answer(serving, process, log)
        yield
    finally:
        _stop(process)


def _end_with_parent() -> None:
    """Let the system stop the server if this process is killed. On other systems, the next start finds the server."""
    if _PRCTL is not None:
        _PRCTL(_END_WITH_PARENT, signal.SIGTERM)


def _wait_for_answer(serving: Serving, process: "subprocess.Popen[bytes]", log: Path) -> None:
    ends = time.monotonic() + serving.patience
    missing = serving.endpoints
    while missing := [url for url in missing if not _answers(url)]:
        if (status := process.poll()) is not None:
            raise UserError(f"serving.command: the server ended with exit code {status}: {_last_line(log)} ({log})")
        if time.monotonic() > ends:
            raise UserError(
                f"serving.endpoint: no answer from {missing[0]} in {serving.patience:g} seconds; read {log}, then "
                "mend serving.command and serving.endpoint, or raise serving.patience"
            )
        time.sleep(_LOOKS_EVERY)


def _answers(url: str) -> bool:
    """Whether a server answers at a base URL, with whatever status below 500."""
    try:
        with _OWN_HOST.open(f"{url}/models", timeout=5):
            return True
    except urllib.error.HTTPError as error:
        return error.code < 500
    except (OSError, ValueError):
        return False


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """End the server and the processes that it has started."""
    for number, seconds in ((signal.SIGTERM, _GRACE), (signal.SIGKILL, None)):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
            break
    # Processes that outlive the first one hold the GPU's memory, which the next stage needs.
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].strip()[:200] if lines else "it printed nothing"
