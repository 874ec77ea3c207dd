"""The checkpoint from which a command of the Trainer starts."""

from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_only

from judgelit.errors import UserError
from judgelit.runs.checkpoints import META, mend, newest, read_meta
from judgelit.runs.exact_resume import ExactResume


def find_checkpoint(asked: str | Path | None, command: str, trainer: Any, root: Path) -> str | Path | None:
    """The checkpoint that a command should load; None for a start without one.

    Args:
        asked: The user's `ckpt_path`: a file or folder, or one of Lightning's words for one.
        command: fit, validate, test or predict.
        trainer: The Trainer, with its callbacks.
        root: The run folder.

    Raises:
        UserError: There is no such checkpoint, or the run cannot continue from it.
    """
    checkpoint = _last(command, trainer, root) if asked == "last" else asked
    if checkpoint is None:
        return None
    if checkpoint in ("best", "registry") or (checkpoint == "hpc" and not any(root.glob("hpc_ckpt_*.ckpt"))):
        raise UserError(
            f"ckpt_path {checkpoint!r}: found no such checkpoint in {root}, expected `last` or a file; name one in its "
            "folder checkpoints"
        )
    if checkpoint == "hpc":
        return checkpoint
    if not Path(checkpoint).exists():
        raise UserError(f"ckpt_path {str(checkpoint)!r}: no such file; expected a checkpoint, or `last`")
    if Path(checkpoint).is_dir() and not (Path(checkpoint) / META).exists():
        raise UserError(
            f"ckpt_path {str(checkpoint)!r}: found a folder that is no checkpoint, expected one such as "
            f"{root / 'checkpoints/last.ckpt'}, or `last`; to start from a model, set model.backbone.name_or_path"
        )
    if Path(checkpoint).is_dir() and not isinstance(trainer.strategy, ModelParallelStrategy):
        raise UserError(
            f"ckpt_path {str(checkpoint)!r}: found a sharded checkpoint, expected a file; continue with strategy FSDP2 "
            "(trainer.strategy.class_path: judgelit.FSDP2), which also works on one device"
        )
    if command == "fit":
        # Found here, a setting that differs costs no reading of data or model.
        for callback in trainer.callbacks:
            if isinstance(callback, ExactResume):
                callback.refuse_other_settings(trainer, read_meta(Path(checkpoint)))
    return checkpoint


def continues(checkpoint: str | Path | None, root: Path) -> bool:
    """Whether a run that starts from `checkpoint` continues the run in `root`."""
    return checkpoint in ("last", "hpc") or (
        checkpoint is not None and root.resolve() in Path(checkpoint).resolve().parents
    )


def _last(command: str, trainer: Any, root: Path) -> str | None:
    """The run's newest checkpoint; None if it has not saved yet."""
    folders = [str(one.dirpath) for one in trainer.checkpoint_callbacks if isinstance(one, ModelCheckpoint)]
    if command == "fit":
        rank_zero_only(mend)(folders)
    found = newest(folders)
    if found is None:
        where = f"no checkpoint in {', '.join(folders)}" if folders else "checkpoints are switched off"
        if command != "fit":
            raise UserError(f"ckpt_path 'last': {where}; expected one of the run")
        if (model := root / "model").exists():
            raise UserError(f"{model} is of a run that has ended, and there is {where}; choose another folder")
    rank_zero_only(print)(
        f"{where}{' yet' if folders else ''}: beginning anew" if found is None else f"continuing from {found}",
        flush=True,
    )
    return None if found is None else str(found)
