"""What comes out for a batch, and the head: in chunks what it is at once, scaled and capped as the model does."""

import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma3TextConfig,
    GraniteConfig,
    LlamaConfig,
    PretrainedConfig,
    RecurrentGemmaConfig,
)

from judgelit.batches.flat_batch import (
    TokenizedCompletion,
    TokenizedPreference,
    flatten_completions,
    flatten_preferences,
)
from judgelit.likelihood import logprobs
from judgelit.likelihood.logprobs import (
    Layout,
    LogProbs,
    _target_logprobs,
    completion_logprobs,
    compute_dtype,
    head_logprobs,
    logit_transform,
    sums_of_rows,
)
from judgelit.models.backbone import Backbone
from judgelit.models.flat_attention import NAME
from judgelit.models.lora import LoRA
from tests.plain_forward import both, gradients, plain_logprobs, plain_of, ragged_pairs, some_ids

SHARED, CONCATENATED = Layout("shared_prefix"), Layout("concatenated")
EVERY_WAY = [Layout(layout, own) for layout in ("shared_prefix", "concatenated") for own in (False, True)]
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
SMALL: dict[str, Any] = {**SIZES, "num_key_value_heads": 1, "initializer_range": 0.3, "vocab_size": 300}


def made(config: PretrainedConfig) -> Any:
    """A model of random weights whose attention takes a plan."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    model.set_attn_implementation(NAME)
    return model


class TestOfABatch:
    @pytest.mark.parametrize("scoring", EVERY_WAY)
    def test_fields(self, llama: str, scoring: Layout) -> None:
        model = Backbone(llama).build()
        pairs = [TokenizedPreference("a", [1, 2, 3], [4, 5], [6]), TokenizedPreference("b", [], [8], [9, 10, 11])]
        with torch.no_grad():
            got = completion_logprobs(model, flatten_preferences(pairs), scoring)
            parts = [plain_logprobs(model, row.prompt, row.completion).float() for row in both(pairs)]
        # Nothing stands before the first token after an empty prompt.
        assert got.rows.tolist() == [0, 0, 1, 3, 3]
        assert got.lengths.tolist() == [2, 1, 1, 3]
        torch.testing.assert_close(got.tokens, torch.cat(parts), rtol=0, atol=1e-5)
        torch.testing.assert_close(got.sums, torch.stack([part.sum() for part in parts]), rtol=0, atol=1e-5)
        assert got.sums[2] == 0.0
        assert got.tokens.dtype == got.sums.dtype == torch.float32

    @pytest.mark.parametrize("scoring", EVERY_WAY)
    def test_nothing_that_is_predicted_is_no_error(self, llama: str, scoring: Layout) -> None:
        batch = flatten_completions([TokenizedCompletion("", [], [4])])
        got = completion_logprobs(Backbone(llama).build(), batch, scoring)
        assert got.tokens.tolist() == [] and got.sums.tolist() == [0.0]

    def test_the_prompt_is_not_scored_and_the_last_token_is(self, llama: str) -> None:
        model = Backbone(llama).build()

        def tokens(prompt: list[int], completion: list[int]) -> list[float]:
            batch = flatten_completions([TokenizedCompletion("", prompt, completion)])
            return completion_logprobs(model, batch, SHARED).tokens.tolist()

        whole = tokens([1, 2, 3], [4, 5, 6])
        assert tokens([1, 2, 3], [4, 5]) == pytest.approx(whole[:2], abs=1e-5)
        assert tokens([1, 2, 3, 4], [5, 6]) == pytest.approx(whole[1:], abs=1e-5)

    def test_a_bfloat16_model_sums_in_float32(self, llama: str) -> None:
        model: Any = Backbone(llama, dtype="bfloat16").build()
        row = TokenizedCompletion("long", [1, 2], [7 + place % 250 for place in range(900)])
        with torch.no_grad():
            got = completion_logprobs(model, flatten_completions([row]), SHARED)
            assert model(input_ids=torch.tensor([row.prompt])).logits.dtype == torch.bfloat16
            wanted = plain_logprobs(model, row.prompt, row.completion)
        # bfloat16 knows the sum of some thousand nats to about 16 of them, float32 to far less than one thousandth.
        assert got.sums.item() == pytest.approx(wanted.sum().item(), abs=0.01)
        assert got.tokens.sum().item() == pytest.approx(got.sums.item(), abs=1e-3)

    def test_only_positions_that_predict_meet_the_head(self, llama: str) -> None:
        model: Any = Backbone(llama, lora=LoRA(r=2)).build()
        seen: list[int] = []
        model.get_base_model().lm_head.register_forward_hook(lambda _, __, output: seen.append(output.shape[0]))
        rows = [TokenizedCompletion("", [1] * 50, [2, 3]), TokenizedCompletion("", [1] * 48, [4])]
        for scoring in (SHARED, CONCATENATED):
            with torch.no_grad():
                completion_logprobs(model, flatten_completions(rows), scoring)
        assert seen == [3, 3]

    def test_sums_of_given_tokens(self) -> None:
        rows = [TokenizedCompletion("", [1], [2, 3]), TokenizedCompletion("", [4], [5])]
        batch = flatten_completions(rows)
        got = LogProbs.of(torch.tensor([-1.0, -2.0, -4.0]), batch)
        assert got.sums.tolist() == [-3.0, -4.0]
        assert got.lengths.tolist() == [2, 1]


COUNT, WIDTH, VOCABULARY = 11, 6, 37


class TestChunks:
    def head(self, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, nn.Linear]:
        torch.manual_seed(0)
        hidden = torch.randn(COUNT, WIDTH, dtype=dtype, requires_grad=True)
        return hidden, torch.randint(VOCABULARY, (COUNT,)), nn.Linear(WIDTH, VOCABULARY, dtype=dtype)

    @pytest.mark.parametrize("at_once", [1, 3, COUNT, COUNT + 5, None])
    @pytest.mark.parametrize("cap", [None, 0.5])
    def test_of_any_size_give_values_and_gradients_of_the_whole(self, at_once: int | None, cap: float | None) -> None:
        hidden, targets, head = self.head()
        transform: Callable[[Tensor], Tensor] = (lambda x: x) if cap is None else lambda x: cap * torch.tanh(x / cap)
        weights = torch.linspace(-1, 2, COUNT)
        whole = transform(head(hidden)).log_softmax(-1)[torch.arange(COUNT), targets]
        wanted = torch.autograd.grad(whole @ weights, [hidden, head.weight, head.bias])
        found = head_logprobs(hidden, targets, head, transform, at_once)
        torch.testing.assert_close(found, whole, rtol=0, atol=1e-6)
        for one, other in zip(
            torch.autograd.grad(found @ weights, [hidden, head.weight, head.bias]), wanted, strict=True
        ):
            assert other.abs().max() > 0
            torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
        with torch.no_grad():
            assert torch.equal(head_logprobs(hidden, targets, head, transform, at_once), found)

    def test_no_logits_are_kept_for_the_backward_pass(self) -> None:
        hidden, targets, head = self.head()
        kept: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda part: part):
            head_logprobs(hidden, targets, head, lambda x: x, 3)
        assert not any(tensor.is_floating_point() and tensor.shape[-1] == VOCABULARY for tensor in kept)
        assert any(tensor.shape[-1] == WIDTH for tensor in kept)

    def test_the_gradient_is_as_exact_as_the_logits(self) -> None:
        torch.manual_seed(0)
        logits = 8 * torch.randn(64, 49_152)
        targets, weights = logits.argmax(-1), torch.linspace(-1, 1, 64)
        errors = []
        for of in (lambda x: _target_logprobs(x, targets), lambda x: -F.cross_entropy(x, targets, reduction="none")):
            single, double = logits.clone().requires_grad_(), logits.double().requires_grad_()
            (found,) = torch.autograd.grad(of(single) @ weights, single)
            wanted = double.log_softmax(-1)[torch.arange(64), targets] @ weights.double()
            (exact,) = torch.autograd.grad(wanted, double)
            errors.append(((found - exact).norm() / exact.norm()).item())
        assert errors[0] < 1e-6 and errors[0] < errors[1] / 2

    def test_half_precision_goes_no_further_than_the_logits(self) -> None:
        hidden, targets, head = self.head(torch.bfloat16)
        found = head_logprobs(hidden, targets, head, lambda x: x, 3)
        assert found.dtype == torch.float32
        logits = torch.cat([head(part) for part in hidden.split(3)])
        assert logits.dtype == torch.bfloat16
        wanted = logits.double().log_softmax(-1)[torch.arange(COUNT), targets]
        torch.testing.assert_close(found.double(), wanted, rtol=1e-6, atol=1e-6)


class Largest(TorchDispatchMode):
    """Notes the size of the largest float tensor that any operation gives, backward pass included."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        sizes = [part.numel() for part in tree_leaves(out) if isinstance(part, Tensor) and part.is_floating_point()]
        self.numel = max(self.numel, *sizes, 0)
        return out


@pytest.mark.parametrize("layout", ["shared_prefix", "concatenated"])
@pytest.mark.parametrize("tied", [False, True])
def test_logits_of_all_positions_never_exist(layout: Any, tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    vocabulary, draw = 2048, random.Random(0)
    model = made(LlamaConfig(**{**SMALL, "vocab_size": vocabulary}, tie_word_embeddings=tied))
    rows = [TokenizedPreference("", some_ids(draw, 9), some_ids(draw, 20), some_ids(draw, 20)) for _ in range(6)]
    batch = flatten_preferences(rows)
    logits = len(batch.targets) * vocabulary
    monkeypatch.setattr(logprobs, "_LOGITS_AT_ONCE", logits // 6)
    found, sizes = [], []
    for own_head in (False, True):
        with Largest() as largest:
            completion_logprobs(model, batch, Layout(layout, own_head)).sums.sum().backward()
        found.append(gradients(model))
        sizes.append(largest.numel)
    # Where they do exist, the measure sees them.
    assert sizes[0] <= logits // 6 < logits <= sizes[1]
    for name, gradient in found[1].items():
        torch.testing.assert_close(found[0][name], gradient, rtol=1e-4, atol=1e-4)


HEADS: dict[str, Callable[[], PretrainedConfig]] = {
    "capped": lambda: Gemma3TextConfig(
        **SMALL, head_dim=8, layer_types=["full_attention"] * 2, final_logit_softcapping=3.0, query_pre_attn_scalar=8
    ),
    "multiplied": lambda: CohereConfig(**SMALL, logit_scale=0.25),
    "divided": lambda: GraniteConfig(**SMALL, logits_scaling=0.5),
}


class TestTransform:
    @pytest.mark.parametrize("scoring", EVERY_WAY)
    @pytest.mark.parametrize("head", sorted(HEADS))
    def test_is_the_models_own(self, head: str, scoring: Layout) -> None:
        model = made(HEADS[head]())
        with torch.no_grad():
            out = model(input_ids=torch.arange(3, 40)[None], output_hidden_states=True)
            raw = model.lm_head(out.hidden_states[-1])
            torch.testing.assert_close(logit_transform(model.config)(raw), out.logits)
            assert (raw - out.logits).abs().max() > 0.1
            rows = both(ragged_pairs())[:2]
            found = completion_logprobs(model, flatten_completions(rows), scoring).tokens
            torch.testing.assert_close(found.double(), plain_of(model, rows), rtol=0, atol=1e-5)

    def test_of_another_name(self) -> None:
        config = RecurrentGemmaConfig(**{**SMALL, "num_hidden_layers": 3}, logits_soft_cap=0.5)
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            out = model(input_ids=torch.arange(3, 40)[None], output_hidden_states=True)
            raw = model.lm_head(out.hidden_states[-1])
        torch.testing.assert_close(logit_transform(config)(raw), out.logits)
        assert (raw - out.logits).abs().max() > 0.01

    def test_is_nothing_for_most(self, llama: str) -> None:
        logits = torch.randn(3, 5)
        assert logit_transform(Backbone(llama).build().config)(logits) is logits

    def test_of_a_capped_model_without_a_plan(self, unshareable_folders: dict[str, str]) -> None:
        model = Backbone(unshareable_folders["soft_capped"], attention="eager").build()
        rows = both(ragged_pairs())
        batch = flatten_completions(rows)
        numbers = sorted(range(len(rows)), key=lambda row: [r.prompt for r in rows].index(rows[row].prompt))
        with torch.no_grad():
            found = completion_logprobs(model, batch, CONCATENATED).tokens
            wanted = plain_of(model, [rows[number] for number in numbers])
        torch.testing.assert_close(found.double(), wanted, rtol=0, atol=1e-5)


def test_a_sum_does_not_depend_on_the_order_in_which_its_parts_are_added() -> None:
    values = -12 * torch.rand(2000, generator=torch.Generator().manual_seed(0))
    rows = torch.arange(2000) % 2
    exact = torch.tensor([math.fsum(values[rows == row].tolist()) for row in (0, 1)])
    order = torch.randperm(2000, generator=torch.Generator().manual_seed(1))
    for some, of in ((values, rows), (values[order], rows[order])):
        found = sums_of_rows(some, of, 2)
        assert found.dtype == torch.float32 and torch.equal(found, exact)


def test_the_dtype_of_computing_is_autocasts_or_the_weights(llama: str) -> None:
    assert compute_dtype(Backbone(llama, "bfloat16").build()) == torch.bfloat16
    model = Backbone(llama, lora=LoRA(r=2)).build()
    assert compute_dtype(model) == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert compute_dtype(model) == torch.bfloat16


def test_cross_entropy_is_the_negative_log_probability() -> None:
    # ln(e / (e + 2)) of logits 1, 0, 0.
    found = head_logprobs(torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([0]), nn.Identity(), F.relu)
    assert found.item() == pytest.approx(-0.551445, abs=1e-6)
