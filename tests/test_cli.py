"""The command line: help, speed, short names, exit codes."""

import csv
import json
import math
import os
import re
import resource
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import judgelit
from judgelit import __version__
from judgelit.cli import COMMANDS, main
from judgelit.errors import UserError
from judgelit.shipped_configs import configs_folder, find, shipped


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    said = capsys.readouterr().out
    for name, (_, what) in COMMANDS.items():
        assert f"  {name} " in said and what in said


@pytest.mark.parametrize(
    "command", [["run", "--help"], ["synthesize", "warmup", "--help"], ["fit", "--data.help", "DPODataModule"]]
)
def test_help_lists_every_kind_of_source(command: list[str]) -> None:
    said = subprocess.run([sys.executable, "-m", "judgelit.cli", *command], capture_output=True, text=True, check=True)
    listed = " ".join(said.stdout.split())
    assert all(f"judgelit.{name}" in listed for name in ("FileSource", "Mixture", "PublicSource", "TaskPairs"))


def test_help_is_quick_and_imports_no_large_library() -> None:
    code = (
        "import sys; from judgelit.cli import main; main(['--help']); "
        "heavy = {'torch', 'lightning', 'transformers', 'datasets', 'jsonargparse', 'peft', 'numpy', 'rich'}; "
        "sys.exit(','.join(heavy & set(sys.modules)) or 0)"
    )
    # Time of the processor, since other programs may use the machine.
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert ended.returncode == 0, ended.stderr
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--version"])
    assert capsys.readouterr().out.strip() == f"judgelit {__version__}"


def test_a_checkout_need_not_be_installed() -> None:
    code = (
        "import importlib.metadata as found\n"
        "def absent(name): raise found.PackageNotFoundError(name)\n"
        "found.version = absent\n"
        "from judgelit.cli import main; main(['--version'])"
    )
    root = Path(judgelit.__file__).parents[1]
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root).stdout
    assert said.strip() == f"judgelit {__version__}"


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "configs"])
def test_every_command_explains_itself(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit) as exit_:
        main([command, "--help"])
    assert exit_.value.code == 0
    assert "usage: judgelit" in capsys.readouterr().out


def test_commands_at_the_heads_of_configurations_have_options_that_exist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    heads = [path.read_text(encoding="utf-8").replace("\\\n# ", "") for path in configs_folder().rglob("*.yaml")]
    commands = [line for head in heads for line in re.findall(r"^#   judgelit (synthesize .*)", head, re.MULTILINE)]
    assert len(commands) == 7
    monkeypatch.chdir(tmp_path)
    for command in commands:
        nano = re.sub(r"--(tokenizer|model) \S+", r"--\1 nano", command)
        with pytest.raises(SystemExit):
            main(shlex.split(nano))
        assert "pairs.jsonl: no such file" in capsys.readouterr().err, command


def test_help_explains_every_setting(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    for arguments, explained in (
        (["run"], ["Folder of the run.", "Temperature of the samples.", "Judgments sampled of each prompt."]),
        (["tasks"], ["Number of pairs"]),
        (["judge"], ["Longest judgment, in tokens."]),
        (["synthesize", "enhancement"], ["sampled from the warm judge", "The dtype of the weights"]),
        (["fit"], ["usage: judgelit fit --config FILE", "--model.help SFTModule", "--data.help SFTDataModule"]),
        (["synthesize", "warmup"], ["public data sets for --source", "helpsteer2 9,125 pairs", "licence: CC-BY-4.0"]),
        (["evaluate"], ["prm800k 97,782 solutions", "columns: instruction, output_1, output_2, label (1 or 2)"]),
        (["predict"], ["Judge the pairs of data.judge"]),
        (["fit", "--data.help=SFTDataModule"], ["Examples to train on."]),
        (["fit", "--model.help=SFTModule"], ["Model to train: a name on the Hugging Face hub"]),
    ):
        with pytest.raises(SystemExit):
            main([*arguments, "--help"] if len(arguments) < 2 or arguments[0] == "synthesize" else arguments)
        said = " ".join(capsys.readouterr().out.split())
        assert all(text in said for text in explained), arguments


@pytest.mark.parametrize("name", ["quickstart/sft", "quickstart/dpo"])
def test_print_config_is_resolved_and_names_the_model_once(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["fit", "--config", name, "--trainer.max_steps=7", "--print_config"])
    assert exit_.value.code == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["trainer"]["max_steps"] == 7
    # One process on any machine, also on one with several GPUs.
    assert (config["trainer"]["accelerator"], config["trainer"]["devices"]) == ("cpu", 1)
    assert config["model"]["init_args"]["backbone"]["name_or_path"] == "nano"
    assert "tokenizer" not in config["data"]["init_args"]


def test_null_is_accepted_in_nested_classes(capsys: pytest.CaptureFixture[str]) -> None:
    nulls = ["--model.backbone.quantization=null", "--model.backbone.lora=null", "--data.tokens_per_batch=null"]
    required = ["--model.backbone.name_or_path=nano", "--data.train=judgments.jsonl"]
    with pytest.raises(SystemExit) as exit_:
        main(["fit", "--config", "qlora/sft", *required, *nulls, "--print_config"])
    assert exit_.value.code == 0
    config = yaml.safe_load(capsys.readouterr().out)
    backbone = config["model"]["init_args"]["backbone"]
    assert backbone["quantization"] is backbone["lora"] is config["data"]["init_args"]["tokens_per_batch"] is None


@pytest.mark.parametrize(
    "given", [["--both-orders"], ["--both_orders"], ["--both_orders", "true"], ["--both-orders=true"]]
)
def test_switches_need_no_value_and_keys_take_hyphens(
    given: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for arguments in ([*given, "--max-prompt-tokens", "50"], ["--max_prompt_tokens=50", *given]):
        with pytest.raises(SystemExit):
            main(["synthesize", "warmup", "--pairs=p.jsonl", "--output=o-o.jsonl", *arguments, "--print_config"])
        config = yaml.safe_load(capsys.readouterr().out)
        assert (config["both_orders"], config["max_prompt_tokens"], config["output"]) == (True, 50, "o-o.jsonl")


@pytest.mark.parametrize(
    "arguments",
    [
        ["evaluate", "--model=nano", "--output=x", "--sets.my-set=p.jsonl", "--max-new-tokens=7"],
        ["run", "--config=quickstart/run", "--sets.my-set", "p.jsonl", "--enhancement.max-new-tokens=7"],
        ["run", "--config=recipe/24gb", "--sets.my-set", "p.jsonl", "--teacher.max-new-tokens", "7"],
        [
            *("fit", "--config=lora/sft", "--model.backbone.name-or-path=nano", "--data.train=p.jsonl"),
            *("--data.judge.sets.my-set=p.jsonl", "--data.init-args.judge.max-new-tokens=7"),
        ],
        ["run", "--config=recipe/24gb", "--teacher.requests.extra-body.my-set", "p.jsonl", "--max-new-tokens=7"],
    ],
)
def test_keys_that_the_user_has_chosen_keep_their_hyphens(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([*arguments, "--print_config"])
    shown = capsys.readouterr()
    assert exit_.value.code == 0, shown.err
    assert "my-set: p.jsonl" in shown.out and "my_set" not in shown.out
    assert "max_new_tokens: 7" in shown.out and "max-new-tokens" not in shown.out


def test_a_shipped_configuration_is_found_by_path_and_by_short_name() -> None:
    for name in ("quickstart/run", "quickstart/run.yaml", "configs/quickstart/run.yaml"):
        assert Path(find(name)).samefile(shipped()["quickstart/run"])


def test_a_file_is_found_before_a_shipped_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("a: 1\n")
    assert find("mine.yaml") == "mine.yaml"
    with pytest.raises(UserError, match="nearest shipped one is quickstart/sft"):
        find("quickstart/sfft")


def test_configs_list_prints_one_line_a_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    main(["configs", "list"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(shipped())
    assert all(len(line.split()) > 3 for line in lines)


def test_configs_copy_writes_an_equal_file_and_overwrites_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    main(["configs", "copy", "quickstart/sft"])
    assert (tmp_path / "sft.yaml").read_text() == shipped()["quickstart/sft"].read_text()
    with pytest.raises(SystemExit) as exit_:
        main(["configs", "copy", "quickstart/sft"])
    assert exit_.value.code == 2
    assert "exists already" in capsys.readouterr().err


def test_configs_copy_copies_the_configurations_that_a_recipe_names(tmp_path: Path) -> None:
    main(["configs", "copy", "quickstart/run", str(tmp_path)])
    assert {path.name for path in tmp_path.iterdir()} == {"run.yaml", "sft.yaml", "dpo.yaml"}
    for path in tmp_path.iterdir():
        assert path.read_text() == shipped()[f"quickstart/{path.stem}"].read_text()


@pytest.mark.parametrize("name", list(shipped()))
def test_configs_copy_writes_all_into_the_folder_that_is_named(name: str, tmp_path: Path) -> None:
    main(["configs", "copy", name, f"{tmp_path}/a/to/"])
    source, folder = shipped()[name], tmp_path / "a/to"
    written = {path for path in tmp_path.rglob("*") if path.is_file()}
    original, copied = (yaml.safe_load(path.read_text(encoding="utf-8")) for path in (source, folder / source.name))
    named = {key: value for key, value in original.items() if isinstance(value, str) and value.endswith(".yaml")}
    assert written == {folder / source.name, *(folder / copied[key] for key in named)}
    assert {**copied, **named} == original
    for key, value in named.items():
        assert (folder / copied[key]).read_text(encoding="utf-8") == (source.parent / value).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [name for name, path in shipped().items() if "\nsft: " in path.read_text("utf-8")])
def test_a_copied_recipe_reads_the_copies_beside_it(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["configs", "copy", name, f"{tmp_path}/mine.yaml"])
    command = ["run", "--config", str(tmp_path / "mine.yaml"), "--print_config"]
    with pytest.raises(SystemExit) as exit_:
        main(command)
    assert exit_.value.code == 0
    beside = {path for path in tmp_path.iterdir() if path.name != "mine.yaml"}
    assert len(beside) == 2
    capsys.readouterr()
    for path in beside:
        path.rename(tmp_path / "away")
        assert path.name in refusal(*command, capsys=capsys)
        (tmp_path / "away").rename(path)


def refusal(*arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as exit_:
        main(list(arguments))
    assert exit_.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_configs_copy_makes_folders_and_takes_another_name(tmp_path: Path) -> None:
    main(["configs", "copy", "lora/sft", str(tmp_path / "new/mine.yaml")])
    main(["configs", "copy", "lora/sft", f"{tmp_path}/other/"])
    for path in ("new/mine.yaml", "other/sft.yaml"):
        assert (tmp_path / path).read_text() == shipped()["lora/sft"].read_text()


def test_configs_copy_overwrites_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "another file that is copied" in refusal(
        "configs", "copy", "quickstart/run", str(tmp_path / "sft.yaml"), capsys=capsys
    )
    assert "another file that is copied" in refusal(
        "configs", "copy", "recipe/24gb", str(tmp_path / "dpo.yaml"), capsys=capsys
    )
    assert "expected a name that ends with .yaml" in refusal(
        "configs", "copy", "quickstart/run", str(tmp_path / "mine"), capsys=capsys
    )
    (tmp_path / "dpo.yaml").symlink_to("nowhere")
    assert "dpo.yaml exists already" in refusal("configs", "copy", "quickstart/run", str(tmp_path), capsys=capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["dpo.yaml"]


def test_configs_copy_copies_only_shipped_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.yaml").write_text("sft: ../../../etc/secret.yaml\n")
    line = refusal("configs", "copy", str(tmp_path / "mine.yaml"), str(tmp_path / "to/"), capsys=capsys)
    assert "expected a shipped configuration" in line


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(argv: list[str]) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("judgelit.shipped_configs.main", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["configs", "list"])


@pytest.mark.parametrize(
    ("allocate", "asked"),
    [
        (lambda: torch.empty(1 << 55), "you tried to allocate 144115188075855872 bytes"),
        (lambda: bytearray(1 << 60), "the system has no more"),
        (
            lambda: gpu_is_full(),
            "Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.64 GiB of which 1.00 GiB",
        ),
    ],
)
def test_full_memory_is_one_line_that_names_settings(
    allocate: Any, asked: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(judgelit.SFTModule, "training_step", lambda *_: allocate())
    with pytest.raises(SystemExit) as exit_:
        main(["fit", "--config=quickstart/sft", "--data.train.init_args.tasks.count=8", "--data.val=null"])
    assert exit_.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("judgelit: error:")]
    assert asked in line and "halve data.tokens_per_batch" in line


def gpu_is_full() -> None:
    """Raise what PyTorch raises when a GPU is full."""
    raise torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.64 GiB of which 1.00 GiB is "
        "free. Including non-PyTorch memory, this process has 22.62 GiB memory in use."
    )


def test_every_configuration_begins_with_its_purpose_and_its_command() -> None:
    for name, path in shipped().items():
        head = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
        assert len(head[0]) > 20, name
        assert any(line.startswith("#   judgelit ") and name in line for line in head), name


def test_lora_configurations_run_on_every_architecture(
    model_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sft.jsonl").write_text(
        "".join(f'{{"prompt": "is {n} odd?", "completion": "{n} is it. [[A]]"}}\n' for n in range(12))
    )
    (tmp_path / "dpo.jsonl").write_text(
        "".join(f'{{"prompt": "is {n} odd?", "chosen": "yes [[A]]", "rejected": "no [[B]]"}}\n' for n in range(12))
    )
    model = f"--model.backbone.name_or_path={model_folder}"
    main(["fit", "--config", "lora/sft", model, "--data.train=sft.jsonl", "--trainer.max_steps=2"])
    adapter = "--model.backbone.adapter=runs/lora-sft/model"
    main(["fit", "--config", "lora/dpo", model, adapter, "--data.train=dpo.jsonl", "--trainer.max_steps=2"])
    for run in ("lora-sft", "lora-dpo"):
        weights = [path.name for path in (tmp_path / "runs" / run / "model").rglob("*.safetensors")]
        assert weights == ["adapter_model.safetensors"]
        card = (tmp_path / "runs" / run / "model/README.md").read_text(encoding="utf-8")
        assert "A LoRA adapter" in card and "| trained for | 2 optimizer steps" in card
        assert "More Information Needed" not in card
    (log,) = (tmp_path / "runs/lora-dpo/csv").rglob("metrics.csv")
    first = next(csv.DictReader(log.open()))
    assert float(first["train/rewards/margin"]) == 0
    assert float(first["train/loss"]) == pytest.approx(math.log(2) + 0.2 * float(first["train/nll"]), rel=1e-5)


def test_an_error_is_one_short_line_without_control_characters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps({"\x1b[2J\n" + "k" * 10_000: 1}) + "\n")
    with pytest.raises(SystemExit, match="2"):
        main(["evaluate", f"--pairs={pairs}", "--model=nano", f"--output={tmp_path / 'scores'}"])
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "\x1b" not in said and "\\x1b[2J" in said
    assert len(said) < 3000 and "expected" in said


def test_a_number_that_cannot_be_read_names_its_type(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["evaluate", "--pairs=p", "--model=nano", "--temperature=nan", f"--output={tmp_path}"])
    assert capsys.readouterr().err == "judgelit: error: temperature: found 'nan', expected float\n"


def test_a_name_that_the_output_cannot_encode_stops_nothing(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "judgelit.cli",
        "tasks",
        "--output",
        "比較.jsonl",
        "--kinds",
        "[sums]",
        "--count",
        "4",
    ]
    root = str(Path(judgelit.__file__).parents[1])
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": root}
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    assert ended.returncode == 0 and "written to \\u6bd4\\u8f03.jsonl" in ended.stdout, ended.stderr
    assert (tmp_path / "比較.jsonl").exists()
