"""A server that a run starts: waited for, used, stopped, and named where it fails."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from judgelit.errors import UserError
from judgelit.generation.serving import Serving, served

SERVER = """
import os, subprocess, sys, time
from http.server import BaseHTTPRequestHandler, HTTPServer
model, port, mode = sys.argv[1:]
print("loading", model, flush=True)
if mode == "fails":
    sys.exit("no such model")
if mode == "never":
    time.sleep(60)
if mode == "child":
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
class Models(BaseHTTPRequestHandler):
    def do_GET(self):
        body = model.encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
time.sleep(0.3)
HTTPServer(("127.0.0.1", int(port)), Models).serve_forever()
"""


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def serving(folder: Path, port: int, mode: str = "serves", **settings: object) -> Serving:
    (folder / "server.py").write_text(SERVER, encoding="utf-8")
    command = f"{sys.executable} '{folder}/server.py' {{model}} {port} {mode}"
    return Serving(command, f"http://127.0.0.1:{port}/v1", **settings)  # type: ignore[arg-type]


def listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def gone(group: int) -> bool:
    """Whether no process of a group is left, within five seconds."""
    for _ in range(100):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def test_a_model_is_served_inside_the_block_alone(tmp_path: Path, port: int) -> None:
    for model in ("runs/my judge/model", "hub/name"):
        with (
            served(serving(tmp_path, port), model, tmp_path / "deeper" / "server.log"),
            urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models") as answer,
        ):
            assert answer.read().decode() == model
        assert not listens(port)
    assert (tmp_path / "deeper/server.log").read_text() == "loading runs/my judge/model\nloading hub/name\n"


def test_it_is_stopped_after_an_error_with_all_its_processes(tmp_path: Path, port: int) -> None:
    groups: list[int] = []
    start = subprocess.Popen.__init__

    with pytest.MonkeyPatch.context() as patch:

        def note(self: subprocess.Popen, *args: object, **more: object) -> None:
            start(self, *args, **more)  # type: ignore[arg-type]
            groups.append(self.pid)

        patch.setattr(subprocess.Popen, "__init__", note)
        with pytest.raises(KeyboardInterrupt), served(serving(tmp_path, port, "child"), "judge", tmp_path / "log"):
            raise KeyboardInterrupt
    assert not listens(port) and gone(groups[0])


def test_it_ends_with_a_killed_run(tmp_path: Path, port: int) -> None:
    program = (
        "import time\nfrom pathlib import Path\nfrom judgelit.generation.requests import Requests\n"
        "from judgelit.generation.serving import Serving, served\n"
        f"with served({serving(tmp_path, port)!r}, 'judge', Path('log')):\n"
        "    print('up', flush=True)\n    time.sleep(60)"
    )
    run = subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    assert "starting" in run.stdout.readline() and run.stdout.readline() == "up\n" and listens(port)
    run.send_signal(signal.SIGKILL)
    run.wait()
    for _ in range(100):
        if not listens(port):
            break
        time.sleep(0.05)
    assert not listens(port)


def test_a_server_that_is_there_already_is_not_asked(tmp_path: Path, port: int) -> None:
    with (
        served(serving(tmp_path, port), "judge", tmp_path / "log"),
        pytest.raises(
            UserError, match=rf"found a server at http://127.0.0.1:{port}/v1 before this run started its own"
        ),
        served(serving(tmp_path, port), "judge", tmp_path / "log"),
    ):
        pass


@pytest.mark.parametrize(
    ("mode", "complaint"),
    [
        ("fails", r"the server ended with exit code 1: no such model \("),
        ("never", r"no answer from http://127.0.0.1:\d+/v1 in 1 seconds; read "),
    ],
)
def test_a_server_that_does_not_come_up(tmp_path: Path, port: int, mode: str, complaint: str) -> None:
    with (
        pytest.raises(UserError, match=complaint) as error,
        served(serving(tmp_path, port, mode, patience=1), "judge", tmp_path / "log"),
    ):
        pass
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"command": "vllm serve"}, "expected {model} in it"),
        ({"command": "vllm serve '{model}"}, "expected a command line: No closing quotation"),
        ({"patience": 0}, "patience: found 0"),
    ],
)
def test_wrong_settings(settings: dict, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        Serving(**{"command": "vllm serve {model}", "endpoint": "http://127.0.0.1:8000/v1", **settings})


def test_a_program_that_is_not_there(tmp_path: Path, port: int) -> None:
    missing = Serving("no-such-program {model}", f"http://127.0.0.1:{port}/v1")
    with (
        pytest.raises(UserError, match="'no-such-program' cannot be started: No such file"),
        served(missing, "judge", tmp_path / "log"),
    ):
        pass
