"""Values of a JSON text of any size, one at a time, decoded by the standard library.

Not by ijson: its C parser (yajl) fails on unpaired surrogates, NaN and integers beyond 64 bits, and its memory grows
with the square of the nesting depth, so that a broken file of 200 kB ends the process.
"""

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from judgelit.errors import UserError
from judgelit.records.unicode import replace_surrogates_in

_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()
_LONGEST_LITERAL = len("-Infinity")

LONGEST_ROW = 1 << 25
"""Most bytes that one row may take in a file: 32 MiB, more text than a model can read.

A small compressed file can hold a row of many gigabytes. Such a row is refused before it fills the memory.
"""


def json_values(file: BinaryIO, path: Path, chunk: int = 1 << 20) -> tuple[bool, Iterator[tuple[int, object]]]:
    """Whether a file is one JSON list, and its values, each with the line on which it begins.

    The values are the items of the list, or values one after another.

    Args:
        file: UTF-8 text, with or without a byte order mark.
        path: Its name, for error messages.
        chunk: Bytes to read at a time. Memory holds one chunk, or one value if that is longer.

    Raises:
        UserError: Not UTF-8, not JSON, or a value of more than LONGEST_ROW characters.
    """
    text = _Text(file, path, chunk)
    is_list = text.next_character() == "["
    return is_list, _items(text) if is_list else _values(text)


def json_value(text: str, path: Path, line: int) -> object:
    """The one JSON value of a line.

    Raises:
        UserError: The line is not JSON.
    """
    try:
        value, end = _decode_value(text, _after_space(text, 0))
        rest = _after_space(text, end)
        if rest < len(text):
            raise json.JSONDecodeError("Extra data", text, rest)
    except json.JSONDecodeError as error:
        raise not_json(path, line, error.colno, error.msg) from error
    return replace_surrogates_in(value, text)


def not_utf8(path: Path, line: int, byte: int) -> UserError:
    """The error about a file that is not UTF-8."""
    return UserError(f"{path}:{line}: not UTF-8: byte 0x{byte:02x}; save the file as UTF-8")


def row_too_long(place: str) -> UserError:
    """The error about a row that takes too much memory."""
    advice = "expected a shorter one; write each row on a line of its own"
    return UserError(f"{place}: found a row of more than {LONGEST_ROW >> 20} MiB, {advice}")


def not_json(path: Path, line: int, column: int, problem: str) -> UserError:
    """The error about a file that is not JSON."""
    return UserError(f"{path}:{line}: not JSON: {problem} at column {column}")


def _values(text: "_Text") -> Iterator[tuple[int, object]]:
    while text.next_character():
        yield text.value()


def _items(text: "_Text") -> Iterator[tuple[int, object]]:
    text.skip()
    ended = text.next_character() == "]"
    while not ended:
        yield text.value()
        ended = text.next_character() == "]"
        if not ended:
            if text.next_character() != ",":
                raise text.refusal("Expecting ',' delimiter")
            text.skip()
            text.next_character()
    text.skip()
    if text.next_character():
        raise text.refusal("Extra data")


class _Text:
    """The text of a file from the current position to the end of the chunk."""

    def __init__(self, file: BinaryIO, path: Path, chunk: int) -> None:
        self._file, self._path, self._chunk = file, path, chunk
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._text, self._at, self._ended = "", 0, False
        self._line, self._column = 1, 1

    def next_character(self) -> str:
        """The next character that is not white space; empty at the end of the file."""
        self._move_to(_after_space(self._text, self._at))
        while self._at == len(self._text) and not self._ended:
            self._read()
            self._move_to(_after_space(self._text, self._at))
        return self._text[self._at : self._at + 1]

    def skip(self) -> None:
        """Skip one character."""
        self._move_to(self._at + 1)

    def value(self) -> tuple[int, object]:
        """The value at the current position, and its line."""
        while True:
            try:
                value, end = _decode_value(self._text, self._at)
                # A number may go on in the next chunk: of 1e+5 the decoder reads the 1 if the chunk ends before the 5.
                if end < len(self._text) - len("e+") or self._ended:
                    break
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated") or error.pos >= len(self._text) - _LONGEST_LITERAL
                if self._ended or not cut:
                    self._move_to(error.pos)
                    raise self.refusal(error.msg) from error
            if len(self._text) - self._at > LONGEST_ROW:
                raise row_too_long(f"{self._path}:{self._line}")
            self._read()
        line, start = self._line, self._at
        self._move_to(end)
        return line, replace_surrogates_in(value, self._text, start, end)

    def refusal(self, problem: str) -> UserError:
        """The error about a problem at the current position."""
        return not_json(self._path, self._line, self._column, problem)

    def _read(self) -> None:
        rest = self._text[self._at :]
        data = self._file.read(max(self._chunk, len(rest)))  # Longer and longer, or a long value would take n^2.
        try:
            more = self._decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            line = self._line + rest.count("\n") + error.object.count(b"\n", 0, error.start)
            raise not_utf8(self._path, line, error.object[error.start]) from error
        self._text, self._at, self._ended = rest + more, 0, not data

    def _move_to(self, at: int) -> None:
        newline = self._text.rfind("\n", self._at, at)
        if newline < 0:
            self._column += at - self._at
        else:
            self._line += self._text.count("\n", self._at, at)
            self._column = at - newline
        self._at = at


def _decode_value(text: str, at: int) -> tuple[object, int]:
    """The JSON value that begins at an offset, and the offset of its end."""
    try:
        return _DECODER.raw_decode(text, at)
    except json.JSONDecodeError:
        raise
    except RecursionError as error:
        raise json.JSONDecodeError("nested too deeply", text, at) from error
    except ValueError as error:  # A number with more digits than Python reads.
        raise json.JSONDecodeError(str(error).partition(";")[0], text, at) from error


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at
