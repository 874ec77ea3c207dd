"""Token stores: made once, never stale, complete or absent after a kill and with several builders at once."""

import json
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import normalizers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from judgelit.atomic import PART
from judgelit.batches import token_store
from judgelit.batches.arrow_files import map_arrow
from judgelit.batches.flat_batch import TokenizedCompletion, TokenizedPreference
from judgelit.batches.token_store import TokenRows, TokenStore, open_store
from judgelit.batches.tokenizer import ChatTokenizer
from judgelit.errors import UserError
from judgelit.records import sources
from judgelit.records.files import write_records
from judgelit.records.reading import R
from judgelit.records.records import PreferenceExample, SFTExample
from judgelit.records.row_fields import Message
from judgelit.records.sources import FileSource, Source, split_by_group

REPOSITORY = Path(__file__).parents[2]


def turns(text: str) -> tuple[Message, ...]:
    return ({"role": "user", "content": text},)


def preferences(count: int) -> list[PreferenceExample]:
    """Two pairs a prompt, of uneven length, every third without an id."""
    return [
        PreferenceExample(
            turns(f"question {number // 2}" + "?" * (number // 2 % 5)),
            "right " * (1 + number % 3) + str(number),
            "wrong",
            {"pair_id": f"e{number}"} if number % 3 else {},
        )
        for number in range(count)
    ]


def completions(count: int) -> list[SFTExample]:
    return [SFTExample(turns(f"question {number}"), f"answer {number}", f"e{number}") for number in range(count)]


def source_of(path: Path, records: Any) -> FileSource:
    write_records(path, records)
    return FileSource(str(path))


def ids_of(store: TokenStore) -> list[tuple[str, list[list[int]]]]:
    return [store.row(index) for index in range(len(store))]


def wanted(records: Any, tokenizer: ChatTokenizer, at: str = "a.jsonl:{}") -> list[tuple[str, list[list[int]]]]:
    rows = []
    for line, one in enumerate(records, 1):
        texts = [one.completion] if isinstance(one, SFTExample) else [one.chosen, one.rejected]
        name = one.pair_id if isinstance(one, SFTExample) else one.meta.get("pair_id")
        ids = [tokenizer.prompt_ids(one.messages), *map(tokenizer.completion_ids, texts)]
        rows.append((name or at.format(line), ids))
    return rows


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where stores are kept."""
    return tmp_path / "cache"


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes at work as soon as there are a dozen examples."""
    monkeypatch.setattr(token_store, "CHUNK", 4)
    monkeypatch.setattr(token_store, "PARALLEL_FROM", 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1})


@pytest.fixture
def one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other processes."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0})


@pytest.fixture
def never_tokenise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any attempt to read rows or tokenise fails."""

    def fail(*_: Any, **__: Any) -> Any:
        raise AssertionError("done again")

    monkeypatch.setattr(ChatTokenizer, "prompt_ids", fail)
    monkeypatch.setattr(sources, "read_rows", fail)


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


# What a store holds.


@pytest.mark.parametrize("at", ["a.jsonl:{}", "a.parquet: row {}"])
def test_a_store_holds_the_ids_of_every_example_in_order(
    tmp_path: Path, folder: Path, chatml: ChatTokenizer, at: str
) -> None:
    path = tmp_path / at.split(":")[0]
    store = open_store(source_of(path, preferences(10)), PreferenceExample, chatml, folder, "train")
    assert ids_of(store) == wanted(preferences(10), chatml, at)
    assert store.columns == ["prompt", "chosen", "rejected"]
    store = open_store(source_of(path, completions(7)), SFTExample, chatml, folder, "train")
    assert ids_of(store) == wanted(completions(7), chatml)
    assert store.columns == ["prompt", "completion"]


def test_many_chunks_on_disk_are_one_sequence(
    tmp_path: Path, folder: Path, chatml: ChatTokenizer, small_chunks: None, one_core: None
) -> None:
    pairs = preferences(50)
    store = open_store(source_of(tmp_path / "a.jsonl", pairs), PreferenceExample, chatml, folder, "train")
    assert map_arrow(store.path).num_record_batches == 13
    assert ids_of(store) == wanted(pairs, chatml)
    assert store.prompt_tokens.tolist() == [len(prompt) for _, (prompt, *_) in wanted(pairs, chatml)]
    assert [some.tolist() for some in store.completion_tokens] == [
        [len(ids[column]) for _, ids in wanted(pairs, chatml)] for column in (1, 2)
    ]


def test_no_examples_are_an_empty_store(folder: Path, chatml: ChatTokenizer) -> None:
    store = open_store(Given([]), PreferenceExample, chatml, folder, "train")
    assert len(store) == 0 and len(store.lengths) == len(store.prompt_keys) == 0
    assert len(TokenRows([(store, np.arange(0))])) == 0


def test_names_and_groups_that_are_no_unicode(folder: Path, chatml: ChatTokenizer) -> None:
    odd = SFTExample(turns("q"), "a", "id \ud800", {"question": "key \udfff"})
    store = open_store(Given([odd]), SFTExample, chatml, folder, "train")
    assert store.row(0)[0] == "id ?"


# In several processes.


@pytest.mark.parametrize("count", [8, 9, 61])
def test_several_processes_make_what_one_makes(
    tmp_path: Path, folder: Path, chatml: ChatTokenizer, small_chunks: None, count: int
) -> None:
    others = set(multiprocessing.active_children())
    pairs = preferences(count)
    store = open_store(source_of(tmp_path / "a.jsonl", pairs), PreferenceExample, chatml, folder, "train")
    assert ids_of(store) == wanted(pairs, chatml)
    assert set(multiprocessing.active_children()) <= others


def test_few_examples_are_held_at_a_time(
    tmp_path: Path, folder: Path, chatml: ChatTokenizer, small_chunks: None, one_core: None, monkeypatch: Any
) -> None:
    read: list[weakref.ref[SFTExample]] = []
    stream = FileSource.stream

    def counted(source: FileSource, kind: Any) -> Iterator[tuple[str, Any]]:
        for at, example in stream(source, kind):
            read.append(weakref.ref(example))
            assert sum(one() is not None for one in read) <= 10
            yield at, example

    source = source_of(tmp_path / "a.jsonl", completions(100))
    monkeypatch.setattr(FileSource, "stream", counted)
    assert len(open_store(source, SFTExample, chatml, folder, "train")) == 100


def test_tokenising_leaves_the_random_numbers_alone(
    tmp_path: Path, folder: Path, chatml: ChatTokenizer, small_chunks: None
) -> None:
    source = source_of(tmp_path / "a.jsonl", completions(30))
    before = torch.get_rng_state()
    open_store(source, SFTExample, chatml, folder, "train")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_script_without_main_guard_is_not_run_again(tmp_path: Path, llama: str) -> None:
    write_records(tmp_path / "a.jsonl", completions(30))
    (tmp_path / "script.py").write_text(
        "import os\n"
        "from judgelit.batches import token_store\n"
        "from judgelit.batches.datamodules import SFTDataModule\n"
        "token_store.CHUNK, token_store.PARALLEL_FROM, os.sched_getaffinity = 4, 8, lambda process: {0, 1}\n"
        "print('begun')\n"
        f"data = SFTDataModule({llama!r}, {str(tmp_path / 'a.jsonl')!r}, cache={str(tmp_path / 'cache')!r})\n"
        "data.prepare_data()\ndata.setup('fit')\nprint(len(data.rows('train')))\n"
    )
    found = subprocess.run(
        [sys.executable, str(tmp_path / "script.py")],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.split() == ["begun", "30"]


class Dying(ChatTokenizer):
    """A tokenizer that kills its process."""

    def prompt_ids(self, messages: Any) -> list[int]:
        if multiprocessing.parent_process() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().prompt_ids(messages)


class Failing(ChatTokenizer):
    """A tokenizer with a bug."""

    def prompt_ids(self, messages: Any) -> list[int]:
        raise ZeroDivisionError("a bug")


def test_a_process_that_is_killed_is_one_line(
    tmp_path: Path, folder: Path, chatml: ChatTokenizer, small_chunks: None
) -> None:
    source = source_of(tmp_path / "a.jsonl", completions(30))
    with pytest.raises(UserError, match=r"^a process that tokenises has died, perhaps .*; start again$"):
        open_store(source, SFTExample, Dying(chatml.hf, chatml.context), folder, "train")
    assert left_in(folder) == []


def test_a_bug_in_a_process_shows_its_traceback(
    tmp_path: Path, folder: Path, chatml: ChatTokenizer, small_chunks: None
) -> None:
    source = source_of(tmp_path / "a.jsonl", completions(30))
    with pytest.raises(ZeroDivisionError, match=r"(?s)Traceback.*prompt_ids.*ZeroDivisionError: a bug"):
        open_store(source, SFTExample, Failing(chatml.hf, chatml.context), folder, "train")
    assert left_in(folder) == []


# Mistakes in the data.


@pytest.mark.parametrize("cores", [1, 2])
def test_a_record_that_cannot_be_read_is_named_and_leaves_nothing(
    tmp_path: Path, folder: Path, chatml: ChatTokenizer, small_chunks: None, monkeypatch: pytest.MonkeyPatch, cores: int
) -> None:
    others = set(multiprocessing.active_children())
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)))
    source = source_of(tmp_path / "a.jsonl", completions(30))
    with Path(source.path).open("a") as file:
        file.write('{"prompt": "q"}\n')
    with pytest.raises(UserError) as caught:
        open_store(source, SFTExample, chatml, folder, "train")
    assert str(caught.value).startswith(f"{source.path}:31: found 'prompt', expected an SFT example")
    assert left_in(folder) == [] and set(multiprocessing.active_children()) <= others


@pytest.mark.parametrize("cores", [1, 2])
def test_an_example_that_the_template_refuses_is_named_and_leaves_nothing(
    tmp_path: Path,
    folder: Path,
    hf_tokenizers: dict[str, PreTrainedTokenizerFast],
    small_chunks: None,
    monkeypatch: pytest.MonkeyPatch,
    cores: int,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)))
    records = completions(30)
    records[17] = replace(records[17], messages=({"role": "system", "content": "s"}, *records[17].messages))
    source = source_of(tmp_path / "a.jsonl", records)
    with pytest.raises(UserError) as caught:
        open_store(source, SFTExample, ChatTokenizer(hf_tokenizers["gemma"]), folder, "train")
    message = f"{source.path}:18: the chat template refuses the turns (system, user): System role not supported"
    assert str(caught.value) == message
    assert left_in(folder) == []


def test_data_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, folder: Path, chatml: ChatTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = source_of(tmp_path / "a.jsonl", completions(5))

    prompt_ids = ChatTokenizer.prompt_ids

    def grow(*args: Any) -> Any:
        with Path(source.path).open("a") as file:
            file.write(json.dumps(completions(1)[0].to_dict()) + "\n")
        return prompt_ids(*args)

    monkeypatch.setattr(ChatTokenizer, "prompt_ids", grow)
    with pytest.raises(UserError, match=r"^train: the data changed while it was read; start again$"):
        open_store(source, SFTExample, chatml, folder, "train")
    assert left_in(folder) == []


def test_a_folder_that_cannot_be_written_to(tmp_path: Path, chatml: ChatTokenizer) -> None:
    (tmp_path / "file").touch()
    source = source_of(tmp_path / "a.jsonl", completions(5))
    with pytest.raises(UserError, match=r"file: cannot be written: File exists; .* data\.cache$"):
        open_store(source, SFTExample, chatml, tmp_path / "file", "train")


# Made once.


def test_a_second_start_reads_no_row(
    tmp_path: Path, folder: Path, chatml: ChatTokenizer, request: pytest.FixtureRequest
) -> None:
    source = source_of(tmp_path / "here.jsonl", completions(5))
    first = open_store(source, SFTExample, chatml, folder, "train")
    request.getfixturevalue("never_tokenise")
    again = open_store(source, SFTExample, chatml, folder, "val")
    assert (again.path, ids_of(again)) == (first.path, ids_of(first))
    # Neither its weight nor its age nor the folder in which it stands is part of the data.
    (tmp_path / "there").mkdir()
    moved = Path(shutil.copy(source.path, tmp_path / "there" / "here.jsonl"))
    assert open_store(FileSource(str(moved), weight=2.0), SFTExample, chatml, folder, "train").path == first.path


def other_template(tokenizer: ChatTokenizer) -> ChatTokenizer:
    hf = pickle.loads(pickle.dumps(tokenizer.hf))
    hf.chat_template = hf.chat_template.replace("<|im_start|>assistant\n", "<|im_start|>assistant\nJudgment:")
    return ChatTokenizer(hf, tokenizer.context)


def other_vocabulary(tokenizer: ChatTokenizer) -> ChatTokenizer:
    hf = pickle.loads(pickle.dumps(tokenizer.hf))
    hf.add_tokens(["question 1"])
    return ChatTokenizer(hf, tokenizer.context)


@pytest.mark.parametrize("change", ["data", "name", "limit", "template", "vocabulary", "kind", "format"])
def test_a_change_makes_a_new_store(
    tmp_path: Path, folder: Path, chatml: ChatTokenizer, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    rows = [{"prompt": f"question {n}", "completion": "a", "chosen": "a", "rejected": f"b {n}"} for n in range(4)]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source, kind, tokenizer = FileSource(str(path)), SFTExample, chatml
    first = open_store(source, kind, tokenizer, folder, "train")
    if change == "data":
        # Of equal size and age: only its content tells.
        age = path.stat().st_mtime_ns
        path.write_text(path.read_text().replace("question 3", "question 7"))
        os.utime(path, ns=(age, age))
    elif change == "name":
        source = FileSource(str(path.rename(tmp_path / "b.jsonl")))
    elif change == "limit":
        source = replace(source, limit=3)
    elif change == "template":
        tokenizer = other_template(chatml)
    elif change == "vocabulary":
        tokenizer = other_vocabulary(chatml)
    elif change == "kind":
        kind = PreferenceExample  # type: ignore[assignment]
    else:
        monkeypatch.setattr(token_store, "FORMAT", token_store.FORMAT + 1)
    second = open_store(source, kind, tokenizer, folder, "train")
    assert second.path != first.path
    found = [record for _, record in source.stream(kind)]
    assert ids_of(second) == wanted(found, tokenizer, Path(source.path).name + ":{}")
    # And the first is still there.
    assert len(first) == 4 and len(left_in(folder)) == 2


def test_each_answer_of_a_conversation_has_the_prompt_that_inference_renders(
    tmp_path: Path, chat: ChatTokenizer
) -> None:
    # Templates of thinking models drop the reasoning of earlier turns, and that of the last turn stays.
    said = ["<think>\nfirst\n</think>\n\none", "two", "<think>\nthird\n</think>\n\nthree"]
    turns = [
        {"role": role, "content": text}
        for number, answer in enumerate(said)
        for role, text in (("user", f"q{number}"), ("assistant", answer))
    ]
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": turns}))
    source = FileSource(str(tmp_path / "a.jsonl"), loss_on="all")
    store = open_store(source, SFTExample, chat, tmp_path, "train")
    assert [store.row(number)[1] for number in range(len(store))] == [
        [chat.prompt_ids(turns[: 2 * number + 1]), chat.completion_ids(answer)] for number, answer in enumerate(said)
    ]
    assert open_store(FileSource(str(tmp_path / "a.jsonl")), SFTExample, chat, tmp_path, "train").path != store.path
    assert not store.held_out(0.5, 0).any() or store.held_out(0.5, 0).all(), "a conversation is on one side"


@dataclass(frozen=True)
class Given(Source):
    """Somebody's own source, which gives what it was given."""

    records: list[Any] = field(default_factory=list)
    weight: float = 1.0

    def read(self, kind: type[R]) -> list[R]:
        return self.records


class Reversed(FileSource):
    """Somebody's own way to read files."""

    def read(self, kind: type[R]) -> list[R]:
        return super().read(kind)[::-1]

    def stream(self, kind: type[R]) -> Iterator[tuple[str, R]]:
        return iter(list(super().stream(kind))[::-1])


def test_a_source_without_a_fingerprint_is_identified_by_its_records(
    folder: Path, chatml: ChatTokenizer, request: pytest.FixtureRequest
) -> None:
    first = open_store(Given(completions(4)), SFTExample, chatml, folder, "train")
    other = open_store(Given([*completions(3), *completions(5)[4:]]), SFTExample, chatml, folder, "train")
    assert [name for name, _ in ids_of(first)] == ["e0", "e1", "e2", "e3"]
    assert [name for name, _ in ids_of(other)] == ["e0", "e1", "e2", "e4"]
    request.getfixturevalue("never_tokenise")
    assert open_store(Given(completions(4)), SFTExample, chatml, folder, "train").path == first.path


def test_a_subclass_that_reads_files_differently_has_a_store_of_its_own(
    tmp_path: Path, folder: Path, chatml: ChatTokenizer
) -> None:
    source = source_of(tmp_path / "a.jsonl", completions(4))
    plain = open_store(source, SFTExample, chatml, folder, "train")
    turned = open_store(Reversed(source.path), SFTExample, chatml, folder, "train")
    assert ids_of(turned) == ids_of(plain)[::-1]


def test_fingerprints_of_tokenizers(
    chatml: ChatTokenizer, hf_tokenizers: dict[str, PreTrainedTokenizerFast], tmp_path: Path
) -> None:
    prints = {ChatTokenizer(hf).fingerprint for hf in hf_tokenizers.values()}
    assert len(prints) == len(hf_tokenizers)
    copies = [pickle.loads(pickle.dumps(chatml.hf)) for _ in range(2)]
    # Neither use nor the folder it comes from makes it another one.
    copies[0](["a", "b c"], padding=True, truncation=True, max_length=1)
    copies[1].save_pretrained(tmp_path / "saved")
    copies[1] = PreTrainedTokenizerFast.from_pretrained(tmp_path / "saved")
    assert {ChatTokenizer(hf).fingerprint for hf in copies} == {chatml.fingerprint}
    others = [pickle.loads(pickle.dumps(chatml.hf)) for _ in range(3)]
    others[0].eos_token = "<|endoftext|>"
    others[1].split_special_tokens = True
    others[2].backend_tokenizer.normalizer = normalizers.Lowercase()
    assert len({chatml.fingerprint, *(ChatTokenizer(hf).fingerprint for hf in others)}) == 4


class Shouting(ByT5Tokenizer):
    """A tokenizer with the files of its parent and different code."""

    def _tokenize(self, text: str) -> list[str]:
        return super()._tokenize(text.upper())


def test_fingerprints_of_tokenizers_in_python() -> None:
    found = []
    for kind, template, extra in (
        (ByT5Tokenizer, "a", 10),
        (ByT5Tokenizer, "a", 10),
        (ByT5Tokenizer, "b", 10),
        (ByT5Tokenizer, "a", 20),
        (Shouting, "a", 10),
    ):
        hf = kind(extra_ids=extra)
        hf.chat_template = template
        found.append(ChatTokenizer(hf).fingerprint)
    assert found[0] == found[1] and len(set(found)) == 4


# Complete or absent.


@pytest.mark.parametrize("where", [0.0, 0.3, 0.5, 0.99])
@pytest.mark.parametrize("lost", ["zeroed", "cut", "flipped"])
def test_a_damaged_store_is_made_anew_and_a_line_says_so(
    tmp_path: Path, folder: Path, chatml: ChatTokenizer, caplog: pytest.LogCaptureFixture, where: float, lost: str
) -> None:
    source = source_of(tmp_path / "a.jsonl", completions(50))
    path = open_store(source, SFTExample, chatml, folder, "train").path
    content = bytearray(path.read_bytes())
    at = int(where * len(content))
    if lost == "zeroed":
        content[at : at + 64] = bytes(len(content[at : at + 64]))
    elif lost == "cut":
        del content[at:]
    else:
        content[at] ^= 1
    path.write_bytes(content)
    with caplog.at_level("INFO"):
        assert ids_of(open_store(source, SFTExample, chatml, folder, "train")) == wanted(completions(50), chatml)
    assert caplog.messages == [f"train: the tokenised examples in {path} are damaged and are made anew"]


@pytest.mark.parametrize("room", [0, 2000])
def test_a_full_disk_is_one_line_and_leaves_nothing(
    tmp_path: Path, folder: Path, chatml: ChatTokenizer, full_disk: Any, one_core: None, room: int
) -> None:
    source = source_of(tmp_path / "a.jsonl", completions(300))
    with full_disk(room), pytest.raises(UserError, match=r"cannot be written: File too large; .* data\.cache$"):
        open_store(source, SFTExample, chatml, folder, "train")
    assert left_in(folder) == []


def test_a_source_that_cannot_be_read_is_not_blamed_on_the_cache(
    tmp_path: Path, folder: Path, chatml: ChatTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = source_of(tmp_path / "a.jsonl", completions(3))

    def fail(*_: Any, **__: Any) -> Any:
        raise ConnectionError("the network is down")

    monkeypatch.setattr(FileSource, "stream", fail)
    with pytest.raises(UserError, match=r"^data\.train: cannot be read: the network is down$"):
        open_store(source, SFTExample, chatml, folder, "train")


def test_a_killed_build_leaves_no_store(
    tmp_path: Path, folder: Path, llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = source_of(tmp_path / "a.jsonl", completions(2000))
    code = (
        "import sys; from pathlib import Path\n"
        "import os\n"
        "from judgelit.batches import token_store\n"
        "from judgelit.records.records import SFTExample\n"
        "from judgelit.records.sources import FileSource\n"
        "from judgelit.batches.tokenizer import ChatTokenizer\n"
        "token_store.CHUNK, token_store.PARALLEL_FROM, os.sched_getaffinity = 4, 8, lambda process: {0, 1}\n"
        "tokenizer = ChatTokenizer.load(sys.argv[1])\n"
        "token_store.open_store(FileSource(sys.argv[2]), SFTExample, tokenizer, Path(sys.argv[3]), 'train')\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, llama, source.path, str(folder)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stderr=subprocess.DEVNULL,
    )
    for _ in range(1200):
        parts = list(folder.glob(f".*{PART}"))
        if parts and parts[0].stat().st_size > 4000:
            break
        time.sleep(0.05)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    process.kill()
    process.wait()
    assert parts and left_in(folder) == [parts[0].name]
    # Its processes end by themselves.
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and any(Path(f"/proc/{child}/cmdline").exists() for child in children):
        time.sleep(0.05)
    assert not any(Path(f"/proc/{child}/cmdline").exists() for child in children)
    tokenizer = ChatTokenizer.load(llama)
    store = open_store(source, SFTExample, tokenizer, folder, "train")
    assert len(store) == 2000
    assert left_in(folder) == sorted([store.path.name, parts[0].name]), "another process may still be writing it"
    os.utime(parts[0], (0, 0))
    other = open_store(Given(completions(3)), SFTExample, tokenizer, folder, "train")
    assert left_in(folder) == sorted([store.path.name, other.path.name])


def test_builders_at_the_same_time_do_no_harm(
    tmp_path: Path, folder: Path, chatml: ChatTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = source_of(tmp_path / "a.jsonl", completions(40))
    together, prompt_ids, begun = threading.Barrier(3, timeout=60), ChatTokenizer.prompt_ids, set()

    def wait(*args: Any) -> Any:
        if threading.get_ident() not in begun:
            begun.add(threading.get_ident())
            together.wait()
        return prompt_ids(*args)

    found: list[TokenStore] = []
    threads = [
        threading.Thread(target=lambda: found.append(open_store(source, SFTExample, chatml, folder, "train")))
        for _ in range(3)
    ]
    with monkeypatch.context() as patched:
        patched.setattr(ChatTokenizer, "prompt_ids", wait)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [ids_of(store) for store in found] == [wanted(completions(40), chatml)] * 3
    assert left_in(folder) == [found[0].path.name]


# The rows that a loader reads.


@pytest.fixture
def stores(tmp_path: Path, folder: Path, chatml: ChatTokenizer) -> list[TokenStore]:
    """Two stores of preferences, of 10 and 6 rows."""
    both = [source_of(tmp_path / "a.jsonl", preferences(10)), source_of(tmp_path / "b.jsonl", preferences(16)[10:])]
    return [open_store(source, PreferenceExample, chatml, folder, "train") for source in both]


def test_rows_are_those_chosen_of_each_store(stores: list[TokenStore], chatml: ChatTokenizer) -> None:
    rows = TokenRows([(stores[0], np.array([1, 4, 5])), (stores[1], np.arange(6))])
    made = wanted(preferences(10), chatml)
    made = [made[number] for number in (1, 4, 5)] + wanted(preferences(16)[10:], chatml, "b.jsonl:{}")
    assert list(rows) == [TokenizedPreference(name, *ids) for name, ids in made]
    assert rows[-1] == rows[8] == list(rows)[8]
    with pytest.raises(IndexError):
        rows[9]
    assert rows.lengths.tolist() == [len(row) for row in rows]
    assert rows.prompts.prompt_tokens.tolist() == [len(row.prompt) for row in rows]
    paid = [len(row.chosen) + len(row.rejected) for row in rows]  # type: ignore[union-attr]
    assert rows.prompts.completion_tokens.tolist() == paid
    same = [[tuple(one.prompt) == tuple(other.prompt) for one in rows] for other in rows]
    assert (rows.prompt_keys[:, None] == rows.prompt_keys).tolist() == same
    assert rows.prompt_keys.dtype == np.int64


def test_completions_are_rows_too(tmp_path: Path, folder: Path, chatml: ChatTokenizer) -> None:
    store = open_store(source_of(tmp_path / "a.jsonl", completions(3)), SFTExample, chatml, folder, "train")
    rows = TokenRows([(store, np.array([2]))])
    name, ids = wanted(completions(3), chatml)[2]
    assert list(rows) == [TokenizedCompletion(name, *ids)]
    assert rows.lengths.tolist() == [len(rows[0])]


def test_a_fingerprint_stands_for_these_rows_in_this_order(stores: list[TokenStore]) -> None:
    def fingerprint(*parts: tuple[TokenStore, list[int]]) -> str:
        return TokenRows([(store, np.array(rows)) for store, rows in parts]).fingerprint

    a, b = stores
    everything = [*range(10)]
    chosen = [
        ((a, everything),),
        ((a, everything[:-1]),),
        ((a, [1, 2]),),
        ((a, [1, 3]),),
        ((b, [1, 2]),),
        ((a, [1]), (a, [2])),
        ((a, [1]), (b, [2])),
        ((b, [2]), (a, [1])),
    ]
    assert len({fingerprint(*parts) for parts in chosen}) == len(chosen)
    assert fingerprint((a, [1, 2])) == fingerprint((TokenStore(a.path), [1, 2]))


def test_rows_of_a_file_that_was_renamed_keep_their_fingerprint(
    tmp_path: Path, folder: Path, chatml: ChatTokenizer
) -> None:
    found = set()
    for name, count in (("a", 3), ("b", 3), ("c", 4)):
        store = open_store(
            source_of(tmp_path / f"{name}.jsonl", completions(count)), SFTExample, chatml, folder, "train"
        )
        found.add(TokenRows([(store, np.arange(count))]).fingerprint)
    assert len(found) == 2


def test_rows_are_pickled_as_paths(stores: list[TokenStore]) -> None:
    rows = TokenRows([(stores[0], np.arange(10)), (stores[1], np.arange(6))])
    before = len(pickle.dumps(rows))
    assert len(rows.lengths) == len(rows.prompt_keys) == 16
    packed = pickle.dumps(rows)
    assert len(packed) == before < 800
    assert list(pickle.loads(packed)) == list(rows)
    # Other processes map the file themselves.
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(rows.__getitem__, [0, 15]) == [rows[0], rows[15]]


def test_reference_values_come_with_their_rows(stores: list[TokenStore]) -> None:
    rows = TokenRows([(stores[0], np.array([3, 7])), (stores[1], np.array([2]))])
    assert rows[1].reference is None  # type: ignore[union-attr]
    rows.reference = [[-1.0, -2.0], [-3.0], [-4.0]]
    assert [row.reference for row in rows] == [[-1.0, -2.0], [-3.0], [-4.0]]  # type: ignore[union-attr]
    assert pickle.loads(pickle.dumps(rows))[1] == rows[1]


@pytest.mark.parametrize("fraction", [0.0, 0.001, 0.3, 0.9999])
def test_the_split_of_rows_is_the_split_of_records(
    tmp_path: Path, folder: Path, chatml: ChatTokenizer, fraction: float
) -> None:
    records = [replace(one, meta={**one.meta, "question": f"k{n // 3}"}) for n, one in enumerate(completions(60))]
    store = open_store(source_of(tmp_path / "a.jsonl", records), SFTExample, chatml, folder, "train")
    names = [store.row(index)[0] for index in np.flatnonzero(store.held_out(fraction, 3))]
    assert names == [record.pair_id for record in split_by_group(records, fraction, 3)[1]]
    assert 0 < len(names) < 60 or fraction == 0
