"""Names from outside, of runs, classes, images and settings, in each kind of file that a comparison writes.

In all of them `errors.shown` escapes control characters first. Then each format has one rule of its own.
"""

import html as _html
import re
from typing import Any

from jaxseg.errors import shown

# More than text in Markdown: code, emphasis, links, HTML, strikes, tables, mathematics; headings and lists where a line
# begins.
_MARKDOWN = re.compile(r"[\\`*\[\]<>|~$]|(?<![^\W_])_|_(?![^\W_])|^[-+#]|(?<=^\d)[.)](?=\s)")
# What a spreadsheet takes for a formula where a cell begins with it, the full-width ones too; cells also begin behind
# what another spreadsheet takes for the end of one.
_FORMULA = re.compile(r"(^|[;,|\"])(\s*[=+\-@＝＋－＠])")


def html(value: Any) -> str:
    """Anything as HTML text or the value of an attribute."""
    return _html.escape(shown(value))


def markdown(value: Any) -> str:
    """Anything as text of one line, or of a table's cell: what Markdown would read has a backslash before it."""
    text = shown(" ".join(str(value).split())).replace("&", "&amp;")
    text = _MARKDOWN.sub(lambda found: "\\" + found.group(), text)
    # Addresses would become links.
    return text.replace("://", ":\\//").replace("www.", "www\\.")


def code(value: Any) -> str:
    """Anything as code in a cell of a Markdown table."""
    text = shown(" ".join(str(value).split())).replace("|", "\\|")
    ticks = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " if "`" in text or not text else ""
    return f"{ticks}{space}{text}{space}{ticks}"


def cell(value: Any) -> Any:
    """A cell of a CSV: numbers as they are; text that no spreadsheet takes for a formula.

    An apostrophe stands before `=`, `+`, `-` or `@` at the beginning of a text and behind a comma, semicolon, bar or
    quotation mark in it.
    """
    if isinstance(value, int | float) or value is None:
        return value
    return _FORMULA.sub(lambda found: f"{found.group(1)}'{found.group(2)}", shown(value))
