"""Figures of `judgelit plan` against closed forms and against the tensors that autograd saves."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import bitsandbytes
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

from judgelit.batches.flat_batch import (
    Batch,
    TokenizedPreference,
    flatten_preferences,
)
from judgelit.cli import main
from judgelit.errors import UserError
from judgelit.likelihood.layouts import Layout
from judgelit.likelihood.logprobs import Scorer, completion_logprobs
from judgelit.models import quantization
from judgelit.models.backbone import Backbone
from judgelit.models.lora import LoRA
from judgelit.planning.estimate import PlannedRun, estimate
from judgelit.planning.memory_trace import LiveBytes, meta_batch, trace_step
from judgelit.planning.plan import main as plan_main
from judgelit.planning.plan import micro_batches_per_step, parse_memory, run_length
from judgelit.planning.savings import changes, needed_bytes
from judgelit.planning.workload import AssumedLengths, read_workload
from judgelit.shipped_configs import find
from judgelit.training.global_batch import GlobalBatch
from judgelit.training.optimizers import PagedAdamW8bit

HIDDEN, LAYERS, VOCABULARY = 64, 3, 500


@pytest.fixture
def model_folder(tmp_path: Path) -> str:
    """A model's configuration, without weights."""
    return save_config(tmp_path / "model")


def save_config(folder: Path, kind: type = LlamaConfig, layers: int = LAYERS, **more: object) -> str:
    config = kind(
        hidden_size=HIDDEN,
        intermediate_size=160,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=VOCABULARY,
        **more,
    )
    config.architectures = [kind.__name__.replace("Config", "ForCausalLM")]
    config.save_pretrained(folder)
    return str(folder)


def preference_batch(prompt: int = 70, chosen: int = 30, rejected: int = 25) -> Batch:
    rows = [
        TokenizedPreference(str(index), [index + 1] * (prompt + index), [7] * chosen, [8] * rejected)
        for index in range(3)
    ]
    return flatten_preferences(rows)


def saved_bytes(model: torch.nn.Module, batch: Batch, scoring: Layout) -> int:
    """Bytes of the storages that autograd saves in a forward pass on the CPU, without weights."""
    weights = {weight.untyped_storage().data_ptr() for weight in [*model.parameters(), *model.buffers()]}
    kept: dict[int, tuple[int, torch.Tensor]] = {}

    def save(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        completion_logprobs(model, batch, scoring)
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize("kind", [LlamaConfig, Qwen2Config])
@pytest.mark.parametrize("layout", ["shared_prefix", "concatenated"])
@pytest.mark.parametrize("lora", [None, LoRA(r=4)])
def test_traced_activations_are_those_that_autograd_saves(
    tmp_path: Path, kind: type, layout: str, lora: LoRA | None
) -> None:
    from peft import LoraConfig, get_peft_model

    backbone = Backbone(save_config(tmp_path, kind), lora=lora)
    model = AutoModelForCausalLM.from_config(kind.from_pretrained(tmp_path))
    outlined = backbone.outline().train()
    if lora is not None:
        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    for one in (model, outlined):
        (one if lora is None else one.get_base_model()).set_attn_implementation("judgelit")
    batch, scoring = preference_batch(), Layout(layout)  # type: ignore[arg-type]
    found = trace_step(Scorer(outlined, scoring), None, meta_batch(batch, scoring, "judgelit")).kept
    assert found == pytest.approx(saved_bytes(model.train(), batch, scoring), rel=0.03)


def test_activation_checkpointing_saves_the_input_of_each_layer(tmp_path: Path) -> None:
    batch = preference_batch()
    kept = []
    for layers in (2, 6):
        backbone = Backbone(save_config(tmp_path / str(layers), layers=layers))
        kept.append(estimate(PlannedRun(backbone, torch.optim.AdamW, on_cpu=True), batch).kept)
    assert kept[1] - kept[0] == 4 * len(batch.input_ids) * HIDDEN * 4


def test_accumulated_gradients_exist_during_the_forward_pass(model_folder: str) -> None:
    run = PlannedRun(Backbone(model_folder), torch.optim.AdamW, on_cpu=True)
    once, more = (estimate(replace(run, accumulates=several), preference_batch()) for several in (False, True))
    weights = 4 * once.parameters
    assert once.gradients == weights and once.optimizer == 2 * weights
    assert more.peak >= 4 * weights + more.kept
    assert once.peak < more.peak


def test_sharding_divides_weights_gradients_and_optimizer_state(model_folder: str) -> None:
    run = PlannedRun(Backbone(model_folder), torch.optim.AdamW)
    whole, part = (estimate(one, preference_batch()) for one in (run, replace(run, gpus=4, sharded=True)))
    assert part.weights == pytest.approx(whole.weights / 4, rel=0.01)
    assert (part.optimizer, part.gradients) == (whole.optimizer / 4, whole.gradients / 4)
    assert part.kept == whole.kept and part.gathered > 2 * 4 * VOCABULARY * HIDDEN
    copies = estimate(replace(run, gpus=8, gpus_per_copy=4, sharded=True), preference_batch())
    assert copies == part
    replicas = estimate(replace(run, gpus=4), preference_batch())
    assert replicas.gradients == 2 * whole.gradients and replicas.weights == whole.weights


def test_the_plan_leaves_no_meta_tables_in_bitsandbytes(tmp_path: Path) -> None:
    folder = save_config(tmp_path, tie_word_embeddings=False)
    tables = bitsandbytes.functional.name2qmap
    tables.clear()
    estimate(PlannedRun(Backbone(folder, quantization="nf4", lora=LoRA(r=4)), torch.optim.AdamW), preference_batch())
    assert not any(table.is_meta for table in tables.values())


def test_4_bit_weights_take_half_a_byte_and_their_scales(tmp_path: Path) -> None:
    folder = save_config(tmp_path, tie_word_embeddings=False)
    backbone = Backbone(folder, "bfloat16", lora=LoRA(r=4))
    full, small = (
        estimate(PlannedRun(replace(backbone, quantization=kind), PagedAdamW8bit, "auto"), preference_batch())
        for kind in (None, "nf4")
    )
    linear = LAYERS * (HIDDEN * (HIDDEN + 2 * 32 + HIDDEN) + 3 * HIDDEN * 160)
    assert full.parameters == small.parameters and full.trained == small.trained
    # A byte for 64 weights, 4 for 256 of these, and for each layer two tables of 16 and 256 values and an offset.
    scales = linear / 64 + 4 * linear / 64 / 256 + LAYERS * 7 * 4 * (16 + 256 + 1)
    assert full.weights - small.weights == pytest.approx(2 * linear - linear / 2 - scales, rel=0.01)
    assert small.reference == 0


def test_an_8_bit_optimizer_keeps_two_bytes_a_weight(tmp_path: Path) -> None:
    backbone = Backbone(save_config(tmp_path), "bfloat16", lora=LoRA(r=64))
    memory = estimate(PlannedRun(backbone, PagedAdamW8bit), preference_batch())
    plain = estimate(PlannedRun(backbone, torch.optim.AdamW), preference_batch())
    assert plain.optimizer == 8 * plain.trained
    # Matrices of 64 x 32 and less stay in 32 bits.
    small = LAYERS * 2 * 64 * 32
    assert memory.optimizer == pytest.approx((memory.trained - small) * (2 + 8 / 256) + 8 * small, rel=1e-6)


def test_a_frozen_reference_is_a_second_model_and_a_precomputed_one_takes_no_memory(model_folder: str) -> None:
    run = PlannedRun(Backbone(model_folder), torch.optim.AdamW, "frozen")
    frozen, none = (estimate(replace(run, reference=kind), preference_batch()) for kind in ("frozen", "precomputed"))
    assert frozen.reference == frozen.weights and none.reference == 0
    assert frozen.peak - none.peak == frozen.weights
    with pytest.raises(UserError, match="needs a LoRA policy"):
        estimate(replace(run, reference="adapter"), preference_batch())


def test_storages_are_counted_until_they_are_released() -> None:
    weight = torch.empty(1000)
    with LiveBytes() as live:
        view = weight.view(10, 100)
        assert live.now == 0
        first = view + 1
        second = first[2:].t()
        assert live.now == 4000
        del first
        assert live.now == 4000 and second.shape == (100, 8)
        del second
    assert (live.now, live.peak) == (0, 4000)


def test_steps_and_operations(model_folder: str) -> None:
    run = PlannedRun(Backbone(model_folder), torch.optim.AdamW)
    data = SimpleNamespace(batch_size=4, tokens_per_batch=None)
    work = read_workload(data, run, AssumedLengths(prompt=50, completion=10, examples=40))
    linear = LAYERS * (HIDDEN * (HIDDEN + 2 * 32 + HIDDEN) + 3 * HIDDEN * 160)
    seen = LAYERS * HIDDEN * 60 * 61 // 2
    forward = 40 * (2 * linear * 60 + 2 * VOCABULARY * HIDDEN * 10 + 4 * seen)
    assert work.flops == 3 * forward and work.batches == 10 and work.tokens == 2400
    trainer = {"accumulate_grad_batches": 3, "limit_train_batches": None, "max_steps": -1, "max_epochs": 2}
    length = run_length(work, trainer, gpus=2)
    assert (length.steps, length.examples, length.flops) == (4, 80, 2 * work.flops)
    assert length.hours(2, tflops=1e-9, mfu=0.5) == pytest.approx(length.flops / 1000 / 3600)
    assert run_length(work, trainer | {"max_steps": 3}, gpus=2).examples == 60
    with pytest.raises(UserError, match="no end"):
        run_length(work, trainer | {"max_epochs": -1}, gpus=2)


def test_mixed_precision_gathers_and_computes_in_16_bits(model_folder: str) -> None:
    run = PlannedRun(Backbone(model_folder), torch.optim.AdamW, gpus=4, sharded=True)
    single, mixed = (estimate(one, preference_batch()) for one in (run, replace(run, precision="bf16-mixed")))
    assert (mixed.weights, mixed.optimizer, mixed.gradients) == (single.weights, single.optimizer, single.gradients)
    assert single.gathered / 2 < mixed.gathered < single.gathered and mixed.kept < 0.7 * single.kept
    # On one GPU, autocast keeps a 16-bit copy of all weights during the forward pass.
    alone = estimate(replace(run, gpus=1, sharded=False, precision="bf16-mixed"), preference_batch())
    assert alone.working > mixed.working + mixed.parameters


def test_8_bit_optimizers_are_not_sharded(model_folder: str) -> None:
    class AdamW8bit(torch.optim.AdamW):
        pass

    run = PlannedRun(Backbone(model_folder), AdamW8bit)
    with pytest.raises(UserError, match="AdamW8bit with strategy FSDP2"):
        estimate(replace(run, gpus=2, sharded=True), preference_batch())
    # Sharding is the only change that is left for such a run.
    small = replace(run, backbone=Backbone(model_folder, quantization="nf4", lora=LoRA(r=4)))
    data = SimpleNamespace(batch_size=1, tokens_per_batch=None)
    work = read_workload(data, small, AssumedLengths(prompt=50, completion=10, examples=40))
    change = next(changes(small, work, 10**12, room=0))
    assert "FSDP2" in change.setting and change.setting.endswith("over 2 GPUs, with torch.optim.AdamW")


def test_the_global_batch_is_divided_among_devices() -> None:
    trainer = {"accumulate_grad_batches": 1, "callbacks": [GlobalBatch(16)]}
    assert [micro_batches_per_step(trainer, gpus) for gpus in (1, 8)] == [16, 2]
    with pytest.raises(UserError, match="expected a multiple of the 3 devices"):
        micro_batches_per_step(trainer, 3)


def test_changes_come_in_order_until_the_run_fits(model_folder: str) -> None:
    run = PlannedRun(Backbone(model_folder, activation_checkpointing=False), torch.optim.AdamW, "frozen", on_cpu=True)
    work = read_workload(SimpleNamespace(batch_size=8, tokens_per_batch=None), run, AssumedLengths(300, 20, 40))
    peak = needed_bytes(run, estimate(run, work.collate(work.largest)))
    found = list(changes(run, work, peak, room=0))
    assert [change.setting.split("=")[0] for change in found][:2] == [
        "--model.backbone.activation_checkpointing",
        "--model.backbone.lora.r",
    ]
    assert sum(change.saves for change in found) == peak - found[-1].needs
    assert len(list(changes(run, work, peak, room=found[0].needs))) == 1


@pytest.mark.parametrize(
    ("text", "size"), [("24GB", 24 * 10**9), ("80GiB", 80 * 2**30), ("1.5 gb", 15 * 10**8), ("24", 24 * 10**9)]
)
def test_sizes_are_read_in_every_unit(text: str, size: int) -> None:
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["much", "24 apples", "0GB", "-3GB", ""])
def test_texts_that_are_not_sizes(text: str) -> None:
    with pytest.raises(UserError, match="expected a size such as 24GB"):
        parse_memory(text)


def plan(*arguments: str) -> None:
    main(["plan", "--config=quickstart/sft", "--data.val=null", "--data.judge=null", *arguments])


def test_the_command_reads_the_data(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    plan("--data.train.init_args.tasks.init_args.count=40", f"--data.cache={tmp_path}", "--gpu-memory=24GB")
    printed = capsys.readouterr().out
    assert "SFT, full: nano" in printed and "fits 24.00 GB" in printed and "not read" not in printed
    plan("--prompt-tokens=100", "--completion-tokens=20", "--gpu-memory=1MB", "--data.batch_size=3")
    printed = capsys.readouterr().out
    assert "3 examples, 360 tokens" in printed and "prompts of 100" in printed
    assert "does not fit 0.00 GB" in printed and "no setting saves the last" in printed


def test_a_model_that_is_stored_in_4_bits_is_planned_as_one_that_is_loaded_so(
    model_folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lengths = [f"--model.backbone.name_or_path={model_folder}", "--prompt-tokens=9"]
    lora = [*lengths, "--model.backbone.lora.r=4"]
    plan(*lora, "--model.backbone.quantization=nf4")
    loaded_so = capsys.readouterr().out
    path = Path(model_folder) / "config.json"
    stored = quantization.nf4(torch.float32).to_dict()
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": stored}))
    plan(*lora)
    assert capsys.readouterr().out == loaded_so
    with pytest.raises(SystemExit):
        plan(*lengths)
    assert "found quantised weights and neither lora nor adapter" in capsys.readouterr().err


def test_without_data_there_is_advice(model_folder: str) -> None:
    with pytest.raises(SystemExit):
        main(["plan", "--config=lora/sft"])
    with pytest.raises(UserError, match=r"missing --data\.train; or give --prompt-tokens"):
        plan_main(["--config", find("lora/sft"), f"--model.backbone.name_or_path={model_folder}"])


@pytest.mark.parametrize("name", ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"])
@pytest.mark.parametrize("size", [0, -4, "many"])
def test_a_model_of_no_size_is_refused(
    model_folder: str, name: str, size: object, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(model_folder) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), name: size}))
    with pytest.raises(SystemExit) as stopped:
        plan(f"--model.backbone.name_or_path={model_folder}", "--prompt-tokens=9")
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert stopped.value.code == 2 and model_folder in line
    assert name in line or "has a size of 0" in line


def test_lengths_replace_the_data_and_a_missing_adapter_is_assumed(
    model_folder: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    model = f"--model.backbone.name_or_path={model_folder}"
    lengths = ["--prompt-tokens=150", "--completion-tokens=50", "--examples=200"]
    main(["plan", "--config=lora/sft", model, *lengths])
    assert "assumed prompts of 150 and completions of 50 tokens" in capsys.readouterr().out
    peft = Backbone(model_folder, lora=LoRA(r=16)).outline()
    peft.peft_config["default"].save_pretrained(tmp_path / "adapter")
    printed = []
    for folder in ("runs/lora-sft/model", str(tmp_path / "adapter")):
        main(["plan", "--config=lora/dpo", model, f"--model.backbone.adapter={folder}", *lengths])
        printed.append(capsys.readouterr().out.splitlines())
    note = "adapter: not there yet; assumed LoRA of rank 16, change it with model.backbone.lora"
    assert note in printed[0]
    assert [line for line in printed[0] if line != note] == printed[1]


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ([], "bfloat16"),
        (["--trainer.accelerator=cpu"], "float32"),
        (["--model.backbone.dtype=float32"], "float32"),
        (["--model.backbone.lora=null"], "float32"),
    ],
)
def test_a_frozen_base_is_planned_in_its_own_dtype(
    model_folder: str, more: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(model_folder) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "dtype": "bfloat16"}))
    main(["plan", "--config=lora/sft", f"--model.backbone.name_or_path={model_folder}", "--prompt-tokens=150", *more])
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("weights"))
    assert line.endswith(expected)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--gpu-memory=lots", "--prompt-tokens=9"], "--gpu-memory: found 'lots', expected a size"),
        (["--model.backbone.name_or_path=./nowhere", "--prompt-tokens=9"], "model './nowhere': no such folder"),
        (["--data.train=./nowhere.jsonl"], "or give --prompt-tokens"),
        (["--trainer.strategy=bogus", "--prompt-tokens=9"], "trainer.strategy: found 'bogus', expected a name such as"),
        (
            ["--trainer.precision=bf16-true", "--prompt-tokens=9"],
            "trainer.precision: found 'bf16-true', expected one of",
        ),
        (["--mfu=0"], "--mfu: found '0', expected a number above 0 and at most 1"),
        (["--mfu=2"], "--mfu: found '2', expected a number above 0 and at most 1"),
        (["--mfu=inf"], "--mfu: found 'inf', expected"),
        (["--mfu=nan"], "--mfu: found 'nan', expected"),
        (["--gpu-tflops=inf"], "--gpu-tflops: found 'inf', expected a number above 0"),
        (["--gpus=-1"], "--gpus: found '-1', expected a number above 0"),
        (["--trainer.max_steps=-7", "--prompt-tokens=9"], "trainer.max_steps: found -7, expected 0 or more, or -1"),
        (["--trainer.max_epochs=-2", "--prompt-tokens=9"], "trainer.max_epochs: found -2, expected 0 or more, or -1"),
        (["--trainer.devices=0", "--prompt-tokens=9"], "trainer.devices: found 0, expected 1 or more"),
        (["--trainer.devices=-3", "--prompt-tokens=9"], "trainer.devices: found -3, expected 1 or more"),
        (["--trainer.num_nodes=0", "--prompt-tokens=9"], "trainer.num_nodes: found 0, expected 1 or more"),
        (["--trainer.accumulate_grad_batches=0", "--prompt-tokens=9"], "trainer.accumulate_grad_batches: found 0"),
        (["--trainer.limit_train_batches=-1", "--prompt-tokens=9"], "trainer.limit_train_batches: found -1"),
        (["--model.backbone.quantization=nf4", "--prompt-tokens=9"], "found neither lora nor adapter"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        plan(*arguments)
    printed = capsys.readouterr().err.strip().splitlines()[-1]
    assert stopped.value.code == 2 and complaint in printed
