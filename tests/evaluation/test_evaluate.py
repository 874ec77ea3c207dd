import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from judgelit.errors import UserError
from judgelit.evaluation.evaluate import evaluate, main
from judgelit.evaluation.protocols.pairs import PAIRS
from judgelit.generation.engine import EngineSpec, Generated
from judgelit.generation.loading import templates_of
from judgelit.generation.local import LocalEngine
from judgelit.generation.sampling import Sampling
from judgelit.judging.kept_templates import keep_templates
from judgelit.judging.prompts import Templates
from judgelit.records.files import read_rows, write_records
from judgelit.records.records import Judgment, PreferencePair
from tests.support import make_pair, short_templates

ONE = [make_pair(number, "AB"[number % 2]) for number in range(5)]
TWO = [make_pair(number, "BA"[number % 2], "yes indeed") for number in range(10, 13)]


class Folders:
    def __init__(self, folder: Path, model: str) -> None:
        self.folder, self.model = folder, model
        self.templates = short_templates(folder / "templates")
        self.sets = {"one": str(folder / "one.jsonl"), "two": str(folder / "two.jsonl")}
        write_records(self.sets["one"], ONE)
        write_records(self.sets["two"], TWO)

    def evaluate(self, output: str = "out", **more: Any) -> dict[str, Any]:
        sets = {} if "pairs" in more else {"sets": self.sets}
        settings = {"templates": self.templates, "max_new_tokens": 4, "batch_size": 4, **sets, **more}
        evaluate(model=self.model, output=str(self.folder / output), **settings)
        return json.loads((self.folder / output / "results.json").read_text())

    def judgments(self, name: str, output: str = "out") -> list[Judgment]:
        return [Judgment.from_dict(row, at) for at, row in read_rows(f"{self.folder}/{output}/{name}.judgments.jsonl")]


@pytest.fixture
def folders(tmp_path: Path, llama: str) -> Folders:
    return Folders(tmp_path, llama)


@pytest.fixture
def speaking(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replaces each text of the model by a verdict that depends on its first letter. Returns the prompts asked."""
    asked: list[str] = []
    answer = LocalEngine.answer

    def speak(self: LocalEngine, conversations: Any, *args: Any, **more: Any) -> Any:
        for index, texts in answer(self, conversations, *args, **more):
            asked.append(conversations[index][-1]["content"])
            said = [f"[[{'AB'[ord((answer.text or 'A')[0]) % 2]}]]" for answer in texts]
            yield index, [Generated(text, "stop") for text in said]

    monkeypatch.setattr(LocalEngine, "answer", speak)
    return asked


def test_results_can_be_recomputed_from_the_judgments(folders: Folders, speaking: list[str], capsys: Any) -> None:
    results = folders.evaluate()
    assert (results["model"], set(results["sets"])) == (folders.model, {"one", "two"})
    settings = results["settings"]
    assert settings == json.loads((folders.folder / "out/settings.json").read_text())
    weights, texts, of_pairs = settings.pop("weights"), settings["templates"].pop("texts"), settings.pop("pairs")
    assert len({weights, texts, *of_pairs.values()}) == 4 and set(of_pairs) == {"one", "two"}
    assert settings == {
        "command": "evaluate",
        "model": folders.model,
        "benchmarks": {"one": "pairs", "two": "pairs"},
        "templates": {"names": ["short"], "seed": 0},
        "max_new_tokens": 4,
        "stop_at_verdict": True,
        "votes": 1,
        "temperature": 0.0,
        "top_p": 1.0,
        "limit": None,
        "shard": None,
        "seed": 0,
        "dtype": "float32",
        "quantization": None,
        "chat_template": None,
        "chat_template_kwargs": None,
    }
    for name, pairs in {"one": ONE, "two": TWO}.items():
        judgments = folders.judgments(name)
        assert [(j.pair_id, j.order) for j in judgments] == [
            (pair.id, order) for pair in pairs for order in ("ab", "ba")
        ]
        assert all(judgment.verdict in ("A", "B") for judgment in judgments)
        found = PAIRS.estimates(pairs, judgments)
        assert results["sets"][name] == {metric: estimate.to_dict() for metric, estimate in found.items()}
    printed = capsys.readouterr().out
    assert "right in both orders" in printed and "two" in printed
    assert not list(folders.folder.glob("out/*.part"))


def test_ties_and_categories_are_in_the_results(
    folders: Folders, speaking: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"prompt": f"is {n}?", "response 1": "yes", "response 2": "no", "label": n % 3, "scenario": "ab"[n % 2]}
        for n in range(6)
    ]
    path = folders.folder / "auto-j.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    results = folders.evaluate(pairs=str(path))
    found = results["sets"]["auto-j"]
    assert (found["ties"]["n"], found["ties"]["value"]) == (6, pytest.approx(1 / 3))
    assert (found["accuracy"]["n"], found["consistent_accuracy"]["n"]) == (8, 4)
    by_scenario = results["groups"]["auto-j"]["category"]
    assert {name: of["accuracy"]["n"] for name, of in by_scenario.items()} == {"a": 4, "b": 4}
    printed = capsys.readouterr().out
    assert "auto-j: 2 of 6 pairs are labelled tie" in printed
    assert "by category:" in printed and "auto-j, b" in printed


def test_after_a_kill_it_asks_nothing_twice(
    folders: Folders, speaking: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    unbroken = folders.evaluate("unbroken")
    whole = sorted(speaking)
    texts = [judgment.text for judgment in folders.judgments("one", "unbroken")]
    speaking.clear()
    speak = LocalEngine.answer

    def killed(self: LocalEngine, *args: Any, **more: Any) -> Any:
        for answered in speak(self, *args, **more):
            yield answered
            if len(speaking) == 4:  # a batch
                raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(LocalEngine, "answer", killed)
        folders.evaluate()
    assert not (folders.folder / "out/results.json").exists()
    assert folders.evaluate() == unbroken
    assert sorted(speaking) == whole
    assert [judgment.text for judgment in folders.judgments("one")] == texts
    folders.evaluate()
    assert sorted(speaking) == whole


@pytest.mark.parametrize("stop", [True, False])
def test_judgments_stop_at_their_verdict_by_default(
    folders: Folders, stop: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Sampling] = []

    def answer(self: LocalEngine, conversations: Any, sampling: Sampling, **more: Any) -> Any:
        asked.append(sampling)
        yield from ((index, [Generated("[[A]]", "stop")]) for index in range(len(conversations)))

    monkeypatch.setattr(LocalEngine, "answer", answer)
    folders.evaluate(stop_at_verdict=stop)
    assert asked == [Sampling(max_new_tokens=4, stop_at_verdict=stop)] * 2


def test_one_command_takes_benchmarks_that_stop_at_the_verdict_and_those_that_do_not(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def answer(self: LocalEngine, conversations: Any, sampling: Sampling, **more: Any) -> Any:
        asked.append(sampling.stop_at_verdict)
        yield from ((index, [Generated("[[A]]", "stop")]) for index in range(len(conversations)))

    monkeypatch.setattr(LocalEngine, "answer", answer)
    row = {"pair_id": "1", "source": "livebench-math", "question": "q", "response_A": "a", "response_B": "b"}
    (folders.folder / "judgebench.jsonl").write_text(json.dumps({**row, "response_model": "m", "label": "A>B"}))
    sets = {"pairs": folders.sets["one"], "judgebench": str(folders.folder / "judgebench.jsonl")}
    for _ in range(2):  # The second time, all answers are known.
        results = folders.evaluate(benchmark=["pairs", "judgebench"], sets=sets)
    assert {name: found["share_a"]["value"] for name, found in results["sets"].items()} == {"pairs": 1, "judgebench": 1}
    assert asked == [True, False]


def test_limit_takes_the_first_pairs(folders: Folders, speaking: list[str]) -> None:
    results = folders.evaluate(limit=2)
    assert [results["sets"][name]["accuracy"]["n"] for name in ("one", "two")] == [4, 4]
    assert {judgment.pair_id for judgment in folders.judgments("one")} == {"p0", "p1"}


def test_a_pair_that_is_there_in_both_orders_or_twice_is_judged_once(folders: Folders) -> None:
    write_records(folders.sets["one"], [*ONE, ONE[0].swapped(), ONE[1]])
    assert folders.evaluate()["sets"]["one"]["accuracy"]["n"] == 10


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [
        ({"limit": 0}, "limit: found 0, expected 1 or more"),
        ({"max_new_tokens": 1024}, "max_new_tokens: found 1024, expected 1 or more and less than the context of 1024"),
        ({"max_new_tokens": 1010}, "one: no pair fits the 14 tokens"),
        ({"sets": {"a/b": "x.jsonl"}}, "found the name 'a/b'"),
        ({"pairs": "x.jsonl", "sets": {"a": "x.jsonl"}}, "expected one of them, and not both"),
        ({"benchmark": []}, "benchmark: found an empty list, expected names"),
        ({"benchmark": "pears"}, "benchmark: found 'pears', which does not exist; the nearest known one is 'pairs'"),
        ({"device": "cuda:99"}, "device: found 'cuda:99', expected one that this machine has: auto, cpu"),
        ({"pairs": "nowhere.jsonl"}, "nowhere.jsonl: no such file"),
        ({"templates": Templates(["no-such"])}, "no judge template 'no-such'"),
    ],
)
def test_wrong_input_is_one_line(folders: Folders, broken: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError) as error:
        folders.evaluate(**broken)
    assert complaint in str(error.value) and "\n" not in str(error.value)


def test_two_pairs_under_one_id_are_refused(folders: Folders) -> None:
    write_records(folders.sets["one"], [*ONE, PreferencePair("p0", "another question", "a", "b", "A")])
    with pytest.raises(UserError, match="pair id 'p0': found two different pairs"):
        folders.evaluate()


def test_results_of_another_judge_are_not_overwritten(folders: Folders, speaking: list[str]) -> None:
    before = folders.evaluate(pairs=folders.sets["one"])
    with pytest.raises(UserError, match="choose another folder"):
        folders.evaluate(pairs=folders.sets["two"])
    assert json.loads((folders.folder / "out/results.json").read_text()) == before


@pytest.mark.parametrize(
    ("other", "complaint"),
    [
        ({"seed": 1}, "seed: found 0, expected 1"),
        ({"limit": 2}, "limit: found None, expected 2"),
        ({"limit": 5}, "limit: found None, expected 5"),
        ({"max_new_tokens": 5}, "max_new_tokens: found 4, expected 5"),
        ({"stop_at_verdict": False}, "stop_at_verdict: found True, expected False"),
        ({"dtype": "bfloat16"}, "dtype: found 'float32', expected 'bfloat16'"),
        ({"quantization": "nf4"}, "quantization: found None, expected 'nf4'"),
        ({"templates": Templates(["en-brief"])}, "templates.names: found ['short'], expected ['en-brief']"),
    ],
)
def test_results_of_other_settings_are_not_overwritten(
    folders: Folders, speaking: list[str], other: dict[str, Any], complaint: str
) -> None:
    before = folders.evaluate(pairs=folders.sets["one"])
    assert folders.evaluate(pairs=folders.sets["one"], batch_size=2) == before
    with pytest.raises(UserError) as error:
        folders.evaluate(pairs=folders.sets["one"], **other)
    path = folders.folder / "out/settings.json"
    assert str(error.value) == f"{path}: {complaint}; choose another folder with --output"
    assert json.loads((folders.folder / "out/results.json").read_text()) == before


def test_results_of_other_weights_at_the_same_path_are_not_overwritten(
    folders: Folders, speaking: list[str], model_folders: dict[str, str]
) -> None:
    folders.model = str(folders.folder / "model")
    shutil.copytree(model_folders["llama"], folders.model)
    before = folders.evaluate()
    judgments = (folders.folder / "out/one.judgments.jsonl").read_bytes()
    model: Any = AutoModelForCausalLM.from_pretrained(folders.model)
    with torch.no_grad():
        model.lm_head.weight.mul_(1.5)
    model.save_pretrained(folders.model)
    with pytest.raises(UserError, match=r"settings\.json: weights: found '\w+', expected '\w+'; choose another folder"):
        folders.evaluate()
    assert json.loads((folders.folder / "out/results.json").read_text()) == before
    assert (folders.folder / "out/one.judgments.jsonl").read_bytes() == judgments


def test_results_of_other_pairs_of_the_same_name_are_not_overwritten(folders: Folders, speaking: list[str]) -> None:
    before = folders.evaluate()
    write_records(folders.sets["two"], [*TWO, make_pair(99)])
    with pytest.raises(UserError, match=r"pairs\.two: found '\w+', expected '\w+'; choose another folder"):
        folders.evaluate()
    # After a kill there are no results yet, but the folder is taken.
    (folders.folder / "out/results.json").unlink()
    with pytest.raises(UserError, match=r"pairs\.two"):
        folders.evaluate()
    write_records(folders.sets["two"], TWO)
    assert folders.evaluate() == before


def test_a_template_that_has_changed_is_other_settings(folders: Folders, speaking: list[str]) -> None:
    folders.evaluate()
    path = folders.folder / "templates/short.jinja"
    path.write_text(path.read_text() + "Be quick.\n")
    with pytest.raises(UserError, match=r"templates\.texts: found '\w+', expected '\w+'"):
        folders.evaluate()


def test_a_judge_is_asked_with_the_templates_that_its_folder_keeps(
    folders: Folders, speaking: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    own, folders.model = folders.model, str(folders.folder / "judge")
    shutil.copytree(own, folders.model)
    keep_templates(folders.templates.load(), Path(folders.model))
    results = folders.evaluate(templates=Templates())
    assert results["settings"]["templates"]["names"] == ["short"]
    assert all(prompt.startswith("Q: ") for prompt in speaking)
    said = f"judge prompts: those kept with {folders.model} (short); choose others with --templates.names"
    assert said in capsys.readouterr().out
    short_templates(folders.folder / "other", {"other": "brief"})
    other = folders.evaluate("other-out", templates=Templates(["other"], str(folders.folder / "other")))
    assert other["settings"]["templates"]["names"] == ["other"]
    assert "judge prompts" not in capsys.readouterr().out


def test_a_line_says_that_a_judge_keeps_no_templates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert templates_of(Templates(), EngineSpec(str(tmp_path))) == Templates()
    assert f"judge prompts: rise ({tmp_path} keeps none)" in capsys.readouterr().out


def test_a_refused_command_does_not_take_the_folder(folders: Folders, speaking: list[str]) -> None:
    with pytest.raises(UserError, match="no pair fits"):
        folders.evaluate(max_new_tokens=1010)
    assert folders.evaluate()["sets"]


@pytest.mark.parametrize("content", [b"{damaged", b"", b"[1]", b"\xff", b'{"sets": 3}', b'{"settings": 3}'])
def test_damaged_or_unknown_results_are_not_overwritten(folders: Folders, content: bytes) -> None:
    (folders.folder / "out").mkdir()
    for name, complaint in (("results.json", "found results without"), ("settings.json", "found")):
        path = folders.folder / "out" / name
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"{name}: .*{complaint}") as error:
            folders.evaluate()
        assert "\n" not in str(error.value) and path.read_bytes() == content


def test_an_output_that_is_a_file_is_refused(folders: Folders) -> None:
    with pytest.raises(UserError, match=r"one\.jsonl: cannot be written to"):
        folders.evaluate("one.jsonl")


@pytest.mark.parametrize(
    ("file", "name"), [("one.jsonl", "one"), ("one.v2.jsonl", "one"), ("[o]ne.jsonl", "o-ne"), ("*.jsonl", "pairs")]
)
def test_a_set_without_name_gets_the_name_of_its_file(folders: Folders, file: str, name: str) -> None:
    (folders.folder / "sets").mkdir()
    write_records(folders.folder / "sets" / ("one.v2.jsonl" if "v2" in file else "one.jsonl"), ONE)
    assert set(folders.evaluate(pairs=str(folders.folder / "sets" / file))["sets"]) == {name}


def test_pairs_may_be_a_mixture_in_a_yaml_file(folders: Folders, tmp_path: Path) -> None:
    sources = {"class_path": "judgelit.Mixture", "init_args": {"sources": list(folders.sets.values())}}
    (tmp_path / "mixture.yaml").write_text(json.dumps(sources))
    template = ["--templates.names=[short]", f"--templates.folder={tmp_path}/templates", "--max_new_tokens=3"]
    main([f"--model={folders.model}", f"--pairs={tmp_path}/mixture.yaml", f"--output={tmp_path}/cli", *template])
    results = json.loads((tmp_path / "cli/results.json").read_text())
    assert results["sets"]["pairs"]["accuracy"]["n"] == 2 * (len(ONE) + len(TWO))


def test_from_the_command_line(folders: Folders, tmp_path: Path) -> None:
    where = [f"--model={folders.model}", f"--pairs={folders.sets['one']}", f"--output={tmp_path}/cli"]
    template = ["--templates.names=[short]", f"--templates.folder={tmp_path}/templates"]
    main([*where, *template, "--limit=1", "--max_new_tokens=3"])
    engine = ["--dtype=bfloat16", "--device=cpu", "--batch_size=2"]
    main([*where, *template, *engine, "--limit=1", "--max_new_tokens=3", f"--output={tmp_path}/half"])
    assert json.loads((tmp_path / "half/results.json").read_text())["settings"]["dtype"] == "bfloat16"
    results = json.loads((tmp_path / "cli/results.json").read_text())
    assert results["sets"]["one"]["no_verdict"] == {"value": 1, "low": None, "high": None, "n": 2}
    assert results["sets"]["one"]["share_a"]["value"] is None


@pytest.mark.parametrize("too_long", [0, 1])
def test_the_judgments_of_all_shards_give_the_results_of_the_whole(
    folders: Folders, speaking: list[str], too_long: int, capsys: pytest.CaptureFixture[str]
) -> None:
    long = [make_pair(20 + number, question="word " * 2000) for number in range(too_long)]
    write_records(folders.sets["one"], [*ONE, *TWO, *long])
    whole = folders.evaluate(pairs=folders.sets["one"])
    parts = [folders.evaluate(f"part-{n}", pairs=folders.sets["one"], shard=f"{n}/2") for n in (1, 2)]
    assert sum(part["sets"]["one"]["accuracy"]["n"] for part in parts) == 2 * len([*ONE, *TWO])
    judged = str(folders.folder / "part-*/one.judgments.jsonl")
    evaluate(str(folders.folder / "all"), pairs=folders.sets["one"], judgments=judged)
    assert json.loads((folders.folder / "all/results.json").read_text())["sets"] == whole["sets"]
    assert ("1 of 9 pairs are left out, as they were skipped: 'p20'" in capsys.readouterr().out) == bool(too_long)
    # A part that is missing is no pair that was skipped.
    with pytest.raises(UserError, match="found no judgment of"):
        evaluate(str(folders.folder / "half"), pairs=folders.sets["one"], judgments=judged.replace("*", "1"))


def test_a_public_source_is_evaluated_under_its_name(folders: Folders, speaking: list[str]) -> None:
    context = [{"role": "user", "content": "q"}]
    row = {"context": context, "response1": "yes", "response2": "no", "overall_preference": -2, "domain": "stem"}
    path = folders.folder / "native.jsonl"
    path.write_text(json.dumps(row) + "\n")
    results = folders.evaluate(sets=None, source="helpsteer3", pairs=str(path))
    assert set(results["sets"]) == {"helpsteer3"} and set(results["groups"]["helpsteer3"]["category"]) == {"stem"}
    assert len(speaking) == 2
    with pytest.raises(UserError, match="source goes with pairs"):
        folders.evaluate("other", source="helpsteer3")
    with pytest.raises(UserError, match="the nearest known one is 'helpsteer3'"):
        folders.evaluate("other", sets=None, source="helpsteer-3", pairs=str(path))
