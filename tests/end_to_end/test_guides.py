"""The commands of the guides, with small models, few pairs and few steps, in the sequence in which a guide has them."""

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import judgelit
from judgelit.evaluation.protocols import BENCHMARKS
from judgelit.generation.engine import Generated
from judgelit.generation.local import LocalEngine
from judgelit.judging.template import load_templates
from judgelit.records.files import write_records
from judgelit.records.records import PreferenceExample, SFTExample
from judgelit.shipped_configs import configs_folder
from tests.support import make_pair, short_templates

from .conftest import Judgelit

PACKAGE = Path(judgelit.__file__).parent
SHORT = {
    "synthesize": ["--templates.folder=prompts", "--templates.names=[short]"],
    "fit": ["--trainer.max_steps=2", "--trainer.accelerator=cpu", "--data.max_length=400"],
    "evaluate": ["--max_new_tokens=4", "--device=cpu", "--templates.folder=prompts", "--templates.names=[short]"],
    "judge": ["--max_new_tokens=4", "--device=cpu", "--templates.folder=prompts", "--templates.names=[short]"],
}
"""Settings added to each command."""
JUDGED = ["--data.judge.max_new_tokens=4", "--data.judge.templates={names: [short], folder: prompts}"]
"""Settings added to a fit that judges."""


def blocks(guide: Path, language: str = "bash") -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", guide.read_text(encoding="utf-8"), re.DOTALL)


def commands(guide: Path) -> list[list[str]]:
    """The commands of a guide, as lists of arguments."""
    lines = [line for block in blocks(guide) for line in block.replace("\\\n", "").splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("judgelit ")]


@pytest.fixture
def speaking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Judges whose first sample prefers the answer with y, and whose second one the other."""

    def answer(
        self: LocalEngine, conversations: Any, sampling: Any, *, samples: int = 1, done: Any = (), **_: Any
    ) -> Any:
        for index, messages in enumerate(conversations):
            if index not in done:
                first = 0 if "A: y" in messages[-1]["content"] else 1
                letters = ["AB"[(first + sample) % 2] for sample in range(samples)]
                yield index, [Generated(f"It is [[{letter}]]", "verdict", 1.0) for letter in letters]

    monkeypatch.setattr(LocalEngine, "answer", answer)


@pytest.fixture
def world(tmp_path: Path, llama: str, judgelit: Judgelit, speaking: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the guides name."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hub"))
    pairs = [make_pair(n, "AB"[n % 2], "y" * (n % 5 + 1), "n" * (n % 3 + 1)) for n in range(24)]
    write_records("pairs.jsonl", pairs)
    write_records("held_out.jsonl", [make_pair(n, "AB"[n % 2]) for n in range(100, 108)])
    prompt = ({"role": "user", "content": "?"},)
    write_records("sft.jsonl", [SFTExample(prompt, f"{n} [[A]]") for n in range(8)])
    write_records("dpo.jsonl", [PreferenceExample(prompt, f"{n} [[A]]", f"{n} [[B]]") for n in range(8)])
    short_templates(Path("prompts"))
    return tmp_path


def run(judgelit: Judgelit, command: list[str], known: dict[str, str]) -> None:
    more = SHORT.get(command[0], []) if "--judgments" not in command else []
    more = [*more, "--settings.max_new_tokens=8"] if command[1] == "enhancement" else more
    more = [*more, *JUDGED] if "evaluation/during_fit" in command else more
    judgelit(*[known.get(argument, argument) for argument in command], *more)


def test_own_data(world: Path, judgelit: Judgelit, llama: str, capsys: pytest.CaptureFixture[str]) -> None:
    done = commands(configs_folder() / "lora/README.md")
    assert [command[0] for command in done] == [
        *("synthesize", "fit", "synthesize", "fit", "evaluate", "report", "export")
    ]
    for command in done:
        run(judgelit, command, {"MODEL": llama, "TEACHER": llama})
    assert json.loads((world / "scores/results.json").read_text())["sets"]["held_out"]["accuracy"]["n"] == 16
    assert "held_out" in (world / "scores.html").read_text(encoding="utf-8")
    assert list((world / "judge").glob("*.safetensors"))


def test_teachers(world: Path, judgelit: Judgelit, llama: str) -> None:
    warmup, enhancement = commands(configs_folder() / "teacher/README.md")[:2]
    for name in ("sft.jsonl", "dpo.jsonl"):
        (world / name).unlink()
    known = {"MODEL": llama, "TEACHER": llama, "runs/lora-sft/model": llama}
    run(judgelit, warmup, known)
    run(judgelit, enhancement, known)
    kinds = {row["meta"].get("kind") for row in map(json.loads, (world / "sft.jsonl").read_text().splitlines())}
    assert len(kinds) == 3 and (world / "dpo.jsonl").exists()


def test_evaluation(world: Path, judgelit: Judgelit, llama: str, capsys: pytest.CaptureFixture[str]) -> None:
    config = yaml.safe_load((configs_folder() / "evaluation/benchmarks.yaml").read_text(encoding="utf-8"))
    assert all(BENCHMARKS[name].hub is not None for name in config["benchmark"])
    ran = []
    for command in commands(configs_folder() / "evaluation/README.md"):
        if {"--benchmark", "--endpoint", "evaluation/benchmarks", "export"} & set(command):
            continue  # the tests of each benchmark read its own files; those of endpoints have servers
        known = {"JUDGE": llama, "MODEL": llama, "runs/lora-sft/model": "runs/lora-sft/model"}
        if command[0] == "fit":
            judgelit(
                "fit",
                "--config=lora/sft",
                f"--model.backbone.name_or_path={llama}",
                "--data.train=sft.jsonl",
                *SHORT["fit"],
            )
        run(judgelit, [argument for argument in command if argument != "scores"], known)
        ran.append(command[0])
    assert ran.count("evaluate") >= 4 and {"fit", "report"} < set(ran)
    printed = capsys.readouterr().out
    assert all(f"{name}: " in printed for name in BENCHMARKS)


def test_a_benchmark_is_added_by_one_file(
    world: Path, judgelit: Judgelit, refused: Callable[..., str], llama: str
) -> None:
    guide = PACKAGE / "evaluation/protocols/README.md"
    (world / "translations.py").write_text(blocks(guide, "python")[0])
    rows = [{"key": str(n), "text": f"{n}", "first": "eins", "second": "zwei", "winner": "first"} for n in range(4)]
    (world / "translations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (command,) = commands(guide)
    run(judgelit, command, {"JUDGE": llama})
    assert 0 <= json.loads((world / "scores/results.json").read_text())["sets"]["translations"]["score"]["value"] <= 1
    judgelit("report", "scores", "-o", "page.html", "--benchmark", "translations.py:TRANSLATIONS")
    assert "right in either order" in (world / "page.html").read_text(encoding="utf-8")
    rows[2]["winner"] = "third"
    (world / "translations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "translations.jsonl:3: field 'winner': found 'third'" in refused(*command)
    (world / "broken.py").write_text("1 / 0")
    for name, said in {
        "nowhere.py:A": "found nowhere.py:A, but no such file",
        "broken.py:A": "broken.py cannot be run: ZeroDivisionError",
        "translations.py:A": "found no Benchmark 'A' in translations.py, expected one of TRANSLATIONS",
    }.items():
        assert said in refused("evaluate", "--benchmark", name, "--pairs", "x.jsonl", "--model", "m", "--output", "o")


def test_a_judge_prompt_is_added_by_one_file(world: Path, judgelit: Judgelit, llama: str) -> None:
    guide = PACKAGE / "judging/README.md"
    (world / "prompts/summaries.jinja").write_text(blocks(guide, "jinja")[0])
    (text,) = load_templates(["summaries"], "prompts")["summaries"].render(make_pair(1))
    assert "two sentences on each answer" in text["content"]
    (command,) = commands(guide)
    judgelit(*[llama if argument == "JUDGE" else argument for argument in command], "--max_new_tokens=4")
    assert json.loads((world / "scores/settings.json").read_text())["templates"]["names"] == ["summaries"]


def test_a_loss_is_added_by_one_function_and_one_line(world: Path, tmp_path: Path) -> None:
    guide = PACKAGE / "training/README.md"
    (function,) = blocks(guide, "python")
    (line,) = re.findall(r"The line in the table is `(.*?)`", guide.read_text(encoding="utf-8"))
    source = (PACKAGE / "training/losses.py").read_text(encoding="utf-8")
    changed = source.replace("\nLOSSES:", f"\n{function}\n\nLOSSES:").replace(
        '    "sigmoid":', f'    {line},\n    "sigmoid":'
    )
    names: dict[str, Any] = {"__name__": "losses"}
    exec(compile(changed, "losses.py", "exec"), names)
    assert names["PreferenceLoss"](kind="hinge_by_length").kind in names["LOSSES"]


def test_links_of_all_pages_lead_somewhere() -> None:
    root = configs_folder().parent
    pages = [page for folder in ("configs", "judgelit", "benchmarks") for page in (root / folder).rglob("*.md")]
    broken = []
    for page in [root / "README.md", *pages]:
        links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
        broken += [(page, link) for link in links if "://" not in link and not (page.parent / link).exists()]
    assert broken == []
