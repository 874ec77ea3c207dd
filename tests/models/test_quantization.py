"""4-bit weights with an adapter: their values, training, checkpoints, and conversion back for merging."""

from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from judgelit.batches.flat_batch import (
    TokenizedCompletion,
    TokenizedPreference,
    flatten_completions,
    flatten_preferences,
)
from judgelit.errors import UserError
from judgelit.likelihood.layouts import Layout
from judgelit.likelihood.logprobs import Scorer, completion_logprobs
from judgelit.models.backbone import Backbone
from judgelit.models.fingerprint import fingerprint
from judgelit.models.lora import LoRA
from judgelit.models.quantization import nf4
from judgelit.training.dpo import DPOModule
from judgelit.training.losses import PreferenceLoss
from judgelit.training.sft import SFTModule
from tests.whole_blocks import save_adapter, widened

# The 16 values of NF4, from appendix E of the QLoRA paper.
LEVELS = torch.tensor(
    [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
     -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
     0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]
)  # fmt: skip
IDS = torch.arange(3, 40)[None]


@pytest.fixture(scope="module")
def folders(model_folders: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    to = tmp_path_factory.mktemp("wide")
    return {name: widened(folder, to / name) for name, folder in model_folders.items()}


@pytest.fixture(scope="module", params=["llama", "qwen2", "gemma", "gpt_neox"])
def model_folder(request: pytest.FixtureRequest, folders: dict[str, str]) -> str:
    return folders[request.param]


@pytest.fixture(scope="module")
def llama(folders: dict[str, str]) -> str:
    return folders["llama"]


@pytest.fixture(scope="module")
def warm_adapter(llama: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_adapter(llama, tmp_path_factory.mktemp("adapters") / "warm")


def quantized(folder: str, dtype: Any = "float32", **more: Any) -> Backbone:
    return Backbone(folder, dtype, quantization="nf4", **({"lora": LoRA(r=4)} if "adapter" not in more else {}), **more)


def with_effect(model: Any) -> Any:
    """Give the adapter random weights, so that it changes the output."""
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.1)
    return model


def logits(model: Any) -> Tensor:
    return model(input_ids=IDS, use_cache=False).logits


def layers_of(model: Any) -> dict[str, Linear4bit]:
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, Linear4bit)}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_linear_layers_are_4bit_and_only_a_float32_adapter_trains(model_folder: str, dtype: Any) -> None:
    model: Any = quantized(model_folder, dtype).build()
    layers = layers_of(model)
    inner = model.get_base_model()
    assert inner.get_output_embeddings() not in layers.values()
    linear = [m for m in inner.modules() if isinstance(m, torch.nn.Linear) and not isinstance(m, Linear4bit)]
    full = {inner.get_output_embeddings(), *(m for n, m in inner.named_modules() if ".lora_" in n)}
    assert set(linear) <= full
    for layer in layers.values():
        assert layer.weight.dtype == layer.compute_dtype == getattr(torch, dtype)
        assert layer.weight.quant_state.quant_type == "nf4" and layer.weight.quant_state.nested
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    assert len(trained) == 2 * len(layers) and all(".lora_" in name for name in trained)
    assert {weight.dtype for weight in trained.values()} == {torch.float32}
    assert all(module.training for module in model.modules())


def test_weights_are_the_nearest_level_of_their_block(llama: str) -> None:
    plain = load_file(Path(llama) / "model.safetensors")
    model: Any = quantized(llama).build_unquantized()
    found = dict(model.get_base_model().named_modules())
    checked = 0
    for name, weight in plain.items():
        layer: Any = found[name.removesuffix(".weight")]
        if not hasattr(layer, "base_layer"):
            assert torch.equal(weight, layer.weight)
            continue
        checked += 1
        blocks = weight.view(-1, 64)
        scale = blocks.abs().amax(1, keepdim=True)
        expected = LEVELS[(blocks[..., None] / scale[..., None] - LEVELS).abs().argmin(-1)] * scale
        # The scales are rounded to 8 bits, which changes them by a few percent.
        torch.testing.assert_close(layer.base_layer.weight.view(-1, 64), expected, rtol=0.03, atol=1e-6)
    assert checked == 14


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_evaluation_changes_neither_weights_nor_gradients(llama: str, dtype: Any) -> None:
    model: Any = with_effect(quantized(llama, dtype).build())
    before = fingerprint(model)

    def gradients() -> dict[str, Tensor]:
        model.zero_grad()
        logits(model).float().square().mean().backward()
        return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.requires_grad}

    wanted, said = gradients(), logits(model)
    assert all(gradient.abs().max() > 0 for gradient in wanted.values())
    model.eval()
    with torch.no_grad():
        assert torch.equal(logits(model), said)
    model.train()
    assert fingerprint(model) == before
    for name, gradient in gradients().items():
        assert torch.equal(gradient, wanted[name]), name


def test_activation_checkpointing_changes_no_gradient(llama: str) -> None:
    found = []
    for checkpointing in (False, True):
        model: Any = with_effect(quantized(llama, activation_checkpointing=checkpointing).build())
        seen: list[int] = []
        model.get_base_model().model.layers[0].mlp.register_forward_pre_hook(lambda *_, seen=seen: seen.append(1))
        logits(model).square().mean().backward()
        assert len(seen) == 1 + checkpointing
        found.append([weight.grad for weight in model.parameters() if weight.requires_grad])
    for plain, checkpointed in zip(*found, strict=True):
        torch.testing.assert_close(plain, checkpointed)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_takes_the_shared_layout_and_the_chunked_head(model_folder: str, dtype: Any) -> None:
    model: Any = with_effect(quantized(model_folder, dtype).build())
    prompt, *texts = [list(range(start, start + 9)) for start in (3, 40, 80)]
    batch = flatten_completions([TokenizedCompletion("", prompt, text) for text in texts])
    assert Scorer(model, "auto").layout(batch) == Layout("shared_prefix", own_head=False)
    assert Scorer(model, "shared_prefix").layout(batch) == Layout("shared_prefix", own_head=False)
    expected = []
    for text in texts:
        ids = torch.tensor([prompt + text])
        plain = model(input_ids=ids, use_cache=False).logits[0].float().log_softmax(-1)
        expected.append(plain[len(prompt) - 1 : -1].gather(1, ids[0, len(prompt) :, None]).sum())
    found = completion_logprobs(model, batch, Layout("shared_prefix")).sums
    # Nine tokens, each of a log-probability of some -10, of which bfloat16 keeps eight bits.
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-5 if dtype == "float32" else 2e-2, atol=0)


def test_a_4bit_checkpoint_is_loaded_unchanged(llama: str, tmp_path: Path) -> None:
    loaded = AutoModelForCausalLM.from_pretrained(llama, quantization_config=nf4(torch.float32), dtype=torch.float32)
    loaded.save_pretrained(tmp_path / "nf4")
    wanted = with_effect(quantized(llama).build())
    for backbone in (Backbone(str(tmp_path / "nf4"), lora=LoRA(r=4)), quantized(str(tmp_path / "nf4"))):
        model = with_effect(backbone.build())
        assert layers_of(model)
        assert fingerprint(model) == fingerprint(wanted)
        assert torch.equal(logits(model), logits(wanted))
    judge: Any = Backbone(str(tmp_path / "nf4"), "bfloat16").build(for_training=False)
    assert not any(weight.requires_grad for weight in judge.parameters())
    assert {layer.compute_dtype for layer in layers_of(judge).values()} == {torch.bfloat16}


def test_a_4bit_checkpoint_without_adapter_cannot_be_trained(llama: str, tmp_path: Path) -> None:
    loaded = AutoModelForCausalLM.from_pretrained(llama, quantization_config=nf4(torch.float32), dtype=torch.float32)
    loaded.save_pretrained(tmp_path / "nf4")
    with pytest.raises(UserError, match=r"found quantised weights and neither lora nor adapter, .*; add lora"):
        Backbone(str(tmp_path / "nf4")).build()


def test_the_fingerprint_sees_scales_as_well_as_codes(llama: str, tmp_path: Path) -> None:
    before = fingerprint(quantized(llama).build(), skip="lora_")
    assert fingerprint(quantized(llama).build(), skip="lora_") == before
    for change in ("scale", "code"):
        model = AutoModelForCausalLM.from_pretrained(llama)
        weight = model.model.layers[1].mlp.up_proj.weight.data
        if change == "scale":
            weight.mul_(2)
        else:
            weight[0, :2] = weight[0, [1, 0]]
        model.save_pretrained(tmp_path / change)
        assert fingerprint(quantized(str(tmp_path / change)).build(), skip="lora_") != before


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_dequantized_base_computes_the_same(model_folder: str, dtype: Any) -> None:
    backbone = quantized(model_folder, dtype)
    wanted = with_effect(backbone.build().eval())
    plain: Any = with_effect(backbone.build_unquantized().eval())
    assert not layers_of(plain)
    assert "quantization_config" not in plain.get_base_model().config.to_dict()
    assert {weight.dtype for name, weight in plain.named_parameters() if "lora_" not in name} == {getattr(torch, dtype)}
    with torch.no_grad():
        if dtype == "float32":
            # In half precision PEFT rounds once more in a 4-bit layer than in a plain one.
            torch.testing.assert_close(logits(plain), logits(wanted), rtol=1e-5, atol=1e-5)
        with plain.disable_adapter(), wanted.disable_adapter():
            assert torch.equal(logits(plain), logits(wanted))


class TestAdapters:
    def test_a_starting_adapter_is_loaded_bit_by_bit(self, llama: str, warm_adapter: str) -> None:
        model: Any = quantized(llama, "bfloat16", adapter=warm_adapter).build()
        kept = load_file(Path(warm_adapter) / "adapter_model.safetensors")
        own = model.state_dict()
        for name, weight in kept.items():
            assert torch.equal(own[name.replace(".weight", ".default.weight")], weight), name

    @pytest.mark.parametrize("start", ["none", "warm", "frozen"])
    def test_dpo_starts_at_rewards_of_zero_and_leaves_its_reference_alone(
        self, llama: str, warm_adapter: str, start: str, preferences: list[TokenizedPreference], fit: Any, recorder: Any
    ) -> None:
        module = DPOModule(
            quantized(llama) if start == "none" else quantized(llama, adapter=warm_adapter),
            PreferenceLoss(beta=0.1),
            reference="frozen" if start == "frozen" else "adapter",
            optimizer=lambda groups: torch.optim.AdamW(groups, lr=0.05),
        )
        module.configure_model()
        assert module.reference is not None
        batch, scoring = flatten_preferences(preferences[:4]), Layout("shared_prefix")
        before = module.reference.fingerprint(), module.reference.logprobs(batch).sums
        kept = recorder()
        fit(module, preferences, 4, callbacks=[kept])
        for name in ("rewards/chosen", "rewards/rejected", "rewards/margin", "kl"):
            assert kept.logged[0][f"train/{name}"] == 0.0
        assert kept.logged[0]["train/loss"] == pytest.approx(0.693147, abs=1e-6)
        with torch.no_grad():
            assert (completion_logprobs(module.model, batch, scoring).sums - before[1]).abs().min() > 0.01  # type: ignore[arg-type]
        assert module.reference.fingerprint() == before[0]
        assert torch.equal(module.reference.logprobs(batch).sums, before[1])

    def test_a_checkpoint_holds_the_adapter_alone_and_continues_the_run_exactly(
        self, llama: str, completions: Any, fit: Any, trained_weights: Any, tmp_path: Path
    ) -> None:
        def module() -> SFTModule:
            torch.manual_seed(0)
            return SFTModule(quantized(llama, "bfloat16"), optimizer=lambda groups: torch.optim.AdamW(groups, lr=0.05))

        unbroken, continued = module(), module()
        fit(unbroken, completions, 4, max_epochs=2)
        half = fit(module(), completions, 4, max_epochs=1, enable_checkpointing=True)
        half.save_checkpoint(tmp_path / "half.ckpt")
        saved = torch.load(tmp_path / "half.ckpt", weights_only=True)["state_dict"]
        assert saved and all(".lora_" in name for name in saved)
        fit(continued, completions, 4, max_epochs=2, ckpt_path=tmp_path / "half.ckpt")
        wanted = trained_weights(unbroken)
        for name, weight in trained_weights(continued).items():
            assert torch.equal(weight, wanted[name]), name


class TestRefusals:
    def test_4bit_weights_cannot_be_trained(self, llama: str) -> None:
        with pytest.raises(UserError, match=r"quantization 'nf4': found neither lora nor adapter.*add lora"):
            Backbone(llama, quantization="nf4").build()

    def test_nothing_to_quantize(self) -> None:
        with pytest.raises(UserError, match=r"quantization 'nf4': found the built-in model.*expected a trained one"):
            quantized("nano").build()

    def test_a_checkpoint_in_8_bits(self, llama: str, tmp_path: Path) -> None:
        eight = BitsAndBytesConfig(load_in_8bit=True)
        AutoModelForCausalLM.from_pretrained(llama, quantization_config=eight).save_pretrained(tmp_path)
        with pytest.raises(UserError, match=r"quantised otherwise; leave quantization out"):
            quantized(str(tmp_path)).build()

    def test_rows_of_broken_blocks_on_a_cpu(self, llama: str, tmp_path: Path) -> None:
        broken = widened(llama, tmp_path / "broken", intermediate_size=48)
        with pytest.raises(UserError, match=r"layers\.0\.mlp\.down_proj has rows of 48 weights.*multiple of 64"):
            quantized(broken).build()

    def test_no_such_model(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"nothing': no such folder$"):
            quantized(str(tmp_path / "nothing")).build()
        with pytest.raises(UserError, match=r"nothing': no such folder$"):
            quantized(str(tmp_path / "nothing")).outline()


class TestOutline:
    @pytest.mark.parametrize("kind", ["full", "lora", "warm", "nf4"])
    def test_it_has_the_names_and_shapes_that_are_trained_and_no_weights(
        self, llama: str, warm_adapter: str, kind: str
    ) -> None:
        backbone = {
            "full": Backbone(llama, "bfloat16"),
            "lora": Backbone(llama, lora=LoRA(r=4, target_modules=["q_proj", "up_proj"])),
            "warm": Backbone(llama, adapter=warm_adapter),
            "nf4": quantized(llama),
        }[kind]

        def trained(model: Any) -> dict[str, tuple[torch.Size, torch.dtype]]:
            return {name: (w.shape, w.dtype) for name, w in model.named_parameters() if w.requires_grad}

        outline = backbone.outline()
        assert trained(outline) == trained(backbone.build())
        assert {weight.device.type for weight in outline.parameters()} == {"meta"}
        if kind != "full":
            assert outline.peft_config["default"].base_model_name_or_path == llama
