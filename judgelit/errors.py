"""The one exception for what the user can mend; everything else is a bug and keeps its traceback."""


class UserError(Exception):
    """Wrong input: one line saying what was found, what was expected and what to do.

    The command line prints the line and exits with status 2.
    """
