"""judgelit as a Python library, as in the README."""

from pathlib import Path

import lightning as L
import pytest
from transformers import AutoModelForCausalLM

import judgelit
from judgelit import Backbone, DPODataModule, DPOModule, LoRA, PreferenceLoss, SFTDataModule, SFTModule
from judgelit.records.files import write_records
from judgelit.records.records import PreferenceExample, SFTExample


def trainer(folder: Path) -> L.Trainer:
    return L.Trainer(max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, default_root_dir=folder)


def test_sft_and_then_dpo(llama: str, tmp_path: Path) -> None:
    prompt = ({"role": "user", "content": "6 + 6 = ?"},)
    write_records(tmp_path / "sft.jsonl", [SFTExample(prompt, f"It is {n}. [[A]]") for n in range(8)])
    model = SFTModule(Backbone(llama))
    data = SFTDataModule(llama, train=str(tmp_path / "sft.jsonl"), batch_size=4, cache=str(tmp_path / "cache"))
    trainer(tmp_path).fit(model, data)
    assert model.model is not None
    model.model.save_pretrained(str(tmp_path / "judge"))
    data.tokenizer.hf.save_pretrained(tmp_path / "judge")
    AutoModelForCausalLM.from_pretrained(tmp_path / "judge")

    pairs = [PreferenceExample(prompt, f"It is 12. [[A]] {n}", f"It is {n}. [[B]]") for n in range(8)]
    write_records(tmp_path / "dpo.jsonl", pairs)
    judge = str(tmp_path / "judge")
    policy = DPOModule(Backbone(judge, lora=LoRA(r=2)), PreferenceLoss(nll_weight=0.2))
    better = DPODataModule(judge, train=str(tmp_path / "dpo.jsonl"), batch_size=4, cache=str(tmp_path / "cache"))
    run = trainer(tmp_path)
    run.fit(policy, better)
    assert run.global_step == 4
    assert float(run.callback_metrics["train/loss"]) > 0


def test_public_names_exist_and_unknown_names_are_refused() -> None:
    for name in judgelit.__all__:
        assert getattr(judgelit, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'SFTModul'"):
        _ = judgelit.SFTModul  # type: ignore[attr-defined]
