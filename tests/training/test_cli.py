"""`judgelit fit`: exact continuation, saved configurations, errors in one line."""

import copy
import csv
import functools
import json
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from judgelit.batches.datamodules import DPODataModule, SFTDataModule
from judgelit.batches.tokenizer import ChatTokenizer
from judgelit.cli import main
from judgelit.generation.engine import EngineSpec
from judgelit.generation.loading import NamedModel
from judgelit.models.backbone import Backbone
from judgelit.runs.folder import locked
from judgelit.shipped_configs import find
from judgelit.training import cli as training
from judgelit.training.finetuning import FineTuningModule
from judgelit.training.global_mean import GlobalMean

SFT = [
    "fit",
    "--config=quickstart/sft",
    "--data.train.init_args.tasks.init_args.count=90",
    "--data.val=null",
    "--data.judge=null",
    "--data.batch_size=8",
    "--trainer.callbacks=lightning.pytorch.callbacks.ModelCheckpoint",
    "--trainer.callbacks.save_last=true",
    "--trainer.callbacks.every_n_train_steps=2",
    # No schedule: it would depend on max_steps, which differs between the runs below.
    "--model.lr_scheduler=null",
]


def checkpoint(run: str) -> dict:
    return torch.load(Path(run) / "checkpoints/last.ckpt", weights_only=True)


def logged_losses(run: str) -> list[str]:
    with Path(run, "csv/version_0/metrics.csv").open(newline="", encoding="utf-8") as file:
        return [row["train/loss"] for row in csv.DictReader(file) if row["train/loss"]]


def test_the_last_checkpoint_is_from_the_last_step_and_continues_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    main([*SFT, "--trainer.max_steps=16", "--trainer.default_root_dir=unbroken"])
    main([*SFT, "--trainer.max_steps=5", "--trainer.default_root_dir=broken"])
    assert checkpoint("broken")["global_step"] == 5
    main([*SFT, "--trainer.max_steps=16", "--trainer.default_root_dir=broken", "--ckpt_path=last"])
    unbroken, broken = checkpoint("unbroken"), checkpoint("broken")
    assert unbroken["global_step"] == broken["global_step"] == 16
    for name, weight in unbroken["state_dict"].items():
        assert torch.equal(weight, broken["state_dict"][name]), name


@pytest.mark.parametrize("now", ["moved", "absolute", "first checkpoint"])
def test_a_run_that_continues_under_another_name_of_its_folder_has_one_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, now: str
) -> None:
    monkeypatch.chdir(tmp_path)
    run = [*SFT, "--trainer.callbacks.save_top_k=-1"]
    main([*run, "--trainer.max_steps=4", "--trainer.default_root_dir=run"])
    root, last = "run", "last"
    if now == "moved":
        root = "moved"
        Path("run").rename(root)
    if now == "absolute":
        root = str(tmp_path / "run")
    if now == "first checkpoint":
        last = "run/checkpoints/epoch=0-step=2.ckpt"
    main([*run, "--trainer.max_steps=6", f"--trainer.default_root_dir={root}", f"--ckpt_path={last}"])
    assert [path.name for path in Path(root, "checkpoints").glob("last*")] == ["last.ckpt"]
    assert checkpoint(root)["global_step"] == 6


def test_the_saved_configuration_repeats_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    main([*SFT, "--trainer.max_steps=2", "--trainer.default_root_dir=first"])
    saved = yaml.safe_load(Path("first/config.yaml").read_text(encoding="utf-8"))
    assert saved["model"]["init_args"]["backbone"]["dtype"] == "float32"  # not `auto`
    assert saved["trainer"]["max_steps"] == 2 and saved["seed_everything"] == 0
    main(["fit", "--config=first/config.yaml", "--trainer.default_root_dir=second"])
    for name, weight in checkpoint("first")["state_dict"].items():
        assert torch.equal(weight, checkpoint("second")["state_dict"][name]), name


def test_last_starts_a_new_run_if_there_is_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    # The folder after a kill before the first checkpoint.
    Path("run/checkpoints").mkdir(parents=True)
    Path("run/checkpoints/last.ckpt.part").write_bytes(b"half")
    Path("run/csv/version_0").mkdir(parents=True)
    Path("run/csv/version_0/metrics.csv").write_text("step,train/loss\n0,1.0\n1,", encoding="utf-8")
    run = [*SFT, "--trainer.max_steps=2", "--trainer.log_every_n_steps=1", "--trainer.default_root_dir=run"]
    main([*run, "--ckpt_path=last"])
    assert "no checkpoint in run/checkpoints yet: beginning anew\n" in capsys.readouterr().out
    main([*run[:-1], "--trainer.default_root_dir=fresh"])
    assert not list(Path("run/checkpoints").glob("*.part"))
    losses = [logged_losses(folder) for folder in ("run", "fresh")]
    assert losses[0] == losses[1] and len(losses[0]) == 2
    main([*run, "--ckpt_path=last"])
    assert "continuing from run/checkpoints/last.ckpt\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "state", "message"),
    [
        ("fit", "truncated", "cannot be read as a checkpoint"),
        ("fit", "no run", "does not say where its run was"),
        ("fit", "weights alone", "holds weights alone"),
        ("fit", "other data", "on other data than a SFTDataModule"),
        ("fit", "other adapter", "model.backbone.lora.r: found 3, expected nothing"),
        ("fit", "model alone", "choose another folder"),
        ("fit", "folder", "ckpt_path 'run/model': found a folder that is no checkpoint"),
        ("validate", "nothing", "no checkpoint in run/checkpoints"),
    ],
)
def test_a_run_that_cannot_continue_is_refused_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    state: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    lora = [] if state == "other adapter" else ["--model.backbone.lora.r=2"]
    run = [*SFT, "--trainer.max_steps=1", "--trainer.default_root_dir=run"]
    if state == "nothing":
        run = [command, *run[1:]]
    else:
        main([*run, *lora])
    last = Path("run/checkpoints/last.ckpt")
    if state == "truncated":
        last.write_bytes(last.read_bytes()[:-100])
    if missing := {"no run": "judgelit", "weights alone": "callbacks", "other data": "SFTDataModule"}.get(state):
        torch.save({name: value for name, value in checkpoint("run").items() if name != missing}, last)
    if state == "other adapter":
        lora = ["--model.backbone.lora.r=3"]
    if state == "model alone":
        shutil.rmtree("run/checkpoints")
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        main([*run, *lora, f"--ckpt_path={'run/model' if state == 'folder' else 'last'}"])
    assert exit_.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("judgelit: error:")]
    assert message in line


def test_a_class_is_printed_by_its_public_name(capsys: pytest.CaptureFixture[str]) -> None:
    for cls in (SFTDataModule, DPODataModule):
        with pytest.raises(SystemExit):
            main(["fit", "--config=quickstart/sft", f"--data={cls.__name__}", "--data.train=x", "--print_config"])
        assert f"class_path: judgelit.{cls.__name__}" in capsys.readouterr().out


@pytest.fixture
def own_tokenizer(warm_adapter: str, hf_tokenizers: dict[str, Any], tmp_path: Path) -> Path:
    """The folder of an adapter with a chat template other than its base's."""
    folder = shutil.copytree(warm_adapter, tmp_path / "adapter")
    hf = copy.deepcopy(hf_tokenizers["llama3"])
    hf.chat_template = hf.chat_template.replace("user", "asker") + "{# mine #}"
    hf.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("method", ["SFT", "DPO"])
def test_data_are_read_with_the_adapters_own_chat_template(
    method: str, llama: str, warm_adapter: str, own_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def template(*more: str) -> str:
        run = [f"--model={method}Module", f"--model.backbone.name_or_path={llama}", f"--data={method}DataModule"]
        cli = training.TrainingCLI([*run, "--data.train=none.jsonl", *more], run=False)
        assert cli.datamodule.tokenizer.context == 1024
        return cli.datamodule.tokenizer.hf.chat_template

    assert template(f"--model.backbone.adapter={own_tokenizer}").endswith("{# mine #}")
    assert "mine" not in template()
    # An adapter without a tokenizer has its base's.
    assert template(f"--model.backbone.adapter={warm_adapter}") == template()
    Path("other.jinja").write_text(template().replace("{{ bos_token }}", "{# other #}{{ bos_token }}"))
    other = template(f"--model.backbone.adapter={own_tokenizer}", "--data.chat_template=other.jinja")
    assert "{# other #}" in other and "mine" not in other


def test_variables_of_the_chat_template_are_a_setting_that_the_model_keeps(
    llama: str, hf_tokenizers: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(llama, tmp_path / "thinking")
    hf = copy.deepcopy(hf_tokenizers["llama3"])
    hf.chat_template = hf.chat_template.replace(
        "assistant<|end_header_id|>\n\n",
        "assistant<|end_header_id|>\n\n{% if not enable_thinking %}<think></think>{% endif %}",
    )
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    hf.save_pretrained(folder)
    Path("train.jsonl").write_text(json.dumps({"prompt": "1+1=?", "completion": "2"}) + "\n")
    run = ["fit", "--config=lora/sft", f"--model.backbone.name_or_path={folder}", "--data.train=train.jsonl"]
    run += ["--data.val_fraction=0", "--data.cache=cache", "--trainer.max_steps=1", "--trainer.accelerator=cpu"]
    main([*run, "--data.chat_template_kwargs.enable_thinking=true", "--trainer.default_root_dir=run"])
    main(["export", "run", "--to", "exported"])
    question = [{"role": "user", "content": "?"}]
    for place in ("run/model", "exported"):
        mine = ChatTokenizer.load(place)
        assert "<think>" not in mine.raw_text(mine.prompt_ids(question))
    for model, closed in (("run", False), ("run/model", False), (str(folder), True)):
        for values in (None, {"enable_thinking": False}):
            spec = EngineSpec(model, chat_template_kwargs=values)
            tokenizer = NamedModel.find(spec, torch.device("cpu")).load_tokenizer(None, spec.chat_template_kwargs)
            text = tokenizer.raw_text(tokenizer.prompt_ids(question))
            assert ("<think>" in text) == (closed or values is not None)


def test_settings_of_the_backbone_can_be_null_on_the_command_line(
    llama: str, warm_adapter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = [f"--config={find('lora/sft')}", f"--model.backbone.name_or_path={llama}", "--data.train=none.jsonl"]
    run += [f"--model.backbone.adapter={warm_adapter}", "--model.backbone.quantization=nf4"]
    for name in ("lora", "quantization", "adapter"):
        for null in ([f"--model.backbone.{name}", "null"], [f"--model.backbone.{name}=null"]):
            backbone = training.TrainingCLI([*run, *null], run=False).model.backbone
            assert getattr(backbone, name) is None, null
    every = [one for name in ("lora", "quantization", "adapter") for one in (f"--model.backbone.{name}", "null")]
    assert training.TrainingCLI([*run, *every], run=False).model.backbone == Backbone(llama)


WEIGHTED = '--data.train={"class_path": "FileSource", "init_args": {"path": "train.jsonl", "weight": %s}}'


def one_cycle(**settings: float) -> list[str]:
    """Arguments for a scheduler of fixed length."""
    given = {"max_lr": 0.1, "total_steps": 10, **settings}
    return ["--model.lr_scheduler=OneCycleLR", *(f"--model.lr_scheduler.{key}={value}" for key, value in given.items())]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--trainer.precision=bf16-true"],
            "trainer.precision: found 'bf16-true', expected one of 32-true, bf16-mixed",
        ),
        (["--trainer.precision=64-true"], "trainer.precision: found '64-true'"),
        (["--trainer.accumulate_grad_batches=0"], "trainer.accumulate_grad_batches: found 0, expected 1 or more"),
        (["--data.batch_size=null"], "data.batch_size: found None, expected 1 or more"),
        (["--model.optimizer=torch.optim.Muon"], "optimizer: Muon only supports 2D parameters"),
        (["--model.optimizer=torch.optim.AdamW", "--model.optimizer.lr=-1"], "optimizer: Invalid learning rate: -1"),
        (one_cycle(total_steps=0), "lr_scheduler: Expected positive integer total_steps, but got 0"),
        (one_cycle(pct_start=2), "lr_scheduler: Expected float between 0 and 1 pct_start"),
        ([*one_cycle(total_steps=2), "--trainer.max_steps=3"], "lr_scheduler.total_steps: found 2, expected at"),
        (["--data.max_length=8"], "data.max_length: found 8, expected more: all 4 examples of data.train are longer"),
        (["--trainer.precision=transformer-engine"], "trainer: Requirement 'transformer_engine"),
        (["--trainer.strategy=deepspeed"], "trainer: "),
        (["--trainer.accelerator=warp"], "trainer: You selected an invalid accelerator name"),
        (["--trainer.devices=0"], "trainer: `"),
        (["--trainer.num_nodes=0"], "trainer: `num_nodes` must be a positive integer"),
        (["--trainer.max_epochs=-2"], "trainer: `max_epochs` must be a non-negative integer or -1"),
        (["--trainer.logger=WandbLogger"], "WandbLogger: Requirement 'wandb"),
        (["--seed_everything=-1"], "seed_everything: -1 is not in bounds, numpy accepts from 0 to 4294967295"),
        (["--seed_everything=4294967296"], "seed_everything: 4294967296 is not in bounds"),
        (["--model.backbone.lora.target_modules=(["], "lora.target_modules: '([': not a regular expression"),
        ([WEIGHTED % "0"], "train.jsonl: weight: found 0.0, expected more than 0"),
        ([WEIGHTED % ".nan"], "train.jsonl: weight: found nan, expected more than 0"),
        ([WEIGHTED % "0.1"], "data.train: found 4 examples of weight 0.1, of which an epoch visits none"),
        (["--model.layout=bad"], "layout: found 'bad', expected auto, shared_prefix or concatenated"),
        (["--model.backbone.quantization=int8"], "backbone.quantization: found 'int8', expected nf4"),
        (["--data.tokens_per_batch=many"], "tokens_per_batch: found 'many', expected int"),
        (["--data.train=null"], "error: missing --data.train"),
        (["--data.group_by_length=maybe"], "group_by_length: found 'maybe', expected bool"),
        (["--trainer.max_steps=many"], "trainer.max_steps: found 'many', expected int"),
        (["--trainer.devices=x"], "trainer: `devices` selected with `CPUAccelerator` should be an int > 0"),
        (["--trainer.strategy=FSDP3"], "trainer.strategy: found 'FSDP3', expected a name such as ddp, or a class as"),
        (["--data=DPODataModule"], "data: found DPODataModule for SFTModule, expected SFTDataModule"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"{n}+1=?", "completion": f"{n + 1}"} for n in range(4)]
    Path("train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    run = ["fit", "--model=SFTModule", "--model.backbone.name_or_path=nano", "--data=SFTDataModule"]
    run += ["--data.train=train.jsonl", "--data.cache=cache", "--trainer.max_steps=1", "--trainer.accelerator=cpu"]
    with pytest.raises(SystemExit) as exit_:
        main([*run, *arguments])
    assert exit_.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("judgelit: error:")]
    assert message in line


@pytest.mark.parametrize(
    ("where", "bug"),
    [
        (L.Trainer, TypeError("Trainer.__init__() got an unexpected keyword argument")),
        (GlobalMean, MisconfigurationException("You can't log here")),
        (torch.optim.Adam, TypeError("multiple values for argument")),
    ],
)
def test_a_bug_of_judgelit_is_not_presented_as_the_mistake_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: type, bug: Exception
) -> None:
    def fail(self: Any, *arguments: Any, **settings: Any) -> None:
        # An optimizer over a weight of one element is the one that shows whether the settings are right.
        if where is not torch.optim.Adam or arguments[0][0]["params"][0].numel() > 1:
            raise bug

    monkeypatch.chdir(tmp_path)
    name = "divide" if where is GlobalMean else "__init__"
    # The function keeps the signature from which the parser makes options.
    monkeypatch.setattr(where, name, functools.wraps(getattr(where, name))(fail))
    optimizer = ["--model.optimizer=torch.optim.Adam"] if where is torch.optim.Adam else []
    with pytest.raises(type(bug), match=re.escape(str(bug))):
        main([*SFT, "--trainer.max_steps=1", *optimizer])


@pytest.mark.parametrize("callback", [True, False])
def test_pairs_that_are_not_judged_are_mentioned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], callback: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    judge = '{"sets": {"own": "pairs.jsonl"}, "max_new_tokens": 8, "templates": {"names": ["nano-*"]}}'
    pair = {"id": "1", "question": "1+1=?", "answer_a": "2", "answer_b": "3", "label": "A"}
    Path("pairs.jsonl").write_text(json.dumps(pair) + "\n", encoding="utf-8")
    more = ["--trainer.callbacks+=JudgeEvaluation"] if callback else []
    main([*SFT, "--trainer.max_steps=1", f"--data.judge={judge}", *more])
    said = "data.judge: the pairs are not judged; add --trainer.callbacks+=JudgeEvaluation" in capsys.readouterr().out
    assert said != callback


def test_the_trained_model_keeps_the_judge_prompts_of_its_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    judge = '{"sets": {"own": "pairs.jsonl"}, "max_new_tokens": 8, "templates": {"names": ["nano-*"]}}'
    pair = {"id": "1", "question": "1+1=?", "answer_a": "2", "answer_b": "3", "label": "A"}
    Path("pairs.jsonl").write_text(json.dumps(pair) + "\n", encoding="utf-8")
    main([*SFT, "--trainer.max_steps=1", f"--data.judge={judge}", "--trainer.default_root_dir=warm"])
    kept = sorted(path.name for path in Path("warm/model/judge_templates").iterdir())
    assert kept and all(name.startswith("nano-") for name in kept)
    again = "--model.backbone.name_or_path=warm/model"
    main([*SFT, "--trainer.max_steps=1", again, "--trainer.default_root_dir=next"])
    assert sorted(path.name for path in Path("next/model/judge_templates").iterdir()) == kept
    # A broken one costs the prompts, not the model.
    (Path("warm/model/judge_templates") / kept[0]).write_text("{{", encoding="utf-8")
    main([*SFT, "--trainer.max_steps=1", again, "--trainer.default_root_dir=last"])
    assert "judge templates are not kept in " in capsys.readouterr().out
    assert Path("last/model/model.safetensors").exists()


def test_an_adapter_of_the_built_in_model_is_said_to_be_of_no_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for more in ([], ["--model.backbone.lora.r=2"]):
        main([*SFT, "--trainer.max_steps=1", f"--trainer.default_root_dir=run{len(more)}", *more])
        assert ("it cannot be used: it is an adapter, and no file holds" in capsys.readouterr().out) == bool(more)


def test_a_huge_batch_limit_puts_all_examples_into_one_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    main([*SFT, "--trainer.max_steps=1", "--data.tokens_per_batch=99999999999999999999999"])


def test_a_run_that_is_shorter_than_the_logging_interval_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    with caplog.at_level("INFO"):
        main([*SFT, "--trainer.max_steps=2", "--trainer.log_every_n_steps=50", "--trainer.default_root_dir=run"])
    assert len(logged_losses("run")) == 2
    assert "trainer.log_every_n_steps: found 50 for a run of 2 steps; logging every step" in caplog.text


def test_the_learning_rate_follows_a_metric(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run = [
        *SFT[:-1],
        f"--data.val={json.dumps(yaml.safe_load(TASKS))}",
        "--trainer.max_steps=-1",
        "--trainer.max_epochs=3",
    ]
    run += ["--trainer.limit_train_batches=2", "--model.optimizer.lr=0.001", "--trainer.default_root_dir=run"]
    main(
        [
            *run,
            "--model.lr_scheduler=lightning.pytorch.cli.ReduceLROnPlateau",
            "--model.lr_scheduler.monitor=val/loss",
            "--model.lr_scheduler.threshold=0.9",
            "--model.lr_scheduler.patience=0",
            "--model.lr_scheduler.factor=0.5",
        ]
    )
    # The first loss is better than none, and no other is that much better than the first.
    assert checkpoint("run")["optimizer_states"][0]["param_groups"][0]["lr"] == 0.00025
    with pytest.raises(SystemExit):
        main([*run[:-1], "--model.lr_scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau"])
    assert "give class_path lightning.pytorch.cli.ReduceLROnPlateau with init_args monitor" in capsys.readouterr().err


TASKS = """
class_path: judgelit.TaskJudgments
init_args:
  tasks: {kinds: [sums], difficulties: [1], distinct: false, count: 4, part: held_out}
  templates: {names: [nano-*]}
"""


@pytest.mark.parametrize(
    "command",
    [
        [*SFT, "--trainer.max_steps=1", "--trainer.default_root_dir=out"],
        [*SFT, "--trainer.max_steps=1", "--trainer.default_root_dir=out", "--ckpt_path=last"],
        ["evaluate", "--model=nano", "--pairs=pairs.jsonl", "--output=out"],
        ["judge", "--model=nano", "--pairs=pairs.jsonl", "--output=out"],
        ["run", "--config=quickstart/run", "--output=out"],
    ],
    ids=["fit", "fit again", "evaluate", "judge", "run"],
)
def test_a_folder_to_which_another_process_writes_is_refused_in_one_line(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    pair = {"id": "1", "question": "1+1=?", "answer_a": "2", "answer_b": "3", "label": "A"}
    Path("pairs.jsonl").write_text(json.dumps(pair), encoding="utf-8")
    with locked(Path("out")), pytest.raises(SystemExit) as exit_:
        main(command)
    assert exit_.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("judgelit: error:")]
    assert f"out: found process {os.getpid()} writing to it" in line
    assert not Path("out").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_exits_with_an_error_and_continues(
    number: int, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        FineTuningModule, "on_train_batch_start", lambda module, *_: os.kill(os.getpid(), number), raising=True
    )
    with pytest.raises(SystemExit) as exit_:
        main([*SFT, "--trainer.max_steps=3", "--trainer.default_root_dir=run"])
    assert exit_.value.code == code
    assert "judgelit: interrupted; the same command continues" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    main([*SFT, "--trainer.max_steps=3", "--trainer.default_root_dir=run", "--ckpt_path=last"])
