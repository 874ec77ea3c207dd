import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from judgelit.atomic import atomic_file, atomic_folder, check_file_names, remove_parts, write_json, write_text
from judgelit.errors import UserError


def test_a_file_appears_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.txt"
    with atomic_file(path, "w") as file:
        file.write("é\r\n")
        assert not path.exists()
    assert path.read_bytes() == "é\r\n".encode()
    assert list(path.parent.iterdir()) == [path]


def test_a_name_that_is_no_utf_8_is_written_as_an_escape(tmp_path: Path) -> None:
    write_text(tmp_path / "card.md", os.fsdecode(b"caf\xe9.jsonl"))
    assert (tmp_path / "card.md").read_text(encoding="utf-8") == "caf\\udce9.jsonl"


def test_an_exception_leaves_the_old_content_and_no_other_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"old": "é"})
    with pytest.raises(TypeError):
        write_json(path, {"new": object()})
    with pytest.raises(KeyboardInterrupt), atomic_file(path) as file:
        file.write(b"new")
        raise KeyboardInterrupt
    assert path.read_text(encoding="utf-8") == '{\n "old": "é"\n}\n'
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_kill_leaves_the_old_content(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "place"
    opened = "atomic_file(path, 'w') as file" if kind == "file" else "atomic_folder(path) as folder"
    written = "file.write('new'); file.flush()" if kind == "file" else "(folder / 'a').write_text('new')"
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom judgelit.atomic import atomic_file, atomic_folder\n"
        f"path = Path(sys.argv[1])\nwith {opened}:\n    {written}\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    if kind == "file":
        write_text(path, "old")
    killed = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert path.read_text() == "old" if kind == "file" else not path.exists()


def test_content_is_on_the_disk_before_its_name_and_its_name_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def recorded_fsync(descriptor: int) -> None:
        done.append(f"sync {Path(f'/proc/self/fd/{descriptor}').readlink().suffix or 'parent'}")
        fsync(descriptor)

    def recorded_replace(self: Path, target: Any) -> Path:
        done.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(Path, "replace", recorded_replace)
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("no /proc")
    write_text(tmp_path / "a", "x")
    assert done == ["sync .part", "rename", "sync parent"]
    done.clear()
    with atomic_folder(tmp_path / "folder") as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "b.txt").write_text("x")
    assert done == ["sync .txt", "sync parent", "sync .part", "rename", "sync parent"]


def test_of_two_writers_the_last_one_to_end_wins(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with atomic_file(path, "w") as first:
        first.write("first")
        with atomic_file(path, "w") as second:
            second.write("second, longer")
        assert path.read_text() == "second, longer"
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_appears_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "one"
    with atomic_folder(path) as folder:
        (folder / "a").write_text("x")
        assert not path.exists()
    assert [file.name for file in path.iterdir()] == ["a"] and list(path.parent.iterdir()) == [path]


def test_an_exception_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "a") as folder:
        (folder / "b").write_text("x")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_folder_takes_the_place_of_an_empty_one_only(tmp_path: Path) -> None:
    empty, full = tmp_path / "empty", tmp_path / "full"
    empty.mkdir()
    write_text(full / "old", "x")
    with atomic_folder(empty) as folder:
        (folder / "new").write_text("x")
    assert (empty / "new").exists()
    with pytest.raises(OSError), atomic_folder(full) as folder:
        (folder / "new").write_text("x")
    assert [file.name for file in full.iterdir()] == ["old"]
    assert sorted(tmp_path.iterdir()) == [empty, full]


def test_only_parts_of_this_very_path_are_removed(tmp_path: Path) -> None:
    kept = ["out.part", ".out.part", ".out.mine.part", ".out.jsonl.0123abcd.part", ".outer.0123abcd.part"]
    for name in [*kept, ".out.0123abcd.part"]:
        (tmp_path / name).write_text("x")
    remove_parts(tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)


def test_plain_names_are_accepted() -> None:
    check_file_names(
        "sets", ["in_distribution", "RewardBench 2", "v1.5-hard", "测试", "Übung", "a" * 100], taken=["train"]
    )


@pytest.mark.parametrize(
    "name",
    ["", " ", ".", "..", "../x", "../../../x", "/abs", "a/b", "a\\b", ".hidden", "a.", "a ", "-x", "a\nb", "a\0b",
     "a:b", "~x", "$x", "*", "a" * 101, "测" * 40, "train", "Train"],
)  # fmt: skip
def test_names_that_are_not_plain_or_taken_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="sets: found the name"):
        check_file_names("sets", [name], taken=["train"])


def test_names_that_differ_in_case_alone_are_refused() -> None:
    with pytest.raises(UserError, match="differs in case alone"):
        check_file_names("sets", ["hard", "Hard"])
