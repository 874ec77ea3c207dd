"""WarmupCosine: the learning rate rises linearly, then falls along half a cosine, for any length of the run."""

import math

import pytest
import torch

from judgelit.errors import UserError
from judgelit.training.schedule import WarmupCosine, fit_to_run


def rates(steps: int, warmup: float = 0.1, floor: float = 0.0, lr: float = 2.0) -> list[float]:
    """The learning rates of `steps` steps, and the rate after the last step."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    schedule = WarmupCosine(optimizer, warmup, floor)
    schedule.set_total_steps(steps)
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return [*seen, optimizer.param_groups[0]["lr"]]


def test_rates_equal_a_hand_computation() -> None:
    # 2 of 10 steps rise: 1/3 and 2/3 of the way to 2.0; then 8 steps of half a cosine from the top to 0.
    wanted = [2 / 3, 4 / 3] + [1 + math.cos(math.pi * step / 8) for step in range(9)]
    assert rates(10, warmup=0.2) == pytest.approx(wanted)


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("warmup", [0.0, 0.03, 0.5])
@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_rates_rise_then_fall_to_the_floor(steps: int, warmup: float, floor: float) -> None:
    seen = rates(steps, warmup, floor)
    assert all(0 < rate <= 2.0 for rate in seen[:-1])
    top = seen.index(max(seen))
    assert seen[: top + 1] == sorted(seen[: top + 1])
    assert seen[top:] == sorted(seen[top:], reverse=True)
    assert top <= math.ceil(warmup * steps)
    assert seen[-1] == pytest.approx(2.0 * floor, abs=1e-9)


def test_each_group_keeps_its_base_rate() -> None:
    weights = [torch.zeros(1, requires_grad=True) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": [weights[0]], "lr": 1.0}, {"params": [weights[1]], "lr": 0.1}])
    schedule = WarmupCosine(optimizer, 0.5)
    schedule.set_total_steps(4)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([1 / 3, 0.1 / 3])


def test_a_saved_schedule_continues() -> None:
    def make() -> tuple[torch.optim.Optimizer, WarmupCosine]:
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        schedule = WarmupCosine(optimizer, 0.2, 0.1)
        schedule.set_total_steps(20)
        return optimizer, schedule

    optimizer, schedule = make()
    for _ in range(7):
        optimizer.step()
        schedule.step()
    again, resumed = make()
    again.load_state_dict(optimizer.state_dict())
    resumed.load_state_dict(schedule.state_dict())
    for _ in range(13):
        assert again.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
        for each, its in ((optimizer, schedule), (again, resumed)):
            each.step()
            its.step()


@pytest.mark.parametrize("warmup", [-0.1, 1.0, 100])
def test_a_warm_up_longer_than_the_run_is_refused(warmup: float) -> None:
    with pytest.raises(UserError, match="warmup"):
        rates(10, warmup)


@pytest.mark.parametrize(("total", "steps", "fits"), [(10, 10, True), (11, 10, True), (9, 10, False), (9, None, False)])
def test_a_schedule_of_fixed_length_lasts_as_long_as_the_run(total: int, steps: int | None, fits: bool) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=total)
    if fits:
        fit_to_run(schedule, steps)
    else:
        with pytest.raises(
            UserError, match=f"lr_scheduler.total_steps: found {total}, expected at least the {steps or 'endless'}"
        ):
            fit_to_run(schedule, steps)
