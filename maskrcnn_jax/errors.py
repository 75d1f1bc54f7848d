"""The exceptions that end a run without a traceback."""

import traceback
from pathlib import Path


class UserError(ValueError):
    """A mistake in a config, data set, weights file or image.

    The message names the file, the field and the remedy; the command line prints it without a
    traceback and exits with status 2.
    """


class Stopped(Exception):
    """A run that ended before its last step; the message says why and what is saved."""


class Interrupted(Stopped):
    """A run that was asked to stop, and saved its state: the same command goes on from it."""


def line_of(error: BaseException) -> str:
    """Returns " (file, line n)": where the user's program failed, for its messages.

    That is the last line outside this package and outside installed ones; "" if there is none.
    """
    if isinstance(error, SyntaxError):
        return f" ({error.filename}, line {error.lineno})"
    ours = str(Path(__file__).resolve().parent)
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((ours, "<")) and "site-packages" not in frame.filename
    ]
    return f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
