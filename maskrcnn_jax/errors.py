"""The one exception for what a user can mend."""


class UserError(ValueError):
    """A mistake in a config, data set, weights file or image.

    The message names the file, the field and the remedy; the command line prints it without a
    traceback and exits with status 2.
    """
