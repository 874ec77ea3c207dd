"""The exception for mistakes of the user. Any other exception is a bug and shows its traceback."""


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
