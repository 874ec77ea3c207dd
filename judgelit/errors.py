"""The exception for mistakes of the user. Any other exception is a bug and shows its traceback."""


class UserError(Exception):
    """Wrong input. The message is one line: what was found, what was expected and what to do.

    The command line prints it and exits with status 2.
    """


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or the first two if the first ends with a colon."""
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    return " ".join(line.strip() for line in lines[: 2 if lines[0].endswith(":") else 1])
