import json
from pathlib import Path
from typing import Any

import pytest
import torch

from judgelit.errors import UserError
from judgelit.evaluation.general import loss
from judgelit.evaluation.general.loss import (
    ExampleLoss,
    examples_loss,
    general_loss,
    in_batches,
    read_examples,
    tokenize_examples,
)
from judgelit.generation.engine import EngineSpec, load_engine
from judgelit.records.records import SFTExample
from tests.plain_forward import plain_logprobs


def example(question: str, answer: str) -> SFTExample:
    return SFTExample(({"role": "user", "content": question},), answer)


@pytest.mark.parametrize("kind", ["model", "adapter"])
def test_the_loss_is_that_of_a_plain_forward_pass(
    kind: str, engine: Any, warm_adapter: str, examples: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "adapter":
        engine = load_engine(EngineSpec(warm_adapter))
    monkeypatch.setattr(loss, "_TOKENS_AT_ONCE", 100)
    rows = tokenize_examples(read_examples(examples, None), engine.tokenizer)
    assert len(in_batches(rows)) > 1 and any(len(batch) > 1 for batch in in_batches(rows))
    found = examples_loss(engine, rows, tmp_path / "losses.jsonl")
    with torch.no_grad():
        plain = [plain_logprobs(engine.model.eval(), row.prompt, row.completion) for row in rows]
    assert [one.tokens for one in found] == [len(row.completion) for row in rows]
    assert [one.nll for one in found] == pytest.approx([-one.sum().item() for one in plain], rel=1e-5)
    estimate = general_loss(found)
    # A mean over tokens, not over examples.
    assert estimate.value == pytest.approx(-torch.cat(plain).mean().item(), rel=1e-5)
    assert estimate.n == 5 and estimate.low < estimate.value < estimate.high


def test_each_form_ends_with_the_end_of_turn(engine: Any, examples: str) -> None:
    rows = tokenize_examples(read_examples(examples, None), engine.tokenizer)
    assert {row.completion[-1] for row in rows} == {engine.tokenizer.end_of_turn_id}


def test_the_interval_is_over_examples() -> None:
    apart = [ExampleLoss(str(number), float(number % 2) * 100, 100) for number in range(8)]
    found = general_loss(apart)
    assert found.value == 0.5 and found.low <= 0.25 and found.high >= 0.75
    assert general_loss([ExampleLoss("a", 3.0, 3), ExampleLoss("b", 9.0, 1)]).value == 3.0


def test_after_a_kill_only_the_missing_batches_are_computed(
    engine: Any, examples: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss, "_TOKENS_AT_ONCE", 40)
    rows = tokenize_examples(read_examples(examples, None), engine.tokenizer)
    path = tmp_path / "losses.jsonl"
    whole = examples_loss(engine, rows, path)
    lines = path.read_text().splitlines(keepends=True)
    assert len(lines) == 5 and len(in_batches(rows)) >= 3
    # Two batches were written, and a third one was cut within a line.
    first = len(in_batches(rows)[0]) + len(in_batches(rows)[1])
    path.write_text("".join(lines[:first]) + lines[first][:20])
    scored: list[str] = []
    score = loss.score_batches

    def noting(scorer: Any, batches: Any, device: Any) -> Any:
        scored.extend(row.id for batch in batches for row in batch)
        return score(scorer, batches, device)

    monkeypatch.setattr(loss, "score_batches", noting)
    assert examples_loss(engine, rows, path) == whole
    assert sorted(scored) == sorted(row.id for batch in in_batches(rows)[2:] for row in batch)
    keys = []
    for line in path.read_text().splitlines():
        try:
            keys.append(json.loads(line)["key"])
        except ValueError:
            keys.append("cut")
    assert sorted(keys) == sorted([row.id for row in rows] + ["cut"])
    scored.clear()
    assert examples_loss(engine, rows, path) == whole and scored == []


def test_losses_of_another_model_are_not_taken(engine: Any, examples: str, tmp_path: Path) -> None:
    rows = tokenize_examples(read_examples(examples, None), engine.tokenizer)
    path = tmp_path / "losses.jsonl"
    before = examples_loss(engine, rows, path)
    other = load_engine(EngineSpec(engine.name))
    with torch.no_grad():
        other.model.get_input_embeddings().weight.mul_(1.5)  # type: ignore[union-attr]
    after = examples_loss(other, rows, path)  # type: ignore[arg-type]
    assert [one.nll for one in after] != [one.nll for one in before]
    assert len(path.read_text().splitlines()) == 10


def test_what_is_left_out_is_counted(engine: Any, capsys: pytest.CaptureFixture[str]) -> None:
    given = [example("q", "a"), example("q", "a"), example("q", "b"), example("q", "word " * 2000)]
    assert len(tokenize_examples(given, engine.tokenizer)) == 2
    said = capsys.readouterr().out.splitlines()
    assert said == [
        f"general examples: 1 of 4 are longer than {engine.tokenizer.context} tokens and are left out",
        "general examples: 1 of 4 repeat another one and are left out",
    ]
    with pytest.raises(UserError, match=r"general\.examples: found 1 examples that are all longer than the \d+ tokens"):
        tokenize_examples(given[-1:], engine.tokenizer)


def test_no_examples_are_refused(tmp_path: Path) -> None:
    (tmp_path / "none.jsonl").write_text("")
    with pytest.raises(UserError):
        read_examples(str(tmp_path / "none.jsonl"), None)


def test_the_limit_takes_the_first(examples: str) -> None:
    assert [one.completion for one in read_examples(examples, 2)] == ["It is 12.", "twelve"]
