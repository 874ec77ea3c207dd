"""Read rows from JSON, JSONL and Parquet files; write records to JSONL and Parquet files."""

import codecs
import glob
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from itertools import chain, count, islice
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from judgelit.atomic import atomic_file
from judgelit.errors import UserError
from judgelit.records.json_values import LONGEST_ROW, json_value, json_values, not_utf8, row_too_long
from judgelit.records.records import Record
from judgelit.records.unicode import dump_json

SUFFIXES = (".jsonl", ".ndjson", ".json", ".jsonl.gz", ".ndjson.gz", ".json.gz", ".parquet")

WRITTEN = (".jsonl", ".ndjson", ".parquet")
"""Suffixes of files that `write_records` writes."""


class BrokenRow(dict[str, Any]):
    """A line of a file that is not a row, as a row without fields. `error` says why."""

    def __init__(self, error: UserError) -> None:
        super().__init__()
        self.error = error


def read_rows(path: str, broken: bool = False) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the rows of a file, folder or glob pattern, each with its place.

    A JSON file holds a list of rows, rows one after another, or an object with named lists of rows.

    A place is `file:line`. If several items of a JSON list begin on one line, it is `file: item 3`. In an object with
    named lists it is `file: item 3 of 'name'`, in Parquet `file: row 3`.

    Args:
        path: A file, folder or glob pattern.
        broken: Yield a BrokenRow in place of a line of JSONL that is not JSON or too long, and in place of a value that
            is not an object, and go on.

    Raises:
        UserError: No such file, a file without rows, not UTF-8, not JSON, a row that is not an object, or a row of
            more than LONGEST_ROW bytes.
    """
    empty = True
    for file in data_files(path)[1]:
        try:
            for at, row in _reader(file)(file):
                found = row
                if not isinstance(row, dict | UserError):
                    found = UserError(f"{at}: found {_kind(row)}, expected a row that is an object with named fields")
                if isinstance(found, UserError) and not broken:
                    raise found
                empty = False
                yield at, BrokenRow(found) if isinstance(found, UserError) else found
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UserError(f"{file}: not a whole gzip file: {error}") from error
        except OSError as error:
            raise UserError(f"{file}: cannot be read: {error.strerror or error}") from error
    if empty:
        raise UserError(f"{path}: empty: found no rows, expected at least one")


def data_files(path: str) -> tuple[Path, list[Path]]:
    """The folder to which file names are relative, and the files that `path` names, sorted.

    A folder means the data files directly in it. In a glob pattern `**` also enters folders.
    """
    given = Path(path).expanduser()
    if given.is_file():
        if not _is_data(given):
            raise UserError(f"{path}: unknown suffix, expected one of {', '.join(SUFFIXES)}")
        return given.parent, [given]
    if given.is_dir():
        base, found = given, list(given.iterdir())
    elif glob.has_magic(path):
        base = Path(*_parts_before_pattern(given))
        found = [Path(name) for name in glob.glob(str(given), recursive=True)]  # noqa: PTH207 (takes absolute patterns)
    else:
        raise UserError(f"{path}: no such file")
    named = sorted(file for file in found if _is_data(file) and not file.name.startswith("."))
    for file in named:
        if file.is_symlink() and not file.exists():
            raise UserError(f"{file}: found a link to {file.readlink()}, where there is nothing; expected a data file")
    files = [file for file in named if file.is_file()]
    if not files:
        hint = "; for files in subfolders give a pattern such as folder/**/*.jsonl" if given.is_dir() else ""
        raise UserError(f"{path}: found no data file, expected one of {', '.join(SUFFIXES)}{hint}")
    return base, files


def looks_like_file(path: str) -> bool:
    """Whether `path` means a file, folder or pattern, even if there is none, and not a data set of the hub."""
    return (
        Path(path).expanduser().exists()
        or _is_data(Path(path))
        or glob.has_magic(path)
        or path.startswith((".", "/", "~"))
        or path.endswith("/")
        or path.count("/") > 1
        or "\\" in path
    )


def refuse_unknown_suffix(path: Path) -> None:
    """Refuse a file that `write_records` cannot write, before the work for its content.

    Raises:
        UserError: Its suffix is none that is written, or its name is that of a folder.
    """
    if path.suffix not in WRITTEN:
        raise UserError(f"{path}: unknown suffix for writing, expected one of {', '.join(WRITTEN)}")
    if path.is_dir():
        raise UserError(f"{path}: found a folder, expected a file to write")


def write_records(path: str | Path, records: Iterable[Record]) -> None:
    """Write records as JSONL or Parquet, by the suffix of `path`. The file appears only when it is complete.

    Parquet columns have one type each, so `meta` is stored as JSON text there.

    Raises:
        UserError: Unknown suffix, or the file cannot be written.
    """
    path = Path(path)
    refuse_unknown_suffix(path)
    writers = {".jsonl": _write_jsonl, ".ndjson": _write_jsonl, ".parquet": _write_parquet}
    try:
        with atomic_file(path) as file:
            writers[path.suffix](file, records)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error


def _write_jsonl(file: IO[bytes], records: Iterable[Record]) -> None:
    for record in records:
        file.write(dump_json(record.to_dict()).encode() + b"\n")


def _write_parquet(file: IO[bytes], records: Iterable[Record]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [json.loads(dump_json(record.to_dict())) for record in records]
    for row in rows:
        if "meta" in row:
            row["meta"] = dump_json(row["meta"])
    # Explicit types: pyarrow would infer no type for a column that is empty in this file, and files would differ.
    turns = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    types = {"seed": pa.int64(), "sample": pa.int64(), "margin": pa.float64(), "answers": pa.list_(pa.string())}
    types["right"] = pa.list_(pa.int64())
    types |= dict.fromkeys(("context", "prompt", "completion", "chosen", "rejected"), turns)
    columns = dict.fromkeys(name for row in rows for name in row)
    schema = pa.schema([(name, types.get(name, pa.string())) for name in columns])
    pq.write_table(pa.Table.from_pylist(rows, schema), file)


def _is_data(path: Path) -> bool:
    return path.name.lower().endswith(SUFFIXES)


def _parts_before_pattern(path: Path) -> Iterator[str]:
    for part in path.parts:
        if glob.has_magic(part):
            return
        yield part


def _reader(path: Path) -> Any:
    suffix = Path(path.name.lower().removesuffix(".gz")).suffix
    if suffix == ".parquet":
        from judgelit.records.parquet_rows import parquet_rows

        return parquet_rows
    return _read_json if suffix == ".json" else _read_jsonl


def _open(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path)) if path.suffix.lower() == ".gz" else path.open("rb")


def _read_jsonl(path: Path) -> Iterator[tuple[str, object]]:
    """Yield the value of each line, or the error about it."""
    with _open(path) as file:
        # Lines of bytes end with \n only; lines of text would also end at U+2028, which JSON allows inside a string.
        for number in count(1):
            line = file.readline(LONGEST_ROW + 1)
            if not line:
                return
            try:
                if len(line) > LONGEST_ROW:
                    while line and not line.endswith(b"\n"):
                        line = file.readline(LONGEST_ROW)
                    raise row_too_long(f"{path}:{number}")
                data = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
                try:
                    text = data.decode()
                except UnicodeDecodeError as error:
                    raise not_utf8(path, number, data[error.start]) from error
                if text.strip():
                    yield f"{path}:{number}", json_value(text, path, number)
            except UserError as error:
                yield f"{path}:{number}", error


def _read_json(path: Path) -> Iterator[tuple[str, object]]:
    with _open(path) as file:
        is_list, values = json_values(file, path)
        first = list(islice(values, 2))
        named = _named_lists(first[0][1]) if len(first) == 1 and not is_list else {}
        if named:
            for name, items in named.items():
                for number, item in enumerate(items, 1):
                    yield f"{path}: item {number} of {name!r}", item
            return
        previous = 0
        for number, (line, value) in enumerate(chain(first, values), 1):
            yield f"{path}:{line}" if line > previous else f"{path}: item {number}", value
            previous = line


def _named_lists(value: object) -> dict[str, list[object]]:
    """The lists of rows in an object that is not a row. A list of conversation turns makes the object a row."""
    if not isinstance(value, dict):
        return {}
    lists = {name: items for name, items in value.items() if isinstance(items, list) and items}
    turns = ("role", "from")
    return {name: x for name, x in lists.items() if isinstance(x[0], dict) and not any(key in x[0] for key in turns)}


def _kind(value: object) -> str:
    names = {list: "a list", str: "a text", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")
