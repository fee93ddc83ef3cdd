"""The README's table is what the command prints."""

import pathlib
import re

import pytest

from jaxseg.errors import UserError
from jaxseg.models import FAMILIES
from jaxseg.models.__main__ import rows, table

README = (pathlib.Path(__file__).parents[2] / "README.md").read_text()
KEPT = re.search(r"<!-- zoo: .*? -->\n(.*?)<!-- end of zoo -->", README, re.DOTALL)[1].splitlines()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_readme_has_the_rows_of_a_family(family):
    kept = [line for line in KEPT if line.startswith(f"| `{family}` |")]
    assert kept == list(rows([family])), "write the README's table anew: python -m jaxseg.models"


def test_the_readme_has_no_other_rows():
    assert [line.split("`")[1] for line in KEPT[2:]] == [name for name in FAMILIES for _ in FAMILIES[name]]
    assert KEPT[:2] == list(table([]))


def test_an_unknown_family_is_refused():
    with pytest.raises(UserError, match="unknown family 'unnet': did you mean unet"):
        list(rows(["unnet"]))
