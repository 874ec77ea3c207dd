"""Stages of `judgelit run`, one by one, with a small model, a scripted teacher and few pairs."""

import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from judgelit.errors import UserError
from judgelit.pipeline.recipe import ConfigFile, Recipe
from judgelit.pipeline.run import Run
from judgelit.records.files import write_records
from judgelit.records.records import PreferenceExample, SFTExample
from judgelit.records.sources import FileSource
from judgelit.shipped_configs import find
from judgelit.synthesis.enhancement import Enhancement
from judgelit.synthesis.teachers import EngineTeacher, TaskTeacher
from judgelit.synthesis.warmup import Warmup
from tests.support import ScriptedEngine, make_pair, read_card, short_templates

MakeRun = Callable[..., Run]


@pytest.fixture
def make_run(tmp_path: Path, llama: str) -> MakeRun:
    """A run with 8 training pairs, and one that is held out."""

    def make(**changed: Any) -> Run:
        for name, numbers in (("train", range(8)), ("held", [100])):
            write_records(tmp_path / f"{name}.jsonl", [make_pair(number, "AB"[number % 2]) for number in numbers])
        settings = {
            "output": str(tmp_path / "run"),
            "train": str(tmp_path / "train.jsonl"),
            "sets": {"held": str(tmp_path / "held.jsonl")},
            "teacher": TaskTeacher(),
            "sft": ConfigFile("quickstart/sft"),
            "dpo": ConfigFile("quickstart/dpo"),
            "model": llama,
            "templates": short_templates(tmp_path / "templates"),
            "warmup": Warmup(balance_labels=False, balance_length=False),
            "max_new_tokens": 16,
            "enhancement": Enhancement(max_new_tokens=16),
            "device": "cpu",
        }
        return Run(Recipe(**{**settings, **changed}))

    return make


def limited(folder: Path, fit: str, max_length: int) -> ConfigFile:
    """The quickstart's configuration of a fit, for examples of at most this many tokens."""
    content = yaml.safe_load(Path(find(f"quickstart/{fit}")).read_text(encoding="utf-8"))
    content["data"]["init_args"]["max_length"] = max_length
    (folder / f"{fit}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return ConfigFile(str(folder / f"{fit}.yaml"))


def right_judgment(prompt: str, sample: int = 0) -> str:
    return "Fine. [[A]]" if "A: yes" in prompt else "Fine. [[B]]"


def let_judge(run: Run, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have this engine judge in the run."""
    engine.tokenizer = run.tokenizer

    @contextmanager
    def judge(*_: Any) -> Iterator[ScriptedEngine]:
        yield engine

    monkeypatch.setattr(run, "engine", judge)


def test_the_model_of_the_teacher_is_released_when_its_stage_ends(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []

    def load(spec: Any) -> ScriptedEngine:
        engine = ScriptedEngine(right_judgment)
        loaded.append(weakref.ref(engine))
        return engine

    monkeypatch.setattr("judgelit.synthesis.teachers.load_engine", load)
    run = make_run(teacher=EngineTeacher(model="teacher"))
    run.stage("01-pairs", run.make_pairs)
    run.stage("02-warmup", run.make_warmup)
    assert [engine() for engine in loaded] == [None]


def test_a_continued_stage_costs_what_all_its_calls_cost(make_run: MakeRun) -> None:
    def work(seconds: float, *, ends: bool) -> Callable[[Path], dict[str, int]]:
        def do(_: Path) -> dict[str, int]:
            time.sleep(seconds)
            if not ends:
                raise KeyboardInterrupt
            return {"tokens": 7}

        return do

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            make_run().stage("02-warmup", work(0.3, ends=False))
    run = make_run()
    run.stage("02-warmup", work(0, ends=True))
    assert 0.6 <= run.results.cost["02-warmup"]["seconds"] < 60
    again = make_run()
    assert not again.stage("02-warmup", work(0.3, ends=True))
    assert again.results.cost == run.results.cost


def test_both_trainings_leave_out_the_pairs_of_evaluation_sets(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bench.jsonl").write_text('{"question": "Question 3"}\n')
    monkeypatch.setattr("judgelit.synthesis.teachers.load_engine", lambda _: ScriptedEngine(right_judgment))
    chosen = Warmup(balance_labels=False, balance_length=False, decontaminate={"bench": str(tmp_path / "bench.jsonl")})
    run = make_run(teacher=EngineTeacher(model="teacher"), warmup=chosen)
    let_judge(run, ScriptedEngine(lambda _, sample: f"{sample} [[{'AB'[sample % 2]}]]"), monkeypatch)
    run.stage("01-pairs", run.make_pairs)
    run.stage("02-warmup", run.make_warmup)
    run.stage("06-enhancement", lambda folder: run.make_enhancement(folder, run.base))
    left = {f"p{number}" for number in range(8)} - {"p3"}
    assert {row.pair_id for row in FileSource(str(run.path("02-warmup", "sft.jsonl"))).read(SFTExample)} == left
    examples = FileSource(str(run.path("06-enhancement", "dpo.jsonl"))).read(PreferenceExample)
    assert {example.meta["pair_id"] for example in examples} == left
    for stage in ("02-warmup", "06-enhancement"):
        assert read_card(run.path(stage, "README.md"))["decontamination"] == {"bench": {"questions": 1, "pairs": 1}}


def test_prompts_and_judgments_have_room_in_the_fits_that_train_on_them(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = {"sft": 300, "dpo": 240}
    fits = {fit: limited(tmp_path, fit, length) for fit, length in most.items()}
    run = make_run(
        teacher=EngineTeacher(model="teacher"), enhancement=Enhancement(samples=2, max_new_tokens=24), **fits
    )

    def say(prompt: str, sample: int) -> str:
        """A judgment of exactly 24 tokens, as one that the limit has cut."""
        text = f"[[{'AB'[sample % 2]}]] "
        while len(run.tokenizer.text_ids(text + "hm")) <= 24:
            text += "hm"
        return text

    monkeypatch.setattr("judgelit.synthesis.teachers.load_engine", lambda _: ScriptedEngine(right_judgment))
    let_judge(run, ScriptedEngine(say), monkeypatch)
    long = [make_pair(n, "AB"[n % 2], "yes" + " very" * (400 + n), "no" + " very" * (400 + n)) for n in range(8)]
    write_records(tmp_path / "train.jsonl", long)
    run.stage("01-pairs", run.make_pairs)
    run.stage("02-warmup", run.make_warmup)
    run.stage("06-enhancement", lambda folder: run.make_enhancement(folder, run.base))
    warmup = FileSource(str(run.path("02-warmup", "sft.jsonl"))).read(SFTExample)
    pairs = FileSource(str(run.path("06-enhancement", "dpo.jsonl"))).read(PreferenceExample)
    assert (len(warmup), len(pairs)) == (8, 16)
    made = {
        "sft": [(one.messages, one.completion) for one in warmup],
        "dpo": [(one.messages, text) for one in pairs for text in (one.chosen, one.rejected)],
    }
    for fit, texts in made.items():
        lengths = [len(run.tokenizer.prompt_ids(m)) + len(run.tokenizer.completion_ids(text)) for m, text in texts]
        assert most[fit] - 16 <= max(lengths) <= most[fit], "and the room is used"


@pytest.mark.parametrize(("fit", "setting"), [("sft", "max_new_tokens"), ("dpo", "enhancement.max_new_tokens")])
def test_a_fit_without_room_for_a_prompt_is_refused_at_the_start(
    make_run: MakeRun, tmp_path: Path, fit: str, setting: str
) -> None:
    fits = {fit: limited(tmp_path, fit, 40)}
    longest = {"max_new_tokens": 40, "enhancement": Enhancement(max_new_tokens=40)}
    with pytest.raises(UserError) as error:
        make_run(**fits, **longest)
    assert str(error.value).startswith(f"{tmp_path / fit}.yaml: data.max_length: found 40, expected more than")
    assert f"raise it, or lower {setting}" in str(error.value)
    longest = {"max_new_tokens": 16, "enhancement": Enhancement(max_new_tokens=16)}
    make_run(**fits, **longest)
