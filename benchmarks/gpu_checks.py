"""The checks of `gpu.py`: what must be right on a GPU."""

import csv
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpu_models import make_data, make_model

LORA = ["--model.backbone.lora.r=8"]
NF4 = [*LORA, "--model.backbone.quantization=nf4"]
PAGED = ["--model.optimizer=judgelit.PagedAdamW8bit"]


def fit(bench: Any, name: str, *arguments: str, keep: bool = False) -> list[dict[str, float]]:
    """Run `judgelit fit` in this process and return the training rows of its log; keep its folder, or delete it."""
    from judgelit.cli import main

    folder = bench.folder / name
    main(
        [
            "fit",
            *arguments,
            f"--trainer.default_root_dir={folder}",
            f"--trainer.accelerator={bench.accelerator}",
            "--trainer.devices=1",
            "--trainer.log_every_n_steps=1",
            "--trainer.enable_progress_bar=false",
            "--trainer.enable_model_summary=false",
            f"--data.cache={folder / 'cache'}",
        ]
    )
    with (folder / "csv/version_0/metrics.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row.get("train/loss")]
    if not keep:
        shutil.rmtree(folder)
    return [{key: float(value) for key, value in row.items() if value} for row in rows]


def method(kind: str, model: str, data: str) -> list[str]:
    """Arguments of `judgelit fit` for SFT or DPO of a model on data, without held-out examples."""
    return [
        f"--model={kind.upper()}Module",
        f"--data={kind.upper()}DataModule",
        f"--model.backbone.name_or_path={model}",
        f"--data.train={data}",
        "--data.val_fraction=0",
        # Checkpoints of all cases would fill a small disk.
        "--trainer.enable_checkpointing=false",
    ]


def attention(bench: Any) -> Iterator[dict[str, Any]]:
    """The flat row gives the log-probabilities and gradients of separate rows.

    float32 must agree to 1e-3. In bfloat16, the flat row may be twice as far from float32 as the separate rows are.
    """
    # A kernel is compiled for each number of channels, which takes most of the time.
    sizes = {64: [200]} if bench.dry else {64: [1000, 8000], 96: [1000], 128: [8000], 256: [1000]}
    for size, lengths in sizes.items():
        for heads, groups in ((4, 4), (8, 2)):
            for longest in lengths:
                yield attention_case(bench, size, heads, groups, longest)


def attention_case(bench: Any, size: int, heads: int, groups: int, longest: int) -> dict[str, Any]:
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from judgelit.batches.flat_batch import TokenizedCompletion, flatten_completions
    from judgelit.likelihood.layouts import Layout
    from judgelit.likelihood.logprobs import completion_logprobs
    from judgelit.models import flat_attention

    config = LlamaConfig(
        hidden_size=heads * size,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        head_dim=size,
        vocab_size=512,
        max_position_embeddings=16384,
    )
    torch.manual_seed(0)
    exact = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa").to(bench.device)
    rng = torch.Generator().manual_seed(1)

    def ids(length: int) -> list[int]:
        return torch.randint(0, 512, (length,), generator=rng).tolist()

    rows = []
    for completions, prompt in ((1, 1), (2, longest // 7), (8, longest // 3), (3, longest)):
        shared = ids(prompt)
        rows += [TokenizedCompletion("", shared, ids(1 + longest // 10 * index)) for index in range(completions)]
    batch = flatten_completions(rows).to(bench.device)

    def separate(model: Any) -> Any:
        """Log-probability of each completion, each in a row by itself."""
        sums = []
        for row in rows:
            tokens = torch.tensor([*row.prompt, *row.completion], device=bench.device)
            logits = model(input_ids=tokens[None], use_cache=False).logits[0, len(row.prompt) - 1 : -1].float()
            sums.append(logits.log_softmax(-1).gather(-1, tokens[len(row.prompt) :, None]).sum())
        return torch.stack(sums)

    def with_gradient(model: Any, sums: Any) -> tuple[Any, Any]:
        weights = list(model.parameters())
        gradients = torch.autograd.grad(sums.sum(), weights)
        return sums.detach().float(), torch.cat([gradient.flatten().float() for gradient in gradients])

    def gap(one: tuple[Any, Any], other: tuple[Any, Any]) -> list[float]:
        return [((a - b).norm() / b.norm()).item() for a, b in zip(one, other, strict=True)]

    wanted = with_gradient(exact, separate(exact))
    found: dict[str, Any] = {"case": f"{size} channels, {heads}/{groups} heads, up to {longest} tokens"}
    ok = True
    for dtype in (torch.float32, torch.bfloat16):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa").to(bench.device)
        model.load_state_dict(exact.state_dict())
        plain = gap(with_gradient(model, separate(model)), wanted)
        model.set_attn_implementation(flat_attention.NAME)
        flat = gap(with_gradient(model, completion_logprobs(model, batch, Layout("shared_prefix")).sums), wanted)
        allowed = [1e-3, 1e-3] if dtype == torch.float32 else [2 * one + 1e-3 for one in plain]
        ok = ok and all(one <= limit for one, limit in zip(flat, allowed, strict=True))
        name = str(dtype).removeprefix("torch.")
        found[f"{name}: flat row"] = [float(f"{one:.2g}") for one in flat]
        found[f"{name}: separate rows"] = [float(f"{one:.2g}") for one in plain]
        del model
    return {**found, "kernel": kernel_in_use(bench, heads, groups, size), "ok": ok}


def kernel_in_use(bench: Any, heads: int, groups: int, size: int) -> dict[str, str]:
    """Which attention a flat row takes, by dtype."""
    import torch

    from judgelit.models.flat_attention import kernel_for
    from judgelit.models.flex_attention import Heads

    if bench.dry:
        return {"both": "scaled dot products"}
    device = torch.device("cuda", torch.cuda.current_device())
    return {
        str(dtype): "FlexAttention"
        if kernel_for(Heads(heads, groups, size, size, dtype, device))
        else "scaled dot products"
        for dtype in (torch.float32, torch.bfloat16)
    }


def steps(bench: Any) -> Iterator[dict[str, Any]]:
    """SFT and DPO steps under bf16-mixed: losses are finite, and DPO begins at ln 2."""
    model = make_model(bench.folder, "tiny" if bench.dry else "0.5b", bench.device)
    for kind in ("sft", "dpo"):
        data = make_data(bench.folder, kind, 16, 60, 20)
        for name, more in (
            ("full", []),
            ("lora", LORA),
            ("nf4 + lora", NF4),
            ("nf4 + lora, paged 8-bit", [*NF4, *PAGED]),
        ):
            rows = fit(
                bench,
                f"steps-{kind}-{name.replace(' ', '')}",
                *method(kind, model, data),
                *more,
                "--trainer.precision=bf16-mixed",
                "--trainer.max_steps=3",
                "--data.batch_size=4",
            )
            losses = [row["train/loss"] for row in rows]
            ok = len(losses) == 3 and all(math.isfinite(loss) for loss in losses)
            if kind == "dpo":
                ok = ok and abs(rows[0]["train/loss"] - math.log(2)) < 1e-3
            yield {"case": f"{kind} {name}", "ok": ok, "losses": [round(loss, 4) for loss in losses]}


def references(bench: Any) -> Iterator[dict[str, Any]]:
    """The kinds of reference give the same losses, in float32."""
    model = make_model(bench.folder, "tiny" if bench.dry else "0.5b", bench.device)
    data = make_data(bench.folder, "dpo", 16, 60, 20)
    for name, more, kinds in (
        ("full", [], ("frozen", "precomputed")),
        ("lora", LORA, ("adapter", "frozen", "precomputed")),
    ):
        losses = {}
        for kind in kinds:
            rows = fit(
                bench,
                f"references-{name}-{kind}",
                *method("dpo", model, data),
                *more,
                f"--model.reference={kind}",
                "--trainer.max_steps=4",
                "--data.batch_size=4",
            )
            losses[kind] = [row["train/loss"] for row in rows]
        gap = max(abs(one[step] - two[step]) for one in losses.values() for two in losses.values() for step in range(4))
        yield {"case": name, "ok": gap < 1e-3, "largest_difference": float(f"{gap:.2g}"), "kinds": list(kinds)}


def generation(bench: Any) -> Iterator[dict[str, Any]]:
    """Greedy texts of judgelit's cache equal those of transformers' `generate`, each prompt alone, in float32."""
    import random

    import torch

    from judgelit.batches.flat_batch import pad_prompts
    from judgelit.generation.generate import generate
    from judgelit.generation.sampling import Sampling
    from judgelit.models.backbone import Backbone

    folder = make_model(bench.folder, "tiny" if bench.dry else "0.5b", bench.device)
    rng = random.Random(0)
    prompts = [[rng.randrange(10, 300) for _ in range(length)] for length in (3, 40, 41, 150, 700)]
    new = 24 if bench.dry else 128
    for dtype in ("float32", "bfloat16"):
        model: Any = Backbone(folder, dtype, activation_checkpointing=False).build(for_training=False)  # type: ignore[arg-type]
        model = model.to(bench.device).eval()
        ids, mask = (part.to(bench.device) for part in pad_prompts(prompts, 0))
        ours = generate(model, ids, mask, Sampling(new, stop_at_verdict=False), stop_ids=[1], pad_id=0)
        equal = 0
        for prompt, (text,) in zip(prompts, ours, strict=True):
            row = torch.tensor([prompt], device=bench.device)
            plain = model.generate(
                row,
                attention_mask=torch.ones_like(row),
                do_sample=False,
                max_new_tokens=new,
                eos_token_id=1,
                pad_token_id=0,
            )
            equal += plain[0, len(prompt) :].tolist() == text
        ok = equal == len(prompts) if dtype == "float32" else None
        yield {"case": dtype, "ok": ok, "equal_texts": f"{equal} of {len(prompts)}"}


def qlora_24gb(bench: Any) -> Iterator[dict[str, Any]]:
    """The shipped qlora/sft and qlora/dpo train a 7B shape with 24 GB of memory."""
    import torch

    shape = "tiny" if bench.dry else "7b"
    model = make_model(bench.folder, shape, bench.device)
    if not bench.dry:
        total = torch.cuda.get_device_properties(0).total_memory
        # The CUDA context and its libraries are not PyTorch's.
        torch.cuda.set_per_process_memory_fraction(min(1.0, (24e9 - 1e9) / total))
    prompt, completion = (100, 30) if bench.dry else (1500, 500)
    for kind in ("sft", "dpo"):
        data = make_data(bench.folder, kind, 40, prompt, completion)
        adapter = [f"--model.backbone.adapter={bench.folder / 'qlora-sft/model'}"] if kind == "dpo" else []
        if not bench.dry:
            torch.cuda.reset_peak_memory_stats()
        rows = fit(
            bench,
            f"qlora-{kind}",
            f"--config=qlora/{kind}",
            f"--model.backbone.name_or_path={model}",
            f"--data.train={data}",
            "--data.val_fraction=0",
            "--trainer.max_epochs=-1",
            "--trainer.max_steps=4",
            "--trainer.accumulate_grad_batches=2",
            *adapter,
            keep=True,
        )
        found: dict[str, Any] = {"losses": [round(row["train/loss"], 4) for row in rows]}
        if not bench.dry:
            found["peak_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
            found["reserved_gb"] = round(torch.cuda.max_memory_reserved() / 1e9, 2)
        ok = len(rows) == 4 and all(math.isfinite(row["train/loss"]) for row in rows)
        yield {"case": f"{kind}, {shape} shape", "ok": ok, **found}


def plan(bench: Any) -> Iterator[dict[str, Any]]:
    """`judgelit plan` is within 10% of the measured peak; on a CPU, where memory is the process's, it is only run."""
    import plan_memory

    model = make_model(bench.folder, "tiny" if bench.dry else "0.5b", bench.device)
    names = list(plan_memory.SETTINGS)
    chosen = names[:1] if bench.dry else [name for name in names if "accumulating" not in name]
    for name in chosen:
        kind = name[:3]
        data = make_data(bench.folder, kind, 4, *((100, 30) if bench.dry else (1500, 500)))
        arguments = [
            *method(kind, model, data),
            "--data.batch_size=4",
            f"--data.cache={bench.folder / 'plan-cache'}",
            f"--trainer.default_root_dir={bench.folder / 'plan'}",
            f"--trainer.accelerator={bench.accelerator}",
            "--trainer.devices=1",
            "--trainer.precision=bf16-mixed",
            "--trainer.max_epochs=2",
            "--trainer.enable_checkpointing=false",
            "--trainer.enable_model_summary=false",
            "--trainer.enable_progress_bar=false",
            "--trainer.logger=false",
            *plan_memory.SETTINGS[name],
        ]
        planned, measured = plan_memory.planned_tensors(arguments), plan_memory.measured(arguments)
        error = planned / measured - 1 if measured > 0 else math.inf
        ok = None if bench.dry else abs(error) <= 0.1
        yield {"case": name, "ok": ok, "planned_mb": planned // 10**6, "measured_mb": measured // 10**6} | (
            {} if bench.dry else {"error": round(error, 3)}
        )


def kill(bench: Any) -> Iterator[dict[str, Any]]:
    """A fit that is killed and continued logs what an unbroken one logs."""
    import kills

    for case in ("sft", "dpo"):
        root = bench.folder / f"kill-{case}"
        root.mkdir()
        config = root / "fit.json"
        settings = kills.configuration(case, 6 if bench.dry else 20)
        settings["trainer"] |= {"accelerator": bench.accelerator, "devices": 1}
        config.write_text(json.dumps(settings), encoding="utf-8")
        kills.finish(config, root / "unbroken")
        died = kills.kill_once(config, root / "killed", 0.0, early=False)
        kills.finish(config, root / "killed")
        unbroken, killed = kills.values(root / "unbroken"), kills.values(root / "killed")
        same = [name for name, _ in unbroken] == [name for name, _ in killed]
        gaps = [
            abs(float(one) - float(two)) / max(abs(float(one)), 1e-6)
            for (_, one), (_, two) in zip(unbroken, killed, strict=False)
        ]
        # A GPU adds some sums in another order each time.
        ok = same and max(gaps) <= (0.0 if bench.dry else 1e-2)
        yield {"case": case, "ok": ok, "killed": died, "values": len(unbroken), "largest_difference": max(gaps)}


def quickstart(bench: Any) -> Iterator[dict[str, Any]]:
    """The quickstart ends and its judge learns; in a dry run, with a few steps, it only ends."""
    out = bench.folder / "quickstart"
    config = str(shortened(bench.folder / "configs")) if bench.dry else "quickstart/run"
    command = ["run", "--config", config, "--output", str(out), "--device", bench.device]
    subprocess.run([sys.executable, "-m", "judgelit.cli", *command], check=True)
    found = json.loads((out / "results.json").read_text(encoding="utf-8"))
    accuracy = {judge: sets["in_distribution"]["accuracy"]["value"] for judge, sets in found["stages"].items()}
    seconds = {stage: cost["seconds"] for stage, cost in found["cost"].items()}
    ok = None if bench.dry else accuracy["sft"] > 0.7
    yield {"case": "run", "ok": ok, "accuracy": accuracy, "seconds": seconds}


def shortened(folder: Path) -> Path:
    """Copies of the quickstart's configurations with little data and few steps."""
    import yaml

    from judgelit.shipped_configs import configs_folder

    folder.mkdir()
    read = {
        name: yaml.safe_load((configs_folder() / f"quickstart/{name}.yaml").read_text(encoding="utf-8"))
        for name in ("run", "sft", "dpo")
    }
    recipe = read["run"]
    recipe["train"]["init_args"]["count"] = 200
    recipe["sets"] = {"in_distribution": recipe["sets"]["harder"]}
    recipe["sets"]["in_distribution"]["init_args"]["count"] = 8
    recipe["templates"]["names"] = ["nano-brief"]
    recipe["teacher"]["init_args"]["glance_rate"] = 1.0
    recipe["enhancement_pairs"] = 8
    recipe["max_new_tokens"] = recipe["enhancement"]["max_new_tokens"] = 16
    for name, count in (("sft", 80), ("dpo", 2)):
        read[name]["trainer"] |= {"max_steps": count, "callbacks": None}
        for left_out in ("val", "judge"):
            read[name]["data"]["init_args"].pop(left_out)
    for name, content in read.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return folder / "run.yaml"
