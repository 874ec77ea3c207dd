"""PagedAdamW8bit: paged 8-bit AdamW on a GPU, torch's AdamW with the same settings without one."""

import copy
from typing import Any

import bitsandbytes
import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch.cli import OptimizerCallable
from torch import nn

from judgelit.training.optimizers import PagedAdamW8bit

SETTINGS: dict[str, Any] = {"lr": 0.03, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.2}


def weight() -> nn.Parameter:
    # bitsandbytes keeps the state in 8 bits from 4,096 elements on.
    return nn.Parameter(torch.linspace(-1, 1, 8192).view(2, 4096))


def after_steps(optimizer: torch.optim.Optimizer, of: nn.Parameter) -> torch.Tensor:
    for number in range(3):
        of.grad = torch.cos(of.detach() * (number + 1))
        optimizer.step()
    return of.detach()


def test_without_gpu_it_is_torchs_adamw_and_logs_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    ours, plain = weight(), weight()
    with caplog.at_level("INFO"):
        optimizer = PagedAdamW8bit([{"params": [ours]}], **SETTINGS)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert [record.getMessage() for record in caplog.records] == [
        "optimizer: PyTorch's AdamW in place of the paged 8-bit one, since there is no CUDA GPU"
    ]
    assert torch.equal(after_steps(optimizer, ours), after_steps(torch.optim.AdamW([plain], **SETTINGS), plain))


def test_with_gpu_it_is_the_optimizer_of_bitsandbytes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    of = weight()
    with caplog.at_level("INFO"):
        optimizer = PagedAdamW8bit([{"params": [of], "weight_decay": 0.0}], **SETTINGS)
    assert type(optimizer) is bitsandbytes.optim.PagedAdamW8bit
    assert optimizer.is_paged and optimizer.args.optim_bits == 8
    assert not caplog.records
    (group,) = optimizer.param_groups
    assert {name: group[name] for name in SETTINGS} == {**SETTINGS, "weight_decay": 0.0}


def test_a_configuration_can_name_it_and_a_copy_has_the_same_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--optimizer", type=OptimizerCallable)
    class_path = f"{PagedAdamW8bit.__module__}.{PagedAdamW8bit.__name__}"
    spec = {"class_path": class_path, "init_args": {"lr": 0.5, "weight_decay": 0.0}}
    parsed = parser.instantiate(parser.parse_object({"optimizer": spec}))
    optimizer = parsed.optimizer([weight()])
    assert type(optimizer) is PagedAdamW8bit and optimizer.param_groups[0]["lr"] == 0.5
    again = copy.deepcopy(optimizer)
    assert type(again) is PagedAdamW8bit and again.param_groups[0]["lr"] == 0.5
