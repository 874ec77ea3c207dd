"""Settings of Lightning's Trainer that judgelit refuses, and the Trainer's own refusals in one line."""

from typing import Any

from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder

from judgelit.errors import UserError
from judgelit.training.fsdp import refuse_unknown


def check_trainer_settings(settings: Any) -> None:
    """Check settings that the Trainer would misread.

    Raises:
        UserError: One is wrong.
    """
    if settings["accumulate_grad_batches"] < 1:
        raise UserError(
            f"trainer.accumulate_grad_batches: found {settings['accumulate_grad_batches']}, expected 1 or more"
        )
    if (settings["gradient_clip_val"] or 0) < 0:
        raise UserError(f"trainer.gradient_clip_val: found {settings['gradient_clip_val']}, expected 0 or more")
    if settings["limit_train_batches"] == 0:
        raise UserError(
            "trainer.limit_train_batches: found 0, expected 1 or more; use `judgelit validate` to train nothing"
        )
    refuse_unknown(settings["strategy"])
    if settings["barebones"]:
        raise UserError("trainer.barebones: found true, expected false, since a run keeps logs and checkpoints")
    for callback in as_list(settings["callbacks"]):
        if isinstance(callback, BatchSizeFinder | LearningRateFinder):
            raise UserError(
                f"trainer.callbacks: found {type(callback).__name__}, which does not know judgelit's batches and "
                "optimizers; leave it out, and see `judgelit plan` for what fits into memory"
            )


def trainer_refusal(error: Exception) -> UserError:
    """The Trainer's refusal of a setting, in one line."""
    said = one_line(error)
    advice = "; run it where there is a GPU, or with --trainer.accelerator cpu" if "gpu backend" in said else ""
    return UserError(f"trainer: {said}{advice}")


def one_line(error: Exception) -> str:
    """An exception's message in one line of at most 400 characters."""
    return " ".join(str(error).split())[:400]


def as_list(value: Any) -> list[Any]:
    """The values of a setting that takes none, one or several."""
    if value is None:
        return []
    return list(value) if isinstance(value, list) else [value]
