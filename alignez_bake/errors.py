"""The errors of this tool, one class for each exit status that has a meaning of its own."""


class AlignezBakeError(Exception):
    """Base of every error that this tool raises on purpose; `exit_status` is what the shell sees."""

    exit_status = 3


class BadInputError(AlignezBakeError, ValueError):
    """Bad usage or bad input: nothing was written.

    The message names the value, the place, the bound and the way out, in one line.
    """

    exit_status = 2


class CheckFailedError(AlignezBakeError):
    """A check failed (certificate, delivered share): the result lies in `OUT.failed`."""

    exit_status = 1
