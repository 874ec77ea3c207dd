"""DPO with a precomputed reference equals DPO with a second model, with and without stored values."""

import json
import random
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from judgelit.batches.datamodules import DPODataModule
from judgelit.errors import UserError
from judgelit.models.backbone import Backbone
from judgelit.models.lora import LoRA
from judgelit.records.files import write_records
from judgelit.records.records import PreferenceExample, SFTExample
from judgelit.training.dpo import DPOModule
from judgelit.training.losses import PreferenceLoss

OPTIMIZER = partial(torch.optim.AdamW, lr=3e-3)
LOGGED = ("train/loss", "train/rewards/margin", "train/kl", "train/logps/rejected")


class Logged(L.Callback):
    """Callback that keeps the logged values of each step."""

    def __init__(self) -> None:
        self.steps: list[list[float]] = []

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.steps.append([float(trainer.callback_metrics[name]) for name in LOGGED])


@pytest.fixture
def file(tmp_path: Path) -> str:
    draw = random.Random(0)
    examples = []
    for number in range(24):
        # Every third pair has the prompt of the pair before it.
        prompt = ({"role": "user", "content": f"question {number - (number % 3 == 2)} " + "x" * draw.randint(0, 90)},)
        if number % 3 == 2:
            prompt = examples[-1].messages
        right, wrong = ("".join(draw.choices("abc ", k=draw.randint(3, 20))) for _ in range(2))
        examples.append(PreferenceExample(prompt, right + "!", wrong, {"pair_id": f"e{number}"}))
    write_records(tmp_path / "pairs.jsonl", examples)
    return str(tmp_path / "pairs.jsonl")


class Runs:
    """Training runs of one model on one file."""

    def __init__(self, folder: Path, file: str, backbone: Backbone) -> None:
        self.folder, self.file, self.backbone = folder, file, backbone
        self.loss = PreferenceLoss(nll_weight=0.2)

    def fit(self, reference: Any, steps: int = 8, resume: Path | None = None, **data: Any) -> Any:
        torch.manual_seed(0)
        logged = Logged()
        module = DPOModule(self.backbone, self.loss, reference=reference, optimizer=OPTIMIZER)
        settings = {"batch_size": 4, "val_fraction": 0.2, "cache": str(self.folder / "cache"), **data}
        trainer = L.Trainer(
            default_root_dir=self.folder,
            accelerator="cpu",
            max_steps=steps,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            callbacks=[logged],
        )
        trainer.fit(module, DPODataModule(self.backbone.name_or_path, self.file, **settings), ckpt_path=resume)
        return trainer, module, logged.steps


@pytest.fixture(params=["full", "lora", "warm"])
def runs(request: pytest.FixtureRequest, tmp_path: Path, file: str, llama: str, warm_adapter: str) -> Runs:
    backbone = {
        "full": Backbone(llama),
        "lora": Backbone(llama, lora=LoRA(r=4)),
        "warm": Backbone(llama, adapter=warm_adapter),
    }[request.param]
    return Runs(tmp_path / "run", file, backbone)


def forbid_computing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("the reference was computed again")

    monkeypatch.setattr("judgelit.training.precomputed.compute_values", refuse)


@pytest.mark.parametrize("workers", [0, 2])
def test_training_equals_that_with_a_second_model(runs: Runs, workers: int) -> None:
    _, frozen, expected = runs.fit("frozen")
    trainer, _, found = runs.fit("precomputed", num_workers=workers)
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-4, atol=1e-5)
    assert found[0][1] == pytest.approx(0, abs=1e-4), "policy and reference agree at the start"
    assert abs(found[-1][1]) > 1e-3, "and differ at the end"
    assert trainer.callback_metrics["val/loss"].item() == pytest.approx(
        frozen.trainer.callback_metrics["val/loss"].item(), rel=1e-4
    )


def test_ld_dpo_with_general_examples_equals_that_with_a_second_model(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    general = [
        SFTExample(({"role": "user", "content": f"general {number}"},), "g" * (number + 1)) for number in range(9)
    ]
    write_records(tmp_path / "general.jsonl", general)
    runs.loss = PreferenceLoss("ld", nll_weight=0.2, ld_alpha=0.3)
    settings = {"general": str(tmp_path / "general.jsonl"), "batch_size": 6}
    # A step without a pair has no margin: its value is NaN.
    _, frozen, expected = runs.fit("frozen", steps=6, **settings)
    trainer, _, found = runs.fit("precomputed", steps=6, **settings)
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-4, atol=1e-5, equal_nan=True)
    for name in ("val/loss", "val/loss/general"):
        value = frozen.trainer.callback_metrics[name].item()
        assert trainer.callback_metrics[name].item() == pytest.approx(value, rel=1e-4)
    forbid_computing(monkeypatch)
    # General examples have no values of the reference, so the same pairs need no other ones.
    begun, _, first = runs.fit("precomputed", steps=3, **settings)
    begun.save_checkpoint(runs.folder / "run.ckpt")
    runs.fit("precomputed", steps=1)
    _, _, second = runs.fit("precomputed", steps=6, resume=runs.folder / "run.ckpt", **settings)
    continued, whole = torch.tensor(first + second), torch.tensor(found)
    torch.testing.assert_close(continued, whole, rtol=1e-5, atol=1e-6, equal_nan=True)


def test_a_second_run_uses_the_stored_values(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, first = runs.fit("precomputed")
    forbid_computing(monkeypatch)
    # Another batch size needs the same values; another split needs other values.
    assert runs.fit("precomputed")[2] == first
    runs.fit("precomputed", batch_size=3)
    with pytest.raises(AssertionError, match="computed again"):
        runs.fit("precomputed", val_fraction=0.4)


@pytest.mark.parametrize("stored", [True, False])
def test_a_continued_run_keeps_its_reference(runs: Runs, monkeypatch: pytest.MonkeyPatch, stored: bool) -> None:
    _, _, whole = runs.fit("precomputed", steps=6)
    trainer, _, first = runs.fit("precomputed", steps=3)
    trainer.save_checkpoint(runs.folder / "run.ckpt")
    if stored:
        forbid_computing(monkeypatch)
    else:
        # The values must be computed from the starting weights, not from those of the checkpoint.
        shutil.rmtree(runs.folder / "cache" / "reference")
    _, _, second = runs.fit("precomputed", steps=6, resume=runs.folder / "run.ckpt")
    torch.testing.assert_close(torch.tensor(first + second), torch.tensor(whole), rtol=1e-5, atol=1e-6)


def test_validation_of_a_trained_policy_uses_the_starting_weights(runs: Runs) -> None:
    trainer, module, _ = runs.fit("precomputed")
    expected = trainer.validate(module, trainer.datamodule, verbose=False)  # type: ignore[attr-defined]
    shutil.rmtree(runs.folder / "cache" / "reference")
    data = DPODataModule(
        runs.backbone.name_or_path, runs.file, batch_size=4, val_fraction=0.2, cache=str(runs.folder / "cache")
    )
    found = trainer.validate(module, data, verbose=False)
    assert found[0]["val/loss"] == pytest.approx(expected[0]["val/loss"], rel=1e-5)
    assert abs(found[0]["val/rewards/margin"]) > 1e-4


def test_missing_starting_weights_are_an_error(tmp_path: Path, file: str) -> None:
    runs = Runs(tmp_path / "run", file, Backbone("nano"))
    trainer, module, _ = runs.fit("precomputed", steps=2)
    shutil.rmtree(runs.folder / "cache" / "reference")
    data = DPODataModule("nano", file, val_fraction=0.2, cache=str(runs.folder / "cache"))
    with pytest.raises(UserError, match="the weights that the run began with are gone"):
        trainer.validate(module, data, verbose=False)


def test_other_weights_are_computed_again(
    tmp_path: Path, file: str, llama: str, warm_adapter: str, caplog: pytest.LogCaptureFixture
) -> None:
    Runs(tmp_path / "run", file, Backbone(llama, lora=LoRA(r=4))).fit("precomputed", steps=1)
    with caplog.at_level("INFO"):
        Runs(tmp_path / "run", file, Backbone(llama, adapter=warm_adapter)).fit("precomputed", steps=1)
    changed = [message for message in caplog.messages if "computed anew" in message]
    assert len(changed) == 2 and all("weights changed" in message for message in changed)


def edited(file: Path, **settings: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))


def test_other_settings_of_the_same_weights_are_computed_again(
    tmp_path: Path, file: str, llama: str, warm_adapter: str, caplog: pytest.LogCaptureFixture
) -> None:
    model, adapter = (Path(shutil.copytree(a, tmp_path / b)) for a, b in ((llama, "model"), (warm_adapter, "adapter")))
    for backbone, changed in (
        (Backbone(str(model)), model / "config.json"),
        (Backbone(str(model), adapter=str(adapter)), adapter / "adapter_config.json"),
    ):
        runs = Runs(tmp_path / changed.parent.name / "run", file, backbone)
        runs.fit("precomputed", steps=1)
        edited(changed, **({"lora_alpha": 77} if backbone.uses_lora else {"rms_norm_eps": 0.5}))
        caplog.clear()
        with caplog.at_level("INFO"):
            found = runs.fit("precomputed", steps=1)[2]
        anew = [message for message in caplog.messages if "computed anew" in message]
        assert len(anew) == 2 and all("settings of the model changed" in message for message in anew)
        assert found[0][1] == pytest.approx(0, abs=1e-4), "policy and reference agree at the start"


def test_settings_that_change_no_value_need_no_other_ones(
    tmp_path: Path, file: str, llama: str, warm_adapter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, adapter = (Path(shutil.copytree(a, tmp_path / b)) for a, b in ((llama, "model"), (warm_adapter, "adapter")))
    Runs(tmp_path / "run", file, Backbone(str(model), adapter=str(adapter))).fit("precomputed", steps=1)
    edited(model / "config.json", transformers_version="0", architectures=["Other"], use_cache=False)
    edited(adapter / "adapter_config.json", base_model_name_or_path="someone/else", peft_version="0")
    forbid_computing(monkeypatch)
    Runs(tmp_path / "run", file, Backbone(str(model), adapter=str(adapter))).fit("precomputed", steps=1)


def test_training_without_a_data_module_is_refused(llama: str, fit: Any, preferences: Any) -> None:
    with pytest.raises(UserError, match="expected a DPODataModule"):
        fit(DPOModule(Backbone(llama), reference="precomputed"), preferences)
