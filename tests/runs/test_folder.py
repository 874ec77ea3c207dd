"""The folder of a run: it takes no second run."""

from pathlib import Path

import pytest

from judgelit.errors import UserError
from judgelit.runs.folder import claim_folder


def test_a_folder_can_be_claimed_again_by_the_same_run(tmp_path: Path) -> None:
    files = {"config.yaml": "seed: 1\n", "sft.yaml": "model: a\n"}
    claim_folder(tmp_path / "run", files)
    claim_folder(tmp_path / "run", files)
    assert {path.name: path.read_text() for path in (tmp_path / "run").iterdir()} == files


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"config.yaml": "seed: 2\n", "sft.yaml": "model: a\n"}, "config.yaml: seed: found 1 there and 2 here"),
        ({"config.yaml": "seed: 1\n", "sft.yaml": "model: {b: 1}\n"}, "sft.yaml: model: found 'a' there and"),
    ],
)
def test_another_configuration_is_refused_by_the_key_that_differs(
    tmp_path: Path, changed: dict[str, str], said: str
) -> None:
    claim_folder(tmp_path, {"config.yaml": "seed: 1\n", "sft.yaml": "model: a\n"})
    with pytest.raises(UserError, match=said):
        claim_folder(tmp_path, changed)
    assert (tmp_path / "config.yaml").read_text() == "seed: 1\n"


def test_the_folder_of_a_fit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="holds another run"):
        claim_folder(tmp_path, {"config.yaml": "seed: 1\n"})


@pytest.mark.parametrize("name", ["stages", "export"])
def test_files_that_are_not_of_the_run_are_refused_and_kept(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match=f"{name}: found files that are not of this run"):
        claim_folder(tmp_path, {"config.yaml": "seed: 1\n"})
    assert [path.name for path in tmp_path.rglob("*")] == [name, "mine.txt"]
