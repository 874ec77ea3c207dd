"""The mean of a loss over a global batch: all examples of one optimizer step, however it is split.

Lightning averages the micro-batches of a step, and DDP and FSDP average over ranks. Where micro-batches hold different
numbers of tokens or pairs, such a mean of means depends on the split. So a training step returns the *sum* of its loss,
and the gradients are divided once, by the count of the whole global batch, when its last backward pass is over. After
that, clipping, callbacks and the optimizer see the gradient of the mean.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from judgelit.atomic import write_json
from judgelit.batches.flat_batch import Batch
from judgelit.errors import UserError
from judgelit.training.losses import LossTerms

if TYPE_CHECKING:
    import lightning as L


class GlobalMean:
    """Sums the terms of micro-batches, then divides by the count of the global batch."""

    def __init__(self, module: "L.LightningModule") -> None:
        """Start with an empty global batch of a module's run."""
        self._module = module
        self._sums: dict[str, Tensor] = {}
        """Sum and count of each quantity, [2] float32."""
        self._micro_batches: list[tuple[Tensor, tuple[str, ...]]] = []

    def clear(self) -> None:
        """Forget the micro-batches of a global batch that no optimizer step has ended."""
        self._sums, self._micro_batches = {}, []

    @property
    def begun(self) -> bool:
        """Whether the global batch has a micro-batch already."""
        return bool(self._micro_batches)

    def __call__(self, terms: LossTerms, batch: Batch) -> Tensor:
        """Add a micro-batch and return what `training_step` must return.

        Args:
            terms: Its loss and logged quantities. All ranks have the same names.
            batch: The micro-batch, whose ids are reported if the loss is not finite.

        Returns:
            The summed loss, a scalar, scaled so that Lightning's and the ranks' averages leave a sum.
        """
        trainer = self._module.trainer
        terms = terms.counted(batch)
        loss = terms.loss.sum()
        tokens = loss.new_tensor([batch.tokens])
        for name, values in {"loss": terms.loss.detach(), **terms.logged, "tokens": tokens}.items():
            sum_and_count = torch.stack([values.sum().float(), loss.new_tensor(len(values)).float()])
            self._sums[name] = self._sums.get(name, torch.zeros_like(sum_and_count)) + sum_and_count
        self._micro_batches.append((loss.detach(), batch.ids))
        return loss * trainer.accumulate_grad_batches * trainer.world_size

    def divide(self) -> tuple[dict[str, Tensor], int]:
        """Divide gradients and sums by the count of the global batch, once its last backward pass is over.

        Returns:
            The means to log, by name, and the tokens of the global batch's examples. A quantity that no micro-batch has
            values of is NaN.

        Raises:
            UserError: The loss is not finite. It is raised on all ranks, before the weights change.
        """
        trainer = self._module.trainer
        names = sorted(self._sums)
        totals = trainer.strategy.reduce(torch.stack([self._sums[name] for name in names]), reduce_op="sum")
        sums: dict[str, Tensor] = dict(zip(names, totals, strict=True))
        loss, count = sums["loss"]
        if not torch.isfinite(loss):
            raise self._not_finite(loss)
        for weight in self._module.parameters():
            if weight.grad is not None:
                weight.grad.div_(count)
        tokens = int(sums.pop("tokens")[0])
        self.clear()
        return {name: total / count for name, (total, count) in sums.items()}, tokens

    def _not_finite(self, total: Tensor) -> UserError:
        """Report the examples of the first micro-batch whose loss is not finite."""
        trainer: Any = self._module.trainer
        advice = "try a lower learning rate, gradient clipping or dtype float32"
        step = trainer.global_step
        for number, (loss, ids) in enumerate(self._micro_batches):
            if torch.isfinite(loss):
                continue
            path = Path(trainer.default_root_dir) / f"not-finite-loss-rank{trainer.global_rank}.json"
            earlier = [one for _, before in self._micro_batches[:number] for one in before]
            write_json(path, {"step": step, "loss": str(loss.item()), "ids": list(ids), "earlier": earlier})
            return UserError(f"loss is {loss.item()} at step {step}; the batch's ids are in {path}; {advice}")
        return UserError(f"loss is {total.item()} at step {step} on another process; {advice}")
