"""What SFT and DPO share: steps over global batches, optimizer, loss that is not finite, checkpoints."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from judgelit.batches.flat_batch import TokenizedCompletion
from judgelit.errors import UserError
from judgelit.models.backbone import Backbone
from judgelit.models.lora import LoRA
from judgelit.training.dpo import DPOModule
from judgelit.training.losses import PreferenceLoss
from judgelit.training.schedule import WarmupCosine
from judgelit.training.sft import SFTModule

SPLITS = [(8, 1), (4, 2), (2, 4), (1, 8)]


def sgd(groups: Any) -> torch.optim.Optimizer:
    # SGD, because Adam would hide a wrong scale of the gradient.
    return torch.optim.SGD(groups, lr=0.1)


def adamw(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=1e-2)


def make(kind: str, folder: str, adapter: str | None = None, optimizer: Any = sgd) -> Any:
    torch.manual_seed(0)
    backbone = Backbone(folder, adapter=adapter)
    if kind == "sft":
        return SFTModule(backbone, optimizer)
    return DPOModule(backbone, PreferenceLoss(beta=0.5, nll_weight=0.3), optimizer=optimizer)


@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("kind", ["sft", "dpo", "mixed"])
def test_any_split_of_a_global_batch_gives_the_same_step(
    kind: str, clip: float | None, llama: str, warm_adapter: str, request: pytest.FixtureRequest
) -> None:
    fit, recorder = request.getfixturevalue("fit"), request.getfixturevalue("recorder")
    trained_weights = request.getfixturevalue("trained_weights")
    # 20 rows in global batches of 8: the third global batch is incomplete.
    rows = request.getfixturevalue({"sft": "completions", "dpo": "preferences", "mixed": "mixed"}[kind])
    results = []
    for batch_size, accumulate in SPLITS:
        module, seen = make(kind, llama, None if kind == "sft" else warm_adapter), recorder()
        settings = {"accumulate_grad_batches": accumulate, "gradient_clip_val": clip, "callbacks": [seen]}
        trainer = fit(module, rows, batch_size, **settings)
        assert trainer.global_step == 3
        results.append((seen.logged, seen.gradients, trained_weights(module)))
    logged, gradients, after = results[0]
    for other_logged, other_gradients, other_after in results[1:]:
        for step in range(3):
            assert other_logged[step] == pytest.approx(logged[step], rel=1e-4, abs=1e-5, nan_ok=True)
            assert other_gradients[step].keys() == gradients[step].keys()
            for name, gradient in gradients[step].items():
                torch.testing.assert_close(other_gradients[step][name], gradient, rtol=1e-3, atol=1e-6)
        for name, weight in after.items():
            torch.testing.assert_close(other_after[name], weight, rtol=1e-4, atol=1e-6)
    if clip is not None:
        norm = torch.stack([gradient.norm() for gradient in gradients[0].values()]).norm().item()
        assert norm == pytest.approx(clip, rel=1e-3)


def test_gradients_are_freed_before_the_next_forward_pass(
    llama: str, completions: list[TokenizedCompletion], fit: Any
) -> None:
    module, gradient_exists = make("sft", llama), []
    module.configure_model()
    embeddings = module.model.get_input_embeddings()

    def look(layer: Any, _: Any) -> None:
        # The test of layouts runs without gradients.
        if torch.is_grad_enabled():
            gradient_exists.append(layer.weight.grad is not None)

    embeddings.register_forward_pre_hook(look)
    fit(module, completions, 2, accumulate_grad_batches=2)
    assert gradient_exists == [False, True] * 5


def test_a_fit_that_stops_in_a_global_batch_leaves_nothing_to_the_next(
    llama: str, completions: list[TokenizedCompletion], fit: Any, recorder: Any
) -> None:
    class Stop(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            trainer.should_stop = True

    module, steps = make("sft", llama), []
    stopped = fit(module, completions, 2, accumulate_grad_batches=3, callbacks=[Stop()])
    assert stopped.global_step == 0
    for one in (module, make("sft", llama)):
        seen = recorder()
        fit(one, completions, 2, accumulate_grad_batches=3, max_steps=1, callbacks=[seen])
        steps.append((seen.logged[0], seen.gradients[0]))
    torch.testing.assert_close(steps[0], steps[1])


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_callbacks_see_the_gradient_of_the_mean(kind: str, llama: str, request: pytest.FixtureRequest) -> None:
    fit, recorder = request.getfixturevalue("fit"), request.getfixturevalue("recorder")
    rows = request.getfixturevalue("completions" if kind == "sft" else "preferences")
    before: list[dict[str, Any]] = []

    class Watch(L.Callback):
        def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
            named = module.named_parameters()
            before.append({name: weight.grad.clone() for name, weight in named if weight.grad is not None})

    seen = recorder()
    fit(make(kind, llama), rows, 4, accumulate_grad_batches=2, callbacks=[Watch(), seen])
    assert len(before) == 3 and before[0]
    for found, stepped in zip(before, seen.gradients, strict=True):
        torch.testing.assert_close(found, stepped, rtol=0, atol=0)


@pytest.mark.slow
def test_two_ranks_equal_one(llama: str, warm_adapter: str, tmp_path: Path) -> None:
    script = Path(__file__).with_name("ranks.py")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launch, llama, warm_adapter, str(tmp_path / "two.pt")], env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    two_ranks = torch.load(tmp_path / "two.pt", weights_only=True)
    for kind in ("sft", "dpo"):
        for accumulate in (1, 2):
            two = two_ranks[f"{kind}-{accumulate}"]
            one = runpy.run_path(str(script))["train"](kind, 1, 2 * accumulate, llama, warm_adapter)
            assert two["steps"] == one["steps"] == 8 // accumulate
            assert two["logged"] == pytest.approx(one["logged"], rel=1e-5, abs=1e-6, nan_ok=True)
            assert "train/loss/general" in one["logged"]
            for name, weight in one["weights"].items():
                assert not torch.equal(weight, one["start"][name])
                torch.testing.assert_close(two["weights"][name], weight, rtol=0, atol=1e-6)


class TestOptimizer:
    def test_norms_and_biases_do_not_decay(self, model_folder: str) -> None:
        module = make("sft", model_folder, optimizer=lambda groups: torch.optim.AdamW(groups, weight_decay=0.1))
        module.configure_model()
        decayed, kept = module.configure_optimizers().param_groups
        assert all(weight.ndim >= 2 for weight in decayed["params"]) and decayed["weight_decay"] == 0.1
        assert all(weight.ndim < 2 for weight in kept["params"]) and kept["weight_decay"] == 0.0
        count = sum(1 for weight in module.parameters() if weight.requires_grad)
        assert len(decayed["params"]) + len(kept["params"]) == count

    def test_warmup_cosine_spans_the_run(self, llama: str, completions: list[TokenizedCompletion], fit: Any) -> None:
        rates = []

        class Rates(ModelCheckpoint):
            def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
                rates.append(optimizer.param_groups[0]["lr"])

        schedule = lambda optimizer: WarmupCosine(optimizer, warmup=0.2)  # noqa: E731
        module = SFTModule(Backbone(llama), sgd, schedule)
        fit(
            module,
            completions,
            4,
            max_epochs=4,
            accumulate_grad_batches=2,
            callbacks=[Rates()],
            enable_checkpointing=True,
        )
        # 20 rows in global batches of 8 are 3 steps an epoch and 12 in total, 2 of them with a rising rate.
        assert len(rates) == 12
        assert rates[:3] == pytest.approx([0.1 / 3, 0.2 / 3, 0.1])
        assert rates[2:] == sorted(rates[2:], reverse=True) and 0 < rates[-1] < 0.01


class TestNotFinite:
    @pytest.mark.parametrize("kind", ["sft", "dpo"])
    def test_training_stops_and_saves_the_ids(
        self, kind: str, llama: str, request: pytest.FixtureRequest, run_folder: Path
    ) -> None:
        fit = request.getfixturevalue("fit")
        rows = request.getfixturevalue("completions" if kind == "sft" else "preferences")
        module = make(kind, llama)
        module.configure_model()

        def poison(*_: Any) -> None:
            if module.trainer.fit_loop.epoch_loop.batch_idx == 3:
                with torch.no_grad():
                    next(module.parameters()).fill_(float("nan"))

        module.on_train_batch_start = poison
        with pytest.raises(UserError, match="loss is nan at step 1; the batch's ids are in"):
            fit(module, rows, 2, accumulate_grad_batches=2, default_root_dir=run_folder)
        report = json.loads((run_folder / "not-finite-loss-rank0.json").read_text())
        names = [row.id for row in rows]
        assert report == {"step": 1, "loss": "nan", "ids": names[6:8], "earlier": names[4:6]}

    def test_a_loss_on_another_process_stops_this_process(
        self, llama: str, fit: Any, completions: Any, tmp_path: Path
    ) -> None:
        module = make("sft", llama)
        module.configure_model()
        before = [weight.detach().clone() for weight in module.parameters()]

        def poison(*_: Any) -> None:
            module.trainer.strategy.reduce = lambda totals, **_: torch.full_like(totals, float("nan"))

        module.on_train_batch_start = poison
        with pytest.raises(UserError, match="loss is nan at step 0 on another process"):
            fit(module, completions, 2, default_root_dir=tmp_path)
        assert all(torch.equal(one, other) for one, other in zip(before, module.parameters(), strict=True))


class TestCheckpoint:
    @pytest.mark.parametrize("kind", ["sft", "dpo"])
    @pytest.mark.parametrize("lora", [None, LoRA(r=2)])
    def test_holds_only_the_trained_weights(
        self, kind: str, lora: LoRA | None, llama: str, request: pytest.FixtureRequest, tmp_path: Path
    ) -> None:
        fit, trained_weights = request.getfixturevalue("fit"), request.getfixturevalue("trained_weights")
        rows = request.getfixturevalue("completions" if kind == "sft" else "preferences")
        module = (
            SFTModule(Backbone(llama, lora=lora), adamw) if kind == "sft" else DPOModule(Backbone(llama, lora=lora))
        )
        trainer = fit(module, rows)
        trainer.save_checkpoint(tmp_path / "run.ckpt")
        state = torch.load(tmp_path / "run.ckpt", weights_only=True)["state_dict"]
        assert state.keys() == trained_weights(module).keys()
        for name, weight in trained_weights(module).items():
            assert torch.equal(state[name], weight)

    @pytest.mark.parametrize(
        ("saved", "loaded"),
        [
            (LoRA(r=2), LoRA(r=4)),
            (LoRA(r=2), LoRA(r=2, target_modules=["q_proj", "v_proj"])),
            (LoRA(r=2, target_modules=["q_proj"]), LoRA(r=2)),
            (LoRA(r=2), None),
            (None, LoRA(r=2)),
        ],
    )
    def test_of_another_adapter_is_refused(
        self, saved: LoRA | None, loaded: LoRA | None, llama: str, completions: Any, fit: Any, tmp_path: Path
    ) -> None:
        trainer = fit(SFTModule(Backbone(llama, lora=saved), adamw), completions)
        trainer.save_checkpoint(tmp_path / "run.ckpt")
        with pytest.raises(UserError, match="the checkpoint is of another model"):
            fit(
                SFTModule(Backbone(llama, lora=loaded), adamw),
                completions,
                ckpt_path=tmp_path / "run.ckpt",
                max_epochs=2,
            )

    def test_of_another_architecture_is_refused(
        self, model_folders: dict[str, str], completions: Any, fit: Any, tmp_path: Path
    ) -> None:
        trainer = fit(SFTModule(Backbone(model_folders["llama"]), adamw), completions)
        trainer.save_checkpoint(tmp_path / "run.ckpt")
        for other in ("qwen2", "gpt_neox"):
            with pytest.raises(UserError, match="the checkpoint is of another model"):
                fit(SFTModule(Backbone(model_folders[other]), adamw), completions, ckpt_path=tmp_path / "run.ckpt")

    @pytest.mark.parametrize("kind", ["sft", "dpo"])
    @pytest.mark.parametrize("lora", [None, LoRA(r=2)])
    def test_a_continued_run_ends_with_the_weights_of_an_unbroken_run(
        self, kind: str, lora: LoRA | None, llama: str, request: pytest.FixtureRequest, tmp_path: Path
    ) -> None:
        fit, trained_weights = request.getfixturevalue("fit"), request.getfixturevalue("trained_weights")
        rows = request.getfixturevalue("completions" if kind == "sft" else "preferences")

        def module() -> Any:
            torch.manual_seed(3)
            schedule = lambda optimizer: WarmupCosine(optimizer, 0.1)  # noqa: E731
            return (SFTModule if kind == "sft" else DPOModule)(
                Backbone(llama, lora=lora), optimizer=adamw, lr_scheduler=schedule
            )

        saver = ModelCheckpoint(tmp_path / "saved", every_n_train_steps=5, save_top_k=-1, filename="{step}")
        unbroken = module()
        unbroken.configure_model()
        fit(unbroken, rows, 4, max_epochs=2, callbacks=[saver], enable_checkpointing=True)
        continued = module()
        continued.configure_model()
        # Five steps are one epoch.
        fit(continued, rows, 4, max_epochs=2, ckpt_path=tmp_path / "saved" / "step=5.ckpt")
        assert continued.trainer.global_step == 10
        assert continued.tokens_seen == unbroken.tokens_seen > 0
        for name, weight in trained_weights(unbroken).items():
            torch.testing.assert_close(trained_weights(continued)[name], weight, rtol=0, atol=1e-6)
