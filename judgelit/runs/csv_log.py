"""The run's CSV log: one file however often the run is stopped."""

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

Row = dict[str, Any]


class RunLog(Logger):
    """Writes metrics to `csv/version_0/metrics.csv`, a row a call, in Lightning's form.

    A run that continues takes the file back to where its checkpoint was made and goes on from there, so the file of a
    stopped run is that of a run that was never stopped.
    """

    def __init__(self, root: str | Path) -> None:
        """Say which run's log it is; nothing is written yet.

        Args:
            root: The run's folder.
        """
        super().__init__()
        self.path = Path(root) / "csv" / "version_0" / "metrics.csv"
        self.rows = 0
        """Rows logged so far."""
        self._columns: list[str] = []
        self._unsaved: list[Row] = []

    @property
    def name(self) -> str:
        """Lightning's word for the kind of log."""
        return "csv"

    @property
    def version(self) -> int:
        """There is one."""
        return 0

    @property
    def save_dir(self) -> str:
        """The run's folder."""
        return str(self.path.parents[2])

    @property
    def log_dir(self) -> str:
        """The file's folder."""
        return str(self.path.parent)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: config.yaml has them all."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log a row; tensors of one element are written as numbers."""
        values = {name: value.item() if hasattr(value, "item") else value for name, value in metrics.items()}
        self._unsaved.append({**values, "step": self.rows if step is None else step})
        self.rows += 1

    @rank_zero_only
    def save(self) -> None:
        """Bring the file up to date."""
        if not self._unsaved:
            return
        if {name for row in self._unsaved for name in row} <= set(self._columns):
            with self.path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self._columns).writerows(self._unsaved)
        else:
            self._write([*self._read(), *self._unsaved])
        self._unsaved = []

    @rank_zero_only
    def sync(self) -> None:
        """Bring the file up to date, on the disk too."""
        self.save()
        if self.path.exists():
            with self.path.open("a", encoding="utf-8") as file:
                os.fsync(file.fileno())

    def finalize(self, status: str) -> None:
        """Save what is left."""
        self.save()

    @rank_zero_only
    def rewind(self, rows: int, more: Sequence[Row] = ()) -> None:
        """Go back to the first `rows` rows of the file and add `more`."""
        kept = [*self._read()[:rows], *more]
        self.rows, self._columns, self._unsaved = len(kept), [], []
        if kept or self.path.exists():
            self._write(kept)

    def _read(self) -> list[Row]:
        if not self.path.exists():
            return []
        with self.path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def _write(self, rows: Sequence[Row]) -> None:
        """Put a file of these rows in the old one's place, with all columns that any has a value of."""
        self._columns = sorted({name for row in rows for name, value in row.items() if value not in ("", None)})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_name(self.path.name + ".part")
        with part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._columns, extrasaction="ignore")
            if rows:
                writer.writeheader()
            writer.writerows(rows)
            file.flush()
            os.fsync(file.fileno())
        part.replace(self.path)
