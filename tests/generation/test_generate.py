"""Generation in flat batches and by transformers against a naive loop: greedy, with stops, and sampled."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig, MambaConfig, RwkvConfig

from judgelit.batches.flat_batch import pad_prompts
from judgelit.generation.generate import generate
from judgelit.generation.sampling import Sampling
from judgelit.models.backbone import Backbone

PROMPTS = [[5, 17, 42, 99, 3, 250], [8], [120, 121, 122]]
GREEDY = Sampling(max_new_tokens=12, stop_at_verdict=False)
TINY_MAMBA = MambaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=304, state_size=4)

ATTENTIONS = ["sdpa", "eager"]
"""With eager attention, transformers generates."""


@pytest.fixture(scope="module", params=ATTENTIONS)
def model(request: pytest.FixtureRequest, model_folder: str) -> Any:
    return Backbone(model_folder, attention=request.param).build().eval()


@pytest.fixture(scope="module", params=ATTENTIONS)
def small(request: pytest.FixtureRequest, llama: str) -> Any:
    return Backbone(llama, attention=request.param).build().eval()


@torch.no_grad()
def naive(model: Any, prompt: list[int], new: int, stops: tuple[int, ...] = ()) -> list[int]:
    """One argmax after the other, without cache or padding."""
    ids = list(prompt)
    for _ in range(new):
        ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] in stops:
            break
    return ids[len(prompt) :]


def ask(model: Any, prompts: list[list[int]], sampling: Sampling = GREEDY, **settings: Any) -> list[list[list[int]]]:
    settings = {"stop_ids": (100_000,), "pad_id": 0, **settings}
    return generate(model, *pad_prompts(prompts, settings["pad_id"]), sampling, **settings)


def test_greedy_texts_are_those_of_the_naive_loop(model: Any) -> None:
    assert ask(model, PROMPTS) == [[naive(model, prompt, 12)] for prompt in PROMPTS]


def test_left_padding_changes_nothing(model: Any) -> None:
    together = ask(model, PROMPTS)
    assert [ask(model, [prompt])[0] for prompt in PROMPTS] == together
    assert ask(model, [*PROMPTS, [9] * 60])[:3] == together
    assert ask(model, PROMPTS, pad_id=7) == together


@pytest.mark.parametrize("config", [RwkvConfig(hidden_size=32, num_hidden_layers=2, vocab_size=304), TINY_MAMBA])
def test_models_that_read_padding_get_no_padding(config: Any) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    prompts = [*PROMPTS, [9, 9, 7], [11] * 40]
    calls: list[int] = []
    model.get_input_embeddings().register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    assert ask(model, prompts) == [[naive(model, prompt, 12)] for prompt in prompts]
    assert max(calls) == (1 if isinstance(config, RwkvConfig) else 5)


def test_stops_at_stop_ids_and_keeps_them(model: Any) -> None:
    whole = [naive(model, prompt, 12) for prompt in PROMPTS]
    stops = (whole[0][3], whole[1][5])
    wanted = [[naive(model, prompt, 12, stops)] for prompt in PROMPTS]
    assert len(wanted[0][0]) <= 4 and wanted[0][0][-1] in stops
    # A pad id may also be a stop id.
    assert ask(model, PROMPTS, stop_ids=stops) == ask(model, PROMPTS, stop_ids=stops, pad_id=stops[0]) == wanted


def test_never_longer_than_asked(model: Any) -> None:
    assert [len(texts[0]) for texts in ask(model, PROMPTS, Sampling(max_new_tokens=3))] == [3, 3, 3]


def test_greedy_texts_are_those_of_transformers(model_folder: str) -> None:
    ours: Any = Backbone(model_folder).build().eval()
    theirs: Any = AutoModelForCausalLM.from_pretrained(model_folder).eval()
    for prompt, (text,) in zip(PROMPTS, ask(ours, PROMPTS), strict=True):
        settings = GenerationConfig(max_new_tokens=12, do_sample=False, eos_token_id=100_000, pad_token_id=0)
        assert text == theirs.generate(torch.tensor([prompt]), generation_config=settings)[0, len(prompt) :].tolist()


@pytest.mark.parametrize(
    ("shape", "attention"), [("sliding_window", "sdpa"), ("soft_capped", "eager"), ("sliding_window", "eager")]
)
def test_models_without_a_block_mask(unshareable_folders: dict[str, str], shape: str, attention: Any) -> None:
    model: Any = Backbone(unshareable_folders[shape], attention=attention).build().eval()
    prompts = [*PROMPTS, list(range(20, 50))]
    assert ask(model, prompts) == [[naive(model, prompt, 12)] for prompt in prompts]


class TestEnds:
    STOPPING = Sampling(12, stop_at_verdict=True)

    def test_a_text_stops_where_it_ends(self, model: Any) -> None:
        whole = [naive(model, prompt, 12) for prompt in PROMPTS]
        lengths = {tuple(text): length for text, length in zip(whole, (3, 1, 9), strict=True)}

        def ends(ids: Sequence[int]) -> bool:
            return any(list(text[:length]) == list(ids) for text, length in lengths.items())

        assert ask(model, PROMPTS, self.STOPPING, ends=ends) == [[text[: lengths[tuple(text)]]] for text in whole]
        assert ask(model, PROMPTS, GREEDY, ends=ends) == [[text] for text in whole]

    def test_no_token_is_computed_after_the_last_end(self, small: Any) -> None:
        calls: list[int] = []
        ask(small, PROMPTS)
        hook = small.lm_head.register_forward_hook(lambda head, args, out: calls.append(len(out)))
        ask(small, PROMPTS, self.STOPPING, ends=lambda ids: len(ids) == 4)
        hook.remove()
        assert len(calls) == 4

    def test_samples_do_not_depend_on_when_other_texts_end(self, llama: str) -> None:
        model = Backbone(llama).build()

        def drawn(stop: bool) -> list[list[list[int]]]:
            sampling = Sampling(12, temperature=1.0, stop_at_verdict=stop)
            return ask(model, PROMPTS, sampling, samples=3, ends=lambda ids: ids[-1] % 5 == 0)

        ended, whole = drawn(True), drawn(False)
        assert ended != whole
        for some, more in zip(ended, whole, strict=True):
            assert [text == other[: len(text)] for text, other in zip(some, more, strict=True)] == [True] * 3


@pytest.mark.parametrize("training", [True, False])
def test_each_module_keeps_its_mode(small: Any, training: bool) -> None:
    small.train(training)
    small.lm_head.train(not training)
    modes = {module: module.training for module in small.modules()}
    ask(small, PROMPTS)
    assert {module: module.training for module in small.modules()} == modes
    with pytest.raises(Exception):  # noqa: B017 (the kind of error does not matter)
        generate(small, torch.tensor([[10**9]]), torch.ones(1, 1), GREEDY, stop_ids=(1,), pad_id=0)
    assert {module: module.training for module in small.modules()} == modes
    small.eval()


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_dropout_is_off(llama: str, attention: Any) -> None:
    model: Any = Backbone(llama, attention=attention).build()
    model.config.attention_dropout = 0.9
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.9
    model.train()
    assert ask(model, PROMPTS) == [[naive(model.eval(), prompt, 12)] for prompt in PROMPTS]


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_the_models_own_generation_config_is_not_used(llama: str, attention: Any) -> None:
    model: Any = Backbone(llama, attention=attention).build().eval()
    wanted = [naive(model, prompt, 12) for prompt in PROMPTS]
    stop = wanted[0][0]
    own = model.generation_config
    own.update(min_new_tokens=8, suppress_tokens=[wanted[1][0]], no_repeat_ngram_size=2, repetition_penalty=3.0)
    own.update(do_sample=True, temperature=5.0, top_k=3)
    assert ask(model, PROMPTS) == [[text] for text in wanted]
    assert ask(model, PROMPTS, stop_ids=(stop,))[0] == [[stop]]
    assert model.generation_config is own and own.min_new_tokens == 8


class TestSampling:
    def test_follows_the_seed(self, small: Any) -> None:
        def drawn(seed: int) -> list[list[list[int]]]:
            return ask(small, PROMPTS, Sampling(8, temperature=1.0), samples=3, seed=seed)

        assert drawn(0) == drawn(0) != drawn(1)
        assert [len(texts) for texts in drawn(0)] == [3, 3, 3]

    @pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
    def test_frequencies_are_those_of_the_temperature(self, small: Any, temperature: float) -> None:
        texts = ask(small, [PROMPTS[0]], Sampling(1, temperature), samples=4000)[0]
        with torch.no_grad():
            logits = small(input_ids=torch.tensor([PROMPTS[0]])).logits[0, -1]
        wanted = (logits / temperature).softmax(-1)
        seen = Counter(text[0] for text in texts)
        for token in wanted.topk(3).indices.tolist():
            # Four standard deviations of a share of 4000 draws.
            spread = 4 * (wanted[token] * (1 - wanted[token]) / 4000).sqrt()
            assert seen[token] / 4000 == pytest.approx(wanted[token].item(), abs=spread.item())
        # The library's default top-k of 50 is not applied.
        assert temperature < 2 or len(seen) > 60

    def test_top_p_cuts_the_tail(self, small: Any) -> None:
        texts = ask(small, [PROMPTS[0]], Sampling(1, 1.0, top_p=0.3), samples=300)[0]
        with torch.no_grad():
            probabilities = small(input_ids=torch.tensor([PROMPTS[0]])).logits[0, -1].softmax(-1)
        best = probabilities.sort(descending=True)
        kept = int((best.values.cumsum(0) < 0.3).sum()) + 1
        assert {text[0] for text in texts} <= set(best.indices[:kept].tolist())

    def test_samples_of_a_prompt_are_together(self, small: Any) -> None:
        cold = ask(small, PROMPTS, Sampling(5, temperature=1e-4), samples=2)
        assert cold == [[text, text] for (text,) in ask(small, PROMPTS, Sampling(5))]

    def test_greedy_samples_are_all_the_same(self, small: Any) -> None:
        assert ask(small, PROMPTS, samples=3) == [texts * 3 for texts in ask(small, PROMPTS)]
