"""One row of all completions, a padded row for each, and each by itself: the same log-probabilities and gradients."""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from judgelit.batches.flat_batch import (
    Batch,
    PreferenceBatch,
    TokenizedCompletion,
    flatten_completions,
    flatten_preferences,
)
from judgelit.likelihood.layouts import Layout
from judgelit.likelihood.logprobs import completion_logprobs
from judgelit.models.backbone import Backbone
from judgelit.models.flat_attention import FlatAttention
from judgelit.models.lora import LoRA
from judgelit.training.callbacks import Padding
from judgelit.training.dpo import DPOModule
from judgelit.training.losses import PreferenceLoss
from judgelit.training.sft import SFTModule
from tests.plain_forward import (
    both,
    float64_throughout,
    gradients,
    plain_copy,
    plain_logprobs,
    ragged_pairs,
    some_ids,
    trained,
)

SHARED, CONCATENATED = Layout("shared_prefix"), Layout("concatenated")
BOTH = pytest.mark.parametrize("scoring", [SHARED, CONCATENATED], ids=lambda scoring: scoring.rows)


def build(backbone: Backbone, dtype: torch.dtype) -> Any:
    """The model, with an adapter that does something."""
    model: Any = backbone.build().to(dtype)
    if backbone.uses_lora:
        torch.manual_seed(0)
        for weight in trained(model).values():
            torch.nn.init.normal_(weight, std=0.1)
    return model


def weighted(batch: Batch) -> Tensor:
    """[K], weights of the completions, so that no two gradients stand in for one another."""
    return torch.linspace(-1.0, 2.0, len(batch.lengths), dtype=torch.float64)


def scored(model: Any, batch: Batch, scoring: Layout) -> tuple[Tensor, dict[str, Tensor]]:
    """Log-probabilities of the scored tokens, and gradients of a weighted sum of the completions'."""
    found = completion_logprobs(model, batch, scoring)
    (found.sums * weighted(batch)).sum().backward()
    return found.tokens.detach(), gradients(model)


def by_itself(model: Any, batch: PreferenceBatch) -> tuple[Tensor, dict[str, Tensor]]:
    """The same, from a forward pass for each completion."""
    alone: dict[int, Tensor] = {}
    numbers = torch.stack([batch.chosen, batch.rejected], dim=1).flatten().tolist()
    for number, row in zip(numbers, both(ragged_pairs()), strict=True):
        if number not in alone:
            alone[number] = plain_logprobs(model, row.prompt, row.completion)
    parts = [alone[number] for number in sorted(alone)]
    torch.stack([weight * part.sum() for weight, part in zip(weighted(batch), parts, strict=True)]).sum().backward()
    return torch.cat(parts).detach(), gradients(model)


def assert_equal(
    found: tuple[Tensor, dict[str, Tensor]], wanted: tuple[Tensor, dict[str, Tensor]], tolerance: float
) -> None:
    """Log-probabilities to `tolerance`, gradients to that share of their largest component."""
    torch.testing.assert_close(found[0].double(), wanted[0].double(), rtol=tolerance, atol=tolerance)
    assert found[1].keys() == wanted[1].keys()
    for name, gradient in wanted[1].items():
        assert gradient.abs().max() > 0, name
        worst = (found[1][name] - gradient).abs().max() / gradient.abs().max()
        assert worst <= tolerance, f"{name}: {worst:.1e}"


def test_the_rows_compared_are_computed_in_several_calls() -> None:
    groups = flatten_preferences(ragged_pairs()).plan.groups
    causal, branching = ([group for group in groups if (group.mask is None) == kind] for kind in (True, False))
    assert len(causal) > 1 and len(branching) > 1
    # And in one call, stretches of several lengths.
    assert any(group.size > 1 and len(set(group.queries.tolist())) < len(group.queries) for group in causal)
    assert any(group.size > 1 and len(set(group.queries.tolist())) < len(group.queries) for group in branching)


@BOTH
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("lora", [None, LoRA(r=4)])
def test_each_completion_is_as_by_itself(
    model_folder: str, lora: LoRA | None, checkpointing: bool, scoring: Layout
) -> None:
    backbone = Backbone(model_folder, lora=lora, activation_checkpointing=checkpointing)
    model = build(backbone, torch.float64)
    plain = plain_copy(backbone, model)
    batch = flatten_preferences(ragged_pairs())
    with float64_throughout():
        assert_equal(scored(model, batch, scoring), by_itself(plain, batch), 1e-9)


@pytest.mark.parametrize("lora", [None, LoRA(r=4)])
def test_layouts_agree_in_float32(model_folder: str, lora: LoRA | None) -> None:
    model = build(Backbone(model_folder, lora=lora), torch.float32)
    batch = flatten_preferences(ragged_pairs())
    assert_equal(scored(model, batch, SHARED), scored(model, batch, CONCATENATED), 1e-4)


def test_layouts_agree_in_bfloat16(model_folder: str) -> None:
    model = build(Backbone(model_folder), torch.bfloat16)
    batch = flatten_preferences(ragged_pairs())
    with torch.no_grad():
        shared, concatenated = (completion_logprobs(model, batch, scoring) for scoring in (SHARED, CONCATENATED))
    assert shared.tokens.dtype == shared.sums.dtype == torch.float32
    # A logit of some 10 is known to 1/32, and kernels round in another order.
    assert (shared.tokens - concatenated.tokens).abs().mean() < 0.05


TREES = st.lists(
    st.tuples(
        st.one_of(st.integers(0, 4), st.integers(30, 90)),
        st.lists(st.one_of(st.integers(1, 4), st.integers(30, 90)), min_size=1, max_size=4),
    ),
    min_size=1,
    max_size=5,
)


@pytest.fixture(scope="module")
def exact_llama(llama: str) -> Any:
    return build(Backbone(llama), torch.float64)


@BOTH
@settings(max_examples=30)
@given(tree=TREES, few=st.booleans(), order=st.randoms(use_true_random=False))
def test_random_trees(exact_llama: Any, scoring: Layout, tree: Any, few: bool, order: random.Random) -> None:
    # Of a few ids there are equal prompts, and completions that begin like others.
    ids = (lambda count: [order.randrange(2) for _ in range(count)]) if few else (lambda count: some_ids(order, count))
    rows = []
    for prompt_length, lengths in tree:
        prompt = ids(prompt_length)
        rows += [TokenizedCompletion("", prompt, ids(length)) for length in lengths]
    order.shuffle(rows)
    batch = flatten_completions(rows)
    with torch.no_grad(), float64_throughout():
        found = completion_logprobs(exact_llama, batch, scoring)
        alone = [plain_logprobs(exact_llama, row.prompt, row.completion) for row in rows]
    # The batch's order is by prompt, in the order of their first examples.
    prompts = list(dict.fromkeys(tuple(row.prompt) for row in rows))
    numbers = sorted(range(len(rows)), key=lambda row: prompts.index(tuple(rows[row].prompt)))
    wanted = torch.cat([alone[number] for number in numbers])
    torch.testing.assert_close(found.tokens, wanted, rtol=0, atol=1e-9)
    sums = torch.stack([alone[number].sum() for number in numbers])
    torch.testing.assert_close(found.sums, sums, rtol=0, atol=1e-9)
    assert found.lengths.tolist() == [len(rows[number].completion) for number in numbers]


@BOTH
def test_neither_order_nor_neighbours_change_a_completion(model_folder: str, scoring: Layout) -> None:
    model = Backbone(model_folder).build()
    rows = both(ragged_pairs())
    with torch.no_grad():
        alone = torch.cat([completion_logprobs(model, flatten_completions([row]), scoring).sums for row in rows])
        by_prompt = {tuple(row.prompt): [r for r in rows if tuple(r.prompt) == tuple(row.prompt)] for row in rows}
        together = completion_logprobs(model, flatten_completions(rows), scoring).sums
        turned = completion_logprobs(model, flatten_completions(rows[::-1]), scoring).sums
    order = [rows.index(row) for of_prompt in by_prompt.values() for row in of_prompt]
    torch.testing.assert_close(together, alone[order], rtol=1e-5, atol=1e-5)
    assert sorted(turned.tolist()) == pytest.approx(sorted(alone.tolist()), rel=1e-5, abs=1e-5)


@BOTH
def test_other_ids_in_one_completion_change_no_other(model_folder: str, scoring: Layout) -> None:
    model = Backbone(model_folder).build()
    rows = both(ragged_pairs())
    batch = flatten_completions(rows)
    with torch.no_grad():
        before = completion_logprobs(model, batch, scoring).tokens
        for number, own in enumerate(segment for segment in batch.segments if segment.prompt is not None):
            ids = batch.input_ids.clone()
            ids[own.start : own.stop] = (ids[own.start : own.stop] + 7) % 300
            changed = replace(batch, input_ids=ids)
            after = completion_logprobs(model, changed, scoring).tokens
            others = batch.rows != number
            torch.testing.assert_close(after[others], before[others], rtol=0, atol=1e-6)
            if own.length > 1:
                assert (after - before)[~others].abs().max() > 1e-3


def test_the_gradient_of_a_token_reaches_all_that_it_sees_and_nothing_else(model_folder: str) -> None:
    model = Backbone(model_folder, activation_checkpointing=False).build()
    draw = random.Random(3)
    prompt = some_ids(draw, 5)
    rows = [TokenizedCompletion("", prompt, some_ids(draw, count)) for count in (3, 4, 1)]
    rows += [TokenizedCompletion("", some_ids(draw, 2), some_ids(draw, 2)), TokenizedCompletion("", [], [5, 6, 7])]
    batch = flatten_completions(rows)
    embedded: list[Tensor] = []
    model.get_input_embeddings().register_forward_hook(lambda _, __, out: embedded.append(out))  # type: ignore[union-attr]
    tokens = completion_logprobs(model, batch, SHARED).tokens
    (places,) = embedded
    found = torch.stack([torch.autograd.grad(token, places, retain_graph=True)[0][0].norm(dim=-1) for token in tokens])
    for token, (place, number) in enumerate(zip(batch.predicts.tolist(), batch.rows.tolist(), strict=True)):
        own = [segment for segment in batch.segments if segment.prompt is not None][number]
        above = batch.segments[own.prompt or 0]
        seen = {*range(above.start, above.stop), *range(own.start, own.stop)} & set(range(place + 1))
        assert set(found[token].nonzero()[:, 0].tolist()) == seen
    assert len(tokens) == len(found) == 3 + 4 + 1 + 2 + 2


def test_packed_logits_are_the_unpacked_ones(model_folder: str) -> None:
    model: Any = Backbone(model_folder).build()
    draw = random.Random(4)
    rows = [
        TokenizedCompletion("", some_ids(draw, p), some_ids(draw, c)) for p, c in [(60, 30), (3, 9), (70, 1), (8, 80)]
    ]
    batch = flatten_completions(rows)
    with torch.no_grad():
        packed = model(
            input_ids=batch.input_ids[None],
            position_ids=batch.position_ids[None],
            attention_mask=torch.zeros(1, 1, 1, 1),
            use_cache=False,
            judgelit_attention=FlatAttention(batch.plan),
        ).logits[0]
        alone = [model(input_ids=torch.tensor([[*row.prompt, *row.completion]])).logits[0] for row in rows]
    torch.testing.assert_close(packed, torch.cat(alone), rtol=1e-5, atol=1e-5)


class TestTraining:
    """Both layouts through Lightning's own Trainer."""

    def trained_with(self, make: Any, rows: Sequence[Any], fit: Any, recorder: Any) -> list[Any]:
        seen = [recorder() for _ in range(2)]
        for layout, callback in zip(("shared_prefix", "concatenated"), seen, strict=True):
            fit(make(layout), rows, 4, accumulate_grad_batches=2, callbacks=[Padding(), callback])
        return seen

    def assert_equal_steps(self, shared: Any, concatenated: Any) -> None:
        assert len(shared.logged) == len(concatenated.logged) > 1
        for one, other in zip(shared.logged, concatenated.logged, strict=True):
            # Padding is what they differ in.
            assert one.pop("train/padding") == 0.0 < other.pop("train/padding")
            assert one == pytest.approx(other, rel=1e-4, abs=1e-5)
        for one, other in zip(shared.gradients, concatenated.gradients, strict=True):
            assert one.keys() == other.keys()
            for name, gradient in other.items():
                torch.testing.assert_close(one[name], gradient, rtol=1e-3, atol=1e-5)

    def test_sft(self, llama: str, completions: Any, fit: Any, recorder: Any) -> None:
        def make(layout: Any) -> SFTModule:
            return SFTModule(Backbone(llama), lambda groups: torch.optim.SGD(groups, lr=0.1), layout=layout)

        shared, concatenated = self.trained_with(make, completions, fit, recorder)
        self.assert_equal_steps(shared, concatenated)

    def test_dpo(self, llama: str, warm_adapter: str, fit: Any, recorder: Any) -> None:
        def make(layout: Any) -> DPOModule:
            return DPOModule(
                Backbone(llama, adapter=warm_adapter),
                PreferenceLoss(beta=0.5, nll_weight=0.3),
                optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1),
                layout=layout,
            )

        shared, concatenated = self.trained_with(make, ragged_pairs() * 3, fit, recorder)
        self.assert_equal_steps(shared, concatenated)
        assert shared.logged[1]["train/loss"] != pytest.approx(shared.logged[0]["train/loss"], abs=1e-3)
