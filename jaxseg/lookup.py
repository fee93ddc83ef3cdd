"""Names to values: plain dicts and one function that reads them."""

import difflib
from collections.abc import Mapping
from typing import TypeVar

from jaxseg.errors import UserError, shown

T = TypeVar("T")


def nearest(name: str, names) -> str:
    """The names nearest to `name` as a phrase for an error message; all of them where none is near."""
    close = difflib.get_close_matches(str(name), list(names), n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(map(shown, close))}?"
    return f"there are {', '.join(map(shown, sorted(names)))}."


def lookup(table: Mapping[str, T], name: str, what: str) -> T:
    """`table[name]`.

    Raises:
      UserError: `name` is not in the table; the message has `what` the name stands for and the nearest right names.
    """
    if name in table:
        return table[name]
    raise UserError(f"unknown {what} '{shown(name)}': {nearest(name, table)}")
