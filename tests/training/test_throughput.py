"""Throughput and padding that a training run logs."""

import csv
from pathlib import Path

import lightning as L
import pytest
import torch

from judgelit.likelihood.flops import peak_flops
from judgelit.models.backbone import Backbone, DType
from judgelit.training.callbacks import Throughput
from judgelit.training.cli import TrainingCLI
from judgelit.training.sft import SFTModule


@pytest.mark.parametrize("layout", ["shared_prefix", "concatenated"])
def test_a_run_logs_tokens_a_second_flops_and_padding(tmp_path: Path, layout: str) -> None:
    TrainingCLI(
        [
            "fit",
            "--config=configs/quickstart/dpo.yaml",
            f"--trainer.default_root_dir={tmp_path / 'run'}",
            "--trainer.max_steps=14",
            "--trainer.log_every_n_steps=1",
            "--trainer.limit_val_batches=0",
            "--trainer.callbacks=[]",
            f"--model.init_args.layout={layout}",
            f"--data.init_args.cache={tmp_path / 'cache'}",
            "--data.init_args.batch_size=4",
            "--data.init_args.judge=null",
            "--data.init_args.train.init_args.tasks.count=80",
        ]
    )
    rows = list(csv.DictReader(next((tmp_path / "run").glob("csv/**/metrics.csv")).open(encoding="utf-8")))
    padding = [float(row["train/padding"]) for row in rows if row.get("train/padding")]
    speeds = [float(row["train/device/items_per_sec"]) for row in rows if row.get("train/device/items_per_sec")]
    flops = [float(row["train/device/flops_per_sec"]) for row in rows if row.get("train/device/flops_per_sec")]
    assert len(padding) == 14 and speeds and flops
    assert all(speed > 0 for speed in [*speeds, *flops])
    assert set(padding) == {0.0} if layout == "shared_prefix" else 0 < sum(padding) / 14 < 0.5


@pytest.mark.parametrize(
    ("card", "peak"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H200 NVL", 835e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("NVIDIA X1", None),
    ],
)
def test_a_gpu_is_known_by_pytorchs_name(card: str, peak: float | None) -> None:
    assert peak_flops(card) == peak


@pytest.mark.parametrize(
    ("card", "precision", "dtype", "peak"),
    [
        ("NVIDIA H200", "bf16-mixed", "float32", 989e12),
        ("NVIDIA H200", "32-true", "float32", None),
        # Lightning knows this card, with another figure.
        ("NVIDIA GeForce RTX 4090", "bf16-mixed", "float32", 165e12),
        # A frozen base computes in its own dtype.
        ("NVIDIA GeForce RTX 4090", "32-true", "bfloat16", 165e12),
        ("NVIDIA A100-SXM4-80GB", "32-true", "bfloat16", 312e12),
        ("NVIDIA A100-SXM4-80GB", "32-true", "float32", 19.5e12),
    ],
)
def test_the_share_of_the_peak_is_that_of_the_precision(
    card: str, precision: str, dtype: DType, peak: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = L.Trainer(accelerator="cpu", precision=precision, logger=False)  # type: ignore[arg-type]
    trainer.state.stage = "train"  # type: ignore[assignment]
    trainer.strategy._root_device = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: card)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 0))
    found = Throughput()
    module = SFTModule(Backbone("nano", dtype=dtype), torch.optim.AdamW)
    found.setup(trainer, module, "fit")
    assert found.available_flops == peak
