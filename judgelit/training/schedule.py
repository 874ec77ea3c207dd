"""Learning-rate schedule: linear warm-up, then a half cosine."""

import math
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from judgelit.errors import UserError


class WarmupCosine(LambdaLR):
    """Linear warm-up, then a half cosine down to `floor` at the last step.

    The module sets the number of steps (`set_total_steps`), so one configuration serves runs of any length.
    """

    def __init__(self, optimizer: Optimizer, warmup: float = 0.03, floor: float = 0.0) -> None:
        """Set the shape.

        Args:
            optimizer: The optimizer.
            warmup: Share of all steps that the warm-up takes, below 1.
            floor: Learning rate at the end, as a share of the highest one.
        """
        if not 0 <= warmup < 1:
            raise UserError(f"warmup: found {warmup}, expected 0 <= warmup < 1")
        self.warmup = warmup
        self.floor = floor
        self.total_steps = 1
        super().__init__(optimizer, self.factor)

    def set_total_steps(self, total_steps: float) -> None:
        """Set the number of optimizer steps.

        Raises:
            UserError: It is infinite.
        """
        if math.isinf(total_steps):
            raise UserError(
                "trainer.max_epochs: found -1 and no trainer.max_steps, expected one of them, since WarmupCosine needs "
                "the number of steps"
            )
        self.total_steps = max(1, int(total_steps))
        for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = base * self.factor(self.last_epoch)

    def state_dict(self) -> dict[str, Any]:
        """The state without the number of steps, which a continued run may change."""
        return {name: value for name, value in super().state_dict().items() if name != "total_steps"}

    def factor(self, step: int) -> float:
        """The learning rate at `step`, counted from 0, as a share of the highest one."""
        rising = int(self.warmup * self.total_steps)
        if step < rising:
            return (step + 1) / (rising + 1)
        progress = min(1.0, (step - rising) / (self.total_steps - rising))
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * progress))
