"""What `judgelit fit` adds to LightningCLI."""

from pathlib import Path

import pytest
import torch
import yaml

from judgelit import training
from judgelit.cli import main

SFT = [
    "fit",
    "--config=quickstart/sft",
    "--data.train.init_args.tasks.init_args.count=90",
    "--data.val=null",
    "--data.judge=null",
    "--data.batch_size=8",
    "--trainer.callbacks=lightning.pytorch.callbacks.ModelCheckpoint",
    "--trainer.callbacks.save_last=true",
    "--trainer.callbacks.every_n_train_steps=2",
    # The schedule stretches over the run's length, which the two runs below do not share.
    "--model.lr_scheduler=null",
]


def checkpoint(run: str) -> dict:
    return torch.load(Path(run) / "checkpoints/last.ckpt", weights_only=True)


def test_the_last_checkpoint_is_of_the_last_step_and_continues_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    main([*SFT, "--trainer.max_steps=16", "--trainer.default_root_dir=unbroken"])
    main([*SFT, "--trainer.max_steps=5", "--trainer.default_root_dir=broken"])
    assert checkpoint("broken")["global_step"] == 5
    main([*SFT, "--trainer.max_steps=16", "--trainer.default_root_dir=broken", "--ckpt_path=last"])
    unbroken, broken = checkpoint("unbroken"), checkpoint("broken")
    assert unbroken["global_step"] == broken["global_step"] == 16
    for name, weight in unbroken["state_dict"].items():
        assert torch.equal(weight, broken["state_dict"][name]), name


def test_the_saved_configuration_runs_again_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    main([*SFT, "--trainer.max_steps=2", "--trainer.default_root_dir=first"])
    saved = yaml.safe_load(Path("first/config.yaml").read_text(encoding="utf-8"))
    assert saved["trainer"]["max_steps"] == 2 and saved["seed_everything"] == 0
    main(["fit", "--config=first/config.yaml", "--trainer.default_root_dir=second"])
    for name, weight in checkpoint("first")["state_dict"].items():
        assert torch.equal(weight, checkpoint("second")["state_dict"][name]), name


def test_short_names_stand_for_what_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    for thing in training.BY_SHORT_NAME[:4:3]:
        with pytest.raises(SystemExit):
            main(["fit", "--config=quickstart/sft", f"--data={thing.__name__}", "--data.train=x", "--print_config"])
        assert f"{thing.__module__}.{thing.__name__}" in capsys.readouterr().out
