"""Checkpoints on disk: complete or absent."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from judgelit.errors import UserError
from judgelit.runs import checkpoints
from judgelit.runs.checkpoints import NOT_SAVED, AtomicCheckpoints, mend, newest


class KillError(Exception):
    """Stands for a signal where the process must live on."""


def content(number: int) -> dict[str, Any]:
    return {"state_dict": {"weight": torch.full((1000,), float(number))}, "global_step": number}


def step_in(path: Path) -> int:
    return AtomicCheckpoints().load_checkpoint(path, weights_only=True)["global_step"]


KILLED_SAVE = """
import os, sys
from pathlib import Path
import torch
from judgelit.runs.checkpoints import AtomicCheckpoints

def half(what, file):
    file.write(b"half of it")
    file.flush()
    os._exit(9)

def dead(*_):
    os._exit(9)

moment, place = sys.argv[1:]
owner, stand_in = {"save": (torch, half), "fsync": (os, dead), "replace": (Path, dead)}[moment]
setattr(owner, moment, stand_in)
AtomicCheckpoints().save_checkpoint({"state_dict": {}, "global_step": 2}, place)
"""


@pytest.mark.parametrize("moment", ["save", "fsync", "replace"])
def test_a_killed_save_keeps_the_last_checkpoint(tmp_path: Path, moment: str) -> None:
    place = tmp_path / "checkpoints/last.ckpt"
    AtomicCheckpoints().save_checkpoint(content(1), place)
    killed = subprocess.run([sys.executable, "-c", KILLED_SAVE, moment, str(place)], check=False)
    assert killed.returncode == 9
    assert step_in(place) == 1
    assert len(list(place.parent.glob("*.part"))) == 1
    mend([place.parent])
    assert [path.name for path in place.parent.iterdir()] == ["last.ckpt"]
    AtomicCheckpoints().save_checkpoint(content(2), place)
    assert step_in(place) == 2


def test_a_checkpoint_is_on_the_disk_before_it_replaces_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    sync, replace = os.fsync, Path.replace

    def note_sync(descriptor: int) -> None:
        done.append("sync " + ("folder" if Path(f"/proc/self/fd/{descriptor}").readlink() == tmp_path else "file"))
        sync(descriptor)

    def note_replace(path: Path, target: Path) -> Path:
        done.append("replace")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(Path, "replace", note_replace)
    AtomicCheckpoints().save_checkpoint(content(1), tmp_path / "last.ckpt")
    assert done == ["sync file", "replace", "sync folder"]


def test_a_file_replaces_a_sharded_checkpoint(tmp_path: Path) -> None:
    place = tmp_path / "last.ckpt"
    folder_checkpoint(place, 1)
    AtomicCheckpoints().save_checkpoint(content(2), place)
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"] and step_in(place) == 2


def test_a_checkpoint_that_must_not_be_saved_is_not_written(tmp_path: Path) -> None:
    place = tmp_path / "last.ckpt"
    AtomicCheckpoints().save_checkpoint(content(1), place)
    AtomicCheckpoints().save_checkpoint({**content(2), NOT_SAVED: "stopped in an optimizer step"}, place)
    assert step_in(place) == 1


@pytest.mark.parametrize("left", [0, 10, 1000, -1])
def test_a_truncated_checkpoint_is_refused(tmp_path: Path, left: int) -> None:
    place = tmp_path / "last.ckpt"
    AtomicCheckpoints().save_checkpoint(content(1), place)
    place.write_bytes(place.read_bytes()[:left])
    with pytest.raises(UserError, match=r"last\.ckpt cannot be read as a checkpoint .*--ckpt_path"):
        AtomicCheckpoints().load_checkpoint(place, weights_only=True)


@pytest.mark.parametrize("place_of_flip", [0.3, 0.6, 0.9])
def test_a_flipped_bit_is_refused_and_the_previous_checkpoint_named(tmp_path: Path, place_of_flip: float) -> None:
    for number, name in enumerate(("epoch=0-step=2.ckpt", "epoch=0-step=4.ckpt", "last.ckpt")):
        AtomicCheckpoints().save_checkpoint(content(number), tmp_path / name)
        os.utime(tmp_path / name, ns=(0, number * 10**9))
    for name in ("epoch=0-step=4.ckpt", "last.ckpt"):
        damaged = bytearray((tmp_path / name).read_bytes())
        damaged[int(len(damaged) * place_of_flip)] ^= 4
        (tmp_path / name).write_bytes(damaged)
    said = r"last\.ckpt cannot be read as a checkpoint .*; the newest usable one is .*epoch=0-step=2\.ckpt"
    with pytest.raises(UserError, match=said):
        AtomicCheckpoints().load_checkpoint(tmp_path / "last.ckpt", weights_only=True)


@pytest.mark.parametrize("other", [{"weight": torch.ones(1)}, [1]])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path, other: Any) -> None:
    torch.save(other, tmp_path / "model.ckpt")
    with pytest.raises(UserError, match="no state_dict"):
        AtomicCheckpoints().load_checkpoint(tmp_path / "model.ckpt", weights_only=True)


def folder_checkpoint(place: Path, number: int) -> None:
    place.mkdir()
    (place / "__0_0.distcp").write_text(str(number), encoding="utf-8")
    torch.save(number, place / "meta.pt")


class FolderStrategy:
    """Lightning's strategy as far as it writes a sharded checkpoint, on one process, file by file."""

    _save_distributed_checkpoint = True
    is_global_zero = True

    def __init__(self, dies_after: int | None = None) -> None:
        self.dies_after = dies_after

    def broadcast(self, path: str) -> str:
        return path

    def barrier(self) -> None:
        pass

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Path, storage_options: Any = None) -> None:
        path.mkdir(parents=True, exist_ok=True)
        for number, name in enumerate(("__0_0.distcp", "meta.pt")):
            if number == self.dies_after:
                raise KillError
            torch.save(checkpoint["global_step"], path / name)


@pytest.mark.parametrize("dies_after", [0, 1])
def test_a_folder_is_swapped_only_when_it_is_complete(tmp_path: Path, dies_after: int) -> None:
    place = tmp_path / "last.ckpt"
    whole: Any = FolderStrategy()
    checkpoints.swap_folders(whole)
    whole.save_checkpoint(content(1), place)
    dying: Any = FolderStrategy(dies_after)
    checkpoints.swap_folders(dying)
    with pytest.raises(KillError):
        dying.save_checkpoint(content(2), place)
    mend([tmp_path])
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
    assert {torch.load(path) for path in place.iterdir()} == {1}
    whole.save_checkpoint(content(3), place)
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
    assert {torch.load(path) for path in place.iterdir()} == {3}


@pytest.mark.parametrize("move", [1, 2])
def test_a_kill_between_the_two_moves_of_a_swap_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, move: int
) -> None:
    place = tmp_path / "last.ckpt"
    strategy: Any = FolderStrategy()
    checkpoints.swap_folders(strategy)
    strategy.save_checkpoint(content(1), place)
    moves, rename = [], Path.rename

    def dies(path: Path, target: Path) -> Path:
        moves.append(path)
        if len(moves) == move:
            raise KillError
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", dies)
        with pytest.raises(KillError):
            strategy.save_checkpoint(content(2), place)
    assert place.exists() == (move == 1)
    # Other ranks may look before or after the first rank has tidied the folder.
    assert newest([tmp_path]) == place
    mend([tmp_path])
    assert newest([tmp_path]) == place and torch.load(place / "meta.pt") == 1


def test_weights_alone_are_the_newest_only_without_a_whole_checkpoint(tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "best.ckpt")
    assert newest([tmp_path]) == tmp_path / "best.ckpt"
    torch.save({"state_dict": {}, "callbacks": {}}, tmp_path / "last.ckpt")
    for age, name in enumerate(["last.ckpt", "best.ckpt"]):
        os.utime(tmp_path / name, ns=(0, age * 10**9))
    assert newest([tmp_path]) == tmp_path / "last.ckpt"
    # A damaged file is not passed over, so that its damage is reported.
    (tmp_path / "newer.ckpt").write_bytes(b"damaged")
    assert newest([tmp_path]) == tmp_path / "newer.ckpt"


def test_the_newest_is_the_complete_checkpoint_written_last(tmp_path: Path) -> None:
    assert newest([tmp_path, tmp_path / "missing"]) is None
    for age, name in enumerate(["epoch=0-step=4.ckpt", "last.ckpt", "epoch=0-step=6.ckpt", "last.ckpt.part"]):
        path = tmp_path / name
        AtomicCheckpoints().save_checkpoint(content(age), path)
        os.utime(path, ns=(0, age * 10**9))
    (tmp_path / "link.ckpt").symlink_to("gone.ckpt")
    assert newest([tmp_path]) == tmp_path / "epoch=0-step=6.ckpt"
    folder = tmp_path / "epoch=0-step=8.ckpt"
    folder_checkpoint(folder, 8)
    assert newest([tmp_path]) == folder
    # A folder that is being deleted was changed last, but is no checkpoint.
    (folder / "meta.pt").unlink()
    assert newest([tmp_path]) == tmp_path / "epoch=0-step=6.ckpt"
