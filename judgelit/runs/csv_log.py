"""CSV log of a run: one file, however often the run is stopped and continued."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from judgelit.atomic import atomic_file, remove_parts, sync
from judgelit.errors import UserError, first_line

Row = dict[str, Any]


class RunLog(Logger):
    """Writes metrics to `csv/version_0/metrics.csv`, one row a call, in the form of Lightning's CSVLogger.

    A continued run cuts the file back to the rows that its checkpoint counted. So the file of a stopped and continued
    run equals that of a run without a stop.

    Args:
        root: The folder of the run. Nothing is written yet.
    """

    def __init__(self, root: str | Path) -> None:
        super().__init__()
        self.path = Path(root) / "csv" / "version_0" / "metrics.csv"
        self.rows = 0
        """Number of rows logged so far."""
        self._columns: list[str] = []
        self._unsaved: list[Row] = []

    @property
    def name(self) -> str:
        """Lightning's name for this kind of logger."""
        return "csv"

    @property
    def version(self) -> int:
        """Always 0: a run has one file."""
        return 0

    @property
    def save_dir(self) -> str:
        """The folder of the run."""
        return str(self.path.parents[2])

    @property
    def log_dir(self) -> str:
        """The folder of the file."""
        return str(self.path.parent)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: config.yaml holds all hyper-parameters."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log a row; tensors of one element are written as numbers."""
        values = {name: value.item() if hasattr(value, "item") else value for name, value in metrics.items()}
        self._unsaved.append({**values, "step": self.rows if step is None else step})
        self.rows += 1

    @rank_zero_only
    def save(self) -> None:
        """Write all rows logged so far to the file."""
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
        """Write all rows logged so far and force the file to the disk."""
        self.save()
        if self.path.exists():
            sync(self.path)

    def finalize(self, status: str) -> None:
        """Write all rows logged so far."""
        self.save()

    @rank_zero_only
    def rewind(self, rows: int) -> None:
        """Keep the first `rows` rows of the file and drop the others."""
        remove_parts(self.path)
        kept = self._read()[:rows]
        self.rows, self._columns, self._unsaved = len(kept), [], []
        if kept or self.path.exists():
            self._write(kept)

    def _read(self) -> list[Row]:
        return read_log(self.path) if self.path.exists() else []

    def _write(self, rows: Sequence[Row]) -> None:
        """Replace the file by these rows, with a column for each name that has a value in any row."""
        self._columns = sorted({name for row in rows for name, value in row.items() if value not in ("", None)})
        with atomic_file(self.path, "w") as file:
            writer = csv.DictWriter(file, self._columns, extrasaction="ignore")
            if rows:
                writer.writeheader()
            writer.writerows(rows)


def read_log(path: Path) -> list[Row]:
    """The rows of a CSV log.

    Raises:
        UserError: The file is no CSV log.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as a log ({first_line(error)}); move it away") from error
    for number, row in enumerate(rows, 2):
        if None in row or "step" not in row:
            raise UserError(
                f"{path}:{number}: found no row of a log (a value of each column, among them step); move it away"
            )
    return rows
