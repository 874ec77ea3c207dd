"""The exception for mistakes of the user, and errors of the system. Any other exception is a bug."""

import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

_OF_THE_SYSTEM = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENAMETOOLONG),
    *(errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.EBUSY),
}
"""Error numbers that speak of the disk or of the user's path, and never of a bug."""
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_RUST = re.compile(r"\(os error (\d+)\)")
"""How libraries in Rust (safetensors, tokenizers) end the message of a system's error."""


class UserError(Exception):
    """Wrong input. The message is one line: what was found, what was expected and what to do.

    The command line prints it and exits with status 2.
    """


def out_of_memory(error: BaseException) -> str | None:
    """What failed for want of memory, in one line; None if the error is another.

    A GPU's and the system's memory are reported by different exceptions: PyTorch's `OutOfMemoryError`, a plain
    RuntimeError of its CPU allocator or of another library's CUDA call, and Python's MemoryError.
    """
    said = " ".join(str(error).split())
    if isinstance(error, MemoryError):
        return f"out of memory: {said or 'the system has no more'}"
    if isinstance(error, RuntimeError) and ("out of memory" in said.lower() or "DefaultCPUAllocator" in said):
        # What the allocator says of its own state comes after the first sentences.
        said = said.partition("DefaultCPUAllocator: ")[2] or said
        sentences = [part for part in said.split(". ")[:3] if "out of memory" not in part.lower()]
        return f"out of memory: {'. '.join(sentences).rstrip('.') or said}"
    return None


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or the first two if the first ends with a colon."""
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    return " ".join(line.strip() for line in lines[: 2 if lines[0].endswith(":") else 1])


def system_error(error: BaseException) -> str | None:
    """One line about a full disk, a read-only folder or an impossible path; None if an exception is about none.

    Libraries raise exceptions of other types when the system refuses to write. So the exceptions during whose handling
    an exception was raised are looked at too.
    """
    for one in _with_causes(error):
        found = _RUST.search(str(one))
        number = one.errno if isinstance(one, OSError) else int(found[1]) if found else None
        if number in _OF_THE_SYSTEM:
            path = getattr(one, "filename", None)
            where = os.fsdecode(path)[:200] if isinstance(path, str | bytes | os.PathLike) else "a file"
            advice = "make room there" if number in _FULL else "choose another place, or mend this one"
            again = "the same command continues, `judgelit fit` with --ckpt_path last"
            return f"{where}: {os.strerror(number)}; {advice}; then {again}"
    return None


def name_file(error: BaseException, path: Path) -> None:
    """Say in an exception which file was being written, where the system's error behind it does not."""
    for one in _with_causes(error):
        if getattr(one, "filename", None) is None:
            one.filename = str(path)  # type: ignore[attr-defined]


def _with_causes(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
