"""Some judgments as text in TensorBoard and W&B."""

from collections.abc import Sequence

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger

from judgelit.records.records import Judgment

COLUMNS = ["item", "order", "verdict", "prompt", "judgment"]
"""Columns of the table in W&B."""


def log_texts(trainer: L.Trainer, name: str, judgments: Sequence[Judgment]) -> None:
    """Log judgments of a set: one text for each in TensorBoard, `judge/<set>/<number>`, and in W&B a table."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            for number, judgment in enumerate(judgments):
                text = as_code(f"{judgment.prompt[-1]['content']}\n\n----\n\n{judgment.text}")
                logger.experiment.add_text(f"judge/{name}/{number}", text, trainer.global_step)
        elif isinstance(logger, WandbLogger):
            rows = [
                [one.pair_id, one.order, one.verdict or "none", one.prompt[-1]["content"], one.text]
                for one in judgments
            ]
            logger.log_text(f"judge/{name}/judgments", COLUMNS, rows, step=trainer.global_step)


def as_code(text: str) -> str:
    """Text as a block of code in TensorBoard's Markdown, so that it cannot become a heading, a link or an image."""
    # An indented line is code. For Markdown, a carriage return ends a line too.
    return "\n".join(f"    {line}" for line in text.splitlines())
