"""The guide of configs/policy: its commands, with small models, few prompts and few steps.

The policies are real. The judge is the built-in model with scripted judgments, since an untrained one gives no verdict.
"""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from judgelit.generation.engine import Generated
from judgelit.generation.local import LocalEngine
from judgelit.records.records import AnswerSet, PreferenceExample
from judgelit.records.sources import FileSource
from judgelit.shipped_configs import configs_folder

from .conftest import Judgelit

SHORT = {
    "answer": ["--max_new_tokens=4", "--device=cpu"],
    "judge": ["--max_new_tokens=8", "--templates.names=[nano-quick]", "--device=cpu"],
    "tasks": ["--count=12"],
    "fit": ["--trainer.max_steps=2", "--trainer.accelerator=cpu"],
    "export": [],
}
"""Settings added to each command."""


@pytest.fixture
def scripted_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the built-in model prefer the answer that comes first in the alphabet; other models answer themselves."""
    answer = LocalEngine.answer

    def judge(self: LocalEngine, conversations: Any, sampling: Any, *, done: Any = (), **more: Any) -> Any:
        if self.name != "nano":
            yield from answer(self, conversations, sampling, done=done, **more)
            return
        for index, messages in enumerate(conversations):
            first, second = re.findall(r"\nA: (.*)\nB: (.*)\n", messages[-1]["content"], re.DOTALL)[0]
            if index not in done:
                yield index, [Generated("[[A]]" if first < second else "[[B]]", "verdict")]

    monkeypatch.setattr(LocalEngine, "answer", judge)


def commands(block: int) -> list[list[str]]:
    """The commands in a block of the guide, as lists of arguments."""
    text = (configs_folder() / "policy/README.md").read_text(encoding="utf-8")
    found = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)[block].replace("\\\n", "").splitlines()
    return [shlex.split(line.removeprefix("judgelit ")) for line in found]


def check(folder: Path, questions: int) -> None:
    """Check answers and preferences: of each question's own answers, the judge's favourite is chosen."""
    answers = {one.question: one.answers for one in FileSource(str(folder / "answers.jsonl")).read(AnswerSet)}
    assert len(answers) == questions and all(len(of_question) == 4 for of_question in answers.values())
    preferences = FileSource(str(folder / "labels/preferences.jsonl")).read(PreferenceExample)
    assert preferences
    for example in preferences:
        different = sorted({answer for answer in answers[example.messages[-1]["content"]] if answer})
        assert (example.chosen, example.rejected) == (different[0], different[-1])


def test_a_chat_policy(
    tmp_path: Path, judgelit: Judgelit, llama: str, scripted_judge: None, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": f"question {number}?"} for number in range(6)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for command in commands(0):
        known = {"POLICY": llama, "JUDGE": "nano"}
        judgelit(*[known.get(argument, argument) for argument in command], *SHORT[command[0]])
    check(tmp_path, 6)
    assert "24 answers to 6 prompts" in capsys.readouterr().out
    weights = [path.name for path in (tmp_path / "runs/policy-dpo/model").rglob("*.safetensors")]
    assert weights == ["adapter_model.safetensors"]
    AutoModelForCausalLM.from_pretrained(tmp_path / "policy")


def test_the_small_policy(tmp_path: Path, judgelit: Judgelit, scripted_judge: None) -> None:
    for command in commands(1):
        more = ["--data.train.init_args.tasks.init_args.count=64"] if "policy/nano-sft" in command else []
        judgelit(*["nano" if argument == "runs/quickstart/export" else argument for argument in command],
                 *SHORT[command[0]], *more)  # fmt: skip
    check(tmp_path, 12)
    trained = AutoModelForCausalLM.from_pretrained(tmp_path / "runs/policy-nano-dpo/model")
    start = AutoModelForCausalLM.from_pretrained(tmp_path / "runs/policy-nano-sft/model")
    assert not trained.lm_head.weight.equal(start.lm_head.weight)
