"""The warm-up: next-token loss on the judgment alone."""

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from judgelit.batches.flat_batch import Batch
from judgelit.likelihood.layouts import LayoutChoice
from judgelit.likelihood.logprobs import completion_logprobs
from judgelit.models.backbone import Backbone
from judgelit.training.finetuning import FineTuningModule


class SFTModule(FineTuningModule):
    """Supervised fine-tuning: minimise -log p(completion | prompt), averaged over completion tokens.

    The average is over the completion tokens of the whole optimizer step, accumulation and ranks included.
    """

    def __init__(
        self,
        backbone: Backbone,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
        layout: LayoutChoice = "auto",
    ) -> None:
        """Describe the run; nothing is built yet.

        Args:
            backbone: The model and how it is fine-tuned.
            optimizer: Any optimizer, by class_path.
            lr_scheduler: Any scheduler, by class_path, stepped once an optimizer step.
            layout: `shared_prefix` packs the examples of a batch into one row without padding, each seeing only itself,
                and those of one prompt sharing it; `concatenated` pads a row for each; `auto`: the first wherever the
                model can take it.
        """
        super().__init__(backbone, optimizer, lr_scheduler, layout)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The summed negative log-likelihood of a micro-batch's completions."""
        assert self.model is not None
        logprobs = completion_logprobs(self.model, batch, self.scoring(batch))
        nll, tokens = -logprobs.sums.sum(), len(logprobs.tokens)
        return self.accumulate(nll, tokens, batch)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the negative log-likelihood a token, over the whole validation set."""
        assert self.model is not None
        logprobs = completion_logprobs(self.model, batch, self.scoring(batch))
        self.log_validation(len(logprobs.tokens), loss=-logprobs.sums.sum())
