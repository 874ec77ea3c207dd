import json
from pathlib import Path
from typing import Any

import pytest

from judgelit.errors import UserError
from judgelit.evaluation.evaluate import main
from judgelit.generation.local import LocalEngine
from tests.generation.server import StubServer, say
from tests.support import make_pair, short_templates


class Command:
    """`judgelit evaluate` on a tiny model, with files of pairs and of general examples."""

    def __init__(self, folder: Path, model: str) -> None:
        self.folder, self.model = folder, model
        short_templates(folder / "templates")
        rows = [{"prompt": f"What is {n} + 6?", "completion": f"It is {n + 6}."} for n in range(6)]
        (folder / "general.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        pairs = [make_pair(number).to_dict() for number in range(3)]
        (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
        self.pairs = [f"--pairs={folder}/pairs.jsonl", f"--templates.folder={folder}/templates"]
        self.pairs += ["--templates.names=[short]", "--max_new_tokens=3"]
        self.examples = f"--general.examples={folder}/general.jsonl"

    def run(self, *more: str, output: str = "out", model: str | None = None) -> dict[str, Any]:
        main([f"--model={model or self.model}", f"--output={self.folder / output}", *more])
        return json.loads((self.folder / output / "results.json").read_text())


@pytest.fixture
def command(tmp_path: Path, llama: str) -> Command:
    return Command(tmp_path, llama)


SMALL = ["--general.limit=4", "--general.max_new_tokens=3"]


def test_general_ability_stands_beside_judging(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    found = command.run(*command.pairs, *SMALL, command.examples)
    assert found["general"]["general_loss"]["n"] == found["general"]["instructions"]["n"] == 4
    assert set(found["general"]["general_loss"]) == {"value", "low", "high", "n"}
    assert found["sets"]["pairs"]["accuracy"]["n"] == 6
    general = found["settings"]["general"]
    assert (general["limit"], general["max_new_tokens"], general["harness"]) == (4, 3, None)
    printed = capsys.readouterr().out
    assert "right in both orders" in printed and "general loss, nats a token" in printed
    assert printed.splitlines()[-1] == (
        f"judgments and general ability's texts and losses and results.json are in {command.folder / 'out'}; "
        f"judgelit report {command.folder / 'out'} makes a page of them"
    )
    alone = command.run("--general", *SMALL, command.examples, output="alone")
    assert alone["general"] == found["general"] and alone["sets"] == {}


def test_an_adapter_is_measured_with_its_weights(command: Command, warm_adapter: str) -> None:
    losses = [
        command.run(*SMALL, command.examples, "--general.instructions=none", output=name, model=model)
        for name, model in (("base", command.model), ("adapter", warm_adapter))
    ]
    base, adapter = (found["general"]["general_loss"]["value"] for found in losses)
    assert abs(base - adapter) > 0.01


def test_general_alone_measures_instructions(command: Command) -> None:
    found = command.run("--general.limit=3", "--general", "--general.max_new_tokens=2")
    assert "general_loss" not in found["general"] and found["general"]["instructions"]["n"] == 3


def test_after_a_kill_the_same_command_continues(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [*command.pairs, *SMALL, command.examples, "--batch_size=2"]
    unbroken = command.run(*arguments, output="unbroken")
    answer, asked = LocalEngine.answer, []

    def killed(self: LocalEngine, *args: Any, **more: Any) -> Any:
        for answered in answer(self, *args, **more):
            asked.append(answered)
            yield answered
            if len(asked) == 8:  # six judgments, and one batch of answers
                raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(LocalEngine, "answer", killed)
        command.run(*arguments)
    asked.clear()
    with monkeypatch.context() as patch:
        patch.setattr(LocalEngine, "answer", killed)
        assert command.run(*arguments) == unbroken
    assert len(asked) == 2
    for name in ("general.answers.jsonl", "general.losses.jsonl"):
        texts = [(command.folder / output / name).read_text() for output in ("unbroken", "out")]
        assert texts[0] == texts[1]


def test_an_endpoint_answers_instructions_and_gives_no_loss(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("openai")
    with StubServer(lambda body, before: say("One. Two.")) as server:
        found = command.run(f"--endpoint={server.url}", command.examples, *SMALL, model="m")
        assert "general_loss" not in found["general"] and found["general"]["instructions"]["n"] == 4
        assert "m: an endpoint gives no loss of given texts, so general_loss is left out" in capsys.readouterr().out
        with pytest.raises(UserError, match=r"general\.harness: has no meaning with an endpoint"):
            command.run(f"--endpoint={server.url}", "--general.harness=[gsm8k]", model="m", output="more")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--general.max_new_token=3"], "unknown key 'general.max_new_token'; the nearest known one is"),
        (["--general.limit=0"], "general.limit: found 0, expected 1 or more"),
        (["--general.examples=/nowhere/x.jsonl"], "no such file"),
        (["--general.instructions=ifeval"], "general.instructions: found 'ifeval'"),
        (["--general.instructions=none"], "general: found nothing to measure"),
        (["--general.max_new_tokens=5000"], "general.max_new_tokens: found 5000, expected less"),
        ([], "pairs: found nothing to judge, expected labelled pairs; give --pairs"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_the_folder_usable(
    command: Command, arguments: list[str], line: str
) -> None:
    with pytest.raises(UserError, match=line) as refused:
        command.run(*arguments)
    assert "\n" not in str(refused.value)
    command.run("--general", "--general.limit=1", "--general.max_new_tokens=2")


def test_other_settings_are_refused(command: Command) -> None:
    command.run("--general", *SMALL)
    with pytest.raises(UserError, match=r"general\.limit: found 4, expected 3; choose another folder"):
        command.run("--general", "--general.limit=3", "--general.max_new_tokens=3")
    rows = (command.folder / "general.jsonl").read_text()
    command.run(command.examples, *SMALL, output="two")
    (command.folder / "general.jsonl").write_text(rows.replace("What", "Which"))
    with pytest.raises(UserError, match=r"general\.examples: found '\w+', expected"):
        command.run(command.examples, *SMALL, output="two")
