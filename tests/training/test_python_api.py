"""judgelit without its command line: the lines that the README shows, and the public names."""

import re
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from transformers import AutoModelForCausalLM

import judgelit
from judgelit.batches.datamodules import SFTDataModule
from judgelit.models.backbone import Backbone
from judgelit.models.lora import LoRA
from judgelit.records.files import write_records
from judgelit.records.records import PreferenceExample, SFTExample
from judgelit.training.sft import SFTModule

README = Path(__file__).parents[2] / "README.md"


def test_the_readmes_lines_train_a_judge_by_sft_and_then_by_dpo(
    llama: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    prompt = ({"role": "user", "content": "6 + 6 = ?"},)
    write_records("sft.jsonl", [SFTExample(prompt, f"It is {n}. [[A]]") for n in range(16)])
    pairs = [PreferenceExample(prompt, f"It is 12. [[A]] {n}", f"It is {n}. [[B]]") for n in range(16)]
    write_records("dpo.jsonl", pairs)
    (lines,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(lines.splitlines()) <= 11
    names: dict = {}
    exec(lines.replace("MODEL", llama), names)
    assert names["judge"].trainer.global_step == names["better"].trainer.global_step == 2
    AutoModelForCausalLM.from_pretrained(llama).load_adapter("judge")


PROMPT = ({"role": "user", "content": "6 + 6 = ?"},)
QUIET: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False}


def test_one_module_is_validated_and_trained_in_any_order(llama: str, tmp_path: Path) -> None:
    path = str(tmp_path / "sft.jsonl")
    write_records(path, [SFTExample(PROMPT, f"It is {n}. [[A]]") for n in range(8)])
    model = SFTModule(Backbone(llama, lora=LoRA(r=2)))
    data = SFTDataModule(llama, train=path, val=path, test=path, batch_size=4, cache=str(tmp_path / "cache"))
    losses = []
    for function in ("validate", "fit", "validate", "test", "fit", "test", "validate"):
        trainer = L.Trainer(max_epochs=1, default_root_dir=tmp_path, **QUIET)
        getattr(trainer, function)(model, data)
        if function == "validate":
            losses.append(float(trainer.callback_metrics["val/loss"]))
    assert losses[0] > losses[1] > losses[2]


def test_overfitting_sees_the_same_batches_in_every_epoch(llama: str, tmp_path: Path) -> None:
    path = str(tmp_path / "sft.jsonl")
    write_records(path, [SFTExample(PROMPT, f"It is {n}. [[A]]") for n in range(40)])
    data = SFTDataModule(llama, train=path, batch_size=2, cache=str(tmp_path / "cache"))
    seen: list[tuple[str, ...]] = []

    class Note(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, index: int) -> None:
            seen.append(batch.ids)

    trainer = L.Trainer(max_epochs=3, overfit_batches=3, callbacks=[Note()], default_root_dir=tmp_path, **QUIET)
    trainer.fit(SFTModule(Backbone(llama, lora=LoRA(r=2))), data)
    assert len(seen) == 9 and seen[:3] == seen[3:6] == seen[6:]


def test_public_names_are_there_and_others_are_not() -> None:
    for name in judgelit.__all__:
        assert getattr(judgelit, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'SFTModul'"):
        _ = judgelit.SFTModul  # type: ignore[attr-defined]
