"""Rows of a Parquet file, read in batches that stay small in memory.

A Parquet file of a few kilobytes can hold gigabytes: pages are compressed, and a dictionary page holds a value once
that many rows repeat. What a row may take is therefore estimated from the file's metadata before anything is decoded.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from judgelit.errors import UserError, first_line
from judgelit.records.json_values import LONGEST_ROW, row_too_long
from judgelit.records.table_values import plain

_BATCH_ROWS = 1024
_BATCH_BYTES = 1 << 27
"""Most bytes of a batch, as far as the dictionaries tell: 128 rows if a dictionary has the usual 1 MiB."""
_MOST_REPEATED = 1 << 30
"""Most bytes of a row of which each value is a whole dictionary."""


def parquet_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the rows of a Parquet file, each with its place.

    Raises:
        UserError: Not a readable Parquet file, or a row of more than LONGEST_ROW bytes.
    """
    number = 0
    try:
        # By default pyarrow reads a whole row group, which may be the whole file, before the first row.
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
            for batch in file.iter_batches(batch_size=_batch_rows(path, file.metadata)):
                if batch.nbytes > LONGEST_ROW:
                    for index in range(batch.num_rows):
                        if batch.slice(index, 1).nbytes > LONGEST_ROW:
                            raise row_too_long(f"{path}: row {number + index + 1}")
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}: row {number}", {name: plain(value) for name, value in row.items()}
    except (pa.ArrowException, UnicodeDecodeError, OSError, MemoryError) as error:
        raise UserError(f"{path}: not a readable Parquet file: {first_line(error)}") from error


def _batch_rows(path: Path, metadata: Any) -> int:
    """Rows of a batch, so that it takes no more than `_BATCH_BYTES`, also if each value is a whole dictionary.

    Raises:
        UserError: The mean row of a row group takes more than LONGEST_ROW bytes.
    """
    largest = 1.0
    with path.open("rb") as file:
        for index in range(metadata.num_row_groups):
            group = metadata.row_group(index)
            for column in (group.column(place) for place in range(group.num_columns)):
                values_per_row = column.num_values / max(group.num_rows, 1)
                stored = max(column.total_uncompressed_size / max(group.num_rows, 1), 8 * values_per_row)
                repeated = values_per_row * _dictionary_bytes(file, column)
                if stored > LONGEST_ROW or repeated > _MOST_REPEATED:
                    raise row_too_long(f"{path}: row group {index + 1}: column {column.path_in_schema!r}")
                largest = max(largest, repeated)
    return max(1, min(_BATCH_ROWS, int(_BATCH_BYTES / largest)))


def _dictionary_bytes(file: BinaryIO, column: Any) -> int:
    """Size of a column's decompressed dictionary page, or 0.

    The page begins with a header in Thrift's compact protocol. Its first two fields are 32-bit numbers, the type of the
    page and its decompressed size (PageHeader in parquet-format's parquet.thrift).
    """
    if not column.has_dictionary_page:
        return 0
    file.seek(column.dictionary_page_offset)
    header = iter(file.read(12))
    values: list[int] = []
    for field in header:
        if field != 0x15 or len(values) == 2:  # The next field, of type i32.
            break
        value = shift = 0
        for byte in header:
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        values.append(value >> 1)  # Zigzag; sizes are not negative.
    return values[1] if len(values) == 2 else 0
