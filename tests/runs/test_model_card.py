"""The model card names the model with which training began."""

from pathlib import Path

import pytest
import yaml

from judgelit.cli import main


@pytest.mark.parametrize("root", [".", "run"])
def test_the_base_is_a_model_and_not_the_one_of_a_configuration_beside_it(
    root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The built-in model has no folder, so the configuration in the current folder is not of the run that made it.
    monkeypatch.chdir(tmp_path)
    other = {"model": {"init_args": {"backbone": {"name_or_path": "someone/else"}}}}
    Path("config.yaml").write_text(yaml.safe_dump(other), encoding="utf-8")
    short = ["--data.train.init_args.tasks.count=8", "--data.val=null", "--data.judge=null", "--trainer.max_steps=1"]
    main(["fit", "--config=quickstart/sft", "--trainer.callbacks=null", f"--trainer.default_root_dir={root}", *short])
    card = Path(root, "model/README.md").read_text(encoding="utf-8")
    assert "| base model | nano |" in card and "someone" not in card
    assert Path(root, "fit.json").exists()
