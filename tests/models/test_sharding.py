"""A sharded run equals a run of one process: weights, losses, checkpoints, reference and generated texts."""

import os
import random
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

from judgelit.errors import UserError
from judgelit.models.backbone import Backbone
from judgelit.models.fingerprint import fingerprint
from judgelit.models.lora import LoRA, add_adapter
from judgelit.models.shard_loading import FileWeights, build_without_weights
from judgelit.models.sharding import decoder_layers
from judgelit.training.fsdp import FSDP2

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("shards.py")
Results = dict[str, dict[str, Any]]


@pytest.fixture(scope="session")
def alone() -> dict[str, Callable[..., dict[str, Any]]]:
    """The runs of shards.py, as functions to call in this process."""
    return runpy.run_path(str(SCRIPT))["RUNS"]


def without_weights(folder: str) -> Any:
    """A folder's model, built without weights."""
    config = AutoConfig.from_pretrained(folder)
    return build_without_weights(lambda: AutoModelForCausalLM.from_config(config))


def launch(ranks: int, plan: dict[str, tuple[str, dict[str, Any]]], folder: Path) -> Results:
    torch.save(plan, folder / "plan.pt")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    done = subprocess.run(
        [*command, str(SCRIPT), str(folder / "plan.pt"), str(folder / "out.pt")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    said = [line for line in done.stderr.splitlines() if line.startswith("[rank")]
    assert done.returncode == 0, "\n".join(said[-40:]) or done.stderr[-4000:]
    return torch.load(folder / "out.pt", weights_only=True)


@pytest.fixture(scope="session")
def trained(model_folders: dict[str, str], warm_adapter: str, warm_outer_adapter: str) -> dict[str, dict[str, Any]]:
    """Training runs whose results must not depend on the number of ranks."""
    llama, tied = {"name_or_path": model_folders["llama"]}, {"name_or_path": model_folders["qwen2"]}
    lora = {**llama, "lora": {"r": 4}}

    def adapting(layer: str) -> dict[str, Any]:
        return {**llama, "lora": {"r": 4, "target_modules": ["q_proj", layer]}}

    return {
        "sft": {"kind": "sft", "backbone": llama},
        "sft, tied": {"kind": "sft", "backbone": tied},
        "sft, lora": {"kind": "sft", "backbone": lora},
        "sft, nano": {"kind": "sft", "backbone": {"name_or_path": "nano"}},
        # Only the first rank draws a random model, so the ranks' random states differ before the adapter is drawn.
        "sft, nano, lora": {"kind": "sft", "backbone": {"name_or_path": "nano", "lora": {"r": 4}}},
        "sft, every activation kept": {"kind": "sft", "backbone": {**llama, "activation_checkpointing": False}},
        "sft, clipped": {"kind": "sft", "backbone": llama, "gradient_clip_val": 0.5},
        "dpo": {"kind": "dpo", "backbone": llama},
        "dpo, nano": {"kind": "dpo", "backbone": {"name_or_path": "nano"}},
        "dpo, lora": {"kind": "dpo", "backbone": lora},
        "dpo, lora, frozen": {"kind": "dpo", "backbone": lora, "reference": "frozen"},
        "dpo, warm": {"kind": "dpo", "backbone": {**llama, "adapter": warm_adapter}},
        # The weights of these adapters are gathered with the root, not with a layer.
        "sft, lora on the head": {"kind": "sft", "backbone": adapting("lm_head")},
        "dpo, lora on the head": {"kind": "dpo", "backbone": adapting("lm_head")},
        "dpo, lora on embeddings": {"kind": "dpo", "backbone": adapting("embed_tokens")},
        "dpo, warm on both": {"kind": "dpo", "backbone": {**llama, "adapter": warm_outer_adapter}},
    }


SAVED = ("sft, tied", "sft, lora", "dpo", "dpo, warm", "dpo, lora on embeddings")
NAMES = (
    *("sft", "sft, tied", "sft, lora", "sft, nano", "sft, nano, lora", "sft, every activation kept", "sft, clipped"),
    *("dpo", "dpo, nano", "dpo, lora", "dpo, lora, frozen", "dpo, warm"),
    *("sft, lora on the head", "dpo, lora on the head", "dpo, lora on embeddings", "dpo, warm on both"),
)


@pytest.fixture(scope="session")
def odd_folders(model_folders: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders whose weights do not match the model's one to one, or only one name of a tied weight."""

    def changed(name: str, of: str, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> str:
        folder = tmp_path_factory.mktemp("odd") / name
        shutil.copytree(model_folders[of], folder)
        path = folder / "model.safetensors"
        save_file(change(load_file(path)), path, {"format": "pt"})
        return str(folder)

    return {
        "without prefix": changed(
            "bare", "qwen2", lambda found: {name.removeprefix("model."): weight for name, weight in found.items()}
        ),
        "incomplete": changed(
            "less", "llama", lambda found: {name: weight for name, weight in found.items() if "1.mlp" not in name}
        ),
        "only the head": changed(
            "head",
            "qwen2",
            lambda found: {name.replace("model.embed_tokens", "lm_head"): weight for name, weight in found.items()},
        ),
        # Its configuration ties them.
        "untied": changed(
            "untied", "qwen2", lambda found: {**found, "lm_head.weight": found["model.embed_tokens.weight"] + 1}
        ),
    }


PROMPTS = [
    [[random.Random(9 * b + p).randrange(20, 300) for _ in range(3 + 5 * p)] for p in range(3)] for b in range(3)
]


@pytest.fixture(scope="session")
def two(
    trained: dict[str, dict[str, Any]],
    model_folders: dict[str, str],
    odd_folders: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Results:
    """Results of all runs on two ranks."""
    folder = tmp_path_factory.mktemp("two")
    plan: dict[str, tuple[str, dict[str, Any]]] = {}
    for name, settings in trained.items():
        more = {"save": str(folder / name)} if name in SAVED else {}
        plan[name] = ("train", {**settings, **more, "ranks": 2, "strategy": {}})
    for name in SAVED:
        resumed = {**trained[name], "resume": str(folder / name)}
        plan[f"{name}, resumed"] = ("train", {**resumed, "ranks": 2, "strategy": {}})
    sft = {**trained["sft"], "ranks": 2}
    plan["copies"] = ("train", {**sft, "strategy": {"devices_per_copy": 1}})
    plan["unsynced"] = ("train", {**sft, "strategy": {"sync_every_micro_batch": False}})
    plan["mixed"] = ("train", {**sft, "strategy": {}, "precision": "bf16-mixed"})
    other = {**trained["sft, lora"], "backbone": {**trained["sft"]["backbone"], "lora": {"r": 2}}, "ranks": 2}
    plan["other adapter"] = ("train", {**other, "strategy": {}, "resume": str(folder / "sft, lora")})
    for name, path in {**model_folders, **odd_folders}.items():
        plan[f"build {name}"] = ("build", {"backbone": {"name_or_path": path}})
    plan["build half"] = ("build", {"backbone": {"name_or_path": model_folders["llama"], "dtype": "bfloat16"}})
    for attention in ("sdpa", "eager"):
        backbone = {"name_or_path": model_folders["llama"], "attention": attention, "lora": {"r": 4}}
        plan[f"answers {attention}"] = ("answers", {"backbone": backbone, "batches": PROMPTS})
    return {"folder": {"path": folder}, **launch(2, plan, folder)}


@pytest.fixture(scope="session")
def one(trained: dict[str, dict[str, Any]], alone: dict[str, Any]) -> Results:
    """Results of the training runs in one process, not sharded."""
    return {name: alone["train"](**settings, ranks=1) for name, settings in trained.items()}


class TestTraining:
    @pytest.mark.parametrize("name", NAMES)
    def test_losses_and_weights_are_those_of_one_process(self, name: str, two: Results, one: Results) -> None:
        assert sorted(one[name]["losses"]) == list(range(1, 11))
        assert two[name]["losses"] == pytest.approx(one[name]["losses"], abs=1e-5)
        assert two[name]["tokens"] == one[name]["tokens"] > 0
        assert two[name]["trained"] == one[name]["trained"]
        assert two[name]["weights"].keys() >= set(one[name]["trained"])
        if "clipped" not in name:  # clipping makes gradients tiny, and Adam amplifies their rounding
            for key, weight in two[name]["weights"].items():
                torch.testing.assert_close(weight, one[name]["weights"][key], rtol=1e-3, atol=1e-4)

    @pytest.mark.parametrize("name", NAMES)
    def test_starts_with_the_same_weights_to_the_last_bit(self, name: str, two: Results, one: Results) -> None:
        assert two[name]["start"] == one[name]["start"]

    @pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("dpo")])
    def test_the_reference_does_not_change(self, name: str, two: Results) -> None:
        assert two[name]["start"]["reference"] == two[name]["end"]["reference"]
        assert two[name]["start"]["model"] != two[name]["end"]["model"]

    @pytest.mark.parametrize("name", NAMES)
    def test_each_rank_holds_half(self, name: str, two: Results) -> None:
        assert two[name]["share"] == pytest.approx(0.5, abs=0.01)
        assert two[name]["state share"] == pytest.approx(0.5, abs=0.01)

    def test_gradients_are_exchanged_after_every_micro_batch_or_once_a_step(self, two: Results, one: Results) -> None:
        assert two["sft"]["synced"][:4] == [True, True, True, True]
        assert two["unsynced"]["synced"][:4] == [False, True, False, True]
        assert two["unsynced"]["losses"] == pytest.approx(one["sft"]["losses"], abs=1e-5)

    def test_copies_of_the_model(self, two: Results, one: Results) -> None:
        assert two["copies"]["share"] == 1
        assert two["copies"]["losses"] == pytest.approx(one["sft"]["losses"], abs=1e-5)
        assert two["copies"]["start"] == one["sft"]["start"]

    def test_mixed_precision_keeps_weights_in_float32(self, two: Results, one: Results) -> None:
        mixed, full = two["mixed"], one["sft"]
        assert {weight.dtype for weight in mixed["weights"].values()} == {torch.float32}
        assert mixed["start"] == full["start"]
        assert mixed["losses"] != pytest.approx(full["losses"], abs=1e-5)
        assert mixed["losses"] == pytest.approx(full["losses"], rel=0.05)


class TestCheckpoint:
    @pytest.mark.parametrize("name", SAVED)
    def test_resumes_to_the_last_bit(self, name: str, two: Results) -> None:
        again = two[f"{name}, resumed"]
        assert sorted(again["losses"]) == list(range(6, 11))
        assert again["end"] == two[name]["end"]
        assert all(two[name]["losses"][step] == loss for step, loss in again["losses"].items())

    @pytest.mark.parametrize("name", SAVED)
    def test_holds_only_what_was_trained(self, name: str, two: Results) -> None:
        stored = dcp.FileSystemReader(two["folder"]["path"] / name).read_metadata().state_dict_metadata
        weights = {key.removeprefix("state_dict.") for key in stored if key.startswith("state_dict.")}
        trained = {f"model.{key}" for key in two[name]["weights"]}
        # A checkpoint holds a tied weight under both names.
        assert weights - {"model.lm_head.weight"} == trained - {"model.lm_head.weight"}
        assert not any("reference" in key for key in stored)
        kept = {key.split(".", 2)[2] for key in stored if key.startswith("optimizer_0.state.")}
        assert {key.rsplit(".", 1)[0] for key in kept} <= trained

    @pytest.mark.parametrize("name", SAVED)
    def test_of_two_ranks_resumes_on_one(
        self, name: str, two: Results, trained: dict[str, dict[str, Any]], tmp_path: Path
    ) -> None:
        path = str(two["folder"]["path"] / name)
        plan = {"again": ("train", {**trained[name], "ranks": 1, "strategy": {}, "resume": path, "max_steps": 6})}
        again, saved = launch(1, plan, tmp_path)["again"], two[name]["saved"]
        assert again["start"] == {key: value for key, value in saved.items() if key != "moments"}
        assert again["saved"]["moments"] == pytest.approx(saved["moments"], rel=1e-6) and len(saved["moments"]) > 4

    def test_of_another_adapter_is_refused(self, two: Results) -> None:
        assert "the checkpoint is of another model: model.base_model" in two["other adapter"]["error"]
        assert "has shape (4, " in two["other adapter"]["error"] and "expected (2, " in two["other adapter"]["error"]


class TestBuilding:
    @pytest.mark.parametrize(
        "name", ["llama", "qwen2", "gemma", "gpt_neox", "qwen3", "without prefix", "only the head"]
    )
    def test_gives_the_same_model_as_one_process(
        self,
        name: str,
        two: Results,
        alone: dict[str, Any],
        model_folders: dict[str, str],
        odd_folders: dict[str, str],
    ) -> None:
        folder = {**model_folders, **odd_folders}[name]
        expected, found = alone["build"]({"name_or_path": folder}, sharded=False), two[f"build {name}"]
        assert found["hash"] == expected["hash"]
        assert found["share"] == pytest.approx(0.5, abs=0.01)
        assert found["buffers"].keys() == expected["buffers"].keys()
        for key, buffer in expected["buffers"].items():
            assert torch.equal(found["buffers"][key], buffer)

    def test_in_another_dtype(self, two: Results, alone: dict[str, Any], llama: str) -> None:
        assert two["build half"]["hash"] == alone["build"]({"name_or_path": llama, "dtype": "bfloat16"}, False)["hash"]

    def test_missing_weights_are_refused_on_all_ranks(self, two: Results) -> None:
        assert "its files lack 3 weights of LlamaForCausalLM" in two["build incomplete"]["error"]

    def test_tied_weights_stored_with_different_values_are_refused_on_all_ranks(self, two: Results) -> None:
        error = two["build untied"]["error"]
        assert "its files and its configuration disagree about lm_head.weight" in error

    def test_shards_are_read_from_files_that_match_the_model(
        self, model_folders: dict[str, str], odd_folders: dict[str, str]
    ) -> None:
        for name, folder in {**model_folders, **odd_folders}.items():
            # The head of GPT-NeoX is stored under another name.
            matches = name not in ("gpt_neox", "without prefix", "incomplete", "untied")
            assert (FileWeights.find(without_weights(folder), folder) is not None) == matches

    def test_a_model_without_weights_takes_no_memory(self, model_folders: dict[str, str]) -> None:
        model = without_weights(model_folders["qwen2"])
        assert all(weight.untyped_storage().nbytes() == weight.element_size() for weight in model.parameters())
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight

    def test_an_adapter_on_a_model_without_weights_has_weights(self, llama: str) -> None:
        plain = dict(Backbone(llama, lora=LoRA(r=4)).build().named_parameters())
        torch.manual_seed(0)
        expected = add_adapter(AutoModelForCausalLM.from_pretrained(llama), LoRA(r=4), "llama")
        torch.manual_seed(0)
        found = dict(add_adapter(without_weights(llama), LoRA(r=4), "llama").named_parameters())
        assert found.keys() == plain.keys()
        adapter = {name: weight for name, weight in expected.named_parameters() if "lora_" in name}
        assert adapter and all(torch.equal(found[name], weight) for name, weight in adapter.items())

    def test_buffers_have_the_values_that_the_constructor_gives_them(self, model_folders: dict[str, str]) -> None:
        class Model(LlamaForCausalLM):
            def __init__(self, config: Any) -> None:
                super().__init__(config)
                self.register_buffer("scale", torch.full((3,), 2.0), persistent=False)
                self.loose = torch.full((2,), 3.0)

        config = AutoConfig.from_pretrained(model_folders["llama"])
        model: Any = build_without_weights(lambda: Model(config))
        assert model.scale.tolist() == [2, 2, 2] and model.loose.tolist() == [3, 3]
        for (name, buffer), (_, expected) in zip(model.named_buffers(), Model(config).named_buffers(), strict=True):
            assert torch.equal(buffer, expected), name


class TestGeneration:
    @pytest.mark.parametrize("attention", ["sdpa", "eager"])
    def test_ranks_may_have_different_numbers_of_batches(
        self, attention: str, two: Results, alone: dict[str, Any], llama: str
    ) -> None:
        backbone = {"name_or_path": llama, "attention": attention, "lora": {"r": 4}}
        expected = alone["answers"](backbone, PROMPTS, sharded=False)["answers"]
        first, second = two[f"answers {attention}"]["answers"]
        assert first == expected and second == expected[2:]
        assert len({len(text) for batch in expected for (text,) in batch}) > 1


class TestRefusals:
    @pytest.mark.parametrize(
        ("settings", "trainer", "message"),
        [
            ({"devices_per_copy": 3}, {"devices": 2}, "found 3, expected a divisor of the 2 devices"),
            ({"devices_per_copy": 4}, {"devices": 2, "num_nodes": 3}, "found 4, expected a divisor of the 6 devices"),
            ({"devices_per_copy": 0}, {"devices": 1}, "found 0, expected a divisor"),
            ({}, {"devices": 1, "precision": "bf16-true"}, "found 'bf16-true', expected 32-true or bf16-mixed"),
        ],
    )
    def test_settings(self, settings: dict[str, Any], trainer: dict[str, Any], message: str) -> None:
        strategy = FSDP2(**settings)
        L.Trainer(accelerator="cpu", strategy=strategy, logger=False, enable_checkpointing=False, **trainer)
        with pytest.raises(UserError, match=message):
            strategy.setup_environment()

    def test_a_model_that_does_not_name_its_layers(self, llama: str) -> None:
        model: Any = Backbone(llama).build()
        assert len(decoder_layers(model)) == model.config.num_hidden_layers
        model._no_split_modules = ["OtherLayer"]
        with pytest.raises(UserError, match="its `_no_split_modules` names OtherLayer"):
            decoder_layers(model)
        model._no_split_modules = None
        with pytest.raises(UserError, match="names nothing"):
            decoder_layers(model)


def test_fingerprint_notices_a_swap_of_two_rows(llama: str) -> None:
    model: Any = Backbone(llama).build()
    before = fingerprint(model)
    with torch.no_grad():
        rows = model.lm_head.weight[:2].clone()
        model.lm_head.weight[:2] = rows.flip(0)
    assert fingerprint(model) != before
