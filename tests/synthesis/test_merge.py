"""`--shard I/N` and `judgelit synthesize merge`."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from judgelit.errors import UserError
from judgelit.generation.engine import Generated
from judgelit.generation.local import LocalEngine
from judgelit.records.files import write_records
from judgelit.records.records import PreferencePair
from judgelit.records.shards import Shard
from judgelit.synthesis.command import main
from judgelit.synthesis.shard_files import ShardFile, shard_path
from judgelit.synthesis.tasks.pairs import TaskPairs
from tests.support import make_pair, read_card, short_templates

Run = Callable[..., Path]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The prompts that a stub model was asked; its texts are a hash of prompt, sample and seed."""
    asked: list[str] = []

    def speak(
        self: LocalEngine, conversations: Any, *args: Any, samples: int = 1, seed: int = 0, done: Any = ()
    ) -> Any:
        for index, (turn,) in enumerate(conversations):
            if index not in done:
                asked.append(turn["content"])
                texts = [
                    hashlib.sha256(f"{turn['content']}{sample}{seed}".encode()).hexdigest() for sample in range(samples)
                ]
                yield (
                    index,
                    [Generated(f"{text} [[{'AB'[int(text[0], 16) % 2]}]]", "stop", new_tokens=9) for text in texts],
                )

    monkeypatch.setattr(LocalEngine, "answer", speak)
    return asked


@pytest.fixture
def run(tmp_path: Path, llama: str) -> Run:
    """Runs a command on the pairs of a file and returns its output."""
    short_templates(tmp_path / "templates", {"one": "careful", "two": "brief"})
    write_records(tmp_path / "pairs.jsonl", TaskPairs(["sorting"], [1], 16).read(PreferencePair))

    def synthesize(output: str, *more: str, command: str = "enhancement") -> Path:
        common = [f"--pairs={tmp_path}/pairs.jsonl", f"--templates.folder={tmp_path}/templates"]
        common += ["--templates.names=[one, two]", "--teacher=EngineTeacher", f"--teacher.model={llama}"]
        settings = {
            "enhancement": [
                *("--settings.samples=2", "--settings.max_new_tokens=20", f"--model={llama}", "--settings.hint=right"),
            ],
            "warmup": [f"--tokenizer={llama}", "--near_duplicates=0.4"],
        }
        path = tmp_path / output
        main([command, *common, f"--output={path}", *settings[command], *more])
        return path

    return synthesize


def merge(folder: Path, *more: str) -> Path:
    main(["merge", f"--shards={folder}/part-*.jsonl", f"--output={folder}/all.jsonl", *more])
    return folder / "all.jsonl"


def test_merged_shards_are_exactly_the_unsharded_set(tmp_path: Path, run: Run, asked: list[str], capsys) -> None:
    pairs = TaskPairs(["sorting"], [1], 18).read(PreferencePair)
    write_records(tmp_path / "pairs.jsonl", pairs)
    write_records(tmp_path / "held.jsonl", pairs[:2])
    held = f"--decontaminate={tmp_path}/held.jsonl"
    whole = run("whole.jsonl", held)
    of_whole = sorted(asked)
    asked.clear()
    for number in (1, 2, 3):
        run(f"part-{number}.jsonl", f"--shard={number}/3", f"--batch_size={number}", held)
    assert sorted(asked) == of_whole, "each prompt is asked in one shard"
    asked.clear()
    # On a third machine the pairs are elsewhere.
    moved = shutil.move(tmp_path / "pairs.jsonl", tmp_path / "moved.jsonl")
    merged = merge(tmp_path, f"--pairs={moved}")
    assert merged.read_bytes() == whole.read_bytes() and asked == []
    cards = [read_card(Path(f"{path}.card.md")) for path in (merged, whole)]
    assert cards[0] == cards[1] and sum(cards[0]["solve_rates"]["pairs"].values()) == 16
    assert cards[0]["decontamination"] == {"held": {"questions": 2, "pairs": 2}}
    assert f"written to {merged}" in capsys.readouterr().out
    card, rows = cards[0], [json.loads(line) for line in merged.read_text().splitlines()]
    assert card["data"]["examples"] == len(rows) > 0
    taught = {(row["meta"]["pair_id"], row["meta"]["order"]) for row in rows if row["meta"]["hint"] == "right"}
    assert card["cost"]["judgments_written"] == len(taught) + card["dropped"]["never right"]
    assert card["sampled"]["judgments"] == 64 == 2 * card["sampled"]["prompts"]
    assert card["cost"]["new_tokens"] == 9 * (64 + card["cost"]["judgments_written"])
    assert card["settings"]["hint"] == "right" and card["settings"]["round"] == 1


def test_merged_shards_of_the_warm_up_drop_balance_and_mix_as_one_run(
    tmp_path: Path, run: Run, asked: list[str]
) -> None:
    # Every fourth question is almost like the one before it. A shard of so few pairs may keep nothing.
    texts = [" ".join(f"word{n - (n % 4 == 3)}x{at}" for at in range(12)) + " now" * (n % 4 == 3) for n in range(80)]
    pairs = [
        make_pair(n, "AB"[n // 2 % 2], "yes" * (1 + n % 3), "no" * 3, question=text) for n, text in enumerate(texts)
    ]
    write_records(tmp_path / "pairs.jsonl", pairs)
    more = ["--verdict_only=0.3"]
    whole = run("whole.jsonl", *more, command="warmup")
    of_whole = sorted(asked)
    asked.clear()
    for number in range(1, 5):
        run(f"part-{number}.jsonl", f"--shard={number}/4", *more, command="warmup")
    assert sorted(asked) == of_whole
    asked.clear()
    merged = merge(tmp_path)
    assert merged.read_bytes() == whole.read_bytes() != b"" and asked == []
    assert read_card(Path(f"{merged}.card.md")) == read_card(Path(f"{whole}.card.md"))
    dropped = read_card(Path(f"{whole}.card.md"))["dropped"]
    assert dropped["with a question almost like another"] and dropped["for balance of length"] and dropped["wrong"]


def test_a_killed_shard_is_named_and_continues(
    tmp_path: Path, run: Run, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*args: Any, **more: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("judgelit.synthesis.command.write_records", killed)
        run("part-2.jsonl", "--shard=2/2")
    run("part-1.jsonl", "--shard=1/2")
    with pytest.raises(
        UserError, match=r"shard 2/2: found none that has ended, expected one; run its command"
    ) as error:
        merge(tmp_path)
    assert "\n" not in str(error.value) and not (tmp_path / "all.jsonl").exists()
    asked.clear()
    run("part-2.jsonl", "--shard=2/2")
    assert asked == [] and merge(tmp_path).exists()
    # The pairs have changed since: the journals lack answers.
    write_records(tmp_path / "pairs.jsonl", TaskPairs(["sorting"], [1], 18).read(PreferencePair))
    with pytest.raises(UserError, match=r"found no answer to \d+ of 36 prompts in the journals"):
        merge(tmp_path)


def test_wrong_arguments_are_one_line(tmp_path: Path, run: Run) -> None:
    with pytest.raises(UserError, match="shard: found '3/2', expected I/N"):
        run("part-1.jsonl", "--shard=3/2")
    assert not list(tmp_path.glob("part-1*"))
    ShardFile(shard_path(tmp_path / "part-1.jsonl"), "enhancement", Shard(1, 1), {}, 0).write()
    with pytest.raises(UserError, match=r"output: found .*part-1\.jsonl, which is the output of a shard"):
        main(["merge", f"--shards={tmp_path}/part-*.jsonl", f"--output={tmp_path}/part-1.jsonl"])
    for settings in ({"trust_remote_code": True}, {"teacher": {"init_args": {"trust_remote_code": True}}}):
        ShardFile(shard_path(tmp_path / "part-1.jsonl"), "enhancement", Shard(1, 1), settings, 0).write()
        with pytest.raises(UserError, match=r"part-1\.jsonl.*made with Python code.*add --trust_remote_code"):
            main(["merge", f"--shards={tmp_path}/part-*.jsonl", f"--output={tmp_path}/all.jsonl"])
    with pytest.raises(UserError, match=r"all\.txt: unknown suffix"):
        main(["merge", f"--shards={tmp_path}/part-*.jsonl", f"--output={tmp_path}/all.txt"])
