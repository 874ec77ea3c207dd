"""One optimizer step over the same examples on any number of devices."""

import lightning as L
from lightning.pytorch import Callback

from judgelit.errors import UserError


class GlobalBatch(Callback):
    """Sets `trainer.accumulate_grad_batches` so that the micro-batches of all devices make one global batch.

    Devices take micro-batches in turn, so with twice as many of them each accumulates half as many, and a run trains on
    the same examples in the same steps. In the last step of an epoch, devices that have none left repeat one of its
    first.
    """

    def __init__(self, micro_batches: int) -> None:
        """Say how large a step is.

        Args:
            micro_batches: Micro-batches of an optimizer step, over all devices of all nodes; each is of
                `data.batch_size` examples.
        """
        if micro_batches < 1:
            raise UserError(f"GlobalBatch.micro_batches: found {micro_batches}, expected 1 or more")
        self.micro_batches = micro_batches

    def on(self, devices: int) -> int:
        """Micro-batches of a step on each of that many devices.

        Raises:
            UserError: They cannot be shared out evenly.
        """
        if self.micro_batches % devices:
            raise UserError(
                f"GlobalBatch.micro_batches: found {self.micro_batches}, expected a multiple of the {devices} devices; "
                "change it, or trainer.devices and num_nodes"
            )
        return self.micro_batches // devices

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Share the micro-batches out.

        Raises:
            UserError: They cannot be shared out evenly, or the trainer accumulates on its own account.
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
