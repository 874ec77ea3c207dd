"""The shipped QLoRA configurations on a tiny model, for a few steps."""

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from judgelit.models.backbone import Backbone
from judgelit.runs.trained_run import find_run
from tests.whole_blocks import widened

IDS = torch.arange(3, 40)[None]


def logged(run: Path) -> list[dict[str, str]]:
    (path,) = (run / "csv").rglob("metrics.csv")
    with path.open(encoding="utf-8") as lines:
        return [row for row in csv.DictReader(lines) if row["train/loss"]]


def test_warmup_enhancement_and_export_of_the_merged_judge(
    judgelit: Callable[..., None], llama: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = widened(llama, tmp_path / "model")
    rows = range(120)
    (tmp_path / "sft.jsonl").write_text(
        "".join(json.dumps({"prompt": f"is {n} odd?", "completion": f"{n} is it. [[A]]"}) + "\n" for n in rows)
    )
    (tmp_path / "dpo.jsonl").write_text(
        "".join(json.dumps({"prompt": f"is {n}?", "chosen": "yes [[A]]", "rejected": "no [[B]]"}) + "\n" for n in rows)
    )
    base = f"--model.backbone.name_or_path={model}"
    short = ["--trainer.max_steps=3", "--data.tokens_per_batch=64", "--data.max_length=64"]
    with caplog.at_level("INFO"):
        judgelit("fit", "--config=qlora/sft", base, "--data.train=sft.jsonl", *short)
    assert "optimizer: PyTorch's AdamW in place of the paged 8-bit one" in caplog.text or torch.cuda.is_available()
    adapter = "--model.backbone.adapter=runs/qlora-sft/model"
    judgelit("fit", "--config=qlora/dpo", base, adapter, "--data.train=dpo.jsonl", *short)

    for run in ("qlora-sft", "qlora-dpo"):
        (weights,) = (tmp_path / "runs" / run / "model").rglob("*.safetensors")
        assert weights.name == "adapter_model.safetensors"
        assert {weight.dtype for weight in load_file(weights).values()} == {torch.float32}
        backbone = find_run(tmp_path / "runs" / run).backbone
        assert (backbone.quantization, backbone.dtype, backbone.activation_checkpointing) == ("nf4", "bfloat16", True)
    first = logged(tmp_path / "runs/qlora-dpo")[0]
    assert float(first["train/rewards/margin"]) == float(first["train/kl"]) == 0
    assert float(first["train/loss"]) == pytest.approx(math.log(2) + 0.2 * float(first["train/nll"]), rel=1e-5)

    judgelit("export", "runs/qlora-dpo", "--to=judge", "--merge", "--dtype=float32")
    quantized = Backbone(model, "float32", quantization="nf4", adapter="runs/qlora-dpo/model").build().eval()
    assert any(isinstance(layer, Linear4bit) for layer in quantized.modules())
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), "runs/qlora-dpo/model")
    with torch.no_grad():
        judge = AutoModelForCausalLM.from_pretrained("judge")(IDS).logits
        # The run rounded weights to bfloat16 before it quantised them, so some of them differ by one level.
        near, far = (
            (judge - model(input_ids=IDS).logits).square().mean().sqrt() for model in (quantized, plain.eval())
        )
    assert near < 0.4 * far
