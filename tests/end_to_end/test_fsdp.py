"""The shipped FSDP configurations on one process, on two, and on two nodes."""

import csv
import json
import math
import socket
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from judgelit.shipped_configs import find

from .processes import JUDGELIT, finish, fit, start

pytestmark = pytest.mark.slow


def logged(run: Path) -> dict[tuple[str, int], float]:
    """Losses and the judge's metrics by name and step."""
    (log,) = (run / "csv").rglob("metrics.csv")
    return {
        (name, int(row["step"])): float(value)
        for row in csv.DictReader(log.open())
        for name, value in row.items()
        if value and (name.endswith(("/loss", "/nll")) or name.startswith("judge/"))
    }


def judged(run: Path) -> dict[str, str]:
    """Judgments of all ranks after the last step."""
    records = [
        json.loads(line) for path in run.glob("judgments/*-step4*.jsonl") for line in path.read_text().splitlines()
    ]
    return {f"{record['pair_id']} {record['order']}": record["text"] for record in records}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the configuration for CPUs, shortened to four steps, and its run on two processes."""
    folder = tmp_path_factory.mktemp("fsdp")
    config = yaml.safe_load(Path(find("fsdp/cpu")).read_text())
    config["trainer"]["max_steps"] = 4
    # So that one rank has three batches of judge prompts and the other two.
    judge = config["data"]["init_args"]["judge"]
    judge["sets"]["held_out"]["init_args"]["count"], judge["batch_size"] = 9, 4
    # Two steps an epoch, so that the run has two epochs.
    config["data"]["init_args"]["train"]["init_args"]["tasks"]["count"] = 64
    config["trainer"]["callbacks"][1]["init_args"] |= {"every_n_train_steps": 3, "save_top_k": -1}
    (folder / "cpu.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    fit(folder, "cpu.yaml", "--trainer.default_root_dir", "two")
    return folder


def test_one_process_and_two_log_the_same(folder: Path) -> None:
    fit(folder, "cpu.yaml", "--trainer.devices", "1", "--trainer.default_root_dir", "one")
    one, two = logged(folder / "one"), logged(folder / "two")
    assert {name for name, _ in one} >= {"train/loss", "val/loss", "judge/held_out/accuracy"}
    assert [step for name, step in one if name == "train/loss"] == [0, 1, 2, 3]
    assert two == pytest.approx(one, abs=1e-5)
    assert judged(folder / "two") == judged(folder / "one") and len(judged(folder / "one")) == 18
    weights = [load_file(folder / run / "model/model.safetensors") for run in ("one", "two")]
    assert weights[0].keys() == weights[1].keys()
    for name, weight in weights[0].items():
        assert (weight - weights[1][name]).abs().max() < 1e-5


def test_two_nodes_under_torchrun_log_the_same(folder: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    launch += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "-m", "judgelit.cli", "fit"]
    launch += ["--config", "cpu.yaml", "--trainer.devices", "1", "--trainer.num_nodes", "2"]
    nodes = [start(*launch, "--trainer.default_root_dir", "nodes", folder=folder) for _ in range(2)]
    for node in nodes:
        finish(node)
    assert logged(folder / "nodes") == logged(folder / "two")


def test_a_run_of_two_processes_is_continued_on_one_and_evaluated_on_two(folder: Path) -> None:
    checkpoint = "two/checkpoints/epoch=1-step=3.ckpt"
    assert sorted(path.name for path in (folder / checkpoint).iterdir()) == [
        ".metadata",
        "__0_0.distcp",
        "__1_0.distcp",
        "meta.pt",
    ]
    where = ["--ckpt_path", checkpoint, "--trainer.default_root_dir"]
    fit(folder, "cpu.yaml", "--trainer.devices", "1", *where, "again")
    again, two = logged(folder / "again"), logged(folder / "two")
    # A step is logged after its checkpoint is saved.
    assert [step for name, step in again if name == "train/loss"] == [2, 3]
    assert again == pytest.approx({key: two[key] for key in again}, abs=1e-5)
    said = finish(start(*JUDGELIT, "validate", "--config", "cpu.yaml", *where, "two", folder=folder))
    assert "val/loss" in said
    said = finish(start(*JUDGELIT, "predict", "--config", "cpu.yaml", *where, "two", folder=folder))
    assert said.count("9 judgments written") == 2


def test_any_checkpoint_can_be_exported(folder: Path) -> None:
    finish(start(*JUDGELIT, "export", "two", "--to", "judge", folder=folder))
    found, wanted = (load_file(folder / name / "model.safetensors") for name in ("judge", "two/model"))
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)
    finish(start(*JUDGELIT, "export", "two/checkpoints/epoch=1-step=3.ckpt", "--to", "earlier", folder=folder))
    earlier = load_file(folder / "earlier/model.safetensors")
    assert earlier.keys() == wanted.keys() and not all(torch.equal(earlier[name], wanted[name]) for name in wanted)


def test_the_configurations_for_gpus_run_on_two_processes(folder: Path, model_folders: dict[str, str]) -> None:
    sft = "".join(f'{{"prompt": "is {n} odd?", "completion": "{n} is it. [[A]]"}}\n' for n in range(40))
    (folder / "sft.jsonl").write_text(sft)
    dpo = "".join(f'{{"prompt": "is {n} odd?", "chosen": "yes [[A]]", "rejected": "no [[B]]"}}\n' for n in range(40))
    (folder / "dpo.jsonl").write_text(dpo)
    here = ["--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.max_steps=2"]
    base = f"--model.backbone.name_or_path={model_folders['llama']}"
    fit(folder, "fsdp/sft", *here, base, "--data.train=sft.jsonl")
    warm = ["--model.backbone.name_or_path=runs/fsdp-sft/model", "--data.train=dpo.jsonl"]
    fit(folder, "fsdp/dpo", *here, *warm)
    found = logged(folder / "runs/fsdp-dpo")
    assert found["train/loss", 0] == pytest.approx(math.log(2) + 0.2 * found["train/nll", 0], rel=1e-5)
    again = ["--model.reference=precomputed", "--trainer.default_root_dir=precomputed"]
    fit(
        folder, "fsdp/dpo", *here, "--model.backbone.name_or_path=runs/fsdp-sft/model", "--data.train=dpo.jsonl", *again
    )
    # In bfloat16, log-probabilities depend on the other examples of the batch.
    assert logged(folder / "precomputed") == pytest.approx(found, rel=0.01)


def test_sharded_and_plain_checkpoints_are_not_interchangeable(folder: Path) -> None:
    plain = yaml.safe_load((folder / "cpu.yaml").read_text())
    plain["trainer"]["devices"] = 1
    del plain["trainer"]["strategy"]
    (folder / "plain.yaml").write_text(yaml.safe_dump(plain))
    where = ["--ckpt_path", "two/checkpoints/last.ckpt"]
    process = start(*JUDGELIT, "validate", "--config", "plain.yaml", *where, folder=folder)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 2
    assert "found a sharded checkpoint, expected a file; continue with strategy FSDP2" in said
    fit(folder, "plain.yaml", "--trainer.max_steps", "1", "--trainer.default_root_dir", "plain")
    where = ["--trainer.devices", "1", "--trainer.default_root_dir", "plain", "--ckpt_path", "last"]
    process = start(*JUDGELIT, "fit", "--config", "cpu.yaml", *where, folder=folder)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 2
    assert "found a checkpoint of a run that was not sharded" in said


def test_a_global_batch_that_devices_cannot_share_is_refused(folder: Path) -> None:
    process = start(*JUDGELIT, "fit", "--config", "cpu.yaml", "--trainer.devices", "3", folder=folder)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 2
    assert "GlobalBatch.micro_batches: found 8, expected a multiple of the 3 devices" in said


def test_an_optimizer_that_cannot_step_shards_is_refused(folder: Path) -> None:
    optimizer = ["--model.optimizer", "bitsandbytes.optim.AdamW8bit", "--model.optimizer.lr", "0.001"]
    where = ["--trainer.devices", "1", "--trainer.default_root_dir", "8bit"]
    process = start(*JUDGELIT, "fit", "--config", "cpu.yaml", *where, *optimizer, folder=folder)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 2
    assert "optimizer: found AdamW8bit with strategy FSDP2, expected one that can step sharded weights" in said
