"""The settings that decide a run: which of them may change when it continues."""

from pathlib import Path
from typing import Any

import pytest

from judgelit.errors import UserError
from judgelit.runs.run_settings import deciding_settings, refuse_changes


def configuration(backbone: dict[str, Any], optimizer: dict[str, Any], **trainer: Any) -> dict[str, Any]:
    model = {"class_path": "judgelit.SFTModule", "init_args": {"backbone": backbone, "optimizer": optimizer}}
    return {"seed_everything": 3, "trainer": trainer, "model": model, "data": {"init_args": {"num_workers": 1}}}


ADAM = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.1}}
START = configuration({"name_or_path": "nano", "lora": {"r": 4}}, ADAM, precision="32-true", devices=1)


def test_settings_that_decide_nothing_may_change() -> None:
    backbone = {**START["model"]["init_args"]["backbone"], "attention": "eager"}
    other = configuration(backbone, ADAM, precision="32-true", devices=2, max_steps=9, accumulate_grad_batches=2)
    refuse_changes(deciding_settings(START), deciding_settings({**other, "data": {}}))


@pytest.mark.parametrize(
    ("now", "said"),
    [
        ({**START, "seed_everything": 4}, "seed_everything: found 4, expected 3, with which"),
        (configuration({"name_or_path": "nano", "lora": {"r": 8}}, ADAM), "model.backbone.lora.r: found 8, expected 4"),
        # The checkpoint keeps a hash of the reference, which depends on its kind.
        (
            {**START, "model": {**START["model"], "init_args": {**START["model"]["init_args"], "reference": "frozen"}}},
            "model.reference: found 'frozen', expected nothing",
        ),
        (
            configuration({"name_or_path": "nano", "lora": None}, ADAM),
            "model.backbone.lora.r: found nothing, expected 4",
        ),
        (
            configuration(START["model"]["init_args"]["backbone"], {**ADAM, "init_args": {"lr": 0.2}}),
            "model.optimizer.lr: found 0.2, expected 0.1",
        ),
        (
            configuration(START["model"]["init_args"]["backbone"], {**ADAM, "class_path": "torch.optim.SGD"}),
            "model.optimizer.class_path: found 'torch.optim.SGD', expected 'torch.optim.AdamW'",
        ),
    ],
)
def test_another_setting_is_refused_by_its_name(now: dict[str, Any], said: str) -> None:
    now["trainer"]["precision"] = "32-true"
    with pytest.raises(UserError) as error:
        refuse_changes(deciding_settings(START), deciding_settings(now))
    assert said in str(error.value)


def test_two_paths_of_one_folder_are_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = [deciding_settings(configuration({"name_or_path": path}, ADAM)) for path in ("base", f"{tmp_path}/base")]
    refuse_changes(*settings)
