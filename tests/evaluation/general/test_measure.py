import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from judgelit.errors import UserError
from judgelit.evaluation.general.instructions import builtin_instructions, instruction_estimates
from judgelit.evaluation.general.measure import answerable, measure_general
from judgelit.evaluation.general.settings import General
from tests.support import ScriptedEngine


class Room:
    """Counts a word as a token."""

    context = 70

    def count(self, messages: Any) -> int:
        return sum(len(message["content"].split()) for message in messages)


class Scripted(ScriptedEngine):
    made_from: Mapping[str, Any] = {}


def scripted(**more: Any) -> ScriptedEngine:
    return Scripted(lambda prompt, sample: "[[A]] 1" if "digit" in prompt else "yes", tokenizer=Room(), **more)


def test_answers_can_be_scored_again_from_the_file(tmp_path: Path) -> None:
    engine = scripted()
    found = measure_general(engine, General(limit=12, max_new_tokens=20), tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "general.answers.jsonl").read_text().splitlines()]
    asked = builtin_instructions()[:12]
    assert [(row["id"], row["prompt"]) for row in rows] == [(prompt.id, prompt.text) for prompt in asked]
    assert sorted(engine.asked) == sorted(prompt.text for prompt in asked)
    for row, prompt in zip(rows, asked, strict=True):
        assert row["strict"] == [check.followed(row["text"]) for check in prompt.checks]
    assert found["instructions"].value == sum(all(row["strict"]) for row in rows) / 12
    assert set(found) == set(instruction_estimates([]))


def test_after_a_kill_nothing_is_asked_twice(tmp_path: Path) -> None:
    general = General(limit=8, max_new_tokens=20)
    whole = measure_general(scripted(), general, tmp_path / "whole")
    killed, again = scripted(fails_after=3), scripted()
    with pytest.raises(KeyboardInterrupt):
        measure_general(killed, general, tmp_path / "killed")
    assert measure_general(again, general, tmp_path / "killed") == whole
    assert len(again.asked) == 5 and not set(again.asked) & set(killed.asked[:3])
    texts = [(tmp_path / name / "general.answers.jsonl").read_text() for name in ("whole", "killed")]
    assert texts[0] == texts[1]


def test_an_endpoint_gives_no_loss(tmp_path: Path, examples: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = measure_general(scripted(), General(examples, limit=2, max_new_tokens=20), tmp_path)
    assert "general_loss" not in found and "instructions" in found
    assert capsys.readouterr().out == (
        "scripted: an endpoint gives no loss of given texts, so general_loss is left out\n"
    )


def test_loss_and_instructions_of_a_loaded_model(engine: Any, tmp_path: Path, examples: str) -> None:
    found = measure_general(engine, General(examples, limit=3, max_new_tokens=4), tmp_path)
    assert found["general_loss"].n == 3 and found["general_loss"].value > 0
    assert found["instructions"].n == 3 and found["instructions_cut"].value == 1
    only = measure_general(engine, General(examples, instructions="none", limit=3), tmp_path / "only")
    assert only == {"general_loss": found["general_loss"]}


def test_prompts_that_do_not_fit_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    prompts = builtin_instructions()
    fitting = answerable(prompts, Room(), 50)
    assert fitting == [one for one in prompts if Room().count(one.messages) <= 20] and 0 < len(fitting) < 96
    said = f"instructions: {96 - len(fitting)} of 96 prompts do not fit and are left out\n"
    assert capsys.readouterr().out == said
    with pytest.raises(UserError, match=r"general.max_new_tokens: found 90, .* fits the 0 tokens .* model's 70"):
        answerable(prompts, Room(), 90)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"limit": 0}, "general.limit: found 0, expected 1 or more"),
        ({"max_new_tokens": 0}, "general.max_new_tokens: found 0, expected 1 or more"),
        ({"instructions": "ifeval"}, "general.instructions: found 'ifeval', expected builtin or none"),
        ({"harness": [""]}, r"general.harness: found \[''\], expected names of tasks"),
        ({"instructions": "none"}, "general: found nothing to measure"),
    ],
)
def test_wrong_settings(settings: Any, line: str) -> None:
    with pytest.raises(UserError, match=line):
        General(**settings)
