"""The size of an optimizer step, the same on any number of devices."""

import lightning as L
from lightning.pytorch import Callback

from judgelit.errors import UserError


class GlobalBatch(Callback):
    """Sets `trainer.accumulate_grad_batches` so that an optimizer step has a fixed number of micro-batches in all.

    Devices take micro-batches in turn. With twice as many devices each accumulates half as many micro-batches, so a run
    trains on the same examples in the same steps. In the last step of an epoch, a device for which no micro-batch is
    left gets an empty one, which counts nothing.
    """

    def __init__(self, micro_batches: int) -> None:
        """Set the size.

        Args:
            micro_batches: Micro-batches of an optimizer step, over all devices of all nodes; each has
                `data.batch_size` examples.
        """
        if micro_batches < 1:
            raise UserError(f"GlobalBatch.micro_batches: found {micro_batches}, expected 1 or more")
        self.micro_batches = micro_batches

    def on(self, devices: int) -> int:
        """The micro-batches of a step on each of so many devices.

        Raises:
            UserError: The number of devices does not divide the micro-batches.
        """
        if self.micro_batches % devices:
            raise UserError(
                f"GlobalBatch.micro_batches: found {self.micro_batches}, expected a multiple of the {devices} devices; "
                "change it, or trainer.devices and num_nodes"
            )
        return self.micro_batches // devices

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Set the Trainer's accumulation.

        Raises:
            UserError: The number of devices does not divide the micro-batches, or accumulation is set too.
        """
        if stage != "fit":
            return
        devices = trainer.world_size
        each = self.on(devices)
        if trainer.accumulate_grad_batches not in (1, each):
            raise UserError(
                f"trainer.accumulate_grad_batches: found {trainer.accumulate_grad_batches} beside GlobalBatch, which "
                f"makes it {each} on {devices} devices; leave it out"
            )
        trainer.accumulate_grad_batches = each
