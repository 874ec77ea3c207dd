"""judgelit without its command line: the lines that the README shows, and the public names."""

import re
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

import judgelit
from judgelit.records.files import write_records
from judgelit.records.records import PreferenceExample, SFTExample

README = Path(__file__).parents[2] / "README.md"


def test_the_readmes_lines_train_a_judge_by_sft_and_then_by_dpo(
    llama: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    prompt = ({"role": "user", "content": "6 + 6 = ?"},)
    write_records("sft.jsonl", [SFTExample(prompt, f"It is {n}. [[A]]") for n in range(16)])
    pairs = [PreferenceExample(prompt, f"It is 12. [[A]] {n}", f"It is {n}. [[B]]") for n in range(16)]
    write_records("dpo.jsonl", pairs)
    (lines,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(lines.splitlines()) <= 11
    names: dict = {}
    exec(lines.replace("MODEL", llama), names)
    assert names["judge"].trainer.global_step == names["better"].trainer.global_step == 2
    AutoModelForCausalLM.from_pretrained(llama).load_adapter("judge")


def test_public_names_are_there_and_others_are_not() -> None:
    for name in judgelit.__all__:
        assert getattr(judgelit, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'SFTModul'"):
        _ = judgelit.SFTModul  # type: ignore[attr-defined]
