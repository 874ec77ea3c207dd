"""The recipe at its real size, run on a small model, local files and servers of the test."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoModelForCausalLM

from judgelit.cli import main
from judgelit.shipped_configs import find
from tests.generation.server import StubServer, prompt_of, say
from tests.whole_blocks import widened

pytestmark = pytest.mark.slow

ANSWERS = {"good": "The good answer.", "bad": "A poor answer."}


def verdict_of(prompt: str) -> str:
    """A judgment of a pair of ANSWERS, which is right."""
    first = prompt.index(ANSWERS["good"]) < prompt.index(ANSWERS["bad"])
    return f"One of them is good. [[{'A' if first else 'B'}]]"


@pytest.fixture
def teacher() -> Iterator[StubServer]:
    with StubServer(lambda body, _: say(verdict_of(prompt_of(body)))) as server:
        yield server


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def native_files(folder: Path) -> dict[str, str]:
    """Files in the form of each data set that the recipe names."""

    def turns(question: str, kind: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": question}, {"role": "assistant", "content": ANSWERS[kind]}]

    return {
        "train": write_rows(
            folder / "skywork.jsonl",
            [
                {"chosen": turns(f"Q {n}?", "good"), "rejected": turns(f"Q {n}?", "bad"), "source": "s"}
                for n in range(80)
            ],
        ),
        "helpsteer2": write_rows(
            folder / "helpsteer2.jsonl",
            [
                {
                    "split": "validation",
                    "prompt": f"H {n}?",
                    "response_1": ANSWERS["good"],
                    "response_2": ANSWERS["bad"],
                    "preference_strength": -2,
                }
                for n in range(3)
            ],
        ),
        "ultrafeedback": write_rows(
            folder / "ultrafeedback.jsonl",
            [
                {
                    "prompt": f"U {n}?",
                    "prompt_id": str(n),
                    "chosen": turns(f"U {n}?", "good"),
                    "rejected": turns(f"U {n}?", "bad"),
                    "score_chosen": 9.0,
                    "score_rejected": 2.0,
                }
                for n in range(3)
            ],
        ),
    }


def shrunken(folder: Path, name: str, fits: dict[str, dict[str, Any]], **changed: Any) -> str:
    """The shipped recipe `name` with local files, and its fits with other settings; returns its path."""
    path = Path(find(f"recipe/{name}"))
    recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    files = native_files(folder)
    recipe["train"]["init_args"]["path"] = files["train"]
    for held_out, source in recipe["sets"].items():
        source["init_args"]["path"] = files[held_out]
        source["init_args"].pop("split")  # the files hold one split
    for fit, settings in fits.items():
        content = yaml.safe_load((path.parent / recipe[fit]).read_text(encoding="utf-8"))
        for key, value in settings.items():
            *parents, last = key.split(".")
            inner = content
            for parent in parents:
                inner = inner[parent]
            inner[last] = value
        recipe[fit] = str(folder / f"{fit}.yaml")
        Path(recipe[fit]).write_text(yaml.safe_dump(content), encoding="utf-8")
    recipe |= changed
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return str(folder / "recipe.yaml")


def test_24gb(tmp_path: Path, llama: str, teacher: StubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fits = {
        "sft": {
            "trainer.max_epochs": 6,
            "trainer.accumulate_grad_batches": 1,
            "model.init_args.optimizer.init_args.lr": 1e-2,
        },
        "dpo": {"trainer.max_steps": 2, "trainer.accumulate_grad_batches": 1},
    }
    recipe = shrunken(tmp_path, "24gb", fits, enhancement_pairs=12, max_new_tokens=24, batch_size=64)
    settings = [
        f"--model={widened(llama, tmp_path / 'model')}",
        "--device=cpu",
        "--templates.names=[rise]",
        "--teacher.model=stub",
        f"--teacher.endpoint={teacher.url}",
        "--enhancement.max_new_tokens=24",
    ]
    main(["run", "--config", recipe, *settings])
    results = json.loads((tmp_path / "runs/recipe-24gb/results.json").read_text(encoding="utf-8"))
    assert list(results["stages"]) == ["base", "sft", "dpo"]
    assert set(results["stages"]["dpo"]) == {"helpsteer2", "ultrafeedback"}
    AutoModelForCausalLM.from_pretrained(tmp_path / "runs/recipe-24gb/export")
