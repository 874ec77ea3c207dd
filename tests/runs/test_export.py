"""Export of a checkpoint as a Hugging Face folder: other programs load from it the model that was trained."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
import transformers
import yaml
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from judgelit.cli import main
from judgelit.errors import UserError
from judgelit.models.backbone import Backbone, trained_folder
from judgelit.models.lora import LoRA
from judgelit.runs.export import export_run, merge_adapter, new_folder
from judgelit.runs.trained_run import find_run
from judgelit.shipped_configs import find
from judgelit.training.sft import SFTModule
from tests.whole_blocks import widened

IDS = torch.arange(3, 40)[None]
CHAT = [{"role": "system", "content": "You judge."}, {"role": "user", "content": "is 3 odd?"}]
SECRET = "hunter2"

# A program that loads the folders with transformers and PEFT, without judgelit.
OTHER_PROGRAM = """
import json, sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

torch.set_num_threads(1)
ids, chat, folders = torch.arange(3, 40)[None], json.loads(sys.argv[1]), json.loads(sys.argv[2])
found = {}
for name, (folder, base, nf4) in folders.items():
    more = {}
    if nf4:
        more["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    model = AutoModelForCausalLM.from_pretrained(base or folder, dtype=torch.float32, **more)
    if base:
        assert json.load(open(folder + "/adapter_config.json"))["base_model_name_or_path"] == base
        model = PeftModel.from_pretrained(model, folder)
    # In eval mode bitsandbytes computes in bfloat16 on some CPUs.
    model.train() if nf4 else model.eval()
    with torch.no_grad():
        logits = model(input_ids=ids).logits
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    found[name] = {"logits": logits, "prompt": tokenizer(text, add_special_tokens=False)["input_ids"]}
torch.save(found, sys.argv[3])
assert "judgelit" not in sys.modules
"""


@pytest.fixture(scope="module")
def llama(model_folders: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> str:
    return widened(model_folders["llama"], tmp_path_factory.mktemp("wide") / "llama")


@pytest.fixture(scope="module")
def tied(model_folders: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> str:
    return widened(model_folders["qwen2"], tmp_path_factory.mktemp("wide") / "qwen2")


@pytest.fixture(scope="module")
def runs(llama: str, tied: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs of two steps each, at learning rates that change the weights much."""
    folder = tmp_path_factory.mktemp("runs")
    rows = [
        {"prompt": f"is {n} odd?", "completion": f"{n} is it. [[A]]", "chosen": "yes [[A]]", "rejected": "no [[B]]"}
        for n in range(12)
    ]
    for kind, fields in (("sft", ("prompt", "completion")), ("dpo", ("prompt", "chosen", "rejected"))):
        lines = (json.dumps({name: row[name] for name in fields}) + "\n" for row in rows)
        (folder / f"{kind}.jsonl").write_text("".join(lines), encoding="utf-8")

    full = yaml.safe_load(Path(find("lora/sft")).read_text(encoding="utf-8"))
    del full["model"]["init_args"]["backbone"]
    (folder / "full.yaml").write_text(yaml.safe_dump(full), encoding="utf-8")

    def fit(name: str, config: str, model: str, *more: str) -> None:
        kind = "dpo" if "dpo" in config else "sft"
        main(
            [
                "fit",
                f"--config={config}",
                f"--model.backbone.name_or_path={model}",
                f"--data.train={folder}/{kind}.jsonl",
                "--data.val_fraction=0",
                "--trainer.max_steps=2",
                f"--trainer.default_root_dir={folder / name}",
                "--model.optimizer.lr=0.02",
                *more,
            ]
        )

    fit("full", f"{folder}/full.yaml", llama)
    fit("full-tied", f"{folder}/full.yaml", tied)
    fit("lora", "lora/sft", llama, "--model.backbone.lora.r=4")
    fit("dpo", "lora/dpo", llama, f"--model.backbone.adapter={folder / 'lora/model'}")
    fit("nf4", "lora/sft", llama, "--model.backbone.lora.r=4", "--model.backbone.quantization=nf4")
    return {name: folder / name for name in ("full", "full-tied", "lora", "dpo", "nf4")}


def of_judgelit(run: Path) -> Tensor:
    """Logits that judgelit computes from the run's checkpoint."""
    found = find_run(run)
    module = SFTModule(found.backbone)
    module.configure_model()
    saved = torch.load(found.checkpoint, weights_only=True)["state_dict"]
    missing, unexpected = module.load_state_dict(saved, strict=False)
    assert not unexpected and not any("lora_" in name for name in missing)
    assert found.backbone.uses_lora or not missing
    model: Any = module.model
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def sharded(run: Path, to: Path, rename: Callable[[str], str] = str) -> Path:
    """Copy a run and make its checkpoint a sharded one."""
    path = Path(shutil.copytree(run, to)) / "checkpoints/last.ckpt"
    content = torch.load(path, weights_only=True)
    path.unlink()
    state = {rename(name): weight for name, weight in content.pop("state_dict").items()}
    dcp.save({"state_dict": state, "optimizer_0": {"step": torch.ones(2)}}, checkpoint_id=path, no_dist=True)
    torch.save(content, path / "meta.pt")
    return path


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.fixture(scope="module")
def exported(
    runs: dict[str, Path], llama: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Path], dict[str, dict[str, Any]]]:
    """Exported folders by name, and what another program computes with them."""
    folder = tmp_path_factory.mktemp("exported")
    folders: dict[str, tuple[str, str | None, bool]] = {}
    for run, merge in (
        ("full", False),
        ("full-tied", False),
        ("lora", False),
        ("lora", True),
        ("dpo", False),
        ("dpo", True),
        ("nf4", False),
        ("nf4", True),
    ):
        name = f"{run}-merged" if merge else run
        main(["export", str(runs[run]), "--to", str(folder / name), *(["--merge"] if merge else [])])
        base = None if merge or run.startswith("full") else llama
        folders[name] = (str(folder / name), base, base is not None and run == "nf4")
    subprocess.run(
        [sys.executable, "-c", OTHER_PROGRAM, json.dumps(CHAT), json.dumps(folders), str(folder / "found.pt")],
        check=True,
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return {name: folder / name for name in folders}, torch.load(folder / "found.pt", weights_only=True)


Exported = tuple[dict[str, Path], dict[str, dict[str, Any]]]


@pytest.mark.parametrize("name", ["full", "full-tied", "lora", "lora-merged", "dpo", "dpo-merged", "nf4", "nf4-merged"])
def test_another_program_computes_the_same_logits(
    exported: Exported, runs: dict[str, Path], llama: str, tied: str, name: str
) -> None:
    found = exported[1][name]
    wanted = of_judgelit(runs[name.removesuffix("-merged")])
    # A merged model adds base and adapter before it multiplies with the input, so it rounds differently.
    worst = (found["logits"] - wanted).abs().max().item()
    assert worst <= (1e-5 * wanted.abs().max().item() if "merged" in name else 1e-6)
    start = logits(Backbone(tied if "tied" in name else llama).build())
    assert (found["logits"] - start).abs().max() > 0.5
    tokenizer = find_run(runs[name.removesuffix("-merged")]).tokenizer()
    assert found["prompt"] == tokenizer.prompt_ids(CHAT)


@pytest.mark.parametrize("name", ["full", "full-tied", "lora-merged", "nf4-merged"])
def test_an_exported_model_has_the_files_that_servers_need(
    exported: Exported, runs: dict[str, Path], llama: str, tied: str, name: str
) -> None:
    folder, base = exported[0][name], Path(tied if "tied" in name else llama)
    assert {path.name for path in folder.iterdir()} == {
        "README.md",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    config = json.loads((folder / "config.json").read_text())
    (architecture,) = config["architectures"]
    assert hasattr(transformers, architecture) and architecture.endswith("ForCausalLM")
    assert config["dtype"] == "float32"
    assert not {"auto_map", "quantization_config"} & config.keys()
    assert "judgelit" not in (folder / "config.json").read_text()
    with safe_open(folder / "model.safetensors", "pt") as ours, safe_open(base / "model.safetensors", "pt") as theirs:
        assert set(ours.keys()) == set(theirs.keys())
        assert ours.metadata()["format"] == "pt"
        for key in ours.keys():  # noqa: SIM118 (it is no mapping)
            assert ours.get_slice(key).get_shape() == theirs.get_slice(key).get_shape()
    tokenizer = find_run(runs[name.removesuffix("-merged")]).tokenizer()
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation["eos_token_id"] == list(tokenizer.stop_ids)
    assert generation["pad_token_id"] == tokenizer.pad_id
    assert not generation["do_sample"]


@pytest.mark.parametrize("name", ["lora", "dpo", "nf4"])
def test_an_adapter_is_exported_alone_and_unchanged(exported: Exported, runs: dict[str, Path], name: str) -> None:
    folder = exported[0][name]
    assert {path.name for path in folder.iterdir()} - {"judgelit.json"} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat_template.jinja",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    # `judgelit fit` has written the same from memory, and of DPO not its reference.
    (at_the_end,) = (runs[name] / "model").rglob("*.safetensors")
    with (
        safe_open(folder / "adapter_model.safetensors", "pt") as ours,
        safe_open(at_the_end, "pt") as theirs,
    ):
        assert set(ours.keys()) == set(theirs.keys())
        for key in ours.keys():  # noqa: SIM118
            assert torch.equal(ours.get_tensor(key), theirs.get_tensor(key))


@pytest.mark.parametrize("name", ["full", "full-tied", "lora-merged", "dpo", "nf4"])
def test_a_sharded_checkpoint_exports_the_same_model(
    exported: Exported, runs: dict[str, Path], tmp_path: Path, name: str
) -> None:
    run = name.removesuffix("-merged")
    sharded(runs[run], tmp_path / run)
    main(["export", str(tmp_path / run), "--to", str(tmp_path / "out"), *(["--merge"] if run != name else [])])
    (file,) = (path.name for path in (tmp_path / "out").glob("*.safetensors"))
    found, wanted = (load_file(folder / file) for folder in (tmp_path / "out", exported[0][name]))
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], value) for key, value in wanted.items())


@pytest.mark.parametrize("name", ["lora", "nf4"])
def test_an_adapter_is_loaded_on_its_own_base(exported: Exported, runs: dict[str, Path], llama: str, name: str) -> None:
    quantization = "nf4" if name == "nf4" else None
    wanted = of_judgelit(runs[name])
    for folder in (exported[0][name], runs[name] / "model"):
        backbone = trained_folder(str(folder))
        assert backbone == Backbone(llama, quantization=quantization, adapter=str(folder))
        assert torch.equal(logits(backbone.build()), wanted)
    assert not (exported[0]["nf4-merged"] / "judgelit.json").exists()


@pytest.mark.parametrize("note", ["{", "[]", "{}", '{"quantization": "int3"}'])
def test_a_broken_note_of_the_base_is_refused(exported: Exported, tmp_path: Path, note: str) -> None:
    folder = shutil.copytree(exported[0]["nf4"], tmp_path / "adapter")
    (folder / "judgelit.json").write_text(note, encoding="utf-8")
    with pytest.raises(UserError, match=r"judgelit\.json: f"):
        trained_folder(str(folder))


def test_merged_weights_are_rounded_once(runs: dict[str, Path], exported: Exported, tmp_path: Path) -> None:
    main(["export", str(runs["nf4"]), "--to", str(tmp_path / "half"), "--merge", "--dtype=bfloat16"])
    half, full = (
        safe_open(folder / "model.safetensors", "pt") for folder in (tmp_path / "half", exported[0]["nf4-merged"])
    )
    for key in full.keys():  # noqa: SIM118
        assert torch.equal(half.get_tensor(key), full.get_tensor(key).bfloat16()), key
    assert json.loads((tmp_path / "half/config.json").read_text())["dtype"] == "bfloat16"


def test_another_dtype_keeps_tied_weights_tied(runs: dict[str, Path], exported: Exported, tmp_path: Path) -> None:
    main(["export", str(runs["full-tied"]), "--to", str(tmp_path / "half"), "--dtype=float16"])
    half, full = (
        safe_open(folder / "model.safetensors", "pt") for folder in (tmp_path / "half", exported[0]["full-tied"])
    )
    assert set(half.keys()) == set(full.keys())
    for key in full.keys():  # noqa: SIM118
        assert torch.equal(half.get_tensor(key), full.get_tensor(key).half()), key


@pytest.mark.parametrize(
    "lora",
    [
        LoRA(r=4, target_modules=["q_proj", "lm_head"]),
        LoRA(r=4, target_modules=["q_proj", "embed_tokens"]),
        LoRA(r=4, rslora=True),
    ],
)
def test_an_adapter_of_tied_weights_changes_only_one_of_them(
    tied: str, lora: LoRA, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    model = Backbone(tied, lora=lora).build_unquantized()
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.1)
    wanted = logits(model)
    merge_adapter(model, torch.float32).save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(logits(loaded), wanted, rtol=1e-5, atol=1e-4)


def test_only_the_configuration_of_a_base_is_read(runs: dict[str, Path], llama: str, tmp_path: Path) -> None:
    weights = Path(llama) / "model.safetensors"
    hidden = weights.rename(tmp_path / "hidden")
    try:
        for name in ("full", "lora", "nf4"):
            main(["export", str(runs[name]), "--to", str(tmp_path / name)])
        with pytest.raises(SystemExit):
            main(["export", str(runs["lora"]), "--to", str(tmp_path / "merged"), "--merge"])
    finally:
        hidden.rename(weights)
    assert {path.name for path in tmp_path.iterdir()} == {"full", "lora", "nf4"}


def test_a_merge_without_adapter_gives_a_note(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["export", str(runs["full"]), "--to", str(tmp_path / "out"), "--merge"])
    assert "there is no adapter to merge" in capsys.readouterr().out
    assert (tmp_path / "out/model.safetensors").exists()


def test_an_earlier_checkpoint_can_be_named(runs: dict[str, Path], tmp_path: Path) -> None:
    other = tmp_path / "run/checkpoints/best.ckpt"
    other.parent.mkdir(parents=True)
    shutil.copy(runs["lora"] / "config.yaml", tmp_path / "run")
    shutil.copy(runs["lora"] / "checkpoints/last.ckpt", other)
    main(["export", str(other), "--to", str(tmp_path / "out")])
    assert (tmp_path / "out/adapter_model.safetensors").exists()


class TestNewFolder:
    def test_the_folder_appears_at_the_end(self, tmp_path: Path) -> None:
        with new_folder(tmp_path / "new/out") as part:
            (part / "file").write_text("x")
            assert not (tmp_path / "new/out").exists()
        assert [path.name for path in (tmp_path / "new").iterdir()] == ["out"]
        assert (tmp_path / "new/out/file").read_text() == "x"

    def test_a_failure_leaves_nothing(self, tmp_path: Path) -> None:
        with pytest.raises(RuntimeError), new_folder(tmp_path / "out") as part:
            (part / "file").write_text("x")
            raise RuntimeError
        assert not list(tmp_path.iterdir())

    def test_an_incomplete_folder_that_a_kill_left_is_removed(self, tmp_path: Path) -> None:
        (tmp_path / ".out.0123abcd.part").mkdir()
        (tmp_path / ".out.0123abcd.part/half").write_text("x")
        (tmp_path / "out").mkdir()
        with new_folder(tmp_path / "out") as part:
            (part / "file").write_text("y")
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["file"]

    @pytest.mark.parametrize("exists", [True, False])
    def test_a_link_stays_and_its_folder_is_written(self, exists: bool, tmp_path: Path) -> None:
        (tmp_path / "disk").mkdir()
        if exists:
            (tmp_path / "disk/out").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "disk/out")
        with new_folder(tmp_path / "link") as part:
            (part / "file").write_text("x")
        assert (tmp_path / "link").is_symlink() and (tmp_path / "disk/out/file").read_text() == "x"
        assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "link"]
        assert [path.name for path in (tmp_path / "disk").iterdir()] == ["out"]

    def test_a_mount_point_is_refused_before_the_work(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        disk = tmp_path / "disk"
        disk.mkdir()
        (tmp_path / "link").symlink_to(disk)
        monkeypatch.setattr(Path, "is_mount", lambda path: path == disk)
        for given in ("disk", "link"):
            with pytest.raises(UserError, match=f"{given}: found a mount point, .*--to"), new_folder(tmp_path / given):
                pytest.fail("the work has begun")

    def test_a_killed_export_leaves_no_folder(self, runs: dict[str, Path], tmp_path: Path) -> None:
        code = (
            "import os, sys; from judgelit.runs import export; "
            "export.model_card = lambda *_, **__: os.kill(os.getpid(), 9); "
            "export.main(sys.argv[1:])"
        )
        arguments = [str(runs["lora"]), "--to", str(tmp_path / "out")]
        assert subprocess.run([sys.executable, "-c", code, *arguments], check=False).returncode == -9
        assert not (tmp_path / "out").exists()
        main(["export", *arguments])
        assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., str]:
    """Run an export that must be refused with exit code 2 and one line, and write nothing; returns the line."""

    def run(*arguments: str | Path) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main(["export", *map(str, arguments), "--to", str(tmp_path / "out")])
        assert exit_.value.code == 2
        said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("judgelit: error: ")]
        assert len(said) == 1
        assert not (tmp_path / "out").exists() and not list(tmp_path.glob("*.part"))
        return said[0]

    return run


def copied(run: Path, to: Path, **backbone: Any) -> Path:
    """Copy a run and change the backbone in its configuration."""
    shutil.copytree(run, to)
    settings = yaml.safe_load((to / "config.yaml").read_text(encoding="utf-8"))
    settings["model"]["init_args"]["backbone"].update(backbone)
    (to / "config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    return to


class TestRefusals:
    def test_no_such_run(self, refused: Callable[..., str], tmp_path: Path) -> None:
        assert "no such run" in refused(tmp_path / "nowhere")

    def test_a_folder_that_is_no_run(self, refused: Callable[..., str], llama: str, tmp_path: Path) -> None:
        assert "found no config.yaml, expected the folder of" in refused(llama)
        (tmp_path / "other").mkdir()
        (tmp_path / "other/config.yaml").write_text("a: 1\n")
        assert "found no configuration of a training" in refused(tmp_path / "other")

    def test_a_run_that_never_saved(self, refused: Callable[..., str], runs: dict[str, Path], tmp_path: Path) -> None:
        run = copied(runs["lora"], tmp_path / "run")
        (run / "checkpoints/last.ckpt").rename(run / "checkpoints/step=1.ckpt")
        for other in run.glob("checkpoints/epoch*"):
            other.unlink()
        assert "found no checkpoints/last.ckpt" in (line := refused(run)) and "step=1.ckpt" in line
        shutil.rmtree(run / "checkpoints")
        assert "found no checkpoints/last.ckpt" in (line := refused(run)) and "train it first" in line

    def test_a_recipe_without_training(self, refused: Callable[..., str], tmp_path: Path) -> None:
        (tmp_path / "run/stages/01-pairs").mkdir(parents=True)
        (tmp_path / "run/config.yaml").write_text("seed: 0\n")
        assert "found no stage with checkpoints/last.ckpt" in refused(tmp_path / "run")

    def test_a_checkpoint_outside_a_run(
        self, refused: Callable[..., str], runs: dict[str, Path], tmp_path: Path
    ) -> None:
        shutil.copy(runs["lora"] / "checkpoints/last.ckpt", tmp_path)
        assert "found no config.yaml above it" in refused(tmp_path / "last.ckpt")

    @pytest.mark.parametrize("size", [0, 200, 20_000, -100])
    def test_a_truncated_checkpoint(
        self, refused: Callable[..., str], runs: dict[str, Path], tmp_path: Path, size: int
    ) -> None:
        path = copied(runs["lora"], tmp_path / "run") / "checkpoints/last.ckpt"
        path.write_bytes(path.read_bytes()[:size])
        assert "found no complete checkpoint" in refused(tmp_path / "run")

    def test_what_is_no_checkpoint_or_would_run_code(
        self, refused: Callable[..., str], runs: dict[str, Path], tmp_path: Path
    ) -> None:
        path = copied(runs["lora"], tmp_path / "run") / "checkpoints/last.ckpt"
        for content in ({"weights": 1}, {"state_dict": {}, "code": Path}, [1]):
            torch.save(content, path)
            assert "found no complete checkpoint" in refused(tmp_path / "run")

    def test_a_broken_sharded_checkpoint(
        self, refused: Callable[..., str], runs: dict[str, Path], tmp_path: Path
    ) -> None:
        path = sharded(runs["lora"], tmp_path / "run")
        shard, index, meta = (path / name for name in ("__0_0.distcp", ".metadata", "meta.pt"))
        whole = {file: file.read_bytes() for file in (shard, index, meta)}
        for file, content in whole.items():
            for left in (content[: len(content) // 3], b"", None):
                file.unlink() if left is None else file.write_bytes(left)
                for named in (tmp_path / "run", path):
                    assert f"{path} cannot be read as a sharded checkpoint (" in refused(named)
            file.write_bytes(content)
        sharded(runs["lora"], tmp_path / "other", rename=lambda name: name.replace("lora_A", "lora_C"))
        assert "is of another model" in refused(tmp_path / "other")

    def test_a_sharded_checkpoint_runs_no_code(
        self, refused: Callable[..., str], runs: dict[str, Path], tmp_path: Path
    ) -> None:
        path = sharded(runs["lora"], tmp_path / "run")
        for code in (Touch(tmp_path / "touched"), pickle.loads(b"cshutil\nrmtree\n.")):
            (path / ".metadata").write_bytes(pickle.dumps(code))
            assert "(its index asks for " in refused(path)
        assert not (tmp_path / "touched").exists()

    @pytest.mark.parametrize(
        ("run", "backbone", "said"),
        [
            ("lora", {"lora": {"r": 8}}, "lora_A.default.weight has shape (4, 128) in it, expected (8, 128)"),
            ("lora", {"lora": None}, "lora_A.default.weight has shape (4, 128) in it, expected none"),
            ("lora", {"lora": {"r": 4, "target_modules": ["q_proj"]}}, "in it, expected none"),
            ("full", {"lora": {"r": 4}}, "has shape none in it, expected (4, 128)"),
        ],
    )
    def test_another_adapter(
        self,
        refused: Callable[..., str],
        runs: dict[str, Path],
        tmp_path: Path,
        run: str,
        backbone: dict[str, Any],
        said: str,
    ) -> None:
        line = refused(copied(runs[run], tmp_path / "run", **backbone))
        assert "is of another model than" in line and said in line

    @pytest.mark.parametrize("merge", [[], ["--merge"]])
    def test_another_model(
        self, refused: Callable[..., str], runs: dict[str, Path], llama: str, tmp_path: Path, merge: list[str]
    ) -> None:
        other = widened(llama, tmp_path / "other", intermediate_size=64)
        for run in ("full", "lora"):
            line = refused(copied(runs[run], tmp_path / run, name_or_path=other), *merge)
            assert "is of another model than" in line and "64)" in line

    def test_an_adapter_on_random_weights(
        self, refused: Callable[..., str], runs: dict[str, Path], tmp_path: Path
    ) -> None:
        assert "random weights are in no file" in refused(copied(runs["lora"], tmp_path / "run", name_or_path="nano"))

    def test_a_folder_with_something_in_it(self, runs: dict[str, Path], tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out/mine").write_text("mine")
        (tmp_path / "file").write_text("mine")
        for to in ("out", "file"):
            with pytest.raises(UserError, match=r"exists already.*choose another one with --to"):
                export_run(find_run(runs["lora"]), tmp_path / to)
        assert (tmp_path / "out/mine").read_text() == (tmp_path / "file").read_text() == "mine"

    def test_no_place_to_write_to(self, runs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as exit_:
            main(["export", str(runs["lora"])])
        assert exit_.value.code == 2 and "missing --to" in capsys.readouterr().err


class TestModelCard:
    def test_the_card_names_base_data_and_settings(self, exported: Exported) -> None:
        card = (exported[0]["dpo"] / "README.md").read_text(encoding="utf-8")
        _, front, text = card.split("---\n", 2)
        metadata = yaml.safe_load(front)
        assert metadata["library_name"] == "peft" and {"judgelit", "dpo", "lora"} <= set(metadata["tags"])
        rows = dict(line[2:-2].split(" | ", 1) for line in text.splitlines() if line.startswith("| "))
        assert rows["base model"] == "llama"
        assert rows["data"] == "dpo.jsonl"
        assert rows["LoRA"].startswith("r 4, alpha 32, dropout 0.0, on down_proj, ")
        assert rows["method"] == "DPO, sigmoid loss, beta 0.1, label_smoothing 0.0, nll_weight 0.2"
        assert rows["optimizer"].startswith("AdamW lr 0.02")
        assert rows["lr scheduler"] == "WarmupCosine warmup 0.1, floor 0.0"
        assert rows["trained for"].startswith("2 optimizer steps, ")
        assert rows["batch"] == "batch_size 2, accumulate_grad_batches 4"
        assert "were not evaluated" in text and f"transformers {transformers.__version__}" in text
        merged = yaml.safe_load((exported[0]["dpo-merged"] / "README.md").read_text(encoding="utf-8").split("---\n")[1])
        assert merged["library_name"] == "transformers"

    def test_a_hub_name_is_named_as_base(self, runs: dict[str, Path], tmp_path: Path) -> None:
        run = find_run(copied(runs["lora"], tmp_path / "run", name_or_path="someone/Some-Model-7B"))
        from judgelit.runs.model_card import model_card

        card = model_card(run, run.load(), merged=False)
        assert yaml.safe_load(card.split("---\n")[1])["base_model"] == "someone/Some-Model-7B"
        assert "on someone/Some-Model-7B" in card

    def test_a_global_batch_is_what_the_user_asked_for(self, runs: dict[str, Path], tmp_path: Path) -> None:
        from judgelit.runs.model_card import model_card

        folder = copied(runs["lora"], tmp_path / "run")
        settings = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        callback = {"class_path": "judgelit.GlobalBatch", "init_args": {"micro_batches": 8}}
        settings["trainer"] |= {"callbacks": [callback], "accumulate_grad_batches": 1, "devices": 2}
        (folder / "config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
        run = find_run(folder)
        assert "| batch | batch_size 2, micro_batches 8, devices 2 |" in model_card(run, run.load(), merged=False)

    def test_general_data_and_their_weight_are_named_together(self, runs: dict[str, Path], tmp_path: Path) -> None:
        from judgelit.runs.model_card import model_card

        folder = copied(runs["dpo"], tmp_path / "run")
        settings = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        settings["data"]["init_args"]["general"] = "chat.jsonl"
        (folder / "config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
        run = find_run(folder)
        card = model_card(run, run.load(), merged=False)
        assert "| general data | chat.jsonl |" in card and "general_weight 1.0, label_smoothing" in card

    def test_logged_scores_are_of_the_same_step(self, runs: dict[str, Path], tmp_path: Path) -> None:
        run = copied(runs["lora"], tmp_path / "run")
        log = run / "csv/version_7/metrics.csv"
        log.parent.mkdir(parents=True)
        log.write_text(
            "step,judge/held/out/accuracy,train/loss,judge/held/out/no_verdict\n1,0.25,,0.5\n2,0.75,,\n2,,0.3,\n2,,,0.125\n3,0.5,,0.5\n"
        )
        main(["export", str(run), "--to", str(tmp_path / "out")])
        card = (tmp_path / "out/README.md").read_text(encoding="utf-8")
        assert "| set | accuracy | no_verdict |" in card and "| held/out | 75.0 | 12.5 |" in card

    def test_the_scores_of_an_evaluation_are_in_the_card(self, runs: dict[str, Path], tmp_path: Path) -> None:
        run = copied(runs["lora"], tmp_path / "run")
        accuracy = {"value": 0.75, "low": 0.5, "high": 1.0, "n": 4}
        results = {"model": str(run), "settings": {}, "sets": {"hard": {"accuracy": accuracy}}}
        for folder, model in (
            (run / "scores", run),
            (run / "other", run / "checkpoints/earlier.ckpt"),
            (tmp_path / "s", "x"),
        ):
            folder.mkdir()
            (folder / "results.json").write_text(json.dumps({**results, "model": str(model)}))
        for more in ([], ["--scores", str(tmp_path / "s")]):
            main(["export", str(run), "--to", str(tmp_path / "out"), *more])
            assert "| hard | 75.0 [50.0, 100.0] |" in (tmp_path / "out/README.md").read_text(encoding="utf-8")
            shutil.rmtree(tmp_path / "out")

    @pytest.mark.parametrize(
        "text", ["{", "[]", "{}", '{"sets": {"a": 1}}', '{"sets": {"a": {"accuracy": {"value": "x"}}}}']
    )
    def test_broken_results_are_refused(
        self, runs: dict[str, Path], tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "results.json").write_text(text)
        with pytest.raises(SystemExit) as exit_:
            main(["export", str(runs["lora"]), "--to", str(tmp_path / "out"), "--scores", str(tmp_path)])
        assert exit_.value.code == 2 and "results.json: found no" in capsys.readouterr().err

    @pytest.mark.parametrize("log", [b"step,judge/a/accuracy\n2,much\n", b"\xff\xfe", b"a,b\n1,2\n", b"step\n1,2,3\n"])
    def test_a_broken_log_is_refused(
        self, runs: dict[str, Path], tmp_path: Path, log: bytes, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run = copied(runs["lora"], tmp_path / "run")
        (run / "csv/version_0").mkdir(parents=True, exist_ok=True)
        (run / "csv/version_0/metrics.csv").write_bytes(log)
        with pytest.raises(SystemExit) as exit_:
            main(["export", str(run), "--to", str(tmp_path / "out")])
        assert exit_.value.code == 2 and "metrics.csv" in capsys.readouterr().err

    def test_secrets_stay_in_the_configuration(self, runs: dict[str, Path], tmp_path: Path) -> None:
        stage = tmp_path / "runs/mine/stages/07-dpo"
        run = copied(runs["lora"], stage)
        settings = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        source = {"class_path": "my.Source", "init_args": {"path": "hub/data", "token": SECRET, "count": 3}}
        settings["data"]["init_args"]["train"] = [
            f"https://me:{SECRET}@host.org/data.jsonl?key={SECRET}",
            {"class_path": "Mixture", "init_args": {"sources": [source, f"/home/{SECRET}/own.jsonl"]}},
        ]
        settings["trainer"]["logger"] = [{"class_path": "WandbLogger", "init_args": {"api_key": SECRET}}]
        settings["model"]["init_args"]["optimizer"]["init_args"]["password"] = SECRET
        (run / "config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
        recipe = {
            "seed": 0,
            "train": {"class_path": "S", "init_args": {"path": f"ftp://{SECRET}@h/pairs"}},
            "key": SECRET,
        }
        (tmp_path / "runs/mine/config.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
        main(["export", str(tmp_path / "runs/mine"), "--to", str(tmp_path / "out")])
        for path in (tmp_path / "out").iterdir():
            assert SECRET.encode() not in path.read_bytes(), path
        card = (tmp_path / "out/README.md").read_text(encoding="utf-8")
        assert "| data | https://host.org/data.jsonl, Source hub/data count 3, own.jsonl |" in card
        assert "| made from pairs of | S ftp://h/pairs |" in card

    def test_a_recipes_scores_are_those_of_the_stage(self, runs: dict[str, Path], tmp_path: Path) -> None:
        for stage in ("04-sft", "07-dpo"):
            run = copied(runs["lora"], tmp_path / f"run/stages/{stage}")
            (run / "done.json").write_text("{}")
        (tmp_path / "run/config.yaml").write_text("seed: 0\n")

        def figure(value: float) -> dict[str, Any]:
            return {"in": {"accuracy": {"value": value, "low": value - 0.1, "high": None, "n": 5}}}

        results = {"stages": {"base": figure(0.2), "sft": figure(0.5), "dpo": figure(0.875)}}
        results["stages"]["dpo"]["in"]["accuracy"]["high"] = 0.9
        (tmp_path / "run/results.json").write_text(json.dumps(results))
        for asked, said in (
            ("run", "| in | 87.5 [77.5, 90.0] |"),
            ("run/stages/04-sft", "| in | 50.0 |"),
            ("run/stages/04-sft/checkpoints/last.ckpt", "| in | 50.0 |"),
        ):
            main(["export", str(tmp_path / asked), "--to", str(tmp_path / "out")])
            assert said in (tmp_path / "out/README.md").read_text(encoding="utf-8"), asked
            shutil.rmtree(tmp_path / "out")
        (tmp_path / "run/stages/07-dpo/done.json").unlink()
        earlier = shutil.copy(run / "checkpoints/last.ckpt", tmp_path / "run/stages/04-sft/checkpoints/earlier.ckpt")
        for unmeasured in (tmp_path / "run", earlier):
            main(["export", str(unmeasured), "--to", str(tmp_path / "out")])
            assert "were not evaluated" in (tmp_path / "out/README.md").read_text(encoding="utf-8")
            shutil.rmtree(tmp_path / "out")


def test_code_that_comes_with_a_model_runs_only_if_the_user_says_so(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(runs["lora"], tmp_path / "run"))
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["model"]["init_args"]["backbone"]["trust_remote_code"] = True
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(SystemExit) as ended:
        main(["export", str(run), "--to", str(tmp_path / "out")])
    assert ended.value.code == 2 and "add --trust_remote_code" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    main(["export", str(run), "--to", str(tmp_path / "out"), "--trust_remote_code"])
    assert (tmp_path / "out/adapter_model.safetensors").exists()
