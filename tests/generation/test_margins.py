"""Margins of verdicts against a plain forward pass, in flat batches and in transformers' padded rows."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, MambaConfig, RwkvConfig

from judgelit.batches.flat_batch import pad_prompts
from judgelit.batches.tokenizer import ChatTokenizer
from judgelit.generation.engine import EngineSpec, load_engine
from judgelit.generation.generate import generate
from judgelit.generation.margins import MarginRecord, letter_tokens, verdict_margin
from judgelit.generation.sampling import Sampling
from judgelit.models.backbone import Backbone

PROMPTS = [[5, 17, 42, 99, 3, 250], [8], [120, 121, 122]]
VOCABULARY = 304
"""Size of the smallest vocabulary here."""
NEXT = {token: (token, (token + 1) % VOCABULARY) for token in range(400)}
"""Every token against another one, so that every step has a margin."""
HIGH = 50.0
"""Added to the logits of the scripted tokens."""


@torch.no_grad()
def plain_margins(model: Any, prompt: Sequence[int], text: Sequence[int]) -> list[float]:
    """The margins of NEXT at each token of a text, from one forward pass."""
    logits = model(input_ids=torch.tensor([[*prompt, *text]])).logits[0].float().log_softmax(-1)
    found = []
    for place, token in enumerate(text):
        of_a, of_b = NEXT[token]
        found.append(float(logits[len(prompt) - 1 + place, of_a] - logits[len(prompt) - 1 + place, of_b]))
    return found


def check_every_margin(model: Any, sampling: Sampling, samples: int) -> None:
    record = MarginRecord(NEXT)
    texts = generate(
        model, *pad_prompts(PROMPTS, 0), sampling, stop_ids=(200, 201), pad_id=0, samples=samples, seed=1, watch=record
    )
    for number, (prompt, of_prompt) in enumerate(zip(PROMPTS, texts, strict=True)):
        for sample, text in enumerate(of_prompt):
            found = record.of(number if sampling.temperature == 0 else number * samples + sample)
            wanted = plain_margins(model, prompt, text)
            assert [found[step] for step in range(len(text))] == pytest.approx(wanted, abs=2e-3)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("sampling", [Sampling(9), Sampling(9, temperature=1.7, top_p=0.8)], ids=["greedy", "sampled"])
def test_margins_are_those_of_the_plain_forward_pass(llama: str, attention: Any, sampling: Sampling) -> None:
    check_every_margin(Backbone(llama, attention=attention).build().eval(), sampling, samples=3)


@pytest.mark.parametrize("shape", ["sliding_window", "soft_capped"])
def test_margins_of_models_in_padded_rows(unshareable_folders: dict[str, str], shape: str) -> None:
    check_every_margin(
        Backbone(unshareable_folders[shape], attention="eager").build().eval(), Sampling(9, temperature=0.7), samples=2
    )


@pytest.mark.parametrize(
    "config",
    [
        RwkvConfig(hidden_size=32, num_hidden_layers=2, vocab_size=VOCABULARY),
        MambaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=VOCABULARY, state_size=4),
    ],
)
def test_margins_of_models_that_get_one_prompt_at_a_time(config: Any) -> None:
    torch.manual_seed(0)
    # transformers' cache of RWKV is wrong for more than one row, so one sample.
    check_every_margin(AutoModelForCausalLM.from_config(config).eval(), Sampling(6, temperature=0.7), samples=1)


def test_every_tokenizer_has_both_letters(chat: ChatTokenizer) -> None:
    letters = letter_tokens(chat)
    for text in ("So [[A]]", "[[B]]", "[[ A ]]", "**[[b]]**"):
        ids = chat.text_ids(text)
        margin = verdict_margin(ids, chat, {place: 1.5 for place, token in enumerate(ids) if token in letters})
        assert margin == 1.5
    for token, (of_a, of_b) in letters.items():
        assert token in (of_a, of_b)
        one, other = chat.raw_text([of_a]), chat.raw_text([of_b])
        assert one.replace("A", "B").replace("a", "b") == other


def test_the_margin_is_that_of_the_verdict_and_not_of_another_letter(chat: ChatTokenizer) -> None:
    ids = chat.text_ids('A is 😀 good, B is not ïn [A]. Not [[A]]!\nHe said "[[A]]" to B.\nVerdict: [[B]]\nA b\n')
    letters = letter_tokens(chat)
    margins = {place: float(place) for place, token in enumerate(ids) if token in letters}
    margin = verdict_margin(ids, chat, margins)
    assert margin is not None
    before, after = chat.decode(ids[: int(margin)]), chat.decode(ids[: int(margin) + 1])
    assert after.endswith("Verdict: [[B") and not before.endswith("B")


@pytest.mark.parametrize("text", ["no verdict: A", "[[C]]", "[[tie]]", "[[Ａ]]", "Not [[A]]", ""])
def test_no_margin_without_a_verdict_for_one_answer(chatml: ChatTokenizer, text: str) -> None:
    ids = chatml.text_ids(text)
    letters = letter_tokens(chatml)
    assert verdict_margin(ids, chatml, {place: 1.0 for place, token in enumerate(ids) if token in letters}) is None


def test_no_margin_where_it_is_unknown_or_infinite(chatml: ChatTokenizer) -> None:
    ids = chatml.text_ids("[[A]]")
    assert verdict_margin(ids, chatml, {}) is None
    assert verdict_margin(ids, chatml, dict.fromkeys(range(len(ids)), float("inf"))) is None


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_the_engine_gives_the_margin_of_its_own_distribution(llama: str, attention: Any, temperature: float) -> None:
    """The model is made to write a script in which it chooses the verdict's letter alone."""
    engine = load_engine(EngineSpec(llama, attention=attention))
    question = [{"role": "user", "content": "Is 6 + 6 = 12?"}]
    dict(engine.answer([question], Sampling(2)))  # the first call also tests what the model supports
    tokenizer, model = engine.tokenizer, engine.model
    letter = [tokenizer.text_ids(f"[[{letter}")[-1] for letter in "AB"]
    before = tokenizer.text_ids("A or B?\nSo [[A")[:-1]
    script: list[list[int]] = [[token] for token in before] + [letter] + [[i] for i in tokenizer.text_ids("]]\n")]
    step = 0

    def speak(head: nn.Module, args: Any, logits: Tensor) -> Tensor:
        nonlocal step
        favoured = logits.clone()
        favoured[..., script[min(step, len(script) - 1)]] += HIGH
        step += 1
        return favoured

    hook: Any = model.lm_head.register_forward_hook(speak)
    answers = {}
    for seed in range(6):
        step = 0
        sampling = Sampling(40, temperature=temperature)
        ((_, (answer,)),) = engine.answer([question], sampling, seed=seed)
        answers[answer.text] = answer.margin
        assert answer.finish == "verdict", answer
    hook.remove()
    ids = [*tokenizer.prompt_ids(question), *before]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
    margin = float(logits[letter[0]] - logits[letter[1]])
    assert set(answers) <= {"A or B?\nSo [[A]]\n", "A or B?\nSo [[B]]\n"}
    assert list(answers.values()) == pytest.approx([margin] * len(answers), abs=1e-3)
    if temperature == 0:
        assert list(answers) == [f"A or B?\nSo [[{'A' if margin > 0 else 'B'}]]\n"]
