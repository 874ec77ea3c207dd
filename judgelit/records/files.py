"""Files of rows: JSON, JSONL and Parquet in, JSONL and Parquet out.

Unpaired UTF-16 surrogates, which JSON can spell and UTF-8, Parquet and tokenizers cannot hold, become U+FFFD wherever
text enters or leaves.
"""

import codecs
import glob
import gzip
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, cast
from uuid import uuid4

from judgelit.errors import UserError
from judgelit.records.records import Record

SUFFIXES = (".jsonl", ".ndjson", ".json", ".jsonl.gz", ".ndjson.gz", ".json.gz", ".parquet")
_NUMBERS = {"seed": "int64", "margin": "float64"}
_CONVERSATIONS = ("messages", "context", "prompt")
_SPACE = re.compile(r"[ \t\n\r]*")
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_DECODER = json.JSONDecoder()


def read_rows(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a file, folder or glob pattern, each with the place where it stands.

    A place is `file:line`, `file: item 3` for the items of a list that begin on one line, `file: item 3 of 'name'` for
    an object of lists, `file: row 3` for Parquet. JSON may be a list, JSONL, or an object that holds lists of rows.

    Raises:
        UserError: No such file, no row in it, not UTF-8, not JSON, or a row that is not an object.
    """
    empty = True
    for file in data_files(path)[1]:
        try:
            for at, row in _reader(file)(file):
                if not isinstance(row, dict):
                    raise UserError(f"{at}: found {_kind(row)}, expected a row that is an object with named fields")
                empty = False
                yield at, row
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UserError(f"{file}: not a whole gzip file: {error}") from error
        except OSError as error:
            raise UserError(f"{file}: cannot be read: {error.strerror or error}") from error
    if empty:
        raise UserError(f"{path}: empty: found no rows, expected at least one")


def data_files(path: str) -> tuple[Path, list[Path]]:
    """The files that `path` names, sorted, and the folder from which they are named.

    A folder stands for the data files directly in it, a glob pattern for those that match; `**` also enters folders.
    """
    given = Path(path).expanduser()
    if given.is_file():
        if not _is_data(given):
            raise UserError(f"{path}: unknown suffix, expected one of {', '.join(SUFFIXES)}")
        return given.parent, [given]
    if given.is_dir():
        base, found = given, list(given.iterdir())
    elif glob.has_magic(path):
        plain = [part for part, after in zip(given.parts, _magic_from(given), strict=True) if not after]
        # Path.glob takes no absolute pattern.
        base, found = Path(*plain), [Path(name) for name in glob.glob(str(given), recursive=True)]  # noqa: PTH207
    else:
        raise UserError(f"{path}: no such file")
    files = sorted(file for file in found if _is_data(file) and file.is_file() and not file.name.startswith("."))
    if not files:
        hint = "; for those in its folders give a pattern such as folder/**/*.jsonl" if given.is_dir() else ""
        raise UserError(f"{path}: no data file there, expected one of {', '.join(SUFFIXES)}{hint}")
    return base, files


def looks_like_file(path: str) -> bool:
    """Whether `path` means a file, folder or pattern, there or not, rather than a data set of the hub."""
    return (
        Path(path).expanduser().exists()
        or _is_data(Path(path))
        or glob.has_magic(path)
        or path.startswith((".", "/", "~"))
        or path.endswith("/")
        or path.count("/") > 1
        or "\\" in path
    )


def write_records(path: str | Path, records: Iterable[Record]) -> None:
    """Write records as JSONL or Parquet, by the suffix of `path`; the file appears only once it is complete.

    Parquet, whose columns have one type, holds `meta` as JSON text.
    """
    path = Path(path)
    writers = {".jsonl": _write_jsonl, ".ndjson": _write_jsonl, ".parquet": _write_parquet}
    if path.suffix not in writers:
        raise UserError(f"{path}: unknown suffix to write to, expected one of {', '.join(writers)}")
    part = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("xb") as handle:
                writers[path.suffix](handle, records)
                handle.flush()
                os.fsync(handle.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error


def _write_jsonl(handle: BinaryIO, records: Iterable[Record]) -> None:
    for record in records:
        handle.write(_dump(record.to_dict()).encode() + b"\n")


def _write_parquet(handle: BinaryIO, records: Iterable[Record]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [json.loads(_dump(record.to_dict())) for record in records]
    for row in rows:
        if "meta" in row:
            row["meta"] = _dump(row["meta"])
    # Inferred types would differ between files: a column that is empty throughout would have none.
    turns = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    types = dict.fromkeys(_CONVERSATIONS, turns) | {name: pa.type_for_alias(t) for name, t in _NUMBERS.items()}
    schema = pa.schema([(name, types.get(name, pa.string())) for name in (rows[0] if rows else ())])
    pq.write_table(pa.Table.from_pylist(rows, schema), handle)


def _dump(value: object) -> str:
    return _whole_characters(json.dumps(value, ensure_ascii=False))


def _whole_characters(text: str) -> str:
    """`text` with surrogates joined to the characters that they spell, and U+FFFD for those without a partner."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _is_data(path: Path) -> bool:
    return path.name.lower().endswith(SUFFIXES)


def _magic_from(path: Path) -> Iterator[bool]:
    """For each part of a pattern, whether it or one before it is a pattern."""
    found = False
    for part in path.parts:
        found = found or glob.has_magic(part)
        yield found


def _reader(path: Path) -> Any:
    suffix = Path(path.name.lower().removesuffix(".gz")).suffix
    return {".json": _read_json, ".parquet": _read_parquet}.get(suffix, _read_jsonl)


def _open(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path)) if path.suffix.lower() == ".gz" else path.open("rb")


def _read_jsonl(path: Path) -> Iterator[tuple[str, object]]:
    with _open(path) as handle:
        # As bytes, lines end with \n only: U+2028 and its like may stand inside of a JSON text.
        for number, line in enumerate(handle, 1):
            text = _decode(line, path, number)
            if text.strip():
                try:
                    value, end = _value(text, _after_space(text, 0))
                    _expect_end(text, end)
                except json.JSONDecodeError as error:
                    raise _not_json(path, number, error) from error
                yield f"{path}:{number}", _mended(value, text)


def _read_json(path: Path) -> Iterator[tuple[str, object]]:
    with _open(path) as handle:
        text = _decode(handle.read(), path, 1)
    line, end = 1, 0
    try:
        values = _scan(text)
        first = list(zip(range(2), values, strict=False))
        if len(first) == 1 and not text.lstrip().startswith("["):
            lists = _lists_of_rows(first[0][1][1])
            if lists:
                for name, items in lists.items():
                    for number, item in enumerate(items, 1):
                        yield f"{path}: item {number} of {name!r}", _mended(item, text)
                return
        previous = 0
        for number, (start, value) in enumerate(chain((pair for _, pair in first), values), 1):
            line, end = line + text.count("\n", end, start), start
            yield f"{path}:{line}" if line > previous else f"{path}: item {number}", _mended(value, text)
            previous = line
    except json.JSONDecodeError as error:
        raise _not_json(path, error.lineno, error) from error


def _read_parquet(path: Path) -> Iterator[tuple[str, object]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        # Left to itself it would read a whole row group, which may be the whole file, before the first row.
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}: row {number}", row
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path}: not a Parquet file that can be read: {str(error).partition(chr(10))[0]}") from error


def _scan(text: str) -> Iterator[tuple[int, object]]:
    """Each value of a text of JSON values with its offset; where the text is one list, each of its items."""
    at = _after_space(text, 0)
    listed = text.startswith("[", at)
    if listed:
        at = _after_space(text, at + 1)
    if not (listed and text.startswith("]", at)):
        while at < len(text) or listed:
            value, end = _value(text, at)
            yield at, value
            at = _after_space(text, end)
            if listed:
                if text.startswith("]", at):
                    break
                if not text.startswith(",", at):
                    raise json.JSONDecodeError("Expecting ',' delimiter", text, at)
                at = _after_space(text, at + 1)
    if listed:
        _expect_end(text, at + 1)


def _value(text: str, at: int) -> tuple[object, int]:
    """The JSON value that begins at an offset, and where it ends."""
    try:
        return _DECODER.raw_decode(text, at)
    except json.JSONDecodeError:
        raise
    except RecursionError as error:
        raise json.JSONDecodeError("nested too deeply", text, at) from error
    except ValueError as error:  # A number of more digits than Python reads.
        raise json.JSONDecodeError(str(error).partition(";")[0], text, at) from error


def _expect_end(text: str, at: int) -> None:
    rest = _after_space(text, at)
    if rest < len(text):
        raise json.JSONDecodeError("Extra data", text, rest)


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


def _lists_of_rows(value: object) -> dict[str, list[object]]:
    """The lists of rows in an object that is not itself a row; a row may hold lists of turns."""
    if not isinstance(value, dict):
        return {}
    lists = {name: items for name, items in value.items() if isinstance(items, list) and items}
    turns = ("role", "from")
    return {name: x for name, x in lists.items() if isinstance(x[0], dict) and not any(key in x[0] for key in turns)}


def _decode(data: bytes, path: Path, line: int) -> str:
    """Text of `data`, which begins on `line`; a byte order mark may stand before the first."""
    if line == 1:
        data = data.removeprefix(codecs.BOM_UTF8)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line += data.count(b"\n", 0, error.start)
        raise UserError(f"{path}:{line}: not UTF-8: byte 0x{data[error.start]:02x}; save the file as UTF-8") from error


def _mended(value: object, text: str) -> object:
    """`value`, parsed from `text`, without unpaired surrogates."""
    if _ESCAPED_SURROGATE.search(text):
        return json.loads(_dump(value))
    return value


def _not_json(path: Path, line: int, error: json.JSONDecodeError) -> UserError:
    return UserError(f"{path}:{line}: not JSON: {error.msg} at column {error.colno}")


def _kind(value: object) -> str:
    names = {list: "a list", str: "a text", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")
