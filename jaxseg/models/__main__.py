"""The table of the zoo, in Markdown: `python -m jaxseg.models`, or `python -m jaxseg.models unet fpn` for some of it.

`--write` puts it into the README of the checkout instead, between its two comments; it takes a minute or two.

The largest differences come from `differences.json` beside this file, which the comparisons with the reference networks
write: `JAXSEG_RECORD=1 pytest tests/peers`.
"""

import json
import pathlib
import sys
from collections.abc import Iterable, Iterator

from jaxseg.errors import UserError, printable
from jaxseg.files import replacing
from jaxseg.lookup import lookup
from jaxseg.models import FAMILIES, create_model
from jaxseg.models.backbones import BACKBONES
from jaxseg.models.cost import multiply_adds, num_params
from jaxseg.streams import keep_streams

DIFFERENCES = pathlib.Path(__file__).with_name("differences.json")
BEGIN, END = "<!-- zoo: python -m jaxseg.models --write -->\n", "<!-- end of zoo -->"
HEADER = "| family | backbone | parameters | multiply-adds | output stride | the same network in | largest difference |"


def rows(families: Iterable[str]) -> Iterator[str]:
    """A line a family and backbone, with 21 classes and the family's own choices."""
    found = json.loads(DIFFERENCES.read_text())
    for family in families:
        for backbone in lookup(FAMILIES, family, "family"):
            model = create_model(family, backbone=backbone, num_classes=21)
            stride = model.backbone.output_stride if backbone in BACKBONES else ""
            references = found.get(f"{family} {backbone}", {})
            largest = f"{max(references.values()):.0e}" if references else ""
            cells = (
                f"`{family}`",
                f"`{backbone}`",
                f"{num_params(model)[0]:,}",
                f"{multiply_adds(model) / 1e9:.2f} G",
                str(stride),
                ", ".join(sorted(references)),
                largest,
            )
            yield f"| {' | '.join(cells)} |"


def table(families: Iterable[str]) -> Iterator[str]:
    """The whole table, line by line."""
    yield HEADER
    yield "|---|---|---:|---:|---:|---|---:|"
    yield from rows(families)


def split_readme(text: str) -> tuple[str, str, str]:
    """What stands before the table in a README's text, the table, and what stands behind it."""
    before, begin, rest = text.partition(BEGIN)
    kept, end, after = rest.partition(END)
    if not end:
        raise UserError(f"README.md has no place for the table: {BEGIN.strip()} and {END} mark it")
    return before + begin, kept, end + after


def write(readme: pathlib.Path) -> None:
    """Puts the whole table into a README."""
    before, _, after = split_readme(readme.read_text())
    with replacing(readme) as temporary:
        temporary.write_text(before + "".join(f"{line}\n" for line in table(FAMILIES)) + after)


if __name__ == "__main__":
    keep_streams()
    try:
        if sys.argv[1:] == ["--write"]:
            write(pathlib.Path(__file__).parents[2] / "README.md")
        else:
            for line in table(sys.argv[1:] or FAMILIES):
                print(line, flush=True)
    except UserError as error:
        sys.exit(printable(f"error: {error}"))
