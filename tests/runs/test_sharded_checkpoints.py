"""Sharded checkpoints: one process reads them whole, and runs no code in them."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from judgelit.errors import UserError
from judgelit.runs.sharded_checkpoints import load_meta, load_shards, shapes_in, weights_in


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def saved(folder: Path, rate: Any = 0.1) -> Path:
    state = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)}
    dcp.save({"state_dict": state, "optimizer_0": {"lr": rate, "mean": torch.ones(2)}}, checkpoint_id=folder)
    torch.save({"global_step": 3}, folder / "meta.pt")
    return folder


def test_weights_come_back_with_name_shape_and_dtype(tmp_path: Path) -> None:
    folder = saved(tmp_path / "last.ckpt")
    assert shapes_in(folder) == {"a": (2, 3), "b": (2,)}
    found = weights_in(folder)
    assert torch.equal(found["a"], torch.arange(6.0).reshape(2, 3)) and found["b"].dtype == torch.bfloat16
    assert load_meta(folder) == {"global_step": 3}
    state: dict[str, Any] = {"optimizer_0": {"lr": 0.0, "mean": torch.zeros(2)}}
    load_shards(state, folder)
    assert state["optimizer_0"]["lr"] == 0.1 and torch.equal(state["optimizer_0"]["mean"], torch.ones(2))


def test_code_in_place_of_a_number_is_not_run(tmp_path: Path) -> None:
    folder = saved(tmp_path / "last.ckpt", rate=Touch(tmp_path / "touched"))
    with pytest.raises(UserError, match="cannot be read as a sharded checkpoint"):
        load_shards({"optimizer_0": {"lr": 0.0}}, folder)
    assert not (tmp_path / "touched").exists()
    assert set(weights_in(folder)) == {"a", "b"}


def test_the_index_of_one_rank_is_not_read(tmp_path: Path) -> None:
    folder = saved(tmp_path / "last.ckpt")
    # Harmless, but no index: PyTorch then looks for the rank's own.
    (folder / ".metadata").write_bytes(pickle.dumps(torch.Size([1])))
    (folder / "__0.metadata").write_bytes(pickle.dumps(Touch(tmp_path / "touched")))
    with pytest.raises(UserError, match="cannot be read as a sharded checkpoint"):
        load_shards({"optimizer_0": {"lr": 0.0}}, folder, alone=True)
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(("left", "why"), [(None, "No such file"), (0, ""), (100, "")])
def test_a_broken_shard_is_refused_in_one_line(left: int | None, why: str, tmp_path: Path) -> None:
    folder = saved(tmp_path / "last.ckpt")
    for shard in folder.glob("*.distcp"):
        content = shard.read_bytes()
        shard.unlink()
        if left is not None:
            shard.write_bytes(content[:left])
    with pytest.raises(
        UserError, match=f"cannot be read as a sharded checkpoint .*{why}.*; expected a complete one"
    ) as said:
        weights_in(folder)
    assert "Traceback" not in str(said.value) and "dict_keys" not in str(said.value)


def test_a_flipped_bit_in_a_weight_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "last.ckpt")
    (shard,) = folder.glob("*.distcp")
    whole = shard.read_bytes()
    weight = torch.arange(6.0).numpy().tobytes()
    assert weight in whole
    shard.write_bytes(whole.replace(weight, bytes([weight[0] ^ 4]) + weight[1:]))
    with pytest.raises(UserError, match=r"cannot be read as a sharded checkpoint .*checksum"):
        weights_in(folder)
