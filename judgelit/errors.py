"""The one exception for what the user can mend; everything else is a bug and keeps its traceback."""


class UserError(Exception):
    """Wrong input: one line saying what was found, what was expected and what to do.

    The command line prints the line and exits with status 2.
    """


def first_line(error: BaseException) -> str:
    """The first line of what an exception says, for one-line messages; two where the first announces the second."""
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    return " ".join(line.strip() for line in lines[: 2 if lines[0].endswith(":") else 1])
