"""Standard output and standard error that never stop the work, and text that a terminal shows as it is."""

import io
import re
import sys
from typing import Any

_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
"""Control characters, line separators, direction marks, spaces without width, and surrogates."""


def printable(text: str) -> str:
    """`text` with control characters as escapes: names in a user's files can hold commands to the terminal."""
    return _CONTROLS.sub(lambda found: ascii(found[0])[1:-1], text)


class _Stream(io.FileIO):
    """An output whose failures are noted and not raised: what a command computes is worth more than its lines."""

    failure: OSError | None = None

    def write(self, data: Any, /) -> int:
        """Write, or note that it was not possible."""
        try:
            return super().write(data)
        except OSError as error:
            self.failure = self.failure or error
            return len(data)


_outputs: dict[str, _Stream] = {}


def keep_working_without_output() -> None:
    """Replace standard output and error of this process by such that never fail. Only the first call has an effect."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        # A test, or a program that uses judgelit, may have set another object.
        if name in _outputs or stream is None or stream is not getattr(sys, f"__{name}__"):
            continue
        raw = _outputs[name] = _Stream(stream.fileno(), "wb", closefd=False)
        line_by_line = name == "stderr" or raw.isatty()
        text = io.TextIOWrapper(
            io.BufferedWriter(raw), stream.encoding, "backslashreplace", line_buffering=line_by_line
        )
        setattr(sys, name, text)


def output_failure() -> OSError | None:
    """The first failure of standard output, once all that was printed has been written."""
    if "stdout" not in _outputs:
        return None
    sys.stdout.flush()
    return _outputs["stdout"].failure
