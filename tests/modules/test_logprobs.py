"""Log-probabilities against a naive loop over the full softmax in float64, whatever batch a row stands in."""

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from judgelit.data.layout import TokenizedCompletion, TokenizedPreference, pad_completions, pad_preferences
from judgelit.modules.backbone import Backbone, LoRA
from judgelit.modules.logprobs import completion_logprobs


def some_rows(count: int, seed: int = 0) -> list[TokenizedCompletion]:
    """Rows of uneven length."""
    draw = random.Random(seed)
    return [
        TokenizedCompletion(
            f"row{index}",
            [draw.randrange(300) for _ in range(draw.randint(1, 12))],
            [draw.randrange(300) for _ in range(draw.randint(1, 9))],
        )
        for index in range(count)
    ]


@torch.no_grad()
def naive(model: Any, row: TokenizedCompletion) -> list[float]:
    """log p of each completion token, the sequence alone, softmax over everything in float64."""
    ids = row.prompt + row.completion
    logits = model(input_ids=torch.tensor([ids])).logits[0].double()
    logprobs = []
    for place in range(len(row.prompt), len(ids)):
        probabilities = torch.exp(logits[place - 1]) / torch.exp(logits[place - 1]).sum()
        logprobs.append(torch.log(probabilities[ids[place]]).item())
    return logprobs


@torch.no_grad()
def sums(model: Any, rows: list[TokenizedCompletion], pad_id: int = 0) -> Tensor:
    return completion_logprobs(model, pad_completions(rows, pad_id)).sums


@pytest.fixture(scope="module")
def model(model_folder: str) -> Any:
    return Backbone(model_folder).build().eval()


def test_agree_with_the_full_softmax(model: Any) -> None:
    rows = some_rows(6)
    with torch.no_grad():
        got = completion_logprobs(model, pad_completions(rows, pad_id=5))
    wanted = [naive(model, row) for row in rows]
    assert got.tokens.tolist() == pytest.approx([value for row in wanted for value in row], abs=1e-5)
    assert got.rows.tolist() == [index for index, row in enumerate(wanted) for _ in row]
    assert got.sums.tolist() == pytest.approx([sum(row) for row in wanted], abs=1e-5)
    assert got.lengths.tolist() == [len(row.completion) for row in rows]


def test_padding_position_and_batch_size_change_nothing(model: Any) -> None:
    rows = some_rows(7)
    together = sums(model, rows)
    alone = torch.cat([sums(model, [row]) for row in rows])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    torch.testing.assert_close(sums(model, rows[::-1]).flip(0), together, rtol=0, atol=1e-5)
    torch.testing.assert_close(sums(model, rows, pad_id=77), together, rtol=0, atol=1e-5)
    long = TokenizedCompletion("long", [3] * 40, [4] * 40)
    torch.testing.assert_close(sums(model, [*rows, long])[:7], together, rtol=0, atol=1e-5)


def test_preferences_are_their_two_completions(model: Any) -> None:
    pairs = [TokenizedPreference("a", [1, 2, 3], [4, 5], [6]), TokenizedPreference("b", [7], [8], [9, 10, 11])]
    with torch.no_grad():
        got = completion_logprobs(model, pad_preferences(pairs, 0)).sums
    flat = [TokenizedCompletion("", pair.prompt, pair.chosen) for pair in pairs]
    flat += [TokenizedCompletion("", pair.prompt, pair.rejected) for pair in pairs]
    wanted = [sum(naive(model, row)) for row in flat]
    assert got.tolist() == pytest.approx(wanted, abs=1e-5)


def test_gradients_are_those_of_the_naive_loss(model: Any) -> None:
    rows = some_rows(3)
    model.zero_grad()
    completion_logprobs(model, pad_completions(rows, 0)).sums.sum().backward()
    ours = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    model.zero_grad()
    for row in rows:
        ids = torch.tensor(row.prompt + row.completion)
        logits = model(input_ids=ids[None]).logits[0]
        start = len(row.prompt)
        logits[start - 1 : -1].log_softmax(-1).gather(1, ids[start:, None]).sum().backward()
    for name, weight in model.named_parameters():
        torch.testing.assert_close(ours[name], weight.grad, rtol=1e-4, atol=1e-4, msg=name)
    model.zero_grad()


def test_the_prompt_is_not_scored_and_the_last_token_is(llama: str) -> None:
    model = Backbone(llama).build().eval()
    row = TokenizedCompletion("", [1, 2, 3], [4, 5, 6])
    without_end = TokenizedCompletion("", [1, 2, 3], [4, 5])
    assert len(naive(model, row)) == 3
    assert sums(model, [row]).item() < sums(model, [without_end]).item()
    moved = TokenizedCompletion("", [1, 2, 3, 4], [5, 6])
    assert sums(model, [moved]).item() == pytest.approx(sum(naive(model, row)[1:]), abs=1e-5)


def test_a_bfloat16_model_sums_in_float32(llama: str) -> None:
    model = Backbone(llama, dtype="bfloat16").build().eval()
    rows = [TokenizedCompletion("long", [1, 2], [7 + place % 250 for place in range(900)])]
    with torch.no_grad():
        got = completion_logprobs(model, pad_completions(rows, 0))
        logits = model(input_ids=torch.tensor([rows[0].prompt + rows[0].completion])).logits
    assert logits.dtype == torch.bfloat16
    assert got.tokens.dtype == got.sums.dtype == torch.float32
    # bfloat16 knows the sum of some thousand nats to about 16 of them, float32 to far less than one thousandth.
    exact = logits[0].double().log_softmax(-1)
    ids = rows[0].prompt + rows[0].completion
    wanted = sum(exact[place - 1, ids[place]].item() for place in range(2, len(ids)))
    assert got.sums.item() == pytest.approx(wanted, abs=0.01)


def test_only_completion_positions_meet_the_head(llama: str) -> None:
    model: Any = Backbone(llama, lora=LoRA(r=2)).build()
    seen = []
    model.get_base_model().lm_head.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[1]))
    rows = [TokenizedCompletion("", [1] * 50, [2, 3]), TokenizedCompletion("", [1] * 48, [4])]
    sums(model, rows)
    # From the position that predicts the first completion token of the batch (47) to its end (51).
    assert seen == [5]
