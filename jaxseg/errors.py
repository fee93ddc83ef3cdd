"""The one exception that is shown to users as a line instead of a traceback."""


class UserError(ValueError):
    """A mistake in what the user gave: a name, a file, a value.

    The message names the thing, the value that came and the remedy. `jaxseg.main` and `jaxseg.predict` print it as one
    line and exit with status 1; in Python it is a `ValueError` like any other.
    """
