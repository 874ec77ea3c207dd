"""`judgelit run` whose trainings use two processes each."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoModelForCausalLM

from .conftest import shortened_quickstart
from .processes import JUDGELIT, finish, start

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("strategy", ["ddp", {"class_path": "judgelit.FSDP2"}], ids=["ddp", "FSDP2"])
def test_every_stage_runs_once(tmp_path: Path, strategy: Any) -> None:
    config = shortened_quickstart(tmp_path / "configs")
    for name in ("sft", "dpo"):
        path = tmp_path / f"configs/{name}.yaml"
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        content["trainer"] |= {"accelerator": "cpu", "devices": 2, "strategy": strategy}
        # Two processes see twice the examples in a step.
        content["data"]["init_args"]["batch_size"] //= 2
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
    said = finish(start(*JUDGELIT, "run", "--config", str(config), "--output", "run", folder=tmp_path))

    stages = sorted(path.name for path in (tmp_path / "run/stages").iterdir())
    assert [said.count(f"{stage}: begins") for stage in stages] == [1] * 9
    assert said.count("model written to") == 2
    results = json.loads((tmp_path / "run/results.json").read_text(encoding="utf-8"))
    assert list(results["stages"]) == ["base", "sft", "dpo"] and list(results["cost"]) == stages
    for stage in ("04-sft", "07-dpo"):
        assert (
            results["cost"][stage] | json.loads((tmp_path / f"run/stages/{stage}/fit.json").read_text())
            == (results["cost"][stage])
        )
        is_sharded = (tmp_path / f"run/stages/{stage}/checkpoints/last.ckpt").is_dir()
        assert is_sharded == (strategy != "ddp")
    assert results["stages"]["base"]["in_distribution"]["no_verdict"]["value"] == 1
    assert results["stages"]["sft"]["in_distribution"]["no_verdict"]["value"] < 0.5
    AutoModelForCausalLM.from_pretrained(tmp_path / "run/export")
