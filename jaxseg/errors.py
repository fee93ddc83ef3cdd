"""The one exception that is shown to users as a line instead of a traceback, and how names from outside are shown."""

import argparse
import unicodedata


class UserError(ValueError):
    """A mistake in what the user gave: a name, a file, a value.

    The message names the thing, the value that came and the remedy. `jaxseg.main` and `jaxseg.predict` print it as one
    line and exit with status 1; in Python it is a `ValueError` like any other.
    """


def shown(name: object) -> str:
    """`name` as text that can be printed anywhere: control, format and undecodable characters are escaped.

    A file or class name may hold what a terminal obeys (ESC, CR), what turns its text around (U+202E) or bytes that are
    no UTF-8 (which Python holds as surrogates).

    >>> shown("a\\rb\\x1b[2J")
    'a\\\\rb\\\\x1b[2J'
    """
    return "".join(
        char.encode("unicode_escape").decode() if unicodedata.category(char) in _ESCAPED else char for char in str(name)
    )


def printable(text: object) -> str:
    """Lines that can be printed anywhere: what `shown` escapes is escaped, but for the ends of lines.

    The last guard before a terminal. It can't tell the end of a line from one in a name: names go through `shown`.
    """
    return "\n".join(map(shown, str(text).split("\n")))


class Parser(argparse.ArgumentParser):
    """Of a command's arguments; what was given stands escaped in its messages."""

    def _print_message(self, message, file=None):
        super()._print_message(printable(message or ""), file)


# Control, format, surrogate, line and paragraph separator. Unassigned and private characters print as boxes.
_ESCAPED = {"Cc", "Cf", "Cs", "Zl", "Zp"}
