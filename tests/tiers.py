"""Which cases are too dear for every change: `pytest.mark.nightly`, run by `.ci/nightly`."""

import pytest


def nightly(*cases):
    """The cases of a `parametrize` with the marker; a case of several arguments is a tuple."""
    marked = [case if isinstance(case, tuple) else (case,) for case in cases]
    return [pytest.param(*case, marks=pytest.mark.nightly) for case in marked]
