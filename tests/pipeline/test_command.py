"""`judgelit run` as a command: its folder, and what may differ when a run is continued."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from judgelit.cli import main
from judgelit.pipeline.run import Run
from judgelit.shipped_configs import find
from tests.generation.server import StubServer, say


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Write the quickstart's recipe, with other settings, into an empty folder; its runs end with the warm-up set."""
    monkeypatch.chdir(tmp_path)

    def go(self: Run) -> None:
        self.stage("01-pairs", self.make_pairs)
        self.stage("02-warmup", self.make_warmup)

    monkeypatch.setattr(Run, "go", go)

    def write(**changed: Any) -> str:
        quickstart = Path(find("quickstart/run"))
        content = yaml.safe_load(quickstart.read_text(encoding="utf-8"))
        content |= {name: str(quickstart.parent / f"{name}.yaml") for name in ("sft", "dpo")}
        content["train"]["init_args"]["count"] = 60
        content["sets"] = {"held_out": {**content["sets"]["harder"]}}
        content["sets"]["held_out"]["init_args"]["count"] = 4
        content["warmup"] |= {"balance_labels": False, "balance_length": False}
        Path("recipe.yaml").write_text(yaml.safe_dump({**content, **changed}), encoding="utf-8")
        return "recipe.yaml"

    return write


def written(run: str) -> dict[str, Any]:
    return yaml.safe_load(Path(run, "config.yaml").read_text(encoding="utf-8"))


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as exit_:
        main([*arguments])
    assert exit_.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("judgelit: error: ")]
    return line


@pytest.mark.parametrize("place", ["a field of requests", "the name of the variable"])
def test_a_key_in_the_settings_is_refused_before_they_are_written(
    place: str, recipe: Callable[..., str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "sk_live_0123456789"
    monkeypatch.setenv("OPENAI_API_KEY", key)
    requests = {"extra_body": {"user": key}} if place == "a field of requests" else {"key_variable": key}
    settings = {"model": "m", "endpoint": "http://127.0.0.1:9/v1", "requests": requests}
    file = recipe(teacher={"class_path": "judgelit.EngineTeacher", "init_args": settings}, output="run")
    said = refused(capsys, "run", "--config", file)
    assert "key" in said and key not in said and not Path("run").exists()


def test_a_run_goes_on_with_a_larger_budget_another_address_and_another_machine(
    recipe: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    prices = {"prompt_price": 1000.0, "completion_price": 1000.0, "concurrency": 1}
    settings = {"model": "m", "max_new_tokens": 16, "requests": {**prices, "budget": 0.5, "retries": 2}}
    with StubServer(lambda body, _: say("It is. [[A]]")) as first, StubServer(lambda body, _: say("[[A]]")) as second:
        teacher = {"class_path": "judgelit.EngineTeacher", "init_args": {**settings, "endpoint": first.url}}
        run = ["run", "--config", recipe(teacher=teacher), "--output", "run"]
        assert "requests.budget: found 0.5" in refused(capsys, *run)
        asked = len(first.bodies)
        assert 0 < asked < 60
        changed = [f"--teacher.endpoint={second.url}", "--teacher.requests.budget=90", "--batch_size=8"]
        main([*run, *changed, "--device=auto"])
        assert len(first.bodies) == asked and len(second.bodies) == 60 - asked
        now = written("run")
        assert now["teacher"]["init_args"]["endpoint"] == second.url
        assert now["teacher"]["init_args"]["requests"]["budget"] == 90
        assert now["batch_size"] == 8 and now["device"] == "auto"
        # What the answers depend on may not change.
        for other, key in (
            ("model=n", "model"),
            ("requests.thinking=drop", "requests.thinking"),
            ("top_p=0.5", "top_p"),
        ):
            assert f"teacher.init_args.{key}: found" in refused(capsys, *run, *changed, f"--teacher.{other}")
        assert written("run") == now


def test_a_server_may_move_but_not_take_the_place_of_a_loaded_model(
    recipe: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    serving = {"command": "vllm serve {model} --port 8000", "endpoint": "http://127.0.0.1:8000/v1"}
    run = ["run", "--config", recipe(serving=serving), "--output", "run"]
    main(run)
    moved = ["--serving.command=vllm serve {model} --port 8001", "--serving.endpoint=http://127.0.0.1:8001/v1"]
    main([*run, *moved, "--serving.patience=60"])
    assert written("run")["serving"]["endpoint"] == "http://127.0.0.1:8001/v1"
    assert written("run")["serving"]["patience"] == 60
    assert "serving.name: found 'judge' there and 'other' here" in refused(capsys, *run, *moved, "--serving.name=other")
    assert "serving: found" in refused(capsys, *run, "--serving=null")


def test_the_file_of_a_run_is_the_same_recipe(recipe: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    near = {"near_duplicates": None, "balance_labels": False, "balance_length": False}
    main(["run", "--config", recipe(warmup=near, general=None), "--output", "run"])
    assert written("run")["warmup"]["near_duplicates"] is None
    main(["run", "--config", "run/config.yaml", "--output", "again"])
    assert {**written("again"), "output": "run"} == written("run")
    # Nulls were left out of the files of earlier versions. Such a run continues with the same recipe alone.
    earlier = yaml.safe_load(Path("run/config.yaml").read_text(encoding="utf-8"))
    del earlier["warmup"]["near_duplicates"], earlier["general"], earlier["serving"]
    Path("run/config.yaml").write_text(yaml.safe_dump(earlier), encoding="utf-8")
    other = ["run", "--config", "recipe.yaml", "--output", "run", "--warmup.near_duplicates=0.8"]
    assert "warmup.near_duplicates: found None there and 0.8 here" in refused(capsys, *other)
    main(["run", "--config", "recipe.yaml", "--output", "run"])
    assert written("run")["warmup"]["near_duplicates"] is None


def test_full_memory_names_settings_that_the_command_has(
    recipe: Callable[..., str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def go(_: Run) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(Run, "go", go)
    line = refused(capsys, "run", "--config", recipe(), "--output", "run")
    assert "teacher.batch_size" in line and "the same command continues" in line
    assert "dtype" not in line and "--quantization" not in line
