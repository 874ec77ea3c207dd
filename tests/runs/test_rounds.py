from pathlib import Path

import pytest

from judgelit.errors import UserError
from judgelit.runs.rounds import judge_of_round

CONFIG = "model:\n  class_path: judgelit.{}Module\n  init_args:\n    backbone:\n      name_or_path: nano\n"


def add_stage(run: Path, name: str, method: str | None = None, ended: bool = True) -> str:
    stage = run / "stages" / name
    stage.mkdir(parents=True)
    if method is not None:
        (stage / "config.yaml").write_text(CONFIG.format(method))
        (stage / "checkpoints").mkdir()
        (stage / "checkpoints" / "last.ckpt").write_text("")
    if ended:
        (stage / "done.json").write_text("{}")
    return str(stage)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run whose first training has ended."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text("seed: 0")
    add_stage(folder, "02-warmup")
    add_stage(folder, "04-sft", "SFT")
    return folder


def test_round_one_samples_from_the_warm_judge_and_later_ones_from_the_newest(run: Path) -> None:
    newest = add_stage(run, "07-dpo", "DPO")
    assert judge_of_round(str(run), 1) == str(run / "stages" / "04-sft")
    assert judge_of_round(str(run), 2) == newest
    newer = add_stage(run, "11-dpo", "DPO")
    add_stage(run, "15-dpo", "DPO", ended=False)
    assert judge_of_round(str(run), 2) == judge_of_round(str(run), 3) == newer


def test_any_other_model_is_the_judge_itself(run: Path, tmp_path: Path) -> None:
    stage = str(run / "stages" / "04-sft")
    for model in ("nano", "org/model", stage, f"{stage}/checkpoints/last.ckpt", str(tmp_path)):
        assert judge_of_round(model, 1) == judge_of_round(model, 2) == model


def test_a_training_that_has_not_ended_is_an_error(run: Path) -> None:
    add_stage(run, "07-dpo", "DPO", ended=False)
    with pytest.raises(
        UserError, match=r"round: found 2, but .* judge trained by DPO; continue the run, or name"
    ) as error:
        judge_of_round(str(run), 2)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="round: found 0, expected 1 or more"):
        judge_of_round("nano", 0)
