from pathlib import Path
from typing import Any

import pytest

from judgelit.errors import UserError
from judgelit.generation.engine import Generated
from judgelit.generation.journal_file import Journal
from judgelit.records.shards import Shard
from judgelit.synthesis.shard_files import ShardFile, find_shards, shard_path

SETTINGS: dict[str, Any] = {"seed": 0, "device": "cpu", "settings": {"samples": 8, "hint": None}, "teacher": None}


def write(folder: Path, number: int, count: int, answers: int = 0, name: str = "", **more: Any) -> ShardFile:
    path = shard_path(folder / (name or f"part-{number}.jsonl"))
    made = ShardFile(path, more.pop("command", "warmup"), Shard(number, count), {**SETTINGS, **more}, answers)
    made.write()
    return made


def refused(folder: Path) -> str:
    with pytest.raises(UserError) as error:
        find_shards(f"{folder}/part-*.jsonl")
    assert "\n" not in str(error.value)
    return str(error.value)


def test_all_shards_are_found_by_number(tmp_path: Path) -> None:
    made = [write(tmp_path, number, 11) for number in range(1, 12)]
    write(tmp_path, 1, 2, name="other.jsonl")
    assert find_shards(f"{tmp_path}/part-*.jsonl") == made
    assert made[0].output == tmp_path / "part-1.jsonl"


def test_a_shard_that_is_missing_or_there_twice_is_named(tmp_path: Path) -> None:
    assert "found no file" in refused(tmp_path) and "part-*.jsonl.shard.yaml" in refused(tmp_path)
    write(tmp_path, 1, 3)
    write(tmp_path, 3, 3)
    assert refused(tmp_path).endswith(
        "shard 2/3: found none that has ended, expected one; run its command; after a kill it continues"
    )
    write(tmp_path, 2, 3)
    write(tmp_path, 2, 3, name="part-again.jsonl")
    assert refused(tmp_path).endswith("shard 2/3: found 2 of them, expected one; move away all but one")


def test_a_key_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "sk-secret-0123456789")
    requests = {"key_variable": "MY_KEY", "extra_body": {"key": "sk-secret-0123456789"}}
    shard = write(tmp_path, 1, 1, requests=requests, teacher={"init_args": {"requests": requests}})
    assert "secret" not in shard.path.read_text() and "key: '***'" in shard.path.read_text()


def test_a_shard_whose_journal_lacks_answers_is_named(tmp_path: Path) -> None:
    shard = write(tmp_path, 1, 1, answers=2)
    assert "shard 1/1 is incomplete: found 0 answers, expected 2" in refused(tmp_path)
    journal = Journal(shard.journal)
    journal.write("a", [Generated("x", "stop")])
    assert f"{shard.journal}: shard 1/1 is incomplete: found 1 answers, expected 2" in refused(tmp_path)
    journal.write("b", [Generated("x", "stop")])
    assert find_shards(f"{tmp_path}/part-*.jsonl") == [shard]


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"seed": 1}, "seed: found 1, expected 0 as in part-1.jsonl.shard.yaml"),
        ({"command": "enhancement"}, "command: found 'enhancement', expected 'warmup'"),
        ({"count": 3}, "number of shards: found 3, expected 2"),
        ({"settings": {"samples": 9, "hint": None}}, "settings.samples: found 9, expected 8"),
        ({"teacher": {"class_path": "x", "init_args": {"device": "cpu"}}}, "teacher: found None"),
        ({"more": 1}, "more: found 1, expected None"),
    ],
)
def test_shards_of_other_commands_are_refused(tmp_path: Path, other: dict[str, Any], said: str) -> None:
    write(tmp_path, 1, 2)
    write(tmp_path, 2, other.pop("count", 2), **other)
    assert said.replace("teacher: found None", "teacher") in refused(tmp_path)


def test_machines_may_differ(tmp_path: Path) -> None:
    teacher = {"class_path": "EngineTeacher", "init_args": {"model": "T", "device": "cpu"}}
    write(tmp_path, 1, 2, pairs="/a/pairs.jsonl", batch_size=8, teacher=teacher)
    other = {**teacher, "init_args": {"model": "T", "device": "cuda"}}
    write(tmp_path, 2, 2, pairs={"class_path": "FileSource", "init_args": {"path": "x"}}, device="cuda", teacher=other)
    assert len(find_shards(f"{tmp_path}/part-*.jsonl")) == 2


@pytest.mark.parametrize("text", ["seed: 1", "command: 1\nshard: 1/1\nanswers: 0\nsettings: {}", "- 1", "a: [", ""])
def test_another_file_is_refused(tmp_path: Path, text: str) -> None:
    shard_path(tmp_path / "part-1.jsonl").write_text(text)
    assert "part-1.jsonl.shard.yaml" in refused(tmp_path)
