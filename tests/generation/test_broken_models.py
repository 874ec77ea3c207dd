"""Folders of models and adapters that are damaged or of another kind: one line each."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from judgelit.errors import UserError
from judgelit.generation.engine import EngineSpec, load_engine
from judgelit.generation.sampling import Sampling


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as error:
        load_engine(EngineSpec(str(folder)))
    assert "\n" not in str(error.value) and len(str(error.value)) < 500
    return str(error.value)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"base_model_name_or_path": 5}, "field 'base_model_name_or_path': found 5"),
        ({"base_model_name_or_path": None}, "field 'base_model_name_or_path': found nothing"),
        ({"peft_type": "NOSUCH"}, "field 'peft_type': found 'NOSUCH', expected a kind that the installed PEFT knows"),
        ({"peft_type": None}, "field 'peft_type': found None"),
        ({"peft_type": "IA3"}, "Found missing adapter keys"),
        ({"r": "x"}, "does not fit"),
        ({"r": -3}, "does not fit"),
        ({"r": 10**12}, "does not fit"),
        ({"target_modules": 7}, "does not fit"),
    ],
)
def test_an_adapter_with_wrong_settings(
    warm_adapter: str, tmp_path: Path, change: dict[str, Any], complaint: str
) -> None:
    shutil.copytree(warm_adapter, tmp_path / "adapter")
    path = tmp_path / "adapter/adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert complaint in refusal(tmp_path / "adapter")


@pytest.mark.parametrize("content", ["{", "[]", "", "3"])
def test_an_adapter_whose_settings_are_no_object(warm_adapter: str, tmp_path: Path, content: str) -> None:
    shutil.copytree(warm_adapter, tmp_path / "adapter")
    (tmp_path / "adapter/adapter_config.json").write_text(content)
    assert "adapter_config.json: found" in refusal(tmp_path / "adapter")


@pytest.mark.parametrize("size", [None, 0, 500])
@pytest.mark.parametrize("kind", ["adapter", "model"])
def test_weights_that_are_missing_or_cut(
    llama: str, warm_adapter: str, tmp_path: Path, kind: str, size: int | None
) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(warm_adapter if kind == "adapter" else llama, folder)
    path = next(folder.glob("*.safetensors"))
    content = path.read_bytes()
    path.unlink()
    if size is not None:
        path.write_bytes(content[:size])
    assert str(folder) in refusal(folder)


@pytest.mark.parametrize("content", ["{", "[1]", '{"model_type": "nosuch"}', '{"model_type": "bert"}'])
def test_a_model_of_another_kind(llama: str, tmp_path: Path, content: str) -> None:
    shutil.copytree(llama, tmp_path / "model")
    (tmp_path / "model/config.json").write_text(content)
    assert str(tmp_path / "model") in refusal(tmp_path / "model")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_weights_that_are_not_numbers(llama: str, tmp_path: Path, temperature: float) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(llama)
    with torch.no_grad():
        model.lm_head.weight[3] = float("nan")
    shutil.copytree(llama, tmp_path / "model")
    model.save_pretrained(tmp_path / "model")
    engine = load_engine(EngineSpec(str(tmp_path / "model")))
    question = [{"role": "user", "content": "why?"}]
    with pytest.raises(UserError, match="logits that are not finite numbers"):
        list(engine.answer([question], Sampling(4, temperature)))
