import json
from pathlib import Path
from typing import Any

import pytest

from judgelit.batches.tokenizer import ChatTokenizer
from judgelit.errors import UserError
from judgelit.generation.engine import EngineSpec, Generated
from judgelit.generation.local import LocalEngine
from judgelit.judging.verdict import parse
from judgelit.records.files import write_records
from judgelit.records.records import PreferenceExample, PreferencePair, SFTExample
from judgelit.records.sources import FileSource
from judgelit.synthesis.command import main
from judgelit.synthesis.tasks.pairs import TaskPairs
from tests.support import ScriptedEngine, read_card, short_templates


@pytest.fixture
def pairs(tmp_path: Path) -> list[PreferencePair]:
    """The pairs of a file, with judge prompts beside it."""
    short_templates(tmp_path / "templates", {"one": "careful", "two": "brief"})
    made = TaskPairs(kinds=["sorting"], difficulties=[1], count=24).read(PreferencePair)
    write_records(tmp_path / "pairs.jsonl", made)
    return made


def synthesize(folder: Path, command: str, output: str, *more: str) -> str:
    path = str(folder / output)
    templates = ["--templates.names=[one, two]", f"--templates.folder={folder}/templates"]
    main([command, f"--pairs={folder}/pairs.jsonl", f"--output={path}", *templates, *more])
    return path


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_warmup_writes_a_set_to_train_on(
    tmp_path: Path, llama: str, pairs: list[PreferencePair], suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = synthesize(tmp_path, "warmup", f"sft.{suffix}", f"--tokenizer={llama}")
    examples = FileSource(path).read(SFTExample)
    by_id = {pair.id: pair for pair in pairs}
    assert examples
    for example in examples:
        assert parse(example.completion) == by_id[example.pair_id].in_order(example.meta["order"]).label
    printed = capsys.readouterr().out
    assert f"24 pairs: {len(examples)} judgments kept" in printed and path in printed
    again = synthesize(tmp_path, "warmup", f"again.{suffix}", f"--tokenizer={llama}")
    assert Path(again).read_bytes() == Path(path).read_bytes()
    other = synthesize(tmp_path, "warmup", f"other.{suffix}", f"--tokenizer={llama}", "--seed=1")
    assert Path(other).read_bytes() != Path(path).read_bytes()


def test_warmup_takes_a_teacher_that_glances(tmp_path: Path, llama: str, pairs: list[PreferencePair]) -> None:
    teacher = ["--teacher=judgelit.TaskTeacher", "--teacher.glance_rate=1"]
    path = synthesize(tmp_path, "warmup", "sft.jsonl", f"--tokenizer={llama}", *teacher)
    examples = FileSource(path).read(SFTExample)
    assert {example.meta["template"] for example in examples if "At a glance" in example.completion} == {"two"}


def test_warmup_takes_a_model_as_teacher(
    tmp_path: Path, llama: str, pairs: list[PreferencePair], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[EngineSpec] = []

    def load(spec: EngineSpec) -> ScriptedEngine:
        loaded.append(spec)
        return ScriptedEngine(lambda prompt, _: "[[A]]")

    monkeypatch.setattr("judgelit.synthesis.teachers.load_engine", load)
    teacher = ["--teacher=EngineTeacher", "--teacher.model=TEACHER", "--teacher.dtype=bfloat16"]
    sampling = ["--teacher.temperature=0.7"]
    with pytest.raises(UserError, match="no judgment of TEACHER was kept"):
        # A judge that always says A leaves nothing to balance.
        synthesize(tmp_path, "warmup", "sft.jsonl", f"--tokenizer={llama}", *teacher, *sampling)
    assert loaded == [EngineSpec("TEACHER", "bfloat16")]


def test_enhancement_writes_a_set_to_train_on_and_asks_nothing_twice(
    tmp_path: Path, llama: str, pairs: list[PreferencePair], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def speak(self: LocalEngine, conversations: Any, *args: Any, samples: int = 1, done: Any = (), **more: Any) -> Any:
        for index in range(len(conversations)):
            if index not in done:
                asked.append(index)
                texts = [f"thought {sample} [[{'AB'[sample % 2]}]]" for sample in range(samples)]
                yield index, [Generated(text, "stop") for text in texts]

    monkeypatch.setattr(LocalEngine, "answer", speak)
    settings = [f"--model={llama}", "--settings.samples=4", "--settings.max_new_tokens=20"]
    path = synthesize(tmp_path, "enhancement", "dpo.jsonl", *settings)
    examples = FileSource(path).read(PreferenceExample)
    assert len(examples) == 48 * 3 and len(asked) == 48
    assert all(parse(e.chosen) == e.meta["verdict"] != parse(e.rejected) for e in examples)
    before = Path(path).read_bytes()
    synthesize(tmp_path, "enhancement", "dpo.jsonl", *settings)
    assert Path(path).read_bytes() == before and len(asked) == 48


def test_enhancement_leaves_out_the_pairs_of_evaluation_sets(
    tmp_path: Path, llama: str, pairs: list[PreferencePair], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = ScriptedEngine(lambda _, sample: f"[[{'AB'[sample % 2]}]]", tokenizer=ChatTokenizer.load(llama))
    loaded: list[EngineSpec] = []
    monkeypatch.setattr("judgelit.synthesis.command.load_engine", lambda spec, **_: loaded.append(spec) or engine)
    settings = [f"--model={llama}", "--settings.samples=2", "--settings.max_new_tokens=20"]
    with pytest.raises(UserError, match=r"nowhere\.jsonl: no such file"):
        synthesize(tmp_path, "enhancement", "dpo.jsonl", *settings, "--decontaminate=nowhere.jsonl")
    assert not loaded, "refused before the model is loaded"
    write_records(tmp_path / "eval.jsonl", pairs[:5])
    held = {pair.question_key for pair in pairs[:5]}
    path = synthesize(tmp_path, "enhancement", "dpo.jsonl", *settings, f"--decontaminate={tmp_path}/eval.jsonl")
    kept = {pair.id for pair in pairs if pair.question_key not in held}
    assert {example.meta["pair_id"] for example in FileSource(path).read(PreferenceExample)} == kept
    card = read_card(Path(f"{path}.card.md"))
    assert card["decontamination"] == {"eval": {"questions": len(held), "pairs": len(pairs) - len(kept)}}
    assert card["dropped"]["in evaluation sets"] == len(pairs) - len(kept)
    assert card["settings"]["decontaminate"] == f"{tmp_path}/eval.jsonl"


def test_limit_takes_the_first_pairs(
    tmp_path: Path, llama: str, pairs: list[PreferencePair], capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--balance_labels=false", "--balance_length=false", "--limit=5"]
    path = synthesize(tmp_path, "warmup", "sft.jsonl", f"--tokenizer={llama}", *more)
    examples = FileSource(path).read(SFTExample)
    assert [example.pair_id for example in examples] == [pair.id for pair in pairs[:5]]
    assert "5 pairs: 5 judgments kept; dropped: none" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "complaint"), [("hello", ":1: not JSON"), ("", "found no rows"), ("null", ":1: found null")]
)
def test_the_text_of_a_data_file_never_becomes_the_name_of_another(
    tmp_path: Path, llama: str, pairs: list[PreferencePair], text: str, complaint: str
) -> None:
    (tmp_path / "words.jsonl").write_text(text)
    with pytest.raises(UserError, match=rf"words\.jsonl.*{complaint}"):
        synthesize(tmp_path, "warmup", "out.jsonl", f"--tokenizer={llama}", f"--pairs={tmp_path / 'words.jsonl'}")


@pytest.mark.parametrize(
    ("command", "more", "complaint"),
    [
        ("warmup", ["--teacher=Nope"], "teacher: found 'Nope', expected Teacher"),
        ("warmup", ["--seeed=1"], "unknown key 'seeed'; the nearest known one is 'seed'"),
        ("warmup", ["--pairs=nowhere.jsonl"], "nowhere.jsonl: no such file"),
        ("enhancement", ["--settings.temperature=0"], "temperature above 0"),
        ("enhancement", ["--settings.temperature=.nan"], "temperature: found nan, expected 0 (greedy) or"),
        ("enhancement", ["--settings.temperature=.inf"], "temperature: found inf"),
        ("enhancement", ["--settings.temperature=1e-320"], "temperature: found 1e-320"),
        ("enhancement", ["--settings.pairs_per_prompt=0"], "pairs_per_prompt: found 0"),
        ("warmup", ["--output=out.txt"], "out.txt: unknown suffix for writing"),
        # Before the pairs are read and the model is loaded.
        ("enhancement", ["--output=out.txt", "--pairs=nowhere.jsonl"], "out.txt: unknown suffix for writing"),
        ("warmup", ["--limit=0"], "limit: found 0, expected 1 or more"),
        ("enhancement", ["--limit=-1"], "limit: found -1, expected 1 or more"),
        ("warmup", ["--max_prompt_tokens=0"], "max_prompt_tokens: found 0, expected 1 or more"),
        ("enhancement", ["--max_prompt_tokens=-1"], "max_prompt_tokens: found -1, expected 1 or more"),
        (
            "enhancement",
            ["--settings.max_new_tokens=1024"],
            "max_prompt_tokens: found 0, expected 1 or more; max_new_tokens leaves none of the context",
        ),
    ],
)
def test_wrong_input_is_one_line(
    tmp_path: Path, llama: str, pairs: list[PreferencePair], command: str, more: list[str], complaint: str
) -> None:
    model = f"--tokenizer={llama}" if command == "warmup" else f"--model={llama}"
    with pytest.raises(UserError) as error:
        synthesize(tmp_path, command, "out.jsonl", model, *more)
    assert complaint in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize("command", ["warmup", "enhancement"])
def test_pairs_come_from_a_public_source(
    tmp_path: Path, llama: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rankings = [
        {"prompt": f"question {number}", "answers": [{"answer": f"{n}", "rank": n} for n in (1, 2, 3)]}
        for number in range(4)
    ]
    (tmp_path / "native.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rankings))
    read: list[PreferencePair] = []

    def stop(pairs: list[PreferencePair], *args: Any, **more: Any) -> Any:
        read.extend(pairs)
        raise UserError("enough")

    monkeypatch.setattr(f"judgelit.synthesis.command.synthesize_{command}", stop)
    settings = ["--source=nectar", f"--pairs={tmp_path}/native.jsonl", f"--output={tmp_path}/out.jsonl", "--limit=10"]
    model = [f"--tokenizer={llama}"] if command == "warmup" else [f"--model={llama}", "--max_prompt_tokens=9"]
    with pytest.raises(UserError, match="enough"):
        main([command, *settings, *model])
    assert len(read) == 10
    for pair in read:
        better, worse = (pair.answer_a, pair.answer_b)[:: 1 if pair.label == "A" else -1]
        assert int(better) < int(worse)
