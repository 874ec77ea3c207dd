"""DPO training: its start, its logged values, and how a run continues."""

import copy
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from judgelit.batches.flat_batch import TokenizedCompletion, TokenizedPreference, flatten_preferences, pad_prompts
from judgelit.errors import UserError
from judgelit.likelihood.layouts import Layout
from judgelit.likelihood.logprobs import completion_logprobs
from judgelit.models.backbone import Backbone
from judgelit.models.lora import LoRA
from judgelit.training.dpo import DPOModule
from judgelit.training.losses import PreferenceLoss
from tests.plain_forward import plain_logprobs

SHARED = Layout("shared_prefix")
LOGGED = {
    "loss",
    "nll",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margin",
    "rewards/accuracy",
    "log_ratio",
    "kl",
    "logps/chosen",
    "logps/rejected",
}


def adamw(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=1e-2)


class TestStart:
    @pytest.mark.parametrize("lora", [None, LoRA(r=4), LoRA(r=4, dropout=0.5)])
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_rewards_are_zero_and_the_loss_is_ln_2(
        self, model_folder: str, lora: LoRA | None, dtype: Any, preferences: Any, fit: Any, recorder: Any
    ) -> None:
        self.check_start(DPOModule(Backbone(model_folder, dtype, lora=lora)), preferences, fit, recorder())

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    @pytest.mark.parametrize("checkpointing", [False, True])
    def test_rewards_are_zero_after_a_lora_warm_up(
        self, llama: str, warm_adapter: str, dtype: Any, checkpointing: bool, preferences: Any, fit: Any, recorder: Any
    ) -> None:
        backbone = Backbone(llama, dtype, adapter=warm_adapter, activation_checkpointing=checkpointing)
        self.check_start(DPOModule(backbone), preferences, fit, recorder())

    def check_start(self, module: DPOModule, preferences: Any, fit: Any, seen: Any) -> None:
        fit(module, preferences[:8], 4, accumulate_grad_batches=2, callbacks=[seen])
        (first,) = seen.logged
        assert first["train/loss"] == pytest.approx(math.log(2), abs=1e-6)
        for name in ("rewards/chosen", "rewards/rejected", "rewards/margin", "log_ratio", "kl"):
            assert first[f"train/{name}"] == 0.0

    def test_a_policy_that_differs_from_the_reference_at_the_start_is_refused(
        self, llama: str, preferences: Any, fit: Any
    ) -> None:
        module = DPOModule(Backbone(llama))
        module.configure_model()
        with torch.no_grad():
            module.model.lm_head.weight.mul_(1.01)  # type: ignore[union-attr]
        with pytest.raises(UserError, match=r"policy and reference differ by up to .* nats before the first step"):
            fit(module, preferences)

    def test_dropout_is_off_in_policy_and_reference(self, model_folders: dict[str, str]) -> None:
        module = DPOModule(Backbone(model_folders["gpt_neox"], lora=LoRA(r=2, dropout=0.5)))
        inner = module.backbone.build()
        assert any(isinstance(part, nn.Dropout) and part.p > 0 for part in inner.modules())
        module.configure_model()
        assert module.model is not None
        for part in module.model.modules():
            assert not isinstance(part, nn.Dropout) or part.p == 0
            assert getattr(part, "attention_dropout", 0.0) == 0.0

    def test_dropout_rates_in_attributes_are_set_to_zero(self) -> None:
        from judgelit.training.dpo import disable_dropout

        class Layer(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.attention_dropout, self.dropout, self.activation_dropout, self.scale = 0.1, 0.2, 0.3, 0.4

        model = nn.Sequential(Layer(), nn.Dropout(0.5))
        disable_dropout(model)
        layer: Any = model[0]
        assert (layer.attention_dropout, layer.dropout, layer.activation_dropout, layer.scale) == (0.0, 0.0, 0.0, 0.4)
        assert model[1].p == 0.0


class TestStep:
    @pytest.mark.parametrize("kind", ["sigmoid", "ipo", "hinge", "robust", "ld"])
    def test_logged_values_equal_a_computation_pair_by_pair(
        self, kind: Any, llama: str, preferences: list[TokenizedPreference], fit: Any, recorder: Any
    ) -> None:
        beta, weight, error = 0.3, 0.7, 0.1 if kind == "robust" else 0.0
        seen = recorder()
        module = DPOModule(Backbone(llama), PreferenceLoss(kind, beta, error, weight), optimizer=adamw)
        module.configure_model()
        assert module.model is not None
        start: Any = copy.deepcopy(module.model).eval()
        snapshots = []

        def keep(*_: Any) -> None:
            snapshots.append(copy.deepcopy(module.model).eval())  # type: ignore[union-attr]

        module.on_train_batch_start = keep
        fit(module, preferences[:8], 4, max_epochs=2, callbacks=[seen])
        assert len(snapshots) == 4
        for step, policy in enumerate(snapshots):
            rows = preferences[:4] if step % 2 == 0 else preferences[4:8]
            wanted: dict[str, float] = dict.fromkeys(LOGGED, 0.0)
            for row in rows:
                with torch.no_grad():
                    (won, won_ref), (lost, lost_ref) = (
                        [plain_logprobs(model, row.prompt, text) for model in (policy, start)]
                        for text in (row.chosen, row.rejected)
                    )
                chosen, rejected = (won - won_ref).sum(), (lost - lost_ref).sum()
                margin = chosen - rejected
                if kind == "ipo":
                    loss = ((won - won_ref).mean() - (lost - lost_ref).mean() - 1 / (2 * beta)) ** 2
                elif kind == "hinge":
                    loss = (1 - beta * margin).clamp(min=0)
                elif kind == "ld":
                    public = min(len(row.chosen), len(row.rejected))
                    weights = [torch.where(torch.arange(len(one)) < public, 1.0, 0.5) for one in (won, lost)]
                    desensitised = ((won - won_ref) * weights[0]).sum() - ((lost - lost_ref) * weights[1]).sum()
                    loss = torch.log1p(torch.exp(-beta * desensitised))
                else:
                    right, wrong = (-(1 / (1 + torch.exp(-sign * beta * margin))).log() for sign in (1, -1))
                    loss = ((1 - error) * right - error * wrong) / (1 - 2 * error)
                # Schulman's k3 estimator of each token: r - 1 - log r with r = p_ref / p.
                ratio, ratio_lost = torch.exp(won_ref - won), torch.exp(lost_ref - lost)
                kl = (ratio - 1 - ratio.log()).mean() + (ratio_lost - 1 - ratio_lost.log()).mean()
                pair = {
                    "loss": loss + weight * -won.mean(),
                    "nll": -won.mean(),
                    "rewards/chosen": beta * chosen,
                    "rewards/rejected": beta * rejected,
                    "rewards/margin": beta * margin,
                    "rewards/accuracy": float(margin > 1e-7),
                    "log_ratio": margin,
                    "kl": kl / 2,
                    "logps/chosen": won.sum(),
                    "logps/rejected": lost.sum(),
                }
                wanted = {name: wanted[name] + float(pair[name]) / len(rows) for name in LOGGED}
            got = {name: seen.logged[step][f"train/{name}"] for name in LOGGED}
            assert got == pytest.approx(wanted, rel=1e-3, abs=2e-5)

    def test_general_examples_are_in_the_loss_alone(
        self, llama: str, mixed: list[Any], fit: Any, recorder: Any
    ) -> None:
        seen = recorder()
        settings = PreferenceLoss(beta=0.3, nll_weight=0.7, general_weight=0.4)
        module = DPOModule(Backbone(llama), settings, optimizer=lambda groups: torch.optim.SGD(groups, lr=0.0))
        trainer = fit(module, mixed, 5, accumulate_grad_batches=2, callbacks=[seen], val=mixed)
        model: Any = Backbone(llama).build().eval()

        @torch.no_grad()
        def nll(prompt: Any, completion: Any) -> float:
            return -plain_logprobs(model, prompt, completion).mean().item()

        def means(rows: list[Any]) -> dict[str, float]:
            pairs = [row for row in rows if isinstance(row, TokenizedPreference)]
            general = [nll(row.prompt, row.completion) for row in rows if isinstance(row, TokenizedCompletion)]
            chosen = [nll(row.prompt, row.chosen) for row in pairs]
            of_pairs = [math.log(2) + 0.7 * value for value in chosen]
            hard = [value for value, row in zip(of_pairs, pairs, strict=True) if row.tag]
            return {
                "loss": (sum(of_pairs) + 0.4 * sum(general)) / len(rows),
                "loss/general": sum(general) / len(general),
                "loss/hard": sum(hard) / len(hard),
                "nll": sum(chosen) / len(chosen),
                "rewards/margin": 0.0,
            }

        found = [*seen.logged, trainer.callback_metrics]
        for part, logged, rows in zip(("train", "train", "val"), found, (mixed[:10], mixed[10:], mixed), strict=True):
            wanted = means(rows)
            assert {name: float(logged[f"{part}/{name}"]) for name in wanted} == pytest.approx(wanted, rel=1e-4)

    def test_batches_without_a_pair_train_and_the_start_is_checked_later(
        self, llama: str, mixed: list[Any], fit: Any, recorder: Any
    ) -> None:
        rows = sorted(mixed, key=lambda row: isinstance(row, TokenizedPreference))
        seen = recorder()
        fit(DPOModule(Backbone(llama)), rows, 2, accumulate_grad_batches=2, callbacks=[seen])
        assert [math.isnan(logged["train/rewards/margin"]) for logged in seen.logged] == [True] * 2 + [False] * 3
        assert all(math.isfinite(logged["train/loss"]) for logged in seen.logged)
        module = DPOModule(Backbone(llama))
        module.configure_model()
        with torch.no_grad():
            module.model.lm_head.weight.mul_(1.01)  # type: ignore[union-attr]
        with pytest.raises(UserError, match="before the first step"):
            fit(module, rows[6:], 1, accumulate_grad_batches=4)

    def test_names_of_logged_values(self, llama: str, preferences: Any, fit: Any, loader_of: Any) -> None:
        module = DPOModule(Backbone(llama, lora=LoRA(r=2)))
        trainer = fit(module, preferences, 4, val=preferences[:6])
        wanted = {f"{part}/{name}" for part in ("train", "val") for name in LOGGED}
        assert wanted == set(trainer.callback_metrics)
        (tested,) = trainer.test(module, loader_of(preferences, 4), verbose=False)
        assert tested.keys() == {f"test/{name}" for name in LOGGED}

    def test_it_learns_the_preference(self, llama: str, preferences: Any, fit: Any, recorder: Any) -> None:
        seen = recorder()
        module = DPOModule(Backbone(llama, lora=LoRA(r=8)), optimizer=adamw)
        fit(module, preferences[:8], 8, max_epochs=25, callbacks=[seen])
        assert seen.logged[-1]["train/rewards/accuracy"] == 1.0
        assert seen.logged[-1]["train/rewards/margin"] > 1.0
        assert seen.logged[-1]["train/kl"] > 0

    def test_the_reference_moves_to_the_policys_device(
        self, llama: str, preferences: Any, fit: Any, loader_of: Any
    ) -> None:
        moves: list[torch.device] = []

        class Watched(DPOModule):
            def configure_model(self) -> None:
                super().configure_model()
                self.reference.to = moves.append  # type: ignore[union-attr, method-assign]

            def training_step(self, *args: Any) -> torch.Tensor:
                # The reference must move after the model is built: Lightning calls `setup` before that.
                assert moves
                return super().training_step(*args)

            def validation_step(self, *args: Any) -> None:
                assert moves
                super().validation_step(*args)

        module = Watched(Backbone(llama))
        trainer = fit(module, preferences)
        moves.clear()
        trainer.validate(module, loader_of(preferences, 4), verbose=False)
        moves.clear()
        trainer.test(module, loader_of(preferences, 4), verbose=False)
        assert set(moves) == {module.device}


class TestPredict:
    @pytest.mark.parametrize("kind", ["frozen", "precomputed"])
    def test_needs_no_reference(
        self, kind: Any, llama: str, preferences: Any, fit: Any, loader_of: Any, tmp_path: Path
    ) -> None:
        fit(DPOModule(Backbone(llama), optimizer=adamw), preferences, 4).save_checkpoint(tmp_path / "run.ckpt")
        module = DPOModule(Backbone(llama), reference=kind)
        trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path)
        prompts, mask = pad_prompts([[1, 2, 3], [4]], 0)
        batch = SimpleNamespace(
            input_ids=prompts, attention_mask=mask, max_new_tokens=5, stop_ids=(7,), pad_id=0, ends=None
        )
        loader: Any = DataLoader([batch], batch_size=None)  # type: ignore[arg-type]
        saved = {"ckpt_path": tmp_path / "run.ckpt", "weights_only": True}
        (answers,) = trainer.predict(module, loader, **saved)  # type: ignore[misc, arg-type]
        assert len(answers) == 2 and not hasattr(module, "reference")
        if kind == "frozen":
            # The reference is still the start of the policy, not the checkpoint.
            (found,) = trainer.validate(module, loader_of(preferences, 4), verbose=False, **saved)  # type: ignore[arg-type]
            assert found["val/kl"] > 1e-3


class TestContinue:
    def continue_run(self, backbone: Backbone, saved: Path, preferences: Any, fit: Any) -> DPOModule:
        module = DPOModule(backbone, optimizer=adamw)
        fit(module, preferences, 4, max_epochs=3, ckpt_path=saved)
        assert module.trainer.global_step == 15
        return module

    def train_and_save(self, backbone: Backbone, preferences: Any, fit: Any, path: Path) -> DPOModule:
        module = DPOModule(backbone, optimizer=adamw)
        fit(module, preferences, 4, max_epochs=2).save_checkpoint(path)
        return module

    def test_a_full_model_keeps_its_reference(self, llama: str, preferences: Any, fit: Any, tmp_path: Path) -> None:
        # The policy is far from the reference now, so the check of the start must not run again.
        first = self.train_and_save(Backbone(llama), preferences, fit, tmp_path / "run.ckpt")
        module = self.continue_run(Backbone(llama), tmp_path / "run.ckpt", preferences, fit)
        batch = flatten_preferences(preferences[:4])
        assert module.reference is not None and first.reference is not None
        with torch.no_grad():
            start = completion_logprobs(Backbone(llama).build(), batch, SHARED).sums
        assert torch.equal(module.reference.logprobs(batch).sums, start)
        assert module.reference.fingerprint() == first.reference.fingerprint()

    def test_an_adapter_keeps_its_reference(
        self, llama: str, warm_adapter: str, preferences: Any, fit: Any, tmp_path: Path
    ) -> None:
        backbone = Backbone(llama, adapter=warm_adapter)
        self.train_and_save(backbone, preferences, fit, tmp_path / "run.ckpt")
        module = self.continue_run(backbone, tmp_path / "run.ckpt", preferences, fit)
        batch = flatten_preferences(preferences[:4])
        with torch.no_grad():
            warm = completion_logprobs(backbone.build(), batch, SHARED).sums
        assert module.reference is not None
        assert torch.equal(module.reference.logprobs(batch).sums, warm)

    def test_other_starting_weights_are_refused(
        self, llama: str, warm_adapter: str, preferences: Any, fit: Any, tmp_path: Path
    ) -> None:
        self.train_and_save(Backbone(llama, lora=LoRA(r=4)), preferences, fit, tmp_path / "run.ckpt")
        with pytest.raises(UserError, match="its reference would change"):
            self.continue_run(Backbone(llama, adapter=warm_adapter), tmp_path / "run.ckpt", preferences, fit)
