"""Which layout a model gets: the fast one where it gives the model's own log-probabilities, never where it does not."""

import logging
import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Llama4TextConfig, LlamaForCausalLM, NemotronConfig, Qwen2Config

from judgelit.batches.flat_batch import Batch, TokenizedCompletion, flatten_completions
from judgelit.errors import UserError
from judgelit.likelihood.layouts import Layout, cannot_share, largest_gap
from judgelit.likelihood.logprobs import Scorer, completion_logprobs
from judgelit.models.backbone import Backbone
from judgelit.models.flat_attention import NAME
from judgelit.models.lora import LoRA
from tests.plain_forward import both, plain_of, ragged_pairs, some_ids

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL: dict[str, Any] = {**SIZES, "num_key_value_heads": 2, "vocab_size": 300, "initializer_range": 0.2}
SHARED, CONCATENATED = Layout("shared_prefix"), Layout("concatenated")


@pytest.fixture(scope="module")
def rows() -> list[TokenizedCompletion]:
    """In the order in which the batch has them."""
    pairs = sorted(ragged_pairs(), key=lambda pair: pair.id)
    return sorted(both(pairs), key=lambda row: len(row.prompt))


@pytest.fixture(scope="module")
def batch(rows: list[TokenizedCompletion]) -> Batch:
    return flatten_completions(rows)


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[Any]:
    """What was said of the layout."""
    with caplog.at_level(logging.INFO):
        yield lambda: [record.getMessage() for record in caplog.records if "lightning" in record.name]


def choose_layout(model: Any, choice: Any, batch: Batch, agree: Any = bool) -> Layout:
    return Scorer(model, choice, agree).layout(batch)


@torch.no_grad()
def differ_by(model: Any, scoring: Layout, rows: list[TokenizedCompletion]) -> float:
    """By how much log-probabilities differ from those of the model's plain forward pass."""
    found = completion_logprobs(model, flatten_completions(rows), scoring).tokens
    return (found - plain_of(model, rows)).abs().max().item()


def with_plan(model: Any) -> Any:
    model.set_attn_implementation(NAME)
    return model


class TestCapable:
    @pytest.mark.parametrize("lora", [None, LoRA(r=2)])
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_shares_by_itself_and_on_demand(
        self, model_folder: str, dtype: Any, lora: LoRA | None, batch: Batch, lines: Any
    ) -> None:
        model = Backbone(model_folder, dtype, lora=lora).build()
        assert choose_layout(model, "auto", batch) == SHARED
        assert choose_layout(model, "shared_prefix", batch) == SHARED
        assert choose_layout(model, "concatenated", batch) == CONCATENATED
        assert lines() == []

    def test_a_batch_of_one_token_is_enough_to_find_out(self, llama: str) -> None:
        batch = flatten_completions([TokenizedCompletion("", [], [7])])
        assert choose_layout(Backbone(llama).build(), "auto", batch) == SHARED

    def test_a_window_that_is_not_used_is_none(self, batch: Batch) -> None:
        config = Qwen2Config(**SMALL, sliding_window=8, use_sliding_window=False)
        model = with_plan(AutoModelForCausalLM.from_config(config))
        assert choose_layout(model, "auto", batch) == SHARED

    @pytest.mark.parametrize("choice", ["auto", "concatenated"])
    def test_modes_and_gradients_stay_as_they_were(self, llama: str, choice: Any, batch: Batch) -> None:
        model: Any = Backbone(llama).build()
        model.model.layers[1].eval()
        modes = [module.training for module in model.modules()]
        assert len(set(modes)) == 2
        meanwhile: set[bool] = set()
        model.model.register_forward_pre_hook(lambda module, _: meanwhile.add(module.training))
        choose_layout(model, choice, batch)
        assert meanwhile == {False}
        assert [module.training for module in model.modules()] == modes
        assert all(weight.grad is None for weight in model.parameters())

    def test_modes_come_back_after_an_error(self, llama: str, batch: Batch) -> None:
        model: Any = Backbone(llama).build()
        with pytest.raises(IndexError):
            choose_layout(model, "auto", replace(batch, input_ids=batch.input_ids + 10**6))
        assert all(module.training for module in model.modules())


WHY = {
    "sliding_window": "it attends in a sliding window",
    "linear_attention": "it has state-space layers",
    "state_space": "it has state-space layers",
    "recurrent": "it has state-space layers",
    "soft_capped": "it attends in a sliding window",
}


class TestIncapable:
    def build(self, name: str, folders: dict[str, str]) -> Any:
        return Backbone(folders[name], attention="eager" if name == "soft_capped" else "sdpa").build()

    @pytest.mark.parametrize("name", sorted(WHY))
    def test_concatenates_with_one_line(
        self,
        name: str,
        unshareable_folders: dict[str, str],
        batch: Batch,
        rows: list[TokenizedCompletion],
        lines: Any,
    ) -> None:
        model = self.build(name, unshareable_folders)
        scoring = choose_layout(model, "auto", batch)
        assert scoring.rows == "concatenated"
        layout, *more = lines()
        assert layout == f"layout: concatenated, a padded row for each completion, since {WHY[name]}"
        # RecurrentGemma caps its logits under a name of its own.
        assert (len(more) == 1 and more[0].startswith("head: ")) if scoring.own_head else not more
        assert differ_by(model.eval(), scoring, rows) < 1e-3

    @pytest.mark.parametrize("name", sorted(WHY))
    def test_refuses_to_share(self, name: str, unshareable_folders: dict[str, str], batch: Batch, lines: Any) -> None:
        with pytest.raises(UserError) as error:
            choose_layout(self.build(name, unshareable_folders), "shared_prefix", batch)
        assert str(error.value) == f"layout 'shared_prefix': this model cannot take it: {WHY[name]}; use 'auto'"
        assert lines() == []

    def test_asked_to_concatenate_says_nothing(
        self, unshareable_folders: dict[str, str], batch: Batch, lines: Any
    ) -> None:
        model = self.build("sliding_window", unshareable_folders)
        assert choose_layout(model, "concatenated", batch) == CONCATENATED
        assert lines() == []

    def test_attention_of_another_kind(self, llama: str, batch: Batch, lines: Any) -> None:
        assert choose_layout(Backbone(llama, attention="eager").build(), "auto", batch) == CONCATENATED
        (line,) = lines()
        assert line.endswith("since attention 'eager' does not support a block mask, expected 'sdpa'")

    def test_sharing_would_be_wrong(self, unshareable_folders: dict[str, str], rows: list[TokenizedCompletion]) -> None:
        for name in ("sliding_window", "recurrent"):
            assert differ_by(self.build(name, unshareable_folders).eval(), SHARED, rows) > 0.1

    def test_layers_of_several_kinds_are_named(self) -> None:
        config = Qwen2Config(**SMALL, sliding_window=8, use_sliding_window=True, max_window_layers=1)
        model = with_plan(AutoModelForCausalLM.from_config(config))
        assert cannot_share(model) == "it has layers of the kind sliding_attention"


def ignores_positions(model: Any) -> Any:
    """Makes a model count its positions itself."""
    rotary, forward = model.model.rotary_emb, model.model.rotary_emb.forward
    rotary.forward = lambda x, position_ids: forward(x, torch.arange(x.shape[1]).expand_as(position_ids))
    return model


def biased_by_place(model: Any, slope: float = 0.02) -> Any:
    """Makes a model add to each token something of its place in the row."""
    embed = model.get_input_embeddings()
    places = slope * torch.arange(2048)[:, None]
    embed.register_forward_hook(lambda _, __, out: out + places[: out.shape[1]].to(out.dtype))
    return model


class TestLiars:
    """Models of which the configuration tells nothing."""

    @pytest.mark.parametrize("lie", [ignores_positions, biased_by_place])
    def test_positions_of_its_own(
        self, lie: Any, llama: str, batch: Batch, rows: list[TokenizedCompletion], lines: Any
    ) -> None:
        model = lie(Backbone(llama).build())
        assert choose_layout(model, "auto", batch) == CONCATENATED
        (line,) = lines()
        assert line.endswith("since its log-probabilities differ from those of its plain forward pass")
        assert differ_by(model, CONCATENATED, rows) < 1e-3 < 0.1 < differ_by(model, SHARED, rows)
        with pytest.raises(UserError, match="its log-probabilities differ from those of its plain forward pass; use"):
            choose_layout(model, "shared_prefix", batch)

    def test_a_real_one_whose_layers_are_not_given_the_plan(self, batch: Batch) -> None:
        model = with_plan(AutoModelForCausalLM.from_config(NemotronConfig(**SMALL)))
        assert cannot_share(model) is None
        assert choose_layout(model, "auto", batch) == CONCATENATED

    @pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
    def test_half_precision_hides_none(self, dtype: Any, llama: str, batch: Batch) -> None:
        assert choose_layout(ignores_positions(Backbone(llama, dtype).build()), "auto", batch) == CONCATENATED
        # This one is a tenth of a nat a token, where rounding is a few thousandths.
        slightly = biased_by_place(Backbone(llama, dtype).build(), slope=1e-4)
        assert choose_layout(slightly, "auto", batch) == CONCATENATED

    @torch.no_grad()
    def test_what_is_wrong_in_one_completion_is_not_averaged_away(self, llama: str, batch: Batch) -> None:
        model = Backbone(llama).build()
        found = completion_logprobs(model, batch, SHARED).tokens
        assert largest_gap(found, found, batch) == 0.0
        for number in range(len(batch.lengths)):
            expected = found + torch.where(batch.rows == number, 0.5, 0.0)
            share = int((batch.rows == number).sum()) / int(batch.lengths[number])
            assert largest_gap(found, expected, batch) == pytest.approx(0.5 * share, abs=1e-5)


class Neighbourly(LlamaForCausalLM):
    """What stands in one row of a batch changes the others."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out: Any = super().forward(*args, **kwargs)
        out.logits = out.logits + out.logits.roll(1, dims=0) * (len(out.logits) > 1)
        return out


@pytest.mark.parametrize("choice", ["auto", "shared_prefix", "concatenated"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_no_way_is_right_for_is_refused(choice: Any, dtype: torch.dtype, llama: str, batch: Batch) -> None:
    model = with_plan(Neighbourly.from_pretrained(llama, attn_implementation="sdpa", dtype=dtype))
    with pytest.raises(UserError, match="Neighbourly gives completions in padded rows other log-probabilities than"):
        choose_layout(model, choice, batch)


class Rolled(LlamaForCausalLM):
    """A head that does something of which no configuration tells."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out: Any = super().forward(*args, **kwargs)
        out.logits = out.logits.roll(1, dims=-1) * 1.5
        return out


class TestHead:
    def test_of_a_kind_unknown_is_the_models_own(
        self, llama: str, batch: Batch, rows: list[TokenizedCompletion], lines: Any
    ) -> None:
        model = with_plan(Rolled.from_pretrained(llama, attn_implementation="sdpa"))
        for choice in ("auto", "shared_prefix", "concatenated"):
            scoring = choose_layout(model, choice, batch)  # type: ignore[arg-type]
            assert scoring.own_head
            assert scoring.rows == ("concatenated" if choice == "concatenated" else "shared_prefix")
            assert differ_by(model, scoring, rows) < 1e-4
            assert differ_by(model, replace(scoring, own_head=False), rows) > 1.0
        assert (
            lines()
            == ["head: the model's own at every position, since it is more than a linear layer's scaled logits"] * 3
        )

    def test_its_gradient_is_the_models_own(self, llama: str) -> None:
        draw = random.Random(0)
        rows = [TokenizedCompletion("", some_ids(draw, 5), some_ids(draw, 4)) for _ in range(2)]
        model: Any = with_plan(Rolled.from_pretrained(llama, attn_implementation="sdpa"))
        weights: list[Tensor] = list(model.parameters())
        found = torch.autograd.grad(
            completion_logprobs(model, flatten_completions(rows), Layout("shared_prefix", own_head=True)).sums.sum(),
            weights,
        )
        for one, other in zip(found, torch.autograd.grad(plain_of(model, rows).sum(), weights), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)

    def test_without_a_body_apart_from_it(self, batch: Batch, rows: list[TokenizedCompletion]) -> None:
        config = Llama4TextConfig(
            **SMALL,
            head_dim=8,
            intermediate_size_mlp=48,
            num_local_experts=2,
            layer_types=["full_attention"] * 2,
            pad_token_id=0,
        )
        model = with_plan(AutoModelForCausalLM.from_config(config))
        scoring = choose_layout(model, "auto", batch)
        assert scoring.own_head
        assert differ_by(model.eval(), scoring, rows) < 1e-3


class TestRanks:
    def settled(self, model: Any, choice: Any, batch: Batch, others: list[bool]) -> tuple[Layout, list[bool]]:
        """What is settled on if other ranks say `others` of each way in turn, and what this one says."""
        said: list[bool] = []

        def agree(mine: bool) -> bool:
            said.append(mine)
            # The first question is whether the model can be trained in padded rows at all.
            return mine and [True, *others][len(said) - 1]

        scoring = choose_layout(model, choice, batch, agree)
        assert said[0]
        return scoring, said[1:]

    def test_a_way_that_another_rank_cannot_take_is_taken_by_none(self, llama: str, batch: Batch, lines: Any) -> None:
        model = Backbone(llama).build()
        assert self.settled(model, "auto", batch, [True]) == (SHARED, [True])
        assert self.settled(model, "auto", batch, [False, True]) == (replace(SHARED, own_head=True), [True] * 2)
        assert self.settled(model, "auto", batch, [False, False, True]) == (CONCATENATED, [True] * 3)
        never = self.settled(model, "auto", batch, [False] * 3)
        assert never == (replace(CONCATENATED, own_head=True), [True] * 3)
        assert self.settled(model, "concatenated", batch, [False]) == (replace(CONCATENATED, own_head=True), [True])
        with pytest.raises(UserError, match="its log-probabilities differ"):
            self.settled(model, "shared_prefix", batch, [False, False])

    def test_one_that_fails_here_is_told_to_the_others(self, llama: str, batch: Batch) -> None:
        model = ignores_positions(Backbone(llama).build())
        assert self.settled(model, "auto", batch, [True] * 3) == (CONCATENATED, [False, False, True])

    def test_a_model_that_another_rank_cannot_train_is_refused_by_all(self, llama: str, batch: Batch) -> None:
        with pytest.raises(UserError, match="in padded rows"):
            choose_layout(Backbone(llama).build(), "auto", batch, lambda mine: False)
