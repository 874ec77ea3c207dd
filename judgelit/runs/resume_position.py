"""Position in the data of a run that continues on another number of ranks."""

import math
from typing import Any

import lightning as L

from judgelit.errors import UserError


def convert_position(trainer: L.Trainer, loop: dict[str, Any], data: dict[str, Any], ranks: int) -> dict[str, Any]:
    """Convert a checkpoint's position in the data, in batches of one rank, from `ranks` ranks to the present number.

    Args:
        trainer: The trainer; its data module gets the new position.
        loop: State of the fit loop, which is changed in place.
        data: State of the data module.
        ranks: Number of ranks that saved the checkpoint.

    Returns:
        The new state of the data module.

    Raises:
        UserError: The batches that are done do not fill the last turn of the present ranks.
    """
    if data["batches"] * ranks % trainer.world_size:
        raise UserError(
            f"trainer.devices: found {trainer.world_size} processes, expected a divisor of the "
            f"{data['batches'] * ranks} micro-batches of this epoch that the run of the checkpoint has done; continue "
            f"on {ranks} processes, as before"
        )
    data = {**data, "batches": data["batches"] * ranks // trainer.world_size}
    trainer.datamodule.load_state_dict(data)  # type: ignore[attr-defined]
    progress = loop["epoch_loop.batch_progress"]
    batches = progress["current"]["ready"] * ranks / trainer.world_size
    # The last batch of an epoch must still be its last.
    batches = int(math.ceil(batches) if progress["is_last_batch"] else batches)
    for counts in (progress["total"], progress["current"]):
        counts.update(ready=batches, started=batches, processed=batches, completed=batches - 1)
    return data


def correct_total(trainer: L.Trainer, data: dict[str, Any]) -> None:
    """Set the total number of batches to what it would be if the run had had this number of ranks from its start."""
    total: Any = trainer.fit_loop.epoch_loop.batch_progress.total
    missing = data["epoch"] * int(trainer.fit_loop.max_batches) + data["batches"] - total.processed
    for name in ("ready", "started", "processed", "completed"):
        setattr(total, name, getattr(total, name) + missing)
