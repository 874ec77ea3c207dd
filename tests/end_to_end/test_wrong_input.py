"""A mistake of the user gives one line that says where it is, and exit code 2."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoTokenizer

from judgelit.batches.tokenizer_files import NANO_FOLDER

from .conftest import shortened_quickstart

Refused = Callable[..., str]
GOOD = {"messages": [{"role": "user", "content": "1+1=?"}], "completion": "2"}
PREFERRED = {"prompt": "1+1=?", "chosen": "2", "rejected": "3"}
PAIR = {"id": "1", "question": "1+1=?", "answer_a": "2", "answer_b": "3", "label": "A"}


def lines(path: Path, *rows: Any) -> str:
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def fit(kind: str, data: str, *more: str) -> list[str]:
    without = ["--data.val=null", "--data.judge=null", "--trainer.callbacks=null"]
    return ["fit", "--config", f"quickstart/{kind}", f"--data.train={data}", "--trainer.max_steps=2", *without, *more]


@pytest.mark.parametrize(
    ("argument", "key", "nearest"),
    [
        ("--trainer.max_stepz=3", "max_stepz", "max_steps"),
        ("--model.init_args.backbone.nam_or_path=nano", "nam_or_path", "name_or_path"),
        ("--data.init_args.batch_sise=3", "batch_sise", "batch_size"),
        ("--trainr.max_steps=3", "trainr", "trainer"),
        ("--max_steps=3", "'max_steps'", "trainer.max_steps"),
        ("--model.layoot=auto", "'model.layoot'", "layout"),
    ],
)
def test_unknown_argument_names_the_nearest(refused: Refused, argument: str, key: str, nearest: str) -> None:
    line = refused("fit", "--config", "quickstart/sft", argument)
    assert key in line and repr(nearest) in line


def test_unknown_argument_without_a_near_one_lists_those_of_its_class(refused: Refused) -> None:
    line = refused("fit", "--config", "quickstart/sft", "--model.backbone.lora.rank=3")
    assert line == "unknown key 'model.backbone.lora.rank'; expected alpha, dropout, r, rslora or target_modules"


def test_missing_arguments_are_named_in_full(refused: Refused) -> None:
    nothing = ["--model=SFTModule", "--data=SFTDataModule"]
    assert refused("fit", *nothing) == "missing --model.backbone.name_or_path"
    assert refused("fit", *nothing, "--model.backbone.name_or_path=nano") == "missing --data.train"
    assert refused("judge", "--templates.seed=1") == "missing --output, --model"
    assert refused("judge", "--output=labels", "--model=nano") == "missing --pairs, --source or --answers"
    assert refused("export") == "missing run, --to"


@pytest.mark.parametrize(
    ("place", "key", "nearest"),
    [
        (["trainer"], "max_stepz", "max_steps"),
        (["model", "init_args"], "optimiser", "optimizer"),
        (["model", "init_args", "backbone"], "attentoin", "attention"),
        (["data", "init_args"], "val_fractoin", "val_fraction"),
        (["data", "init_args", "judge"], "limitt", "limit"),
        ([], "seed_everithing", "seed_everything"),
    ],
)
def test_unknown_key_in_a_file_names_the_nearest(
    refused: Refused, tmp_path: Path, place: list[str], key: str, nearest: str
) -> None:
    shortened_quickstart(tmp_path / "configs")
    path = tmp_path / "configs/sft.yaml"
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    inner = config
    for name in place:
        inner = inner.setdefault(name, {})
    inner[key] = 1
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    line = refused("fit", "--config", str(path))
    assert key in line and repr(nearest) in line


def test_unknown_key_of_the_recipe_names_the_nearest(refused: Refused, tmp_path: Path) -> None:
    path = shortened_quickstart(tmp_path / "configs")
    path.write_text(path.read_text(encoding="utf-8") + "batch_siez: 3\n", encoding="utf-8")
    line = refused("run", "--config", str(path))
    assert "batch_siez" in line and "'batch_size'" in line


def test_unknown_key_deep_in_the_recipe_names_the_nearest(refused: Refused, tmp_path: Path) -> None:
    path = shortened_quickstart(tmp_path / "configs")
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    source = config["sets"]["harder"]
    config["sets"]["harder"] = {
        "class_path": "judgelit.Mixture",
        "init_args": {"sources": [{**source, "init_args": {**source["init_args"], "cuont": 4}}]},
    }
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    line = refused("run", "--config", str(path))
    assert "cuont'" in line and "'count'" in line and len(line) < 120


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--config=quickstart/dpo", "--model.loss.kind=foo"], ["sigmoid", "foo"]),
        (["--config=quickstart/sft", "--model.backbone.dtype=int8"], ["bfloat16", "int8"]),
        (["--config=quickstart/sft", "--model=judgelit.training.sft.SFTModul"], ["SFTModul"]),
        (
            ["--config=quickstart/sft", "--model=SFTModul"],
            ["model: found 'SFTModul'", "nearest known one is 'SFTModule'"],
        ),
        (["--config=quickstart/sft", "--ckpt_path=nowhere.ckpt"], ["nowhere.ckpt"]),
        (["--config=quickstart/sft", "--trainer.max_steps=-5"], ["max_steps"]),
        (["--config=quickstart/sft", "--trainer.gradient_clip_val=-1"], ["trainer.gradient_clip_val: found -1"]),
        (["--config=quickstart/sft", "--trainer.limit_train_batches=0"], ["trainer.limit_train_batches: found 0"]),
        (["--config=quickstart/sft", "--data.tokenizer=nope"], ["data.tokenizer: it is taken from model.backbone"]),
        (
            ["--config=quickstart/sft", "--data.val=null", "--trainer.val_check_interval=10000"],
            ["trainer.val_check_interval: "],
        ),
    ],
)
def test_a_wrong_value_is_named_in_a_short_line(refused: Refused, arguments: list[str], said: list[str]) -> None:
    line = refused("fit", *arguments)
    assert all(word in line for word in said) and len(line) < 400, line


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"PK" + bytes(100), b"\x80\x02}q\x00."], ids=["none", "text", "zip", "pickle"]
)
def test_a_file_that_is_no_checkpoint_is_one_line(refused: Refused, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "foreign.ckpt").write_bytes(content)
    small = ["--data.train.init_args.tasks.init_args.count=4", "--data.val=null", "--data.judge=null"]
    line = refused("fit", "--config=quickstart/sft", *small, "--trainer.callbacks=null", "--ckpt_path=foreign.ckpt")
    assert "foreign.ckpt" in line and "checkpoint" in line and len(line) < 500


def test_a_mistake_in_the_second_configuration_is_refused_before_any_work(refused: Refused, tmp_path: Path) -> None:
    path = shortened_quickstart(tmp_path / "configs")
    dpo = tmp_path / "configs/dpo.yaml"
    dpo.write_text(dpo.read_text(encoding="utf-8").replace("max_steps", "max_stepz"), encoding="utf-8")
    assert "'max_steps'" in refused("run", "--config", str(path), "--output", "runs/short")
    assert not (tmp_path / "runs/short").exists()


def test_unknown_command_and_config(refused: Refused) -> None:
    assert "'validate'" in refused("validat")
    assert "quickstart/run" in refused("run", "--config", "quickstart/rum")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], ["data.jsonl", "no rows"]),
        ([GOOD, "{not json\n"], ["data.jsonl:2", "JSON"]),
        ([GOOD, {"messages": GOOD["messages"]}], ["data.jsonl:2", "messages", "assistant"]),
        ([GOOD, {"messages": [], "completion": "2"}], ["data.jsonl:2", "messages"]),
        ([GOOD, {"messages": [{"role": "judge", "content": "x"}], "completion": "2"}], ["data.jsonl:2", "role"]),
        ([GOOD, {**GOOD, "completion": 5}], ["data.jsonl:2", "completion", "5"]),
        ([GOOD, [1, 2]], ["data.jsonl:2"]),
    ],
)
def test_broken_training_data_is_refused(refused: Refused, tmp_path: Path, rows: list[Any], said: list[str]) -> None:
    line = refused(*fit("sft", lines(tmp_path / "data.jsonl", *rows)))
    assert all(word in line for word in said), line


def test_missing_training_data_is_refused(refused: Refused, tmp_path: Path) -> None:
    assert "nowhere.jsonl" in refused(*fit("sft", str(tmp_path / "nowhere.jsonl")))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({**PAIR, "label": "C"}, ["pairs.jsonl:2", "label", "'C'"]),
        ({name: value for name, value in PAIR.items() if name != "answer_b"}, ["pairs.jsonl:2"]),
        ({**PAIR, "question": " "}, ["pairs.jsonl:2", "question"]),
    ],
)
def test_broken_pairs_are_refused(refused: Refused, tmp_path: Path, row: dict[str, Any], said: list[str]) -> None:
    path = lines(tmp_path / "pairs.jsonl", PAIR, row)
    for command in (
        ["evaluate", "--model", "nano", "--pairs", path, "--output", "scores"],
        ["synthesize", "warmup", "--pairs", path, "--output", "sft.jsonl"],
    ):
        line = refused(*command)
        assert all(word in line for word in said), line


def test_chosen_equal_to_rejected_is_refused(refused: Refused, tmp_path: Path) -> None:
    line = refused(*fit("dpo", lines(tmp_path / "dpo.jsonl", PREFERRED, {**PREFERRED, "rejected": "2"})))
    assert "dpo.jsonl:2" in line and "chosen" in line and "rejected" in line


def test_a_tokenizer_without_chat_template_is_refused(refused: Refused, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(NANO_FOLDER)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path / "bare")
    (tmp_path / "bare/config.json").write_text((NANO_FOLDER / "config.json").read_text())
    bare = f"--model.backbone.name_or_path={tmp_path / 'bare'}"
    line = refused(*fit("sft", lines(tmp_path / "data.jsonl", GOOD), bare))
    assert "no chat template" in line


def test_a_lora_target_that_matches_no_layer_is_refused(refused: Refused, tmp_path: Path, llama: str) -> None:
    adapted = [f"--model.backbone.name_or_path={llama}", "--model.backbone.lora.target_modules=[q_projj]"]
    line = refused(*fit("sft", lines(tmp_path / "data.jsonl", GOOD), *adapted))
    assert "q_projj" in line and "q_proj," in line


def test_prompts_longer_than_the_context_are_refused(refused: Refused, tmp_path: Path) -> None:
    long = {"messages": [{"role": "user", "content": "what? " * 300}], "completion": "2"}
    line = refused(*fit("sft", lines(tmp_path / "data.jsonl", long, long)))
    assert "256" in line and "longer" in line


def test_a_long_prompt_among_others_is_skipped_and_counted(
    judgelit: Callable[..., None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    long = {"messages": [{"role": "user", "content": "what? " * 300}], "completion": "2"}
    with caplog.at_level("INFO"):
        judgelit(*fit("sft", lines(tmp_path / "data.jsonl", GOOD, long)))
    assert "1 skipped" in caplog.text


def test_samples_without_any_verdict_are_refused(refused: Refused, tmp_path: Path) -> None:
    path = lines(tmp_path / "pairs.jsonl", PAIR)
    short = ["--settings.max_new_tokens=8"]
    line = refused("synthesize", "enhancement", "--pairs", path, "--model", "nano", "--output", "dpo.jsonl", *short,
                   "--templates.names=[nano-brief]")  # fmt: skip
    assert "verdict" in line


def test_a_nan_loss_stops_the_run_and_saves_the_ids(refused: Refused, tmp_path: Path) -> None:
    rows = [{**GOOD, "pair_id": f"pair-{number}"} for number in range(3)]
    rate = ["--model.optimizer=torch.optim.SGD", "--model.optimizer.lr=1e38", "--trainer.gradient_clip_val=null"]
    line = refused(*fit("sft", lines(tmp_path / "data.jsonl", *rows), *rate, "--trainer.max_steps=5"))
    assert "loss is" in line
    saved = json.loads((tmp_path / "runs/quickstart-sft/not-finite-loss-rank0.json").read_text())
    assert set(saved["ids"]) <= {"pair-0", "pair-1", "pair-2"} and saved["ids"]


def test_a_folder_with_another_run_is_refused(judgelit: Callable[..., None], refused: Refused, tmp_path: Path) -> None:
    data = lines(tmp_path / "data.jsonl", GOOD)
    judgelit(*fit("sft", data))
    assert "runs/quickstart-sft" in refused(*fit("sft", data))


def test_a_missing_model_or_adapter_is_refused(refused: Refused, tmp_path: Path, llama: str) -> None:
    data = lines(tmp_path / "data.jsonl", GOOD)
    assert "nowhere" in refused(*fit("sft", data, "--model.backbone.name_or_path=./nowhere"))
    adapter = "--model.backbone.adapter=./nowhere"
    assert "adapter_config.json" in refused(*fit("sft", data, f"--model.backbone.name_or_path={llama}", adapter))


def test_values_out_of_range_are_refused(refused: Refused, tmp_path: Path) -> None:
    data = lines(tmp_path / "data.jsonl", PREFERRED)
    assert "beta" in refused(*fit("dpo", data, "--model.loss.beta=-1"))
    assert "label_smoothing" in refused(*fit("dpo", data, "--model.loss.label_smoothing=0.7"))
    assert "adapter" in refused(*fit("dpo", data, "--model.reference=adapter"))
    assert "batch_size" in refused(*fit("dpo", data, "--data.batch_size=0"))
    assert "num_workers" in refused(*fit("dpo", data, "--data.num_workers=-1"))
    assert "max_length" in refused(*fit("dpo", data, "--data.max_length=-1"))
    assert "lora.r" in refused(*fit("dpo", data, "--model.backbone.lora.r=-4"))
    pairs = lines(tmp_path / "pairs.jsonl", PAIR)
    judge = ["--model=nano", f"--pairs={pairs}", "--templates.names=[nano-brief]"]
    warmup = ["synthesize", "warmup", f"--pairs={pairs}", "--output=sft.jsonl"]
    assert "max_prompt_tokens" in refused(*warmup, "--max_prompt_tokens=0")
    assert "batch_size" in refused("judge", *judge, "--output=labels", "--batch_size=-3", "--max_new_tokens=4")
    assert "cannot be written" in refused("judge", *judge, f"--output={pairs}", "--max_new_tokens=4")


@pytest.mark.parametrize("name", ["../../../x", "/abs", "train", "Train", "", ".hidden", "a" * 200])
def test_names_of_sets_that_would_leave_the_folder_or_replace_its_files_are_refused(
    refused: Refused, tmp_path: Path, name: str
) -> None:
    path = shortened_quickstart(tmp_path / "configs")
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    config["sets"] = {"harder": config["sets"]["harder"], name: config["sets"]["harder"]}
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    assert "sets: found the name" in refused("run", "--config", str(path), "--output", "out")
    pairs = lines(tmp_path / "pairs.jsonl", PAIR)
    if name.lower() != "train":
        sets = json.dumps({"other": pairs, name: pairs})
        assert "sets: found the name" in refused("evaluate", "--model=nano", "--output=out", f"--sets={sets}")
        data = lines(tmp_path / "data.jsonl", GOOD)
        assert "sets: found the name" in refused(*fit("sft", data, f"--data.judge.sets={sets}"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--ckpt_path=best"], "ckpt_path 'best': found no such checkpoint"),
        (["--ckpt_path=hpc"], "ckpt_path 'hpc': found no such checkpoint"),
        (["--trainer.max_epochs=-1", "--trainer.max_steps=-1"], "WarmupCosine needs the number of steps"),
        (["--trainer.barebones=true"], "trainer.barebones: found true"),
        (["--trainer.callbacks+=BatchSizeFinder"], "trainer.callbacks: found BatchSizeFinder"),
        (["--trainer.callbacks+=LearningRateFinder"], "trainer.callbacks: found LearningRateFinder"),
        (["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/lss"], "EarlyStopping.monitor"),
        (
            ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=a", "--trainer.callbacks.patience=abc"],
            "trainer.callbacks.patience: found 'abc', expected int",
        ),
        (
            ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=a", "--trainer.callbacks.patiense=3"],
            "unknown key 'trainer.callbacks.patiense'; the nearest known one is 'patience'",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused(
    refused: Refused, tmp_path: Path, arguments: list[str], said: str
) -> None:
    assert said in refused(*fit("sft", lines(tmp_path / "data.jsonl", GOOD), *arguments))


def test_a_missing_adapter_is_found_before_the_data_are_read(refused: Refused) -> None:
    line = refused("fit", "--config=lora/dpo", "--data.train=nowhere.jsonl", "--model.backbone.name_or_path=nano",
                   "--model.backbone.adapter=nowhere")  # fmt: skip
    assert line.startswith("adapter 'nowhere': no adapter_config.json there")


@pytest.mark.parametrize("config", ["lora/dpo", "qlora/dpo"])
def test_dpo_of_an_adapter_does_not_begin_without_it(refused: Refused, llama: str, config: str) -> None:
    line = refused("fit", f"--config={config}", "--data.train=nowhere.jsonl", f"--model.backbone.name_or_path={llama}")
    assert line.startswith("adapter 'REQUIRED': no adapter_config.json there; give the folder of a PEFT adapter with")


def test_a_recipe_takes_the_name_of_a_shipped_configuration(refused: Refused, tmp_path: Path) -> None:
    path = shortened_quickstart(tmp_path / "configs")
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    (tmp_path / "named.yaml").write_text(yaml.safe_dump({**config, "sft": "lora/sft", "dpo": "lora/dpo"}))
    for arguments in (["named.yaml"], [str(path), "--sft=lora/sft", "--dpo", "lora/dpo"]):
        line = refused("run", "--output=out", "--config", *arguments)
        assert "lora/sft.yaml: missing --model.backbone.name_or_path; give the model with --model" in line
        line = refused("run", "--output=out", "--model=./nowhere", "--config", *arguments)
        assert "nowhere" in line and "no such folder" in line


@pytest.fixture(scope="module")
def adapter(llama: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("adapter")
    settings = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(llama), settings).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("{", "adapter_config.json: found no JSON"),
        ("[]", "adapter_config.json: found list"),
        ({"peft_type": "NOPE"}, "field 'peft_type': found 'NOPE'"),
        ({"peft_type": None}, "field 'peft_type': found None"),
        ({"base_model_name_or_path": 5}, "field 'base_model_name_or_path': found 5"),
        ({"r": "four"}, "does not fit"),
        ({"r": -4}, "does not fit"),
        ({"r": 8}, "does not fit"),
        ({"r": 10**9}, "does not fit"),
        ({"target_modules": 5}, "does not fit"),
        ({"target_modules": ["nope"]}, "does not fit"),
        (None, "found no adapter_model.safetensors"),
        (b"", "does not fit"),
        (b"no tensors" * 100, "does not fit"),
        (2000, "does not fit"),
    ],
    ids=str,
)
def test_a_broken_adapter_is_refused(
    refused: Refused, tmp_path: Path, llama: str, adapter: Path, change: Any, said: str
) -> None:
    broken = shutil.copytree(adapter, tmp_path / "broken")
    config, weights = broken / "adapter_config.json", broken / "adapter_model.safetensors"
    if isinstance(change, str):
        config.write_text(change)
    elif isinstance(change, dict):
        config.write_text(json.dumps({**json.loads(config.read_text()), **change}))
    elif change is None:
        weights.unlink()
    else:
        weights.write_bytes(change if isinstance(change, bytes) else weights.read_bytes()[:change])
    data, pairs = lines(tmp_path / "data.jsonl", GOOD), lines(tmp_path / "pairs.jsonl", PAIR)
    start = [f"--model.backbone.name_or_path={llama}", f"--model.backbone.adapter={broken}"]
    assert said in refused(*fit("sft", data, *start))
    assert said in refused("evaluate", f"--model={broken}", f"--pairs={pairs}", "--output=scores", "--max_new_tokens=4")
