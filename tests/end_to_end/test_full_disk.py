"""A disk that is full, or a place where nothing can be written: one line, exit code 2, and nothing computed is lost."""

import errno
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from judgelit.errors import system_error

from .conftest import Judgelit
from .test_wrong_input import GOOD, PAIR, fit, lines

Refused = Callable[..., str]
JUDGE = ["--model=nano", "--templates.names=[nano-brief]"]


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file can grow beyond `size` bytes, as on a disk that is almost full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def trained(judgelit: Judgelit, tmp_path: Path) -> Path:
    judgelit(*fit("sft", lines(tmp_path / "data.jsonl", GOOD)))
    return tmp_path / "runs/quickstart-sft"


@pytest.mark.parametrize("size", [0, 300])
def test_data_that_find_no_room_leave_no_file(refused: Refused, tmp_path: Path, size: int) -> None:
    pairs = lines(tmp_path / "pairs.jsonl", PAIR)
    warmup = ["synthesize", "warmup", f"--pairs={pairs}", "--templates.names=[nano-brief]"]
    with largest_file(size):
        assert "sums.jsonl: cannot be written: File too large" in refused("tasks", "--output=sums.jsonl", "--count=9")
        assert "File too large" in refused("configs", "copy", "quickstart/run", "new/")
    with largest_file(0):
        assert "journal.sqlite: cannot be written to" in refused(
            *warmup,
            "--teacher=EngineTeacher",
            "--output=a.jsonl",
            "--teacher.model=nano",
            "--teacher.max_new_tokens=4",
        )
    assert not list(tmp_path.glob("sums*")) and not list((tmp_path / "new").iterdir())


@pytest.mark.parametrize(
    ("size", "fits"), [(0, False), (9_000, False), (40_000, False), (1_600_000, False), (6_000_000, True)]
)
def test_a_fit_that_finds_no_room(judgelit: Judgelit, tmp_path: Path, size: int, fits: bool, refused: Refused) -> None:
    command = fit("sft", lines(tmp_path / "data.jsonl", GOOD), "--data.cache=cache", "--trainer.max_steps=3")
    (tmp_path / "cache").mkdir()
    with largest_file(size):
        if fits:
            judgelit(*command)
            return
        line = refused(*command)
    assert "File too large" in line
    judgelit(*command, "--ckpt_path=last")
    assert (tmp_path / "runs/quickstart-sft/fit.json").exists()


def test_an_export_that_finds_no_room_leaves_nothing(refused: Refused, trained: Path, tmp_path: Path) -> None:
    for size in (0, 1_000, 500_000):
        with largest_file(size):
            line = refused("export", str(trained), "--to", "exported")
        assert "File too large" in line and "exported" in line
        assert not list(tmp_path.glob("*exported*"))


@pytest.mark.parametrize("size", [0, 20_000, 60_000])
def test_an_evaluation_that_finds_no_room_keeps_its_answers(
    judgelit: Judgelit, refused: Refused, tmp_path: Path, size: int
) -> None:
    rows = [{**PAIR, "id": str(number), "question": f"{number}+1=?"} for number in range(40)]
    pairs = f"--pairs={lines(tmp_path / 'pairs.jsonl', *rows)}"
    command = ["evaluate", *JUDGE, pairs, "--output=scores", "--max_new_tokens=8"]
    with largest_file(size):
        assert "cannot be written to" in refused(*command)
    judgelit(*command)
    assert len((tmp_path / "scores/pairs.judgments.jsonl").read_text().splitlines()) == 80


def test_judgments_are_in_their_files_when_standard_output_is_full(tmp_path: Path) -> None:
    pairs = lines(tmp_path / "pairs.jsonl", PAIR)
    command = ["evaluate", *JUDGE, f"--pairs={pairs}", "--output=scores", "--max_new_tokens=4"]
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "judgelit.cli", *command]
        ended = subprocess.run(command, cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    (line,) = ended.stderr.splitlines()
    assert ended.returncode == 2 and "standard output: No space left on device" in line
    assert json.loads((tmp_path / "scores/results.json").read_text())["sets"]["pairs"]["accuracy"]["n"] > 0


def test_a_reader_that_goes_away_does_not_stop_the_work(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "judgelit.cli", "tasks", "--output=sums.jsonl", "--count=9"]
    ended = subprocess.run(command, cwd=tmp_path, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (1, "")
    assert len((tmp_path / "sums.jsonl").read_text().splitlines()) == 9


def test_full_error_output_changes_no_exit_code(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run([sys.executable, "-m", "judgelit.cli", "nothing"], stdout=full, stderr=full, check=False)
    assert ended.returncode == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["tasks", "--count=9", "--output=a-file/sums.jsonl"],
        ["configs", "copy", "quickstart/run", "a-file/run.yaml"],
        ["tasks", "--count=9", f"--output={'a' * 300}.jsonl"],
        ["tasks", "--count=9", f"--output={'a/' * 3000}sums.jsonl"],
        ["configs", "copy", "quickstart/run", f"{'a' * 300}.yaml"],
        ["evaluate", *JUDGE, "--pairs=pairs.jsonl", f"--output={'a' * 300}"],
        ["evaluate", *JUDGE, "--pairs=pairs.jsonl", "--output=a-file/scores"],
        ["judge", *JUDGE, "--pairs=pairs.jsonl", f"--output={'a' * 300}"],
        ["fit", "--config=quickstart/sft", f"--trainer.default_root_dir={'a' * 300}"],
        ["fit", "--config=quickstart/sft", "--trainer.default_root_dir=a-file/run"],
        ["fit", "--config=quickstart/sft", f"--data.train={'a' * 300}.jsonl"],
        ["fit", "--config=quickstart/sft", f"--ckpt_path={'a' * 300}"],
        ["fit", f"--config={'a' * 300}"],
        ["fit", "--config=a-file/config.yaml"],
        ["run", "--config=quickstart/run", f"--output={'a' * 300}"],
        ["run", "--config=quickstart/run", "--output=a-file/run"],
        ["export", "a" * 300, "--to=b"],
        ["evaluate", f"--model={'a' * 300}", "--pairs=pairs.jsonl", "--output=scores"],
        ["fit", "--config=quickstart/sft", f"--model.backbone.name_or_path={'a' * 300}"],
        ["fit", "--config=quickstart/sft", f"--model.backbone.adapter={'a' * 300}"],
        ["plan", "--config=quickstart/sft", f"--model.backbone.name_or_path={'a' * 300}"],
    ],
    ids=lambda arguments: " ".join(arguments)[:60],
)
def test_impossible_paths_are_refused(refused: Refused, tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "a-file").write_text("")
    lines(tmp_path / "pairs.jsonl", PAIR)
    refused(*arguments)


def test_only_errors_of_the_system_are_named() -> None:
    assert system_error(ValueError("a bug")) is None
    assert system_error(FileNotFoundError(2, "No such file", "x")) is None
    assert "there: Device or resource busy" in (
        system_error(OSError(errno.EBUSY, "Device or resource busy", "there")) or ""
    )
    wrapped = RuntimeError("a writer failed")
    wrapped.__context__ = OSError(28, "No space left on device", "there")
    assert "there: No space left on device" in (system_error(wrapped) or "")
    assert "Read-only file system" in (system_error(Exception("cannot write (os error 30)")) or "")
