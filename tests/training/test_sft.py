"""SFT: its loss compared with a plain computation, its logged values, its predictions."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from judgelit.batches.flat_batch import TokenizedCompletion
from judgelit.models.backbone import Backbone
from judgelit.training.sft import SFTModule
from tests.plain_forward import plain_of


@torch.no_grad()
def plain_loss(model: Any, rows: list[TokenizedCompletion]) -> float:
    """Mean of -log p over the completion tokens of all rows (not a mean of the rows' means)."""
    return -plain_of(model, rows).mean().item()


def test_the_loss_is_the_mean_over_completion_tokens(
    model_folder: str, completions: list[TokenizedCompletion], fit: Any, recorder: Any
) -> None:
    wanted = plain_loss(Backbone(model_folder).build().eval(), completions[:8])
    module, seen = SFTModule(Backbone(model_folder)), recorder()
    fit(module, completions[:8], 2, accumulate_grad_batches=4, callbacks=[seen])
    assert len(seen.logged) == 1
    assert seen.logged[0]["train/loss"] == pytest.approx(wanted, rel=1e-5)
    assert module.tokens_seen == sum(len(row) for row in completions[:8])


def test_the_loss_of_each_tag_is_logged_apart(
    llama: str, completions: list[TokenizedCompletion], fit: Any, recorder: Any
) -> None:
    tags = ["general", "", "judge", "general", "judge", "judge", "judge", "", "judge"]
    rows = [replace(row, tag=tag) for row, tag in zip(completions, tags, strict=False)]
    model, seen = Backbone(llama).build().eval(), recorder()
    module = SFTModule(Backbone(llama), lambda groups: torch.optim.SGD(groups, lr=0.0))
    # Global batches of 4, 4 and 1; one micro-batch of the first has no general example.
    trainer = fit(module, rows, 2, accumulate_grad_batches=2, callbacks=[seen], val=rows)
    for step, part in enumerate((rows[:4], rows[4:8], rows[8:])):
        for tag in ("general", "judge"):
            tagged = [row for row in part if row.tag == tag]
            wanted = plain_loss(model, tagged) if tagged else math.nan
            assert seen.logged[step][f"train/loss/{tag}"] == pytest.approx(wanted, rel=1e-5, nan_ok=True)
        assert seen.logged[step]["train/loss"] == pytest.approx(plain_loss(model, part), rel=1e-5)
    for tag in ("general", "judge"):
        found = float(trainer.callback_metrics[f"val/loss/{tag}"])
        assert found == pytest.approx(plain_loss(model, [row for row in rows if row.tag == tag]), rel=1e-5)


def test_a_tag_may_hold_dots(llama: str, completions: list[TokenizedCompletion], fit: Any) -> None:
    tags = ["v1.2", "v1.2", "v1_2", "v1.2.3"]
    rows = [replace(row, tag=tag) for row, tag in zip(completions, tags, strict=False)]
    trainer = fit(SFTModule(Backbone(llama), lambda groups: torch.optim.SGD(groups, lr=0.0)), rows, 2, val=rows)
    model = Backbone(llama).build().eval()
    for tag in set(tags):
        wanted = plain_loss(model, [row for row in rows if row.tag == tag])
        assert float(trainer.callback_metrics[f"val/loss/{tag}"]) == pytest.approx(wanted, rel=1e-5)


def test_validation_and_test_are_means_over_the_whole_set(
    llama: str, completions: list[TokenizedCompletion], fit: Any, loader_of: Any
) -> None:
    wanted = plain_loss(Backbone(llama).build().eval(), completions)
    module = SFTModule(Backbone(llama), lambda groups: torch.optim.SGD(groups, lr=0.0))
    # The last batch of 3 has only 2 rows, so a mean of batch means would differ.
    trainer = fit(module, completions, 3, val=completions)
    assert float(trainer.callback_metrics["val/loss"]) == pytest.approx(wanted, rel=1e-5)
    # A second validation does not include the first one.
    (again,) = trainer.validate(module, loader_of(completions[:5], 3), verbose=False)
    assert again["val/loss"] == pytest.approx(plain_loss(Backbone(llama).build().eval(), completions[:5]), rel=1e-5)
    (tested,) = trainer.test(module, loader_of(completions, 3), verbose=False)
    assert tested["test/loss"] == pytest.approx(wanted, rel=1e-5)


@torch.no_grad()
def test_one_batch_without_a_finite_loss_shows_in_the_validation(
    llama: str, completions: list[TokenizedCompletion], loader_of: Any, tmp_path: Path
) -> None:
    module = SFTModule(Backbone(llama))
    module.configure_model()
    module.model.get_input_embeddings().weight[310] = math.nan  # type: ignore[union-attr]
    rows = [*completions[:4], replace(completions[4], prompt=[310]), *completions[5:8]]
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path)
    (found,) = trainer.validate(module, loader_of(rows, 2), verbose=False)
    assert math.isnan(found["val/loss"])
    (found,) = trainer.validate(module, loader_of(completions[:8], 2), verbose=False)
    assert found["val/loss"] == pytest.approx(plain_loss(Backbone(llama).build().eval(), completions[:8]), rel=1e-5)


def test_training_fits_a_small_set(llama: str, completions: list[TokenizedCompletion], fit: Any, recorder: Any) -> None:
    seen = recorder()
    module = SFTModule(Backbone(llama), lambda groups: torch.optim.AdamW(groups, lr=1e-2))
    fit(module, completions[:6], 6, max_epochs=40, callbacks=[seen])
    assert seen.logged[-1]["train/loss"] < 0.2 < seen.logged[0]["train/loss"]


def test_predict_returns_one_greedy_answer_for_each_prompt(llama: str) -> None:
    from types import SimpleNamespace

    from judgelit.batches.flat_batch import pad_prompts
    from judgelit.generation.generate import Sampling, generate

    module = SFTModule(Backbone(llama))
    module.configure_model()
    input_ids, attention_mask = pad_prompts([[1, 2, 3], [4]], 0)
    batch = SimpleNamespace(
        input_ids=input_ids, attention_mask=attention_mask, max_new_tokens=5, stop_ids=(7,), pad_id=0, ends=None
    )
    wanted = generate(module.model, input_ids, attention_mask, Sampling(5), stop_ids=(7,), pad_id=0)  # type: ignore[arg-type]
    assert module.predict_step(batch, 0) == [texts[0] for texts in wanted]
