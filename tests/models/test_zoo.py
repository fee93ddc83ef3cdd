"""The README's table is what the command prints; the forms that the docs tell of can be made."""

import functools
import pathlib
import re

import pytest
from family_checks import counts
from tiers import nightly

from jaxseg.errors import UserError
from jaxseg.models import FAMILIES, create_model
from jaxseg.models.__main__ import rows, split_readme, table

ROOT = pathlib.Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
KEPT = split_readme(README)[1].splitlines()
ANEW = "write the README's table anew: python -m jaxseg.models --write"


QUICK = ("deeplabv3plus", "segnet")  # tracing every network of the others takes minutes


@pytest.mark.parametrize("family", [family if family in QUICK else nightly(family)[0] for family in FAMILIES])
def test_the_readme_has_the_rows_of_a_family(family):
    kept = [line for line in KEPT if line.startswith(f"| `{family}` |")]
    assert kept == list(rows([family])), ANEW


def test_the_readme_has_no_other_rows():
    assert [line.split("`")[1] for line in KEPT[2:]] == [name for name in FAMILIES for _ in FAMILIES[name]], ANEW
    assert KEPT[:2] == list(table([])), ANEW


def test_an_unknown_family_is_refused():
    with pytest.raises(UserError, match="unknown family 'unnet': did you mean unet"):
        list(rows(["unnet"]))


CALLS = re.findall(r"^(create_model\(.*?\))  # ([\d,]+)$", (ROOT / "docs/networks.md").read_text(), re.DOTALL | re.M)


@pytest.mark.parametrize(("call", "due"), CALLS)
def test_the_forms_of_the_docs_have_the_parameters_that_stand_behind_them(call, due):
    # 21 classes where the call gives no other number.
    model = eval(call, {"create_model": functools.partial(create_model, num_classes=21)})
    assert f"{counts(model)[0]:,}" == due
