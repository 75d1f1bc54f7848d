"""The exceptions that end a run without a traceback."""


class UserError(ValueError):
    """A mistake in a config, data set, weights file or image.

    The message names the file, the field and the remedy; the command line prints it without a
    traceback and exits with status 2.
    """


class Stopped(Exception):
    """A run that ended before its last step; the message says why and what is saved."""
