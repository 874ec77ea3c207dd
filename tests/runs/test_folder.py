"""The folder of a run: it takes no second run."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from judgelit.errors import UserError
from judgelit.runs.folder import claim_folder, locked


def test_a_folder_can_be_claimed_again_by_the_same_run(tmp_path: Path) -> None:
    files = {"config.yaml": "seed: 1\n", "sft.yaml": "model: a\n"}
    claim_folder(tmp_path / "run", files, {})
    claim_folder(tmp_path / "run", files, {})
    assert {path.name: path.read_text() for path in (tmp_path / "run").iterdir()} == files


def test_comments_and_the_form_of_numbers_make_no_other_run(tmp_path: Path) -> None:
    claim_folder(tmp_path, {"config.yaml": "rate: 1.0e-5 # first\nname: a\n"}, {})
    claim_folder(tmp_path, {"config.yaml": "# later\nname: a\nrate: 0.00001\n"}, {})


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"config.yaml": "seed: 2\n", "sft.yaml": "model: a\n"}, "config.yaml: seed: found 1 there and 2 here"),
        ({"config.yaml": "seed: 1\n", "sft.yaml": "model: {b: 1}\n"}, "sft.yaml: model: found 'a' there and"),
    ],
)
def test_another_configuration_is_refused_by_the_key_that_differs(
    tmp_path: Path, changed: dict[str, str], said: str
) -> None:
    claim_folder(tmp_path, {"config.yaml": "seed: 1\n", "sft.yaml": "model: a\n"}, {})
    with pytest.raises(UserError, match=said):
        claim_folder(tmp_path, changed, {})
    assert (tmp_path / "config.yaml").read_text() == "seed: 1\n"


def test_a_setting_may_change_until_its_stage_has_begun(tmp_path: Path) -> None:
    decides = {"dpo.yaml": tmp_path / "stages/2-dpo", "warmup": tmp_path / "stages/1-sft"}
    files = {"config.yaml": "output: here\nseed: 1\nwarmup: {n: 1}\n", "dpo.yaml": "model: {beta: 0.1}\n"}
    claim_folder(tmp_path, files, decides)
    other = {"config.yaml": "output: there\nseed: 1\nwarmup: {n: 1}\n", "dpo.yaml": "model: {beta: 0.5}\n"}
    (tmp_path / "stages/1-sft").mkdir(parents=True)
    claim_folder(tmp_path, other, decides)
    assert (tmp_path / "dpo.yaml").read_text() == "model: {beta: 0.5}\n"
    (tmp_path / "stages/2-dpo").mkdir()
    (tmp_path / "stages/3-judged").mkdir()
    with pytest.raises(
        UserError, match=r"dpo\.yaml: model\.beta: found 0\.5 there and 0\.1 here.*, or move .*2-dpo and all"
    ):
        claim_folder(tmp_path, files, decides)
    with pytest.raises(UserError, match=r"warmup\.n: found 1 there and 2 here.* or move .*1-sft and all"):
        claim_folder(tmp_path, {**other, "config.yaml": "seed: 1\nwarmup: {n: 2}\n"}, decides)
    # A setting that decides all.
    with pytest.raises(UserError, match=r"seed: found 1 there and 2 here\); choose another folder with --output$"):
        claim_folder(tmp_path, {**other, "config.yaml": "seed: 2\nwarmup: {n: 1}\n"}, decides)


def test_the_folder_of_a_fit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="holds another run"):
        claim_folder(tmp_path, {"config.yaml": "seed: 1\n"}, {})


@pytest.mark.parametrize("name", ["stages", "export"])
def test_files_that_are_not_of_the_run_are_refused_and_kept(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match=f"{name}: found files that are not of this run"):
        claim_folder(tmp_path, {"config.yaml": "seed: 1\n"}, {})
    assert [path.name for path in tmp_path.rglob("*")] == [name, "mine.txt"]


HOLD = """
import sys, time
from pathlib import Path
from judgelit.runs.folder import locked

with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_until_the_first_ends_or_dies(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = [sys.executable, "-c", HOLD, str(folder)]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None and first.stdout.readline() == "locked\n"
    said = rf"run: found process {first.pid} writing to it, expected no other"
    with pytest.raises(UserError, match=said), locked(folder):
        pass
    first.kill()
    first.wait()
    with locked(folder):
        said = rf"found process {os.getpid()} writing to it.* with --here"
        with pytest.raises(UserError, match=said), locked(folder, "--here"):
            pass
        (folder / "file").touch()
    with locked(folder):
        pass
    assert [path.name for path in folder.iterdir()] == ["file"]


def test_a_lock_that_is_a_link_is_refused_and_its_target_kept(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/.lock").symlink_to("../notes.txt")
    with pytest.raises(UserError, match=r"\.lock: found a link"), locked(tmp_path / "run"):
        pass
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_child_does_not_keep_the_lock(tmp_path: Path) -> None:
    with locked(tmp_path):
        child = os.fork()
        if not child:
            time.sleep(60)
            os._exit(0)
    try:
        with locked(tmp_path):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_folder_that_stays_empty_is_removed_again(tmp_path: Path) -> None:
    with locked(tmp_path / "new"):
        assert (tmp_path / "new").is_dir()
    assert not (tmp_path / "new").exists()


def test_a_folder_that_cannot_be_made_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file/run: cannot be written to"), locked(tmp_path / "file/run"):
        pass
