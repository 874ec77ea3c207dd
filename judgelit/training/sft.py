"""The warm-up: next-token loss on the judgment alone."""

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from judgelit.batches.flat_batch import Batch
from judgelit.likelihood.layouts import LayoutChoice
from judgelit.models.backbone import Backbone
from judgelit.training.finetuning import FineTuningModule
from judgelit.training.losses import sft_loss


class SFTModule(FineTuningModule):
    """Supervised fine-tuning: minimise -log p(completion | prompt), averaged over completion tokens.

    The average is over the completion tokens of the global batch, accumulation and ranks included.
    """

    def __init__(
        self,
        backbone: Backbone,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
        layout: LayoutChoice = "auto",
    ) -> None:
        """Describe the training; the model is built when it begins.

        Args:
            backbone: The model and how it is fine-tuned.
            optimizer: An optimizer by class_path.
            lr_scheduler: A learning-rate scheduler by class_path. It steps with the optimizer.
            layout: `shared_prefix` packs the examples of a batch into one row without padding, in which each sees only
                itself and its prompt; `concatenated` pads a row for each; `auto` is the first where the model can
                take it.
        """
        super().__init__(backbone, optimizer, lr_scheduler, layout)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a micro-batch as `GlobalMean` wants it."""
        policy = self.policy.logprobs(batch)
        terms = sft_loss(policy, batch)
        return self.global_mean(terms, batch)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the loss over the whole validation set."""
        policy = self.policy.logprobs(batch)
        self.log_terms(sft_loss(policy, batch), batch)
