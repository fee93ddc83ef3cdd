"""Names and colours are had without any of the heavy libraries."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxseg import forms
from jaxseg.data import DATASETS, VOID_COLOUR, DataInfo, data_info
from jaxseg.errors import UserError

ROOT = Path(__file__).parents[2]


FIXED = [*((name, "") for name in DATASETS if name != "folder"), ("camvid", "12"), ("loveda", "project_b")]


@pytest.mark.parametrize(("name", "version"), FIXED)
def test_every_class_has_a_name_and_a_colour_of_its_own(name, version):
    info = data_info(name, version)
    assert info.name == name and info.num_classes == len(info.class_names) == len(set(info.class_names))
    assert info.palette.shape == (info.num_classes, 3) and info.palette.dtype == np.uint8
    colours = {tuple(row) for row in info.palette.tolist()} | {tuple(VOID_COLOUR.tolist())}
    assert len(colours) == info.num_classes + 1
    assert info.class_weights is None or len(info.class_weights) == info.num_classes


def same(left: DataInfo, right: DataInfo) -> bool:
    """Whether all fields are equal, their types too."""
    arrays = left.palette.dtype == right.palette.dtype and np.array_equal(left.palette, right.palette)
    none = np.empty(0)
    return arrays and repr(replace(left, palette=none)) == repr(replace(right, palette=none))


@given(
    st.lists(st.text(min_size=1, max_size=255), unique=True, min_size=1, max_size=5),
    st.randoms(use_true_random=False),
    st.booleans(),
    st.integers(0, 255),
)
def test_what_was_written_as_text_is_read_back(names, random, weighted, ignore):
    palette = np.array([[random.randrange(256) for _ in range(3)] for _ in names], np.uint8).reshape(-1, 3)
    weights = tuple(random.random() for _ in names) if weighted else None
    info = DataInfo("any", tuple(names), palette, weights, ignore)
    assert same(read(info.to_json()), info)


def read(text):
    return DataInfo.from_fields(forms.parse(text.encode(), forms.FORMS["info.json"], "it"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        DataInfo("any", ("a",), np.zeros((1, 3), np.uint8)).to_json().replace('"a"', '"a", "b"'),
        DataInfo("any", ("a",), np.zeros((1, 3), np.uint8)).to_json().replace('"ignore_label"', '"ignored"'),
        DataInfo("any", ("a",), np.zeros((1, 3), np.uint8)).to_json().replace("0,", "300,", 1),
    ],
)
def test_a_text_that_is_no_info_is_a_value_error(text):
    with pytest.raises(ValueError):
        read(text)


def test_versions_may_have_classes_of_their_own():
    eleven, twelve = data_info("camvid"), data_info("camvid", "12")
    assert twelve.class_names == (*eleven.class_names, "void") and twelve.class_weights is None
    assert same(data_info("camvid", "11"), eleven)
    for name, version in (("camvid", "13"), ("loveda", "urbane")):
        with pytest.raises(UserError, match=f"unknown version of {name} '{version}'"):
            data_info(name, version)


def test_an_unknown_name_names_the_nearest():
    with pytest.raises(UserError, match="unknown data set 'camvit': did you mean camvid"):
        data_info("camvit")


def test_importing_is_light():
    code = (
        "import sys, jaxseg.data as d\n"
        "heavy = {'cv2', 'tensorflow_datasets', 'grain', 'tensorflow', 'PIL', 'jax'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "[d.data_info(name) for name in d.DATASETS if name != 'folder']\n"
        "assert not {'tensorflow_datasets', 'grain', 'tensorflow', 'jax'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
