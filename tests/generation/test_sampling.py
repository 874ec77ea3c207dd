"""Choosing tokens: the shares of draws are the probabilities, and top-p cuts the tail."""

import pytest
import torch
from transformers import TopPLogitsWarper

from judgelit.errors import UserError
from judgelit.generation import sampling as module
from judgelit.generation.sampling import Sampling, choose_tokens

JUST_BELOW_1 = 1 - 2**-24
DRAWS = 40_000


def shares(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """The share of equally spaced random numbers that draw each token, [V]."""
    spaced = (torch.arange(DRAWS) + 0.5) / DRAWS
    drawn = choose_tokens(logits.expand(DRAWS, -1), sampling, spaced)
    return drawn.bincount(minlength=logits.shape[-1]) / DRAWS


def test_without_random_numbers_it_is_the_most_probable_token() -> None:
    logits = torch.randn(5, 50, generator=torch.Generator().manual_seed(0))
    assert choose_tokens(logits, Sampling(), None).tolist() == [int(row.argmax()) for row in logits]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_shares_of_draws_are_probabilities(temperature: float) -> None:
    logits = 2 * torch.randn(30, generator=torch.Generator().manual_seed(0))
    wanted = (logits / temperature).softmax(-1)
    # A token's part of the unit interval has two ends; at each end one draw may be inside or outside.
    assert (shares(logits, Sampling(temperature=temperature)) - wanted).abs().max() <= 1.01 / DRAWS


@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("first_look", [2, 256])
def test_top_p_is_that_of_transformers(top_p: float, first_look: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_CANDIDATES", first_look)
    logits = 2 * torch.randn(60, generator=torch.Generator().manual_seed(1))
    wanted = TopPLogitsWarper(top_p)(None, logits[None] / 0.8)[0].softmax(-1)
    assert (shares(logits, Sampling(temperature=0.8, top_p=top_p)) - wanted).abs().max() <= 1.01 / DRAWS


def test_texts_with_a_large_nucleus_search_more_tokens() -> None:
    peaked, flat = torch.zeros(2, 4000)
    peaked[7] = 50.0
    drawn = choose_tokens(torch.stack([peaked, flat]), Sampling(temperature=1.0, top_p=0.9), torch.tensor([0.99, 0.99]))
    assert drawn[0] == 7
    both = torch.stack([peaked, flat]).repeat(500, 1)
    spread = choose_tokens(both, Sampling(temperature=1.0, top_p=0.9), torch.linspace(0, 0.999, 1000))
    assert set(spread[::2].tolist()) == {7}
    assert len(set(spread[1::2].tolist())) == 500


@pytest.mark.parametrize("top_p", [1.0, 0.7])
@pytest.mark.parametrize("draw", [0.0, JUST_BELOW_1])
def test_tokens_of_probability_0_are_never_drawn(draw: float, top_p: float) -> None:
    generator = torch.Generator().manual_seed(2)
    for _ in range(200):
        logits = torch.randn(1, 300, generator=generator)
        logits[:, [0, 1, 298, 299]] = -torch.inf
        drawn = int(choose_tokens(logits, Sampling(temperature=1.0, top_p=top_p), torch.tensor([draw])))
        assert 2 <= drawn < 298
        assert (
            top_p == 1
            or (logits.softmax(-1) > logits.softmax(-1)[0, drawn]).float().mul(logits.softmax(-1)).sum() < 0.7
        )


def test_draws_reach_the_tail_of_a_large_vocabulary() -> None:
    size = 200_000
    for wanted in (0, size // 3, size - 1):
        draw = torch.tensor([(wanted + 0.5) / size])
        assert choose_tokens(torch.zeros(1, size), Sampling(temperature=1.0), draw) == wanted
        assert choose_tokens(torch.zeros(1, size), Sampling(temperature=1.0, top_p=0.5), draw) < size


def test_the_draw_of_a_text_does_not_depend_on_others() -> None:
    generator = torch.Generator().manual_seed(3)
    logits, draws = torch.randn(20, 70, generator=generator), torch.rand(20, generator=generator)
    for sampling in (Sampling(temperature=1.0), Sampling(temperature=1.0, top_p=0.5)):
        together = choose_tokens(logits, sampling, draws)
        alone = [choose_tokens(logits[i : i + 1], sampling, draws[i : i + 1]) for i in range(20)]
        assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize("settings", [{"max_new_tokens": 0}, {"temperature": -1}, {"top_p": 0}, {"top_p": 1.1}])
def test_settings_out_of_range_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(settings))):
        Sampling(**settings)  # type: ignore[arg-type]
