"""Fixtures for small training runs with Lightning's Trainer."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from judgelit.batches.flat_batch import (
    TokenizedCompletion,
    TokenizedPreference,
    flatten_completions,
    flatten_preferences,
)
from judgelit.batches.sampler import BatchSampler

Fit = Callable[..., L.Trainer]


def some_ids(draw: random.Random, least: int, most: int) -> list[int]:
    return [draw.randrange(300) for _ in range(draw.randint(least, most))]


@pytest.fixture(scope="session")
def completions() -> list[TokenizedCompletion]:
    """Twenty prompts with completions of very different length."""
    draw = random.Random(0)
    return [TokenizedCompletion(f"c{i}", some_ids(draw, 1, 8), some_ids(draw, 1, 15)) for i in range(20)]


@pytest.fixture(scope="session")
def preferences() -> list[TokenizedPreference]:
    """Twenty pairs with completions of very different length."""
    draw = random.Random(1)
    return [
        TokenizedPreference(f"p{i}", some_ids(draw, 1, 8), some_ids(draw, 1, 15), some_ids(draw, 1, 15))
        for i in range(20)
    ]


@pytest.fixture(scope="session")
def mixed(
    preferences: list[TokenizedPreference], completions: list[TokenizedCompletion]
) -> list[TokenizedPreference | TokenizedCompletion]:
    """Twelve pairs and eight general examples, some of them with tags."""
    pairs = [replace(row, tag="hard" if number % 2 == 0 else "") for number, row in enumerate(preferences[:12])]
    general = [replace(row, tag="general") for row in completions[:8]]
    order = random.Random(2).sample(range(20), 20)
    return [[*pairs, *general][number] for number in order]


def loader(rows: Sequence[Any], batch_size: int) -> DataLoader:
    """Load batches of the rows without shuffling."""
    pairs = any(isinstance(row, TokenizedPreference) for row in rows)
    collate: Any = partial(
        flatten_preferences if pairs else flatten_completions, tags=tuple(sorted({row.tag for row in rows} - {""}))
    )
    batches = BatchSampler([len(row) for row in rows], batch_size, shuffle=False)
    return DataLoader(rows, batch_sampler=batches, collate_fn=collate)  # type: ignore[arg-type]


@pytest.fixture
def fit(tmp_path: Path) -> Fit:
    """Function that trains a module: `fit(module, rows, batch_size, **trainer_settings)` returns the Trainer."""

    def run(
        module: L.LightningModule,
        rows: Sequence[Any],
        batch_size: int = 4,
        *,
        val: Sequence[Any] | None = None,
        ckpt_path: Path | None = None,
        **settings: Any,
    ) -> L.Trainer:
        settings = {"max_epochs": 1, "enable_checkpointing": False, "default_root_dir": tmp_path / "run", **settings}
        trainer = L.Trainer(
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            **settings,
        )
        torch.manual_seed(0)
        trainer.fit(
            module,
            loader(rows, batch_size),
            None if val is None else loader(val, batch_size),
            ckpt_path=ckpt_path,
            weights_only=True if ckpt_path else None,
        )
        return trainer

    return run


@pytest.fixture(scope="session")
def loader_of() -> Callable[..., DataLoader]:
    """Function that makes a loader of rows without shuffling."""
    return loader


def weights(module: L.LightningModule) -> dict[str, Tensor]:
    return {name: w.detach().clone() for name, w in module.named_parameters() if w.requires_grad}


@pytest.fixture(scope="session")
def trained_weights() -> Callable[[L.LightningModule], dict[str, Tensor]]:
    """Function that copies the trainable weights of a module."""
    return weights


class Recorder(L.Callback):
    """Callback that keeps the gradients that the optimizer sees and the logged values of each step."""

    def __init__(self) -> None:
        self.gradients: list[dict[str, Tensor]] = []
        self.logged: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        # The gradients are kept until the next global batch begins.
        if trainer.global_step > len(self.logged):
            named = pl_module.named_parameters()
            self.gradients.append({name: weight.grad.clone() for name, weight in named if weight.grad is not None})
            self.logged.append({name: float(value) for name, value in trainer.callback_metrics.items()})


@pytest.fixture
def recorder() -> type[Recorder]:
    """The class of the recording callback."""
    return Recorder
