"""The quickstart: run to its end, run again, killed and continued; and its stages as single commands."""

import json
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from judgelit.evaluation.metrics import METRICS
from judgelit.evaluation.protocols.pairs import PAIRS
from judgelit.judging.verdict import parse
from judgelit.records.records import Judgment, PreferenceExample, PreferencePair, SFTExample
from judgelit.records.sources import FileSource

from .conftest import Judgelit, in_a_process, shortened_quickstart

STAGES = [
    "01-pairs",
    "02-warmup",
    "03-base",
    "04-sft",
    "05-sft-judged",
    "06-enhancement",
    "07-dpo",
    "08-dpo-judged",
    "09-export",
]


def to_the_end(folder: Path, config: Path) -> str:
    process = in_a_process(folder, "run", "--config", str(config), "--output", "runs/short")
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said
    return said


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "runs/short/results.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quickstart")
    said = to_the_end(folder, shortened_quickstart(folder / "configs"))
    assert "results.json" in said and "export" in said and "accuracy" in said
    return folder


def test_results_hold_every_metric_of_every_stage(finished: Path) -> None:
    found = results(finished)
    assert list(found["stages"]) == ["base", "sft", "dpo"]
    for by_set in found["stages"].values():
        assert list(by_set) == ["in_distribution", "harder"]
        for metrics in by_set.values():
            assert list(metrics) == list(METRICS)
            assert set(metrics["accuracy"]) == {"value", "low", "high", "n"}
    gains = {(gain["from"], gain["to"], gain["set"], gain["metric"]): gain for gain in found["gains"]}
    assert len(gains) == 2 * 2 * len(METRICS)
    sft, dpo = (found["stages"][stage]["in_distribution"]["accuracy"]["value"] for stage in ("sft", "dpo"))
    assert gains["sft", "dpo", "in_distribution", "accuracy"]["value"] == pytest.approx(dpo - sft)
    assert list(found["cost"]) == STAGES
    assert found["cost"]["04-sft"]["tokens"] > 0 and found["cost"]["04-sft"]["peak_memory_bytes"] > 0


def test_the_warm_judge_gives_verdicts_and_the_base_gives_none(finished: Path) -> None:
    stages = results(finished)["stages"]
    assert stages["base"]["in_distribution"]["no_verdict"]["value"] == 1
    assert stages["sft"]["in_distribution"]["no_verdict"]["value"] < 0.5


def test_metrics_can_be_recomputed_from_the_judgments(finished: Path) -> None:
    stages = finished / "runs/short/stages"
    pairs = FileSource(str(stages / "01-pairs/harder.jsonl")).read(PreferencePair)
    lines = (stages / "08-dpo-judged/harder.jsonl").read_text(encoding="utf-8").splitlines()
    judgments = [Judgment.from_dict(json.loads(line), "judgments") for line in lines]
    assert [judgment.verdict for judgment in judgments] == [parse(judgment.text) for judgment in judgments]
    recomputed = PAIRS.estimates(pairs, judgments)
    written = results(finished)["stages"]["dpo"]["harder"]
    assert {name: value.to_dict() for name, value in recomputed.items()} == written


def test_training_sets_share_no_question_with_held_out_pairs(finished: Path) -> None:
    stages = finished / "runs/short/stages"
    held_out = {
        pair.question_key
        for name in ("in_distribution", "harder")
        for pair in FileSource(str(stages / f"01-pairs/{name}.jsonl")).read(PreferencePair)
    }
    sft = FileSource(str(stages / "02-warmup/sft.jsonl")).read(SFTExample)
    dpo = FileSource(str(stages / "06-enhancement/dpo.jsonl")).read(PreferenceExample)
    assert sft and dpo
    assert not held_out & {example.group for example in [*sft, *dpo]}


def test_the_sampled_pairs_are_drawn_from_the_whole_of_train(finished: Path) -> None:
    stages = finished / "runs/short/stages"
    train = [pair.id for pair in FileSource(str(stages / "01-pairs/train.jsonl")).read(PreferencePair)]
    sampled = [pair.id for pair in FileSource(str(stages / "06-enhancement/pairs.jsonl")).read(PreferencePair)]
    places = [train.index(name) for name in sampled]
    assert len(sampled) == 8 and places == sorted(set(places))
    # Not the first ones: a mixture has its sources one after the other.
    assert places[0] < len(train) / 2 < places[-1]


def test_plain_transformers_loads_the_export(finished: Path) -> None:
    folder = finished / "runs/short/export"
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    last = torch.load(finished / "runs/short/stages/07-dpo/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    trained = {name.removeprefix("model."): weight for name, weight in last.items()}
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, trained[name]), name
    assert tokenizer.apply_chat_template([{"role": "user", "content": "1+1=?"}], tokenize=False)


def test_a_second_run_repeats_no_stage(finished: Path) -> None:
    folder = finished / "runs/short"
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("done.json")}
    old = results(finished)
    said = to_the_end(finished, finished / "configs/run.yaml")
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("done.json")} == before
    assert results(finished) == old
    assert said.count("done before") == len(STAGES)


def test_a_run_deletes_no_export_that_it_has_not_made(
    finished: Path, judgelit: Judgelit, refused: Callable[..., str], tmp_path: Path
) -> None:
    shutil.copytree(finished / "configs", tmp_path / "configs")
    shutil.copytree(finished / "runs", tmp_path / "runs")
    again = ["run", "--config", "configs/run.yaml", "--output", "runs/short"]
    export, stage = tmp_path / "runs/short/export", tmp_path / "runs/short/stages/09-export"
    before = contents(export)
    # Killed after the export and before the end of its stage.
    (stage / "done.json").unlink()
    judgelit(*again)
    assert contents(export) == before
    # Another folder has taken the place before the stage began.
    shutil.rmtree(stage)
    shutil.rmtree(export)
    export.mkdir()
    judgelit_never_saw = export / "mine.txt"
    judgelit_never_saw.write_text("mine")
    assert "found files that this run has not made" in refused(*again)
    assert judgelit_never_saw.read_text() == "mine"
    judgelit_never_saw.unlink()
    judgelit(*again)
    assert contents(export).keys() == before.keys()


def contents(folder: Path) -> dict[Path, bytes]:
    """All files in a folder and the folders in it."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1])
def test_a_run_killed_anywhere_and_continued_ends_the_same(finished: Path, tmp_path: Path, seed: int) -> None:
    config = shortened_quickstart(tmp_path / "configs")
    rng = random.Random(seed)
    for _ in range(4):
        process = in_a_process(tmp_path, "run", "--config", str(config), "--output", "runs/short")
        time.sleep(rng.uniform(3, 9))
        process.kill()
        process.wait()
    to_the_end(tmp_path, config)
    unbroken, continued = results(finished), results(tmp_path)
    assert list(continued["cost"]) == STAGES
    assert continued["stages"] == unbroken["stages"]
    assert continued["gains"] == unbroken["gains"]


@pytest.mark.slow
def test_a_run_killed_in_training_continues_from_the_checkpoint(finished: Path, tmp_path: Path) -> None:
    config = shortened_quickstart(tmp_path / "configs")
    checkpoint = tmp_path / "runs/short/stages/04-sft/checkpoints/last.ckpt"
    process = in_a_process(tmp_path, "run", "--config", str(config), "--output", "runs/short")
    while not checkpoint.exists() and process.poll() is None:
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert not (tmp_path / "runs/short/stages/04-sft/done.json").exists()
    assert "continuing from" in to_the_end(tmp_path, config)
    assert results(tmp_path)["stages"] == results(finished)["stages"]


def test_a_recipe_with_lora_exports_the_merged_judge(
    finished: Path, judgelit: Callable[..., None], tmp_path: Path
) -> None:
    base = str(finished / "runs/short/export")
    config = shortened_quickstart(tmp_path / "configs")
    for name, steps in (("sft", 6), ("dpo", 3)):
        path = tmp_path / f"configs/{name}.yaml"
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        content["trainer"]["max_steps"] = steps
        content["model"]["init_args"]["backbone"] = {"name_or_path": base}
        if name == "sft":
            content["model"]["init_args"]["backbone"]["lora"] = {"r": 4}
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
    judgelit("run", "--config", str(config), "--output", "runs/lora")

    stages = tmp_path / "runs/lora/stages"
    for stage in ("04-sft", "07-dpo"):
        assert [path.name for path in (stages / stage).rglob("*.safetensors")] == ["adapter_model.safetensors"]
    saved = yaml.safe_load((stages / "07-dpo/config.yaml").read_text(encoding="utf-8"))
    assert saved["model"]["init_args"]["backbone"]["adapter"].endswith("04-sft/model")

    enhanced = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), stages / "07-dpo/model")
    export = AutoModelForCausalLM.from_pretrained(tmp_path / "runs/lora/export")
    ids = torch.arange(3, 40)[None]
    assert torch.allclose(export(ids).logits, enhanced(ids).logits, atol=1e-5)
    with enhanced.disable_adapter():
        assert not torch.allclose(export(ids).logits, enhanced(ids).logits, atol=1e-3)


def test_a_folder_with_another_run_is_refused(finished: Path, refused: Callable[..., str]) -> None:
    config = finished / "configs/run.yaml"
    line = refused("run", "--config", str(config), "--output", str(finished / "runs/short"), "--seed", "7")
    assert "holds another run" in line and "--output" in line
    assert len(list((finished / "runs/short").rglob("done.json"))) == len(STAGES)


def test_a_copied_run_takes_other_settings_for_the_stages_that_it_lacks(
    finished: Path, judgelit: Callable[..., None], refused: Callable[..., str], tmp_path: Path
) -> None:
    shutil.copytree(finished / "configs", tmp_path / "configs")
    run = tmp_path / "runs/copy"
    shutil.copytree(finished / "runs/short", run)
    dpo = tmp_path / "configs/dpo.yaml"
    content = yaml.safe_load(dpo.read_text(encoding="utf-8"))
    content["model"]["init_args"]["loss"]["beta"] = 0.7
    dpo.write_text(yaml.safe_dump(content), encoding="utf-8")
    command = ["run", "--config", "configs/run.yaml", "--output", "runs/copy"]
    assert "dpo.yaml: model.init_args.loss.beta: found 0.1 there and 0.7 here" in refused(*command)

    for name in ("stages/07-dpo", "stages/08-dpo-judged", "stages/09-export", "export"):
        shutil.rmtree(run / name)
    kept = {path: path.stat().st_mtime for path in run.rglob("0[1-6]*/done.json")}
    judgelit(*command)
    assert {path: path.stat().st_mtime for path in kept} == kept and len(kept) == 6
    logged = yaml.safe_load((run / "stages/07-dpo/config.yaml").read_text(encoding="utf-8"))
    assert logged["model"]["init_args"]["loss"]["beta"] == 0.7


def test_fit_validate_and_predict(
    judgelit: Callable[..., None], refused: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sft = [
        "--config",
        "quickstart/sft",
        "--data.train.init_args.tasks.init_args.count=40",
        "--data.judge.limit=2",
        "--data.judge.max_new_tokens=8",
    ]
    judgelit("fit", *sft, "--trainer.max_steps", "3")
    run = tmp_path / "runs/quickstart-sft"
    for left in ("config.yaml", "checkpoints/last.ckpt", "model/model.safetensors", "csv/version_0/metrics.csv"):
        assert (run / left).exists(), left
    assert list((run / "tensorboard").glob("events*"))

    capsys.readouterr()
    judgelit("validate", *sft, "--ckpt_path", str(run / "checkpoints/last.ckpt"))
    assert "val/loss" in capsys.readouterr().out
    judgelit("predict", *sft, "--ckpt_path", str(run / "checkpoints/last.ckpt"))
    judgments = (run / "predictions/held_out.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["order"] for line in judgments] == ["ab", "ba"] * 2

    assert "--ckpt_path last" in refused("fit", *sft, "--trainer.max_steps", "3")
    judgelit("fit", *sft, "--trainer.max_steps", "5", "--ckpt_path", "last")
    assert [path.name for path in (run / "csv").iterdir()] == ["version_0"]

    dpo = [
        "--config",
        "quickstart/dpo",
        "--data.train.init_args.tasks.init_args.count=40",
        "--data.judge.limit=2",
        "--data.judge.max_new_tokens=8",
        f"--model.backbone.name_or_path={run / 'model'}",
    ]
    judgelit("fit", *dpo, "--trainer.max_steps", "2")
    capsys.readouterr()
    judgelit("validate", *dpo, "--ckpt_path", "runs/quickstart-dpo/checkpoints/last.ckpt")
    assert "val/rewards/accuracy" in capsys.readouterr().out
    assert "other weights" in refused("validate", *dpo[:-1], "--ckpt_path", "runs/quickstart-dpo/checkpoints/last.ckpt")


def test_dpo_of_random_weights_can_be_validated(
    judgelit: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    dpo = ["--config", "quickstart/dpo", "--data.train.init_args.tasks.init_args.count=40", "--data.judge.limit=2"]
    judgelit("fit", *dpo, "--trainer.max_steps", "2", "--data.judge.max_new_tokens=8")
    capsys.readouterr()
    checkpoint = "runs/quickstart-dpo/checkpoints/last.ckpt"
    judgelit("validate", *dpo, "--ckpt_path", checkpoint, "--data.judge.max_new_tokens=8")
    assert "val/rewards/margin" in capsys.readouterr().out


@pytest.mark.parametrize("form", ["list.json", "data.json", "one_line.jsonl", "text.json"])
def test_every_form_of_data_file_is_read(
    judgelit: Callable[..., None], tmp_path: Path, form: str, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"prompt": f"{number}+1=?", "completion": str(number + 1)} for number in range(1 if "one" in form else 3)]
    content = {
        "list.json": json.dumps(rows),
        "data.json": json.dumps({"data": rows}),
        "one_line.jsonl": json.dumps(rows[0]),
        "text.json": "\n".join(map(json.dumps, rows)),
    }[form]
    (tmp_path / form).write_text(content, encoding="utf-8")
    unneeded = ["--data.val=null", "--data.judge=null", "--trainer.callbacks=null", "--trainer.max_steps=1"]
    with caplog.at_level("INFO"):
        judgelit("fit", "--config=quickstart/sft", f"--data.train={form}", *unneeded)
    assert f"train: {len(rows)} examples" in caplog.text
    pairs = [{"id": "1", "question": "1+1=?", "answer_a": "2", "answer_b": "3", "label": "A"}]
    (tmp_path / form).write_text(json.dumps(pairs[0] if "one" in form or "text" in form else pairs), encoding="utf-8")
    judgelit("evaluate", "--model=nano", f"--pairs={form}", "--max_new_tokens=4", "--output=scores",
             "--templates.names=[nano-brief]")  # fmt: skip
    name = form.split(".")[0]
    assert len((tmp_path / f"scores/{name}.judgments.jsonl").read_text(encoding="utf-8").splitlines()) == 2
