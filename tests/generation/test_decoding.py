"""Decoding in flat batches gives the texts of a naive loop for every architecture, and finished texts cost nothing."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from judgelit.generation import decoding, kv_cache
from judgelit.generation.decoding import FlatDecoder, can_decode, decode
from judgelit.generation.sampling import Sampling, choose_tokens
from judgelit.models.backbone import Backbone
from judgelit.models.lora import LoRA

HEAD = list(range(100, 130))
PROMPTS = [
    [*HEAD, 5, 17, 42, 99, 3, 250],
    [8],
    [*HEAD, 5, 17, 42, 98],
    [120, 121, 122],
    [*HEAD, 7],
    [8],
]
NEVER = 100_000


@torch.no_grad()
def naive(
    model: Any, prompt: Sequence[int], sampling: Sampling, stops: Sequence[int] = (), draws: Tensor | None = None
) -> list[int]:
    """One token after the other, each by a plain forward pass over all tokens before it."""
    ids = list(prompt)
    for step in range(sampling.max_new_tokens):
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[:, -1]
        ids.append(int(choose_tokens(logits, sampling, None if draws is None else draws[None, step])))
        if ids[-1] in stops:
            break
    return ids[len(prompt) :]


def ends_at(stops: Sequence[int]) -> Callable[[Sequence[int]], bool]:
    return lambda ids: ids[-1] in stops


def greedy(model: Any, prompts: Sequence[list[int]], longest: int, stops: Sequence[int] = ()) -> list[list[int]]:
    assert can_decode(model, prompts)
    return [text for (text,) in decode(model, prompts, Sampling(longest), ends_at(stops), None, 1)]


@pytest.fixture(scope="module")
def model(model_folder: str) -> Any:
    return Backbone(model_folder).build().eval()


@pytest.fixture(scope="module")
def small(llama: str) -> Any:
    return Backbone(llama).build().eval()


def test_greedy_texts_are_those_of_the_naive_loop(model: Any) -> None:
    assert greedy(model, PROMPTS, 12) == [naive(model, prompt, Sampling(12)) for prompt in PROMPTS]


def test_texts_longer_than_a_block_of_the_cache(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_cache, "BLOCK", 5)
    prompts = PROMPTS[:3]
    assert greedy(model, prompts, 17) == [naive(model, prompt, Sampling(17)) for prompt in prompts]


@pytest.mark.parametrize("tokens", [1, 20, 33, 45])
def test_prompts_in_several_parts(small: Any, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = greedy(small, PROMPTS, 6)
    monkeypatch.setattr(decoding, "PREFILL_TOKENS", tokens)
    assert greedy(small, PROMPTS, 6) == whole


@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_samples_that_end_at_different_times_are_those_of_the_naive_loop(model: Any, top_p: float) -> None:
    sampling = Sampling(14, temperature=1.5, top_p=top_p)
    samples = 4
    draws = torch.rand(len(PROMPTS) * samples, 14, generator=torch.Generator().manual_seed(0))
    # One token in six ends a text.
    stops = range(0, 400, 6)
    found = decode(model, PROMPTS, sampling, ends_at(stops), draws, samples)
    wanted = [
        [naive(model, prompt, sampling, stops, draws[index * samples + sample]) for sample in range(samples)]
        for index, prompt in enumerate(PROMPTS)
    ]
    assert found == wanted
    assert len({len(text) for texts in found for text in texts}) > 4


class Positions:
    """Number of positions that go through a model's first layer, by call."""

    def __init__(self, model: Any) -> None:
        self.counts: list[int] = []
        layers = next(module for module in model.modules() if isinstance(module, nn.ModuleList))
        self._hook = layers[0].register_forward_hook(self._note, with_kwargs=True)

    def _note(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        self.counts.append(hidden.shape[0] * hidden.shape[1])

    def __enter__(self) -> "Positions":
        return self

    def __exit__(self, *_: Any) -> None:
        self._hook.remove()


def test_finished_texts_cost_nothing_and_common_prefixes_are_computed_once(model: Any) -> None:
    can_decode(model, PROMPTS)
    draws = torch.rand(len(PROMPTS), 40, generator=torch.Generator().manual_seed(0))
    with Positions(model) as seen:
        texts = decode(model, PROMPTS, Sampling(40, temperature=2.0), ends_at(range(0, 400, 8)), draws, 1)
    lengths = [len(text) for (text,) in texts]
    assert len(set(lengths)) > 3
    # Three prompts share a prefix; [8] is there twice, but is computed once.
    prompt_tokens = len(HEAD) + 6 + 4 + 1 + 1 + 3
    steps = max(lengths)
    assert seen.counts == [prompt_tokens, *(sum(length > step for length in lengths) for step in range(1, steps))]


def test_samples_share_the_work_on_their_prompt(small: Any) -> None:
    can_decode(small, PROMPTS)
    draws = torch.rand(8, 3, generator=torch.Generator().manual_seed(0))
    with Positions(small) as seen:
        decode(small, [PROMPTS[0]], Sampling(3, temperature=1.0), ends_at(()), draws, 8)
    assert seen.counts == [len(PROMPTS[0]), 8, 8]


def test_logits_are_computed_only_where_a_token_is_chosen(small: Any) -> None:
    can_decode(small, PROMPTS)
    rows: list[int] = []
    hook = small.lm_head.register_forward_hook(
        lambda head, args, out: rows.append(args[0].numel() // args[0].shape[-1])
    )
    greedy(small, PROMPTS, 3)
    hook.remove()
    assert rows == [6, 6, 6]


def test_an_adapter_is_used(llama: str, warm_adapter: str, small: Any) -> None:
    adapted: Any = Backbone(llama, adapter=warm_adapter).build().eval()
    found = greedy(adapted, PROMPTS, 8)
    assert found == [naive(adapted, prompt, Sampling(8)) for prompt in PROMPTS]
    assert found != greedy(small, PROMPTS, 8)
    with adapted.disable_adapter():
        assert greedy(adapted, PROMPTS, 8) == greedy(small, PROMPTS, 8)


def test_an_adapter_on_the_head_is_used(llama: str) -> None:
    adapted: Any = Backbone(llama, lora=LoRA(r=2, target_modules=["lm_head", "q_proj"])).build().eval()
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_(generator=torch.Generator().manual_seed(0))
    assert greedy(adapted, PROMPTS, 8) == [naive(adapted, prompt, Sampling(8)) for prompt in PROMPTS]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_gives_the_models_own_logits(model_folder: str, dtype: Any) -> None:
    model: Any = Backbone(model_folder, dtype).build().eval()
    assert can_decode(model, PROMPTS)
    decoder = FlatDecoder(model, PROMPTS, 1)
    with torch.no_grad():
        found = [decoder.begin(), decoder.next([3] * 6, [len(PROMPTS[index]) for index in decoder.sequence])]
        for place, index in enumerate(decoder.sequence):
            plain = model(input_ids=torch.tensor([[*PROMPTS[index], 3]]), use_cache=False).logits[0, -2:]
            assert found[0].dtype == plain.dtype
            for ours, own in zip(found, plain, strict=True):
                assert (ours[place] - own).abs().mean() <= 0.02 * own.abs().max()


def test_autocast_is_used(small: Any) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        found = greedy(small, PROMPTS, 4)
    half: Any = small
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        for prompt, text in zip(PROMPTS, found, strict=True):
            logits = half(input_ids=torch.tensor([[*prompt, *text]]), use_cache=False).logits[0, len(prompt) - 1 : -1]
            # Rounding may exchange two tokens of nearly equal probability.
            best = logits.float().max(-1).values
            assert (best - logits.float()[range(4), text] <= 0.02 * best.abs() + 0.05).all()


class Shifted(LlamaForCausalLM):
    """A model whose head does more than a linear layer."""

    def forward(self, *args: Any, **more: Any) -> Any:
        out = super().forward(*args, **more)
        out.logits = out.logits.roll(1, -1)
        return out


def test_transformers_generates_for_a_model_whose_head_does_more(llama: str) -> None:
    model: Any = Shifted.from_pretrained(llama).eval()
    model.set_attn_implementation("judgelit")
    assert not can_decode(model, PROMPTS)
    plain: Any = LlamaForCausalLM.from_pretrained(llama).eval()
    plain.set_attn_implementation("judgelit")
    assert can_decode(plain, PROMPTS)


def test_one_message_for_a_model_that_cannot_decode(llama: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(decoding, "rank_zero_info", said.append)
    model: Any = Shifted.from_pretrained(llama).eval()
    model.set_attn_implementation("judgelit")
    with Positions(model) as seen:
        assert not can_decode(model, PROMPTS)
        tried = len(seen.counts)
        assert not can_decode(model, PROMPTS)
        assert 0 < tried == len(seen.counts)
    assert len(said) == 1 and said[0].startswith("generation: by transformers")


def test_transformers_generates_for_a_model_that_ignores_positions(llama: str) -> None:
    model: Any = Backbone(llama).build().eval()

    def forget(body: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**kwargs, "position_ids": None}

    model.model.register_forward_pre_hook(forget, with_kwargs=True)
    assert not can_decode(model, PROMPTS)


@pytest.mark.parametrize(
    ("shape", "attention"), [("sliding_window", "sdpa"), ("sliding_window", "eager"), ("soft_capped", "eager")]
)
def test_transformers_generates_for_models_without_a_block_mask(
    unshareable_folders: dict[str, str], shape: str, attention: Any
) -> None:
    assert not can_decode(Backbone(unshareable_folders[shape], attention=attention).build().eval(), PROMPTS)


def test_transformers_generates_with_eager_attention(llama: str) -> None:
    assert not can_decode(Backbone(llama, attention="eager").build().eval(), PROMPTS)


@pytest.mark.parametrize("prompts", [[[5]], [[5], [6]], [[5, 6], [7]], [[5] * 40, [6, 7]]])
def test_prompts_of_any_length_can_be_tried(llama: str, prompts: list[list[int]]) -> None:
    assert can_decode(Backbone(llama).build().eval(), prompts)
