"""Adapters that other programs have made, of every kind: DPO starts from the model that they are."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from judgelit.batches.flat_batch import PreferenceBatch, TokenizedPreference, flatten_preferences
from judgelit.errors import UserError
from judgelit.likelihood.layouts import Layout
from judgelit.likelihood.logprobs import completion_logprobs
from judgelit.models.backbone import Backbone, choose_dtype
from judgelit.training.dpo import DPOModule
from judgelit.training.reference import AdapterReference, FrozenReference, ReferenceKind

SHARED = Layout("shared_prefix")
ONE_MODEL: dict[str, dict[str, Any]] = {
    "plain": {},
    "gaussian": {"init_lora_weights": "gaussian"},
    "pissa": {"init_lora_weights": "pissa"},
    "pissa_niter": {"init_lora_weights": "pissa_niter_4"},
    "olora": {"init_lora_weights": "olora"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "mica": {"init_lora_weights": "mica"},
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True},
    "ranks": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 3}},
    "whole head": {"modules_to_save": ["lm_head"]},
    "some tokens": {"trainable_token_indices": [5, 6, 7]},
    "embeddings": {"target_modules": ["q_proj", "embed_tokens"]},
}
TWO_MODELS: dict[str, dict[str, Any]] = {
    "all biases": {"bias": "all"},
    "biases of layers": {"bias": "lora_only"},
    "tied and trained": {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "tied and adapted": {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True},
}


@pytest.fixture
def batch(preferences: list[TokenizedPreference]) -> PreferenceBatch:
    return flatten_preferences(preferences[:4])


def make_adapter(folder: str, settings: dict[str, Any], to: Path) -> str:
    """Save an adapter that PEFT has made and whose weights have been trained."""
    torch.manual_seed(1)
    config = LoraConfig(
        r=4, lora_alpha=8, task_type="CAUSAL_LM", **{"target_modules": ["q_proj", "v_proj"], **settings}
    )
    model: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight += 0.05 * torch.randn_like(weight)
    model.save_pretrained(to)
    return str(to)


def logprobs(model: Any, batch: PreferenceBatch) -> torch.Tensor:
    with torch.no_grad():
        return completion_logprobs(model.eval(), batch, SHARED).sums


@pytest.mark.parametrize("kind", [*ONE_MODEL, *TWO_MODELS])
@pytest.mark.parametrize("reference", ["auto", "frozen"])
def test_policy_and_reference_are_the_model_that_the_adapter_is(
    kind: str, reference: ReferenceKind, model_folders: dict[str, str], batch: PreferenceBatch, tmp_path: Path
) -> None:
    # Qwen2 has biases and tied embeddings.
    folder = model_folders["qwen2"]
    adapter = make_adapter(folder, {**ONE_MODEL, **TWO_MODELS}[kind], tmp_path / "adapter")
    alone = logprobs(Backbone(folder, adapter=adapter).build(), batch)
    assert (alone - logprobs(Backbone(folder).build(), batch)).abs().min() > 1e-3
    module = DPOModule(Backbone(folder, adapter=adapter), reference=reference)
    module.configure_model()
    shared = kind in ONE_MODEL and reference == "auto"
    assert isinstance(module.reference, AdapterReference if shared else FrozenReference)
    assert torch.equal(module.reference.logprobs(batch).sums, alone)
    assert torch.equal(logprobs(module.model, batch), alone)


@pytest.mark.parametrize("kind", TWO_MODELS)
def test_an_adapter_that_a_model_cannot_hold_twice_is_no_reference(
    kind: str, model_folders: dict[str, str], tmp_path: Path
) -> None:
    folder = model_folders["qwen2"]
    adapter = make_adapter(folder, TWO_MODELS[kind], tmp_path / "adapter")
    with pytest.raises(UserError, match=r"reference 'adapter': found the adapter .* use reference 'frozen'"):
        DPOModule(Backbone(folder, adapter=adapter), reference="adapter").configure_model()


@pytest.mark.parametrize(
    "kind", ["pissa", "pissa_niter", "olora", "all biases", "tied and trained", "tied and adapted"]
)
def test_a_run_from_it_starts_at_ln_2_and_is_saved(
    kind: str, model_folders: dict[str, str], preferences: Any, fit: Any, batch: PreferenceBatch, tmp_path: Path
) -> None:
    folder = model_folders["qwen2"]
    adapter = make_adapter(folder, {**ONE_MODEL, **TWO_MODELS}[kind], tmp_path / "adapter")
    module = DPOModule(Backbone(folder, adapter=adapter))
    fit(module, preferences, 4, max_steps=2)
    module.model.save_pretrained(tmp_path / "after", selected_adapters=["default"])  # type: ignore[union-attr]
    again = Backbone(folder, adapter=str(tmp_path / "after")).build()
    torch.testing.assert_close(logprobs(again, batch), logprobs(module.model, batch), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["whole head", "all biases", "biases of layers"])
def test_an_adapter_that_trains_the_models_own_weights_needs_them_in_float32(
    kind: str, model_folders: dict[str, str], preferences: Any, fit: Any, tmp_path: Path
) -> None:
    folder = str(shutil.copytree(model_folders["qwen2"], tmp_path / "model"))
    config = Path(folder) / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "dtype": "bfloat16"}))
    adapter = make_adapter(folder, {**ONE_MODEL, **TWO_MODELS}[kind], tmp_path / "adapter")
    assert choose_dtype(folder, uses_lora=True, on_gpu=True, adapter=adapter) == "float32"
    half = Backbone(folder, "bfloat16", adapter=adapter)
    with pytest.raises(UserError, match=r"model\.backbone\.dtype: found 'bfloat16' .*expected 'float32'"):
        half.build()
    # Such a judge may generate in 16 bits.
    half.build(for_training=False)
    module = DPOModule(Backbone(folder, "float32", adapter=adapter))
    fit(module, preferences, max_steps=1, precision="bf16-mixed")
    assert {weight.dtype for weight in module.parameters() if weight.requires_grad} == {torch.float32}


def test_an_adapter_of_low_rank_alone_keeps_the_saved_dtype(model_folders: dict[str, str], tmp_path: Path) -> None:
    folder = str(shutil.copytree(model_folders["qwen2"], tmp_path / "model"))
    config = Path(folder) / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "dtype": "bfloat16"}))
    adapter = make_adapter(folder, {}, tmp_path / "adapter")
    assert choose_dtype(folder, uses_lora=True, on_gpu=True, adapter=adapter) == "bfloat16"
    trained = [w for w in Backbone(folder, "bfloat16", adapter=adapter).build().parameters() if w.requires_grad]
    assert {weight.dtype for weight in trained} == {torch.float32}
