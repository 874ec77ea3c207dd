"""Losses compared with hand computations and the papers' formulas; gradients compared with closed forms."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from judgelit.batches.flat_batch import (
    PreferenceBatch,
    TokenizedCompletion,
    TokenizedPreference,
    flatten_completions,
    flatten_preferences,
)
from judgelit.errors import UserError
from judgelit.likelihood.logprobs import LogProbs
from judgelit.training.losses import LOSSES, LogRatios, PreferenceLoss, dpo_loss, sft_loss

MARGINS = torch.tensor([-50.0, -3.0, -0.5, 0.0, 0.25, 2.0, 40.0])


def scalar(value: float) -> Tensor:
    return torch.tensor([value])


def loss_of(settings: PreferenceLoss, chosen: Tensor, rejected: Tensor, *tokens: Tensor) -> Tensor:
    """The preference loss of each pair.

    Args:
        settings: The loss.
        chosen: Log-ratios of the chosen completions, [P].
        rejected: Log-ratios of the rejected completions, [P].
        tokens: Lengths of the chosen and of the rejected completions, [P] each; 1 by default.
    """
    none = torch.empty(0)
    lengths = tokens or (torch.ones_like(chosen), torch.ones_like(chosen))
    return LOSSES[settings.kind](LogRatios(none, none, none, none, none, chosen, rejected, *lengths), settings)


def margin_loss(kind: str, margin: Tensor, beta: float, smoothing: float = 0.0) -> Tensor:
    return loss_of(PreferenceLoss(kind, beta, smoothing), margin, torch.zeros_like(margin))


class TestByHand:
    """The comment above each expectation computes it."""

    def test_sigmoid(self) -> None:
        # sigmoid(0) = 1/2; -log 1/2 = 0.693147
        assert margin_loss("sigmoid", scalar(0.0), beta=0.1).item() == pytest.approx(0.693147, abs=1e-6)
        # beta * margin = 0.5 * 2 = 1; sigmoid(1) = 1 / (1 + 0.367879) = 0.731059; -log = 0.313262
        assert margin_loss("sigmoid", scalar(2.0), beta=0.5).item() == pytest.approx(0.313262, abs=1e-6)
        # sigmoid(-1) = 1 - 0.731059 = 0.268941; -log = 1.313262
        assert margin_loss("sigmoid", scalar(-2.0), beta=0.5).item() == pytest.approx(1.313262, abs=1e-6)

    def test_sigmoid_with_label_smoothing(self) -> None:
        # 0.9 * 0.313262 + 0.1 * 1.313262 = 0.413262
        assert margin_loss("sigmoid", scalar(2.0), beta=0.5, smoothing=0.1).item() == pytest.approx(0.413262, abs=1e-6)

    def test_robust(self) -> None:
        # (0.9 * 0.313262 - 0.1 * 1.313262) / (1 - 0.2) = (0.281936 - 0.131326) / 0.8 = 0.188262
        assert margin_loss("robust", scalar(2.0), beta=0.5, smoothing=0.1).item() == pytest.approx(0.188262, abs=1e-6)

    def test_hinge(self) -> None:
        # 1 - 0.1 * 4 = 0.6; 1 - 0.1 * (-4) = 1.4; 1 - 0.1 * 12 < 0
        margins = torch.tensor([4.0, -4.0, 12.0])
        assert margin_loss("hinge", margins, beta=0.1).tolist() == pytest.approx([0.6, 1.4, 0.0])

    def test_ipo(self) -> None:
        # 1 / (2 * 0.1) = 5; (3 - 5)^2 = 4; (-1 - 5)^2 = 36
        assert margin_loss("ipo", torch.tensor([3.0, -1.0, 5.0]), beta=0.1).tolist() == pytest.approx([4.0, 36.0, 0.0])

    def test_dpo_of_two_pairs(self) -> None:
        # Pair 1 has 2 chosen and 1 rejected tokens, pair 2 has 1 and 2.
        pairs = [TokenizedPreference("1", [1], [2, 3], [4]), TokenizedPreference("2", [5], [6], [7, 8])]
        batch = flatten_preferences(pairs)
        policy = LogProbs.of(torch.tensor([-1.0, -2.0, -4.0, -3.0, -1.0, -1.0], requires_grad=True), batch)
        reference = LogProbs.of(torch.tensor([-2.0, -2.0, -3.0, -3.0, -2.0, -1.0]), batch)
        terms = dpo_loss(policy, reference, batch, PreferenceLoss(beta=0.5, nll_weight=0.1))
        # Log-ratios: chosen 1 and 0, rejected -1 and 1; margins 2 and -1.
        # NLL a token: (1 + 2) / 2 and 3 / 1. Loss: -log sigmoid(1) + 0.15 and -log sigmoid(-0.5) + 0.3.
        assert terms.loss.tolist() == pytest.approx([0.313262 + 0.15, 0.974077 + 0.3], abs=1e-5)
        assert terms.loss.requires_grad and not any(value.requires_grad for value in terms.logged.values())
        # exp(-r) - 1 + r is 0.367879 at 1 and 0.718282 at -1; a completion's mean, then the pair's.
        expected = {
            "nll": [1.5, 3.0],
            "rewards/chosen": [0.5, 0.0],
            "rewards/rejected": [-0.5, 0.5],
            "rewards/margin": [1.0, -0.5],
            "rewards/accuracy": [1.0, 0.0],
            "log_ratio": [2.0, -1.0],
            "kl": [(0.367879 / 2 + 0.718282) / 2, 0.367879 / 4],
            "logps/chosen": [-3.0, -3.0],
            "logps/rejected": [-4.0, -2.0],
        }
        assert terms.logged.keys() == expected.keys()
        for name, values in expected.items():
            assert terms.logged[name].tolist() == pytest.approx(values, abs=1e-5), name

    def test_general_examples_add_their_nll_and_nothing_else(self) -> None:
        pair = TokenizedPreference("p", [1], [2, 3], [4], tag="hard")
        general = [TokenizedCompletion("g", [5], [6, 7], tag="general"), TokenizedCompletion("h", [1], [8])]
        mixed = flatten_preferences([general[0], pair, general[1]], ("hard", "general"))
        alone = flatten_preferences([pair])
        of_prompt_1, of_prompt_5 = [-1.0, -2.0, -4.0], [-3.0, -1.0]
        # Pairs come first in the row: [1 | 2 3 | 4 | 8 | 5 | 6 7].
        policy = LogProbs.of(torch.tensor([*of_prompt_1, -0.5, *of_prompt_5], requires_grad=True), mixed)
        reference = LogProbs.of(torch.tensor([-2.0, -2.0, -3.0, 9.0, 9.0, 9.0]), mixed)
        settings = PreferenceLoss(beta=0.5, nll_weight=0.1, general_weight=0.3)
        terms = dpo_loss(policy, reference, mixed, settings)
        # The pair's loss is computed in the test above. The general ones: 0.3 * (3 + 1) / 2 and 0.3 * 0.5 / 1.
        assert terms.loss.tolist() == pytest.approx([0.313262 + 0.15, 0.6, 0.15], abs=1e-5)
        assert terms.logged.pop("loss/hard").tolist() == pytest.approx([0.463262], abs=1e-5)  # type: ignore[attr-defined]
        assert terms.logged.pop("loss/general").tolist() == [2.0]  # type: ignore[attr-defined]
        of_pair = dpo_loss(
            LogProbs.of(torch.tensor(of_prompt_1), alone),
            LogProbs.of(torch.tensor([-2.0, -2.0, -3.0]), alone),
            alone,
            settings,
        )
        assert terms.logged.keys() == of_pair.logged.keys()
        assert all(terms.logged[name].tolist() == values.tolist() for name, values in of_pair.logged.items())

    def test_sft_is_the_negative_log_likelihood_of_each_token(self) -> None:
        batch = flatten_completions([TokenizedCompletion("1", [1], [2, 3]), TokenizedCompletion("2", [1], [4])])
        assert sft_loss(LogProbs.of(torch.tensor([-1.0, -2.0, -0.5]), batch), batch).loss.tolist() == [1.0, 2.0, 0.5]

    def test_preference_loss_of_a_batch(self) -> None:
        chosen, rejected = torch.tensor([1.0, -2.0]), torch.tensor([-1.0, 2.0])
        tokens = torch.tensor([2, 4]), torch.tensor([1, 8])
        # margins 2 and -4
        assert loss_of(PreferenceLoss(beta=0.5), chosen, rejected, *tokens).tolist() == pytest.approx(
            [0.313262, 2.126928]
        )
        assert loss_of(PreferenceLoss("hinge", 0.5), chosen, rejected, *tokens).tolist() == pytest.approx([0.0, 3.0])
        # ratios a token: 1/2 + 1/1 = 1.5 and -2/4 - 2/8 = -0.75; target 1; 0.5^2 and 1.75^2
        assert loss_of(PreferenceLoss("ipo", 0.5), chosen, rejected, *tokens).tolist() == pytest.approx([0.25, 3.0625])


def reference_loss(kind: str, margin: float, beta: float, smoothing: float) -> float:
    """The papers' formulas for one margin in float64, independent of the tested code."""

    def log_sigmoid(x: float) -> float:
        return -math.log1p(math.exp(-x)) if x > -700 else x

    if kind == "hinge":
        return max(0.0, 1 - beta * margin)
    if kind == "ipo":
        return (margin - 0.5 / beta) ** 2
    right, wrong = -log_sigmoid(beta * margin), -log_sigmoid(-beta * margin)
    if kind == "sigmoid":
        return (1 - smoothing) * right + smoothing * wrong
    return ((1 - smoothing) * right - smoothing * wrong) / (1 - 2 * smoothing)


CASES = [("sigmoid", 0.0), ("sigmoid", 0.2), ("robust", 0.0), ("robust", 0.3), ("hinge", 0.0), ("ipo", 0.0)]


@pytest.mark.parametrize(("kind", "smoothing"), CASES)
@given(
    chosen=st.floats(-80, 80),
    rejected=st.floats(-80, 80),
    tokens=st.tuples(st.integers(1, 500), st.integers(1, 500)),
    beta=st.floats(0.01, 2),
)
def test_losses_equal_the_papers_formulas_in_float64(
    kind: str, smoothing: float, chosen: float, rejected: float, tokens: tuple[int, int], beta: float
) -> None:
    lengths = torch.tensor([tokens[0]]), torch.tensor([tokens[1]])
    loss = PreferenceLoss(kind, beta, smoothing)  # type: ignore[arg-type]
    double = loss_of(loss, scalar(chosen).double(), scalar(rejected).double(), *lengths).item()
    per_token = kind == "ipo"
    margin = scalar(chosen).double().item() / (tokens[0] if per_token else 1)
    margin -= scalar(rejected).double().item() / (tokens[1] if per_token else 1)
    assert double == pytest.approx(reference_loss(kind, margin, beta, smoothing), rel=1e-9, abs=1e-9)
    single = loss_of(loss, scalar(chosen), scalar(rejected), *lengths)
    assert single.dtype == torch.float32
    assert single.item() == pytest.approx(double, rel=2e-5, abs=2e-5 * (1 + (0.5 / beta) ** 2))


class TestGradients:
    @pytest.mark.parametrize("beta", [0.05, 0.7])
    @pytest.mark.parametrize("smoothing", [0.0, 0.2])
    def test_gradients_equal_closed_forms(self, beta: float, smoothing: float) -> None:
        def gradient(loss: Callable[[Tensor], Tensor]) -> Tensor:
            margin = MARGINS.double().requires_grad_()
            loss(margin).sum().backward()
            assert margin.grad is not None
            return margin.grad

        margin = MARGINS.double()
        right, wrong = torch.sigmoid(beta * margin), torch.sigmoid(-beta * margin)
        # d/dm -log s(bm) = -b s(-bm); d/dm -log s(-bm) = b s(bm)
        smoothed = -(1 - smoothing) * beta * wrong + smoothing * beta * right
        robust = (-(1 - smoothing) * beta * wrong - smoothing * beta * right) / (1 - 2 * smoothing)
        hinge = torch.where(beta * margin < 1, -beta, 0.0).double()
        ipo = 2 * (margin - 1 / (2 * beta))
        torch.testing.assert_close(gradient(lambda m: margin_loss("sigmoid", m, beta, smoothing)), smoothed)
        torch.testing.assert_close(gradient(lambda m: margin_loss("robust", m, beta, smoothing)), robust)
        torch.testing.assert_close(gradient(lambda m: margin_loss("hinge", m, beta)), hinge)
        torch.testing.assert_close(gradient(lambda m: margin_loss("ipo", m, beta)), ipo)

    @pytest.mark.parametrize(("kind", "smoothing"), CASES)
    def test_gradients_equal_finite_differences(self, kind: str, smoothing: float) -> None:
        loss = PreferenceLoss(kind, 0.3, smoothing)  # type: ignore[arg-type]
        generator = torch.Generator().manual_seed(0)
        chosen, rejected = (torch.randn(6, generator=generator).double().requires_grad_() for _ in range(2))
        tokens = torch.tensor([3, 1, 4, 1, 5, 9]), torch.tensor([2, 6, 5, 3, 5, 8])
        assert torch.autograd.gradcheck(lambda c, r: loss_of(loss, c, r, *tokens), (chosen, rejected))

    def test_losses_and_gradients_stay_finite_for_large_margins(self) -> None:
        for kind, smoothing in CASES:
            margin = torch.tensor([-1e4, 1e4], requires_grad=True)
            loss = margin_loss(kind, margin, 1.0, smoothing)
            loss.sum().backward()
            assert margin.grad is not None
            assert torch.isfinite(loss).all() and torch.isfinite(margin.grad).all()


class TestProperties:
    @pytest.mark.parametrize("error", [0.0, 0.1, 0.25, 0.49])
    def test_robust_is_unbiased_under_flipped_labels(self, error: float) -> None:
        margin = MARGINS.double()
        expected = (1 - error) * margin_loss("robust", margin, 0.3, error) + error * margin_loss(
            "robust", -margin, 0.3, error
        )
        torch.testing.assert_close(expected, margin_loss("sigmoid", margin, 0.3), rtol=1e-9, atol=1e-9)

    def test_no_smoothing_is_plain_dpo(self) -> None:
        plain = -torch.log(1 / (1 + torch.exp(-0.3 * MARGINS.double())))
        torch.testing.assert_close(margin_loss("sigmoid", MARGINS.double(), 0.3, 0.0), plain)
        torch.testing.assert_close(margin_loss("robust", MARGINS.double(), 0.3, 0.0), plain)

    @pytest.mark.parametrize("beta", [0.1, 0.5, 2.0])
    def test_ipo_has_its_minimum_at_half_over_beta(self, beta: float) -> None:
        margin = torch.linspace(-10, 10, 20_001).double()
        best = margin[margin_loss("ipo", margin, beta).argmin()].item()
        assert best == pytest.approx(1 / (2 * beta), abs=1e-3)

    def test_a_larger_margin_lowers_the_loss(self) -> None:
        for loss in (PreferenceLoss(), PreferenceLoss(label_smoothing=0.1), PreferenceLoss("hinge")):
            better, even, worse = (loss_of(loss, scalar(x), scalar(-x)) for x in (1.0, 0.0, -1.0))
            assert better < even < worse


@st.composite
def batches(draw: st.DrawFn) -> PreferenceBatch:
    """A batch in which pairs share prompts and completions, and prompts may be empty."""
    completion = st.lists(st.integers(0, 2), min_size=1, max_size=4)
    pair = st.tuples(st.lists(st.integers(0, 1), max_size=1), completion, completion)
    return flatten_preferences(
        [TokenizedPreference(str(n), *row) for n, row in enumerate(draw(st.lists(pair, min_size=1, max_size=4)))]
    )


def ratios_by_row(tokens: Tensor, batch: PreferenceBatch) -> list[list[Tensor]]:
    """The values of each completion as a list, which begins with a 0 where the first token is not scored."""
    found: list[list[Tensor]] = []
    for row, length in enumerate(batch.lengths.tolist()):
        scored = [value for value, of in zip(tokens, batch.rows.tolist(), strict=True) if of == row]
        found.append([torch.zeros(())] * (length - len(scored)) + scored)
    return found


class TestLengthDesensitised:
    def values(self, batch: PreferenceBatch, seed: int) -> tuple[Tensor, Tensor]:
        """Log-probabilities of the policy and of the reference."""
        generator = torch.Generator().manual_seed(seed)
        policy, reference = (-3 * torch.rand(len(batch.targets), generator=generator) for _ in range(2))
        return policy.requires_grad_(), reference

    def loss(self, batch: PreferenceBatch, policy: Tensor, reference: Tensor, settings: PreferenceLoss) -> Tensor:
        return dpo_loss(LogProbs.of(policy, batch), LogProbs.of(reference, batch), batch, settings).loss

    def test_by_hand(self) -> None:
        # The pair has 1 chosen and 3 rejected tokens: 1 of each counts whole, 2 rejected ones by alpha = 0.25.
        batch = flatten_preferences([TokenizedPreference("1", [1], [2], [3, 4, 5])])
        policy, reference = torch.tensor([-1.0, -2.0, -3.0, -1.0]), torch.tensor([-2.0, -2.5, -1.0, -3.0])
        # Log-ratios: chosen 1; rejected 0.5 + 0.25 * (-2 + 2) = 0.5. beta * margin = 2 * 0.5 = 1.
        loss = self.loss(batch, policy, reference, PreferenceLoss("ld", beta=2.0, ld_alpha=0.25))
        assert loss.tolist() == pytest.approx([0.313262], abs=1e-6)

    @given(batch=batches(), seed=st.integers(0, 9), alpha=st.floats(0, 1), beta=st.floats(0.05, 2))
    def test_it_equals_a_computation_token_by_token(
        self, batch: PreferenceBatch, seed: int, alpha: float, beta: float
    ) -> None:
        policy, reference = self.values(batch, seed)
        found = self.loss(batch, policy, reference, PreferenceLoss("ld", beta, nll_weight=0.3, ld_alpha=alpha))
        of_policy, of_reference = ratios_by_row(policy, batch), ratios_by_row(reference, batch)
        expected = []
        for chosen, rejected in zip(batch.chosen.tolist(), batch.rejected.tolist(), strict=True):
            public = min(len(of_policy[chosen]), len(of_policy[rejected]))
            likelihoods = [
                sum(value if place < public else alpha * value for place, value in enumerate(model[row]))
                for row in (chosen, rejected)
                for model in (of_policy, of_reference)
            ]
            won, won_reference, lost, lost_reference = likelihoods
            margin = beta * ((won - won_reference) - (lost - lost_reference))
            nll = -sum(of_policy[chosen]) / len(of_policy[chosen])
            expected.append(torch.log1p(torch.exp(-margin)) + 0.3 * nll)
        torch.testing.assert_close(found, torch.stack(expected), rtol=1e-5, atol=1e-5)
        if len(policy):
            gradients = [torch.autograd.grad(loss, policy)[0] for loss in (found.sum(), torch.stack(expected).sum())]
            torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)

    @given(batch=batches(), seed=st.integers(0, 9))
    def test_it_is_dpo_if_alpha_is_1_or_the_lengths_are_equal(self, batch: PreferenceBatch, seed: int) -> None:
        policy, reference = self.values(batch, seed)
        dpo = self.loss(batch, policy, reference, PreferenceLoss(beta=0.7))
        torch.testing.assert_close(
            self.loss(batch, policy, reference, PreferenceLoss("ld", 0.7, ld_alpha=1.0)), dpo, rtol=0, atol=0
        )
        equal = batch.lengths[batch.chosen] == batch.lengths[batch.rejected]
        found = self.loss(batch, policy, reference, PreferenceLoss("ld", 0.7, ld_alpha=0.0))
        torch.testing.assert_close(found[equal], dpo[equal], rtol=1e-5, atol=1e-6)

    def test_logged_values_are_those_of_dpo(self) -> None:
        batch = flatten_preferences(
            [TokenizedPreference("1", [1], [2], [3, 4, 5]), TokenizedPreference("2", [6], [2, 3], [4])]
        )
        policy, reference = (LogProbs.of(values, batch) for values in self.values(batch, 0))
        ld, dpo = (dpo_loss(policy, reference, batch, PreferenceLoss(kind)) for kind in ("ld", "sigmoid"))
        assert not torch.equal(ld.loss, dpo.loss)
        assert ld.logged.keys() == dpo.logged.keys()
        assert all(torch.equal(ld.logged[name], dpo.logged[name]) for name in dpo.logged)

    def test_the_default_weight_is_a_half(self) -> None:
        batch = flatten_preferences([TokenizedPreference("1", [1], [2], [3, 4, 5])])
        default, half = (
            self.loss(batch, *self.values(batch, 0), PreferenceLoss("ld", ld_alpha=alpha)) for alpha in (None, 0.5)
        )
        assert torch.equal(default, half)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": 0.0}, "beta"),
        ({"beta": -0.1}, "beta"),
        ({"beta": float("nan")}, "beta"),
        ({"label_smoothing": -0.1}, "label_smoothing"),
        ({"label_smoothing": 0.5}, "label_smoothing"),
        ({"kind": "robust", "label_smoothing": 0.5}, "label_smoothing"),
        ({"kind": "ipo", "label_smoothing": 0.1}, "no meaning for the ipo loss"),
        ({"kind": "hinge", "label_smoothing": 0.1}, "no meaning for the hinge loss"),
        ({"nll_weight": -1.0}, "nll_weight"),
        ({"kind": "sigmiod"}, "kind"),
        ({"general_weight": 0.0}, "general_weight"),
        ({"kind": "ld", "ld_alpha": -0.1}, "ld_alpha"),
        ({"kind": "ld", "ld_alpha": 1.1}, "ld_alpha"),
        ({"kind": "ld", "ld_alpha": float("nan")}, "ld_alpha"),
        ({"ld_alpha": 0.5}, "ld_alpha: has no meaning for the sigmoid loss"),
        ({"kind": "ld", "label_smoothing": 0.1}, "no meaning for the ld loss"),
    ],
)
def test_invalid_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        PreferenceLoss(**settings)
