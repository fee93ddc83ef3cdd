"""Names from outside in matplotlib's figures: as they are written, in a font that has their script."""

import contextlib
import functools
import sys
import warnings
from collections.abc import Iterable

from matplotlib import font_manager
from matplotlib.ft2font import FT2Font
from matplotlib.legend import Legend
from matplotlib.text import Text
from tqdm import tqdm

from jaxseg.errors import shown

_said: set[str] = set()


def letter(text: Text, name: str) -> None:
    """Puts `name` into a figure's text: `$` and `_` mean nothing, control characters and what no font has are escaped.

    Where the figure's own font lacks letters, an installed one that has them is taken for these; letters that none has
    are written as Python escapes them, which is said once for each, on standard error.
    """
    fonts, missing = _fonts_for(frozenset(name))
    escaped = "".join(char.encode("unicode_escape").decode() if char in missing else char for char in name)
    text.set_text(shown(escaped))
    text.set_parse_math(False)
    text.set_fontfamily([*_own_families(), *fonts])
    unsaid = sorted(missing - _said)
    if unsaid:
        _said.update(unsaid)
        codes = ", ".join(f"U+{ord(char):04X}" for char in unsaid)
        with contextlib.suppress(OSError, ValueError):  # nobody listens
            tqdm.write(f"no font on this machine has {codes}: figures show them escaped", file=sys.stderr)


def letter_legend(legend: Legend, names: Iterable[str]) -> None:
    """`letter` for the entries of a legend, in order: a label that begins with `_` would be left out by matplotlib."""
    for text, name in zip(legend.get_texts(), names, strict=True):
        letter(text, name)


def _own_families() -> list[str]:
    return list(font_manager.FontProperties().get_family())


@functools.lru_cache(maxsize=1024)
def _fonts_for(chars: frozenset[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """Families of installed fonts that have what the figure's own lacks of `chars`; and what none has."""
    own = font_manager.findfont(font_manager.FontProperties())
    # Control characters are escaped whatever font there is.
    lacking = {char for char in chars if shown(char) == char and not char.isspace()} - _has(own, chars)
    families = []
    for font in font_manager.fontManager.ttflist if lacking else ():
        if "last resort" in font.name.lower():  # boxes for everything
            continue
        found = _has(font.fname, frozenset(lacking))
        if found:
            families.append(font.name)
            lacking -= found
        if not lacking:
            break
    return tuple(families), frozenset(lacking)


def _has(path: str, chars: Iterable[str]) -> set[str]:
    """Those of `chars` that the font can draw."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            font = FT2Font(path)
            font.set_size(10, 100)  # fails for pictures of emoji, which have one size
            known = font.get_charmap()
    except (OSError, RuntimeError):
        return set()
    return {char for char in chars if known.get(ord(char))}
