"""The local engine: equal seeds give equal texts, alone or in a batch, in one run or after an interruption."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from judgelit.batches.tokenizer import ChatTokenizer
from judgelit.errors import UserError
from judgelit.generation.engine import EngineSpec, load_engine
from judgelit.generation.local import LocalEngine
from judgelit.generation.sampling import Sampling
from judgelit.models.backbone import Backbone
from judgelit.models.lora import LoRA
from judgelit.records.row_fields import Message

CONVERSATIONS: list[list[Message]] = [
    [{"role": "user", "content": "Is 6 + 6 = " + "12, and " * (index % 4) + f"{index}?"}] for index in range(9)
]
SAMPLED = Sampling(max_new_tokens=8, temperature=1.0)
GREEDY = Sampling(max_new_tokens=8)


@pytest.fixture(scope="module")
def engine(llama: str) -> LocalEngine:
    return load_engine(EngineSpec(llama, batch_size=4))


def texts_of(engine: Any, conversations: Any, sampling: Sampling, **settings: Any) -> dict[int, list[str]]:
    found = engine.answer(conversations, sampling, **settings)
    return {index: [answer.text for answer in of_prompt] for index, of_prompt in found}


def answers(engine: Any, sampling: Sampling = SAMPLED, **settings: Any) -> dict[int, list[str]]:
    return texts_of(engine, CONVERSATIONS, sampling, **settings)


def test_every_conversation_is_answered(engine: LocalEngine) -> None:
    got = answers(engine, samples=2, seed=1)
    assert got.keys() == set(range(9))
    assert all(len(texts) == 2 for texts in got.values())


def test_texts_depend_on_the_seed_only(engine: LocalEngine) -> None:
    first = answers(engine, seed=1)
    torch.manual_seed(99)
    assert answers(engine, seed=1) == first
    assert answers(engine, seed=2) != first


def test_the_random_state_of_the_caller_does_not_change(engine: LocalEngine) -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    answers(engine)
    assert torch.equal(torch.rand(3), wanted)


@pytest.mark.parametrize("done", [{0}, {1, 2, 8}, {0, 1, 2, 3, 4, 5}, set(range(9))])
@pytest.mark.parametrize("samples", [1, 2])
def test_texts_do_not_depend_on_what_is_done(engine: LocalEngine, done: set[int], samples: int) -> None:
    whole = answers(engine, samples=samples, seed=3)
    rest = answers(engine, samples=samples, seed=3, done=done)
    assert rest.keys() >= set(range(9)) - done
    assert all(whole[index] == texts for index, texts in rest.items())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])  # with eager, transformers generates
def test_a_part_of_the_conversations_gets_the_same_texts(llama: str, attention: Any) -> None:
    engine = load_engine(EngineSpec(llama, attention=attention, batch_size=8))
    whole = answers(engine, samples=2, seed=3)
    for part in (range(0, 9, 2), range(1, 9, 2), [4]):
        found = texts_of(engine, [CONVERSATIONS[index] for index in part], SAMPLED, samples=2, seed=3)
        assert found == {place: whole[index] for place, index in enumerate(part)}
    assert len({text for texts in whole.values() for text in texts}) > 9


def test_tokens_are_counted(engine: LocalEngine) -> None:
    for index, (first, second) in engine.answer(CONVERSATIONS, SAMPLED, samples=2):
        assert first.prompt_tokens == engine.tokenizer.count(CONVERSATIONS[index]) and second.prompt_tokens == 0
        assert (first.finish in ("stop", "length") and first.new_tokens == 8) or first.finish == "stop"


def test_done_batches_are_not_generated(engine: LocalEngine) -> None:
    assert answers(engine, done=set(range(9))) == {}


def test_greedy_texts_do_not_depend_on_the_batch(engine: LocalEngine) -> None:
    together = answers(engine, GREEDY)
    for index, conversation in enumerate(CONVERSATIONS):
        assert texts_of(engine, [conversation], GREEDY) == {0: together[index]}
    assert answers(engine, GREEDY, samples=3) == {index: texts * 3 for index, texts in together.items()}


def test_a_text_ends_before_its_end_of_turn(engine: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = engine.tokenizer
    ids = [*tokenizer.text_ids("It is 12."), tokenizer.end_of_turn_id, *tokenizer.text_ids("more")]
    monkeypatch.setattr(
        "judgelit.generation.local.generate", lambda model, input_ids, *_, **__: [[ids]] * len(input_ids)
    )
    assert set(map(tuple, answers(engine).values())) == {("It is 12.",)}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_judgment_stops_at_its_verdict_if_asked(llama: str, attention: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load_engine(EngineSpec(llama, attention=attention))
    said = "It is 12, not [[B]]\nVerdict: [[A]]\nSo I think. [[B]]"
    script = [*engine.tokenizer.text_ids(said), engine.tokenizer.end_of_turn_id]
    steps = 0

    def speak(head: nn.Module, args: Any, logits: Tensor) -> Tensor:
        nonlocal steps
        scripted = torch.full_like(logits, -torch.inf)
        scripted[..., script[min(steps, len(script) - 1)]] = 0
        steps += 1
        return scripted

    model: Any = engine.model
    dict(engine.answer(CONVERSATIONS[:2], GREEDY))  # the first call also tests what the model supports
    model.lm_head.register_forward_hook(speak)
    for stop, wanted in ((True, "It is 12, not [[B]]\nVerdict: [[A]]\n"), (False, said)):
        steps = 0
        sampling = Sampling(max_new_tokens=200, stop_at_verdict=stop)
        assert texts_of(engine, CONVERSATIONS[:2], sampling) == {0: [wanted], 1: [wanted]}
        assert steps == len(engine.tokenizer.text_ids(wanted)) + (not stop)
        steps = 0
        (first,), (second,) = dict(engine.answer(CONVERSATIONS[:2], sampling)).values()
        assert first == replace(second, prompt_tokens=first.prompt_tokens)
        assert (first.finish, first.new_tokens) == ("verdict" if stop else "stop", steps)
    steps = 0
    ((cut,),) = dict(engine.answer(CONVERSATIONS[:1], Sampling(max_new_tokens=5))).values()
    assert (cut.finish, cut.new_tokens) == ("length", 5)


def test_its_identity_depends_on_weights_and_template(llama: str, warm_adapter: str, tmp_path: Path) -> None:
    template = tmp_path / "template.jinja"
    template.write_text("{% for message in messages %}{{ message.content }}{% endfor %}", encoding="utf-8")
    specs = [
        EngineSpec(llama),
        EngineSpec(warm_adapter),
        EngineSpec(llama, "bfloat16"),
        EngineSpec(llama, chat_template=str(template)),
    ]
    assert load_engine(specs[0]).identity == load_engine(specs[0]).identity
    with_new_adapter = LocalEngine(Backbone(llama, lora=LoRA(r=2)).build(), ChatTokenizer.load(llama), "judge")
    assert len({load_engine(spec).identity for spec in specs} | {with_new_adapter.identity}) == 5


def test_every_architecture_answers(model_folder: str) -> None:
    engine = LocalEngine(Backbone(model_folder).build(), ChatTokenizer.load(model_folder), "judge", batch_size=3)
    assert answers(engine, GREEDY).keys() == set(range(9))


@pytest.mark.parametrize("size", [0, -3])
def test_an_empty_batch_is_refused(engine: LocalEngine, size: int) -> None:
    with pytest.raises(UserError, match=f"^batch_size: found {size}, expected 1 or more$"):
        LocalEngine(engine.model, engine.tokenizer, "judge", size)
