"""The frozen reference: it equals the policy at the start of training and never changes."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from judgelit.batches.flat_batch import PreferenceBatch, TokenizedPreference, flatten_preferences
from judgelit.errors import UserError
from judgelit.likelihood.layouts import Layout
from judgelit.likelihood.logprobs import Scorer, completion_logprobs
from judgelit.models.backbone import Backbone
from judgelit.models.lora import LoRA
from judgelit.training.dpo import DPOModule
from judgelit.training.losses import PreferenceLoss
from judgelit.training.reference import AdapterReference, FrozenReference, build_reference

SHARED = Layout("shared_prefix")
KINDS = ["lora", "warm", "full", "frozen-lora", "outer", "warm-outer"]


def exact_hash(weights: dict[str, torch.Tensor]) -> str:
    """A hash of all bytes, independent of judgelit's fingerprint."""
    digest = hashlib.sha256()
    for name, weight in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(weight.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def reference_weights(module: DPOModule) -> dict[str, torch.Tensor]:
    """The weights that the reference uses."""
    if isinstance(module.reference, FrozenReference):
        return dict(module.reference.model.named_parameters())
    assert isinstance(module.reference, AdapterReference)
    named = module.reference.model.named_parameters()
    return {name: weight for name, weight in named if "default" not in name.split(".")}


@pytest.fixture
def batch(preferences: list[TokenizedPreference]) -> PreferenceBatch:
    return flatten_preferences(preferences[:4])


@pytest.fixture(params=KINDS)
def module(request: pytest.FixtureRequest, llama: str, warm_adapter: str, warm_outer_adapter: str) -> DPOModule:
    torch.manual_seed(0)
    kind = request.param
    backbone = {
        "lora": Backbone(llama, lora=LoRA(r=4)),
        "warm": Backbone(llama, adapter=warm_adapter),
        "full": Backbone(llama),
        "frozen-lora": Backbone(llama, adapter=warm_adapter),
        "outer": Backbone(llama, lora=LoRA(r=4, target_modules=["q_proj", "embed_tokens", "lm_head"])),
        "warm-outer": Backbone(llama, adapter=warm_outer_adapter),
    }[kind]
    module = DPOModule(
        backbone,
        PreferenceLoss(beta=0.1),
        reference="frozen" if kind == "frozen-lora" else "auto",
        optimizer=lambda groups: torch.optim.AdamW(groups, lr=0.05),
    )
    module.configure_model()
    return module


def test_the_reference_never_changes_during_training(
    module: DPOModule, preferences: Any, fit: Any, batch: PreferenceBatch, trained_weights: Any
) -> None:
    assert module.reference is not None
    before = exact_hash(reference_weights(module)), module.reference.fingerprint()
    answers = module.reference.logprobs(batch).sums
    start = trained_weights(module)
    trainer = fit(module, preferences, 4, max_epochs=3, accumulate_grad_batches=2)
    assert trainer.global_step == 9
    # The policy has moved far.
    assert all(not torch.equal(weight, start[name]) for name, weight in trained_weights(module).items())
    with torch.no_grad():
        assert (completion_logprobs(module.model, batch, SHARED).sums - answers).abs().min() > 0.1  # type: ignore[arg-type]
    assert (exact_hash(reference_weights(module)), module.reference.fingerprint()) == before
    assert torch.equal(module.reference.logprobs(batch).sums, answers)


def test_the_reference_is_neither_optimized_nor_saved(
    module: DPOModule, preferences: Any, fit: Any, tmp_path: Path
) -> None:
    trainer = fit(module, preferences, 4)
    optimized = {id(weight) for group in trainer.optimizers[0].param_groups for weight in group["params"]}
    frozen = {id(weight) for weight in reference_weights(module).values()}
    assert not optimized & frozen
    assert optimized == {id(weight) for weight in module.parameters() if weight.requires_grad}
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    checkpoint = torch.load(tmp_path / "run.ckpt", weights_only=True)
    trained = {name for name, weight in module.named_parameters() if weight.requires_grad}
    assert checkpoint["state_dict"].keys() == trained
    assert not any("reference" in name for name in checkpoint["state_dict"])
    assert module.reference is not None and checkpoint["reference"] == module.reference.fingerprint()


def test_the_reference_does_not_change_the_policys_gradient(module: DPOModule, batch: PreferenceBatch) -> None:
    assert module.model is not None and module.reference is not None

    def policy_gradients(with_reference: bool) -> dict[str, torch.Tensor]:
        module.zero_grad()
        for _ in range(2):
            # Two passes, because gradients are summed over micro-batches.
            if with_reference:
                answer = module.reference.logprobs(batch)  # type: ignore[union-attr]
                assert not answer.sums.requires_grad
            completion_logprobs(module.model, batch, SHARED).sums.sum().backward()  # type: ignore[arg-type]
            if with_reference:
                module.reference.logprobs(batch)  # type: ignore[union-attr]
        return {name: w.grad.clone() for name, w in module.named_parameters() if w.grad is not None}

    flags = {name: weight.requires_grad for name, weight in module.named_parameters()}
    without, with_it = policy_gradients(False), policy_gradients(True)
    assert {name: weight.requires_grad for name, weight in module.named_parameters()} == flags
    assert without.keys() == with_it.keys() == {name for name, flag in flags.items() if flag}
    for name, gradient in without.items():
        # In a new adapter B is 0, so the gradient of A is 0; for embeddings A is 0, so the gradient of B is 0.
        assert gradient.abs().max() > 0 or "lora_A" in name or "lora_embedding_B" in name
        torch.testing.assert_close(with_it[name], gradient, rtol=1e-6, atol=1e-6)
    assert all(weight.grad is None for weight in reference_weights(module).values())


def test_requires_grad_is_restored_after_an_error(llama: str, warm_adapter: str, batch: PreferenceBatch) -> None:
    module = DPOModule(Backbone(llama, adapter=warm_adapter))
    module.configure_model()
    flags = {name: weight.requires_grad for name, weight in module.named_parameters()}
    beyond = replace(batch, input_ids=batch.input_ids + 10**6)
    with pytest.raises(IndexError):
        module.reference.logprobs(beyond)  # type: ignore[union-attr]
    assert {name: weight.requires_grad for name, weight in module.named_parameters()} == flags
    assert module.model.active_adapters == ["default"]  # type: ignore[union-attr]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_after_a_lora_warm_up_the_reference_is_the_warm_judge(
    llama: str, warm_adapter: str, batch: PreferenceBatch, dtype: Any
) -> None:
    module = DPOModule(Backbone(llama, dtype, adapter=warm_adapter))
    module.configure_model()
    with torch.no_grad():
        warm = completion_logprobs(Backbone(llama, dtype, adapter=warm_adapter).build(), batch, SHARED).sums
        base = completion_logprobs(Backbone(llama, dtype).build(), batch, SHARED).sums
    assert (warm - base).abs().min() > 0.05
    assert module.reference is not None
    assert torch.equal(module.reference.logprobs(batch).sums, warm)


def test_without_a_warm_up_the_reference_is_the_base(llama: str, batch: PreferenceBatch) -> None:
    module = DPOModule(Backbone(llama, lora=LoRA(r=4)))
    module.configure_model()
    with torch.no_grad():
        base = completion_logprobs(Backbone(llama).build(), batch, SHARED).sums
        for weight in module.parameters():
            if weight.requires_grad:
                weight.normal_()
    assert module.reference is not None
    assert torch.equal(module.reference.logprobs(batch).sums, base)


def test_the_backbone_determines_the_kind_of_reference(llama: str) -> None:
    full, adapted = Backbone(llama), Backbone(llama, lora=LoRA(r=2))
    assert isinstance(build_reference("auto", full, Scorer(full.build())), FrozenReference)
    assert isinstance(build_reference("auto", adapted, Scorer(adapted.build())), AdapterReference)
    assert isinstance(build_reference("frozen", adapted, Scorer(adapted.build())), FrozenReference)
    with pytest.raises(UserError, match="needs a LoRA policy"):
        build_reference("adapter", full, Scorer(full.build()))


def test_a_frozen_reference_is_not_a_submodule(llama: str) -> None:
    module = DPOModule(Backbone(llama))
    module.configure_model()
    assert isinstance(module.reference, FrozenReference)
    inside = {id(weight) for weight in module.parameters()}
    copied = list(module.reference.model.parameters())
    assert not inside & {id(weight) for weight in copied}
    assert not any(weight.requires_grad for weight in copied)
    assert not any(part.training for part in module.reference.model.modules())
