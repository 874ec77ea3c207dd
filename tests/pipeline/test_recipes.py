"""The recipe at its real size, run on a small model, local files and servers of the test."""

import json
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoModelForCausalLM

from judgelit.cli import main
from judgelit.records.sources import read_pairs
from judgelit.shipped_configs import find
from tests.generation.server import StubServer, prompt_of, say
from tests.whole_blocks import widened

pytestmark = pytest.mark.slow

GOOD, BAD = "A good answer", "A poor answer"


def verdict_of(prompt: str) -> str:
    """A right judgment of a good and a bad answer; of other prompts, a text without verdict."""
    if GOOD not in prompt:
        return "Yes."
    first = prompt.index(GOOD) < prompt.index(BAD)
    return f"One of them is good. [[{'A' if first else 'B'}]]"


@pytest.fixture
def teacher() -> Iterator[StubServer]:
    with StubServer(lambda body, _: say(verdict_of(prompt_of(body)))) as server:
        yield server


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def answer(kind: str, number: int) -> str:
    """An answer; every second good one is the longer one."""
    return kind + " of more words" * ((kind == GOOD) == (number % 2 == 0))


def turns(question: str, kind: str, number: int) -> list[dict[str, str]]:
    return [
        {"role": "user", "content": f"{question} {number}?"},
        {"role": "assistant", "content": answer(kind, number)},
    ]


def native_files(folder: Path) -> dict[str, str]:
    """Files in the form of each data set that the recipes name."""
    return {
        "train": write_rows(
            folder / "skywork.jsonl",
            [{"chosen": turns("Q", GOOD, n), "rejected": turns("Q", BAD, n), "source": "s"} for n in range(40)],
        ),
        "helpsteer2": write_rows(
            folder / "helpsteer2.jsonl",
            [
                {
                    "split": "validation",
                    "prompt": f"H {n}?",
                    "response_1": answer(GOOD, n),
                    "response_2": answer(BAD, n),
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
                    "chosen": turns("U", GOOD, n),
                    "rejected": turns("U", BAD, n),
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


def test_24gb(
    tmp_path: Path,
    llama: str,
    teacher: StubServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    small = {"data.init_args.max_length": 1024, "data.init_args.tokens_per_batch": 4096}
    fits = {
        "sft": {**small, "trainer.max_epochs": 5, "model.init_args.optimizer.init_args.lr": 3e-2},
        "dpo": {**small, "trainer.max_steps": 2},
    }
    for fit in fits.values():
        fit["trainer.accumulate_grad_batches"] = 1
    general = write_rows(tmp_path / "chat.jsonl", [{"prompt": f"P {n}?", "completion": "C."} for n in range(4)])
    measured = {"examples": general, "limit": 4, "max_new_tokens": 8}
    mixed = write_rows(tmp_path / "mixed.jsonl", [{"prompt": f"M {n}?", "completion": "D."} for n in range(4)])
    changed = {"warmup_pairs": 30, "enhancement_pairs": 12, "general": measured, "general_data": mixed}
    recipe = shrunken(tmp_path, "24gb", fits, max_new_tokens=24, batch_size=64, **changed)
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
    assert list(results["general"]) == list(results["stages"])
    losses = [results["general"][judge]["general_loss"]["value"] for judge in results["general"]]
    assert all(loss > 0 for loss in losses) and len(set(losses)) == 3
    stages = tmp_path / "runs/recipe-24gb/stages"
    for stage in ("04-sft", "07-dpo"):
        (log,) = (stages / stage / "csv").rglob("metrics.csv")
        assert "loss/general" in log.read_text(encoding="utf-8").splitlines()[0]
    pairs = {
        stage: [pair.id for pair in read_pairs(str(stages / stage / name))]
        for stage, name in (
            ("01-pairs", "train.jsonl"),
            ("02-warmup", "pairs.jsonl"),
            ("06-enhancement", "pairs.jsonl"),
        )
    }
    # The judgments are sampled of the 10 pairs that the warm-up has left out, and of 2 more.
    assert list(map(len, pairs.values())) == [40, 30, 12]
    assert len(set(pairs["02-warmup"]) & set(pairs["06-enhancement"])) == 2
    assert all(ids == [one for one in pairs["01-pairs"] if one in ids] for ids in pairs.values())
    said = capsys.readouterr().out
    table = said[said.index("ability") :]
    assert "judge accuracy, helpsteer2" in table and "general loss, nats a token" in table
    AutoModelForCausalLM.from_pretrained(tmp_path / "runs/recipe-24gb/export")


SERVER = """
import json, sys, time
sys.path.insert(0, {root!r})
from tests.generation.server import StubServer, completion, prompt_of, send
from tests.pipeline.test_recipes import verdict_of

model, port = sys.argv[1:]
print("serving", model, flush=True)

def judge(body, before):
    right = verdict_of(prompt_of(body))
    wrong = right.replace("[[A]]", "[[?]]").replace("[[B]]", "[[A]]").replace("[[?]]", "[[B]]")
    texts = [[right, wrong][number % 2] + " " * number for number in range(body.get("n", 1))]
    return lambda server, handler, body: send(handler, 200, json.dumps(completion(body, texts)).encode())

with StubServer(judge, models=[{{"id": "judge", "max_model_len": 1024}}], port=int(port)):
    time.sleep(600)
"""


def test_cluster(tmp_path: Path, llama: str, teacher: StubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    Path("server.py").write_text(SERVER.format(root=str(Path(__file__).parents[2])), encoding="utf-8")
    fit = {
        "data.init_args.max_length": 1024,
        "trainer.max_steps": 2,
        "trainer.accelerator": "cpu",
        "trainer.devices": 2,
    }
    serving = {
        "command": f"{sys.executable} server.py {{model}} {port}",
        "endpoint": f"http://127.0.0.1:{port}/v1",
    }
    changed: dict[str, Any] = {
        "serving": serving,
        "general": {"limit": 2, "max_new_tokens": 24},
        "enhancement_pairs": 10,
        "max_new_tokens": 24,
        "templates": {"names": ["rise"]},
    }
    changed["enhancement"] = {"samples": 4, "max_new_tokens": 24}
    recipe = shrunken(tmp_path, "cluster", {"sft": fit, "dpo": fit}, **changed)
    asked = [f"--model={llama}", "--teacher.model=stub", f"--teacher.endpoint={teacher.url}"]
    main(["run", "--config", recipe, *asked])

    run = tmp_path / "runs/recipe-cluster"
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    assert results["stages"]["dpo"]["helpsteer2"]["consistent_accuracy"]["value"] == 1
    served = {stage.parent.name: stage.read_text().split()[1:2] for stage in run.rglob("server.log")}
    trained = [str(Path(f"runs/recipe-cluster/stages/{stage}/merged")) for stage in ("04-sft", "04-sft", "07-dpo")]
    stages = ["03-base", "05-sft-judged", "06-enhancement", "08-dpo-judged"]
    assert served == dict(zip(stages, [[llama], *([folder] for folder in trained)], strict=True))
    assert (run / "stages/04-sft/checkpoints/last.ckpt").is_dir()  # sharded
    AutoModelForCausalLM.from_pretrained(run / "export")
