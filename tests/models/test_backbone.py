"""Building a model: dtype, adapter, activation checkpointing, and the errors of what cannot be built."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from judgelit.errors import UserError
from judgelit.models.backbone import Backbone, choose_dtype, trained_folder
from judgelit.models.lora import LoRA


def adapter_weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: weight for name, weight in model.named_parameters() if "lora_" in name}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_full_model_trains_all_its_weights_in_its_dtype(model_folder: str, dtype: Any) -> None:
    model = Backbone(model_folder, dtype).build()
    weights = list(model.parameters())
    assert weights and all(weight.requires_grad for weight in weights)
    assert {weight.dtype for weight in weights} == {getattr(torch, dtype)}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_adapter_is_float32_on_a_frozen_base(model_folder: str, dtype: Any) -> None:
    model = Backbone(model_folder, dtype, lora=LoRA(r=2)).build()
    adapter = adapter_weights(model)
    assert adapter
    assert {name for name, weight in model.named_parameters() if weight.requires_grad} == adapter.keys()
    assert {weight.dtype for weight in adapter.values()} == {torch.float32}
    assert {w.dtype for n, w in model.named_parameters() if n not in adapter} == {getattr(torch, dtype)}


def test_a_starting_adapter_is_float32_and_trains_on_a_bfloat16_base(llama: str, warm_adapter: str) -> None:
    model = Backbone(llama, "bfloat16", adapter=warm_adapter).build()
    adapter = adapter_weights(model)
    assert {weight.dtype for weight in adapter.values()} == {torch.float32}
    assert all(weight.requires_grad for weight in adapter.values())
    assert any(weight.abs().max() > 0.1 for name, weight in adapter.items() if "lora_B" in name)


def test_named_layers_and_expressions_can_be_adapted(llama: str) -> None:
    def adapted(targets: str | list[str]) -> set[str]:
        names = adapter_weights(Backbone(llama, lora=LoRA(r=2, target_modules=targets)).build())
        return {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in names}

    assert adapted(["q_proj", "v_proj"]) == {"q_proj", "v_proj"}
    assert adapted(r".*layers\.0\.mlp\.up_proj") == {"up_proj"}
    assert adapted("all-linear") == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@pytest.mark.parametrize("targets", [["wq"], "wq", ["q_proj", "vproj"], r"layers\.9.*", []])
def test_a_target_that_matches_no_layer_is_refused(llama: str, targets: str | list[str]) -> None:
    with pytest.raises(UserError, match=r"lora.target_modules: .*named .*q_proj"):
        Backbone(llama, lora=LoRA(target_modules=targets)).build()


def test_a_model_is_built_in_training_mode(model_folder: str, llama: str, warm_adapter: str) -> None:
    # Lightning does not change the mode.
    for backbone in (
        Backbone(model_folder),
        Backbone(model_folder, lora=LoRA(r=2)),
        Backbone(llama, adapter=warm_adapter),
    ):
        assert all(module.training for module in backbone.build().modules())


@pytest.mark.parametrize("lora", [None, LoRA(r=2)])
def test_activation_checkpointing_recomputes_layers(llama: str, lora: LoRA | None) -> None:
    for backbone, times in (
        (Backbone(llama, activation_checkpointing=False, lora=lora), 1),
        (Backbone(llama, lora=lora), 2),
    ):
        model: Any = backbone.build()
        seen = []
        inner = model if lora is None else model.get_base_model()
        inner.model.layers[0].mlp.register_forward_pre_hook(lambda *_, seen=seen: seen.append(1))
        model(input_ids=torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]])).loss.backward()
        assert len(seen) == times


def test_a_model_without_checkpointing_keeps_its_activations_and_says_so(
    llama: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("transformers.LlamaForCausalLM.supports_gradient_checkpointing", False)
    with caplog.at_level("INFO"):
        assert not Backbone(llama).build().is_gradient_checkpointing
    assert "activation_checkpointing: LlamaForCausalLM has none, so activations are kept" in caplog.text


def test_activation_checkpointing_changes_no_gradient(llama: str) -> None:
    def gradients(checkpointing: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model: Any = Backbone(llama, activation_checkpointing=checkpointing, lora=LoRA(r=2)).build()
        model(input_ids=torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]])).loss.backward()
        return [weight.grad for weight in model.parameters() if weight.requires_grad]

    for plain, checkpointed in zip(gradients(False), gradients(True), strict=True):
        torch.testing.assert_close(plain, checkpointed)


class TestRefusals:
    def test_no_such_model(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"nothing': no such folder$"):
            Backbone(str(tmp_path / "nothing")).build()
        for name in ("./nothing", "../nothing", "~/nothing"):
            with pytest.raises(UserError, match=r"nothing': no such folder$"):
                Backbone(name).build()

    def test_no_such_name(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def unreachable(*_: Any, **__: Any) -> None:
            raise OSError("We couldn't connect.\nMore of it.")

        monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", unreachable)
        with pytest.raises(UserError) as error:
            Backbone("someone/nothing").build()
        assert str(error.value) == (
            "model 'someone/nothing': no such folder, and the hub could not be reached or has no such model"
        )

    def test_a_gated_name_keeps_what_the_hub_said(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def gated(*_: Any, **__: Any) -> None:
            raise OSError("You are trying to access a gated repo.\nMore of it.")

        monkeypatch.setattr("transformers.AutoConfig.from_pretrained", gated)
        with pytest.raises(UserError, match=r"cannot be loaded: You are trying to access a gated repo\.$"):
            Backbone("someone/gated").build()

    def test_a_folder_without_a_model(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"found no config\.json in that folder"):
            Backbone(str(tmp_path)).build()

    @pytest.mark.parametrize(
        ("wrong", "complaint"),
        [
            ({"r": 0}, "lora.r: found 0, expected 1 or more"),
            ({"alpha": 0}, "lora.alpha: found 0, expected more than 0"),
            ({"dropout": 1.0}, "lora.dropout: found 1.0, expected 0 <= dropout < 1"),
            ({"dropout": -0.1}, "lora.dropout: found -0.1, expected 0 <= dropout < 1"),
        ],
    )
    def test_lora_out_of_range(self, wrong: dict[str, Any], complaint: str) -> None:
        with pytest.raises(UserError) as error:
            LoRA(**wrong)
        assert str(error.value) == complaint

    def test_weights_in_another_format_than_safetensors(self, llama: str, tmp_path: Path) -> None:
        folder = Path(shutil.copytree(llama, tmp_path / "pickled"))
        (folder / "model.safetensors").unlink()
        torch.save(Backbone(llama).build().state_dict(), folder / "pytorch_model.bin")
        with pytest.raises(UserError, match="cannot be loaded"):
            Backbone(str(folder)).build()

    def test_a_damaged_file(self, llama: str, tmp_path: Path) -> None:
        folder = Path(shutil.copytree(llama, tmp_path / "damaged"))
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:5000])
        with pytest.raises(UserError, match="cannot be loaded"):
            Backbone(str(folder)).build()

    def test_weights_of_another_size(self, llama: str, tmp_path: Path) -> None:
        folder = Path(shutil.copytree(llama, tmp_path / "resized"))
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 64}))
        with pytest.raises(UserError, match="cannot be loaded"):
            Backbone(str(folder)).build()

    @pytest.mark.parametrize("wrong", [{"hidden_size": "big"}, {"hidden_size": 65}])
    def test_a_configuration_of_impossible_values(self, wrong: dict[str, Any], llama: str, tmp_path: Path) -> None:
        folder = Path(shutil.copytree(llama, tmp_path / "wrong"))
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **wrong}))
        for read in (Backbone(str(folder)).build, Backbone(str(folder)).outline):
            with pytest.raises(UserError, match=r"cannot be loaded: .*hidden"):
                read()

    def test_attention_that_the_model_lacks(self, unshareable_folders: dict[str, str]) -> None:
        folder = unshareable_folders["soft_capped"]
        with pytest.raises(UserError, match=r"has no attention 'sdpa'; set attention to 'eager'$"):
            Backbone(folder).build()
        Backbone(folder, attention="eager").build()

    def test_missing_weights(self, llama: str, tmp_path: Path) -> None:
        folder = Path(shutil.copytree(llama, tmp_path / "deeper"))
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
        with pytest.raises(UserError, match=r"lack \d+ weights of LlamaForCausalLM, among them model.layers.2"):
            Backbone(str(folder)).build()

    def test_a_folder_without_adapter(self, llama: str, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"no adapter_config\.json"):
            Backbone(llama, adapter=str(tmp_path)).build()

    @pytest.mark.parametrize(("shape", "why"), [("gpt_neox", "not found"), ("gemma", "size mismatch for base_model")])
    def test_an_adapter_of_another_model(
        self, shape: str, why: str, model_folders: dict[str, str], warm_adapter: str
    ) -> None:
        with pytest.raises(UserError, match=f"does not fit .*{why}"):
            Backbone(model_folders[shape], adapter=warm_adapter).build()

    def test_flash_attention_without_gpu(self, llama: str) -> None:
        if torch.cuda.is_available():
            pytest.skip("there is a GPU")
        with pytest.raises(UserError, match="needs a CUDA GPU"):
            Backbone(llama, attention="flash_attention_2").build()


class TestTrainedFolder:
    def test_a_whole_model(self, llama: str) -> None:
        assert trained_folder(llama, "bfloat16") == Backbone(llama, "bfloat16")

    def test_an_adapter_names_its_base(self, llama: str, warm_adapter: str) -> None:
        assert trained_folder(warm_adapter) == Backbone(llama, adapter=warm_adapter)

    def test_an_adapter_without_base(self, tmp_path: Path) -> None:
        (tmp_path / "adapter_config.json").write_text("{}")
        with pytest.raises(UserError, match="base_model_name_or_path"):
            trained_folder(str(tmp_path))


@pytest.mark.parametrize(
    ("uses_lora", "on_gpu", "saved", "expected"),
    [
        (True, True, "bfloat16", "bfloat16"),
        (True, True, None, "float32"),
        (True, False, "bfloat16", "float32"),
        (False, True, "bfloat16", "float32"),
    ],
)
def test_only_a_frozen_base_on_a_gpu_has_the_saved_dtype(
    llama: str, tmp_path: Path, uses_lora: bool, on_gpu: bool, saved: str | None, expected: str
) -> None:
    shutil.copytree(llama, tmp_path / "model")
    path = tmp_path / "model/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "dtype": saved}))
    assert choose_dtype(str(tmp_path / "model"), uses_lora, on_gpu) == expected
    if not torch.cuda.is_available():
        assert Backbone(str(tmp_path / "model")).dtype == "float32"
