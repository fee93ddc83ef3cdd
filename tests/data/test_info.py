"""Names and colours are had without any of the heavy libraries."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxseg.data import DATASETS, VOID_COLOUR, colourise, data_info
from jaxseg.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", DATASETS)
def test_every_class_has_a_name_and_a_colour_of_its_own(name):
    info = data_info(name)
    assert info.name == name and info.num_classes == len(info.class_names) == len(set(info.class_names))
    assert info.palette.shape == (info.num_classes, 3) and info.palette.dtype == np.uint8
    colours = {tuple(row) for row in info.palette.tolist()} | {tuple(VOID_COLOUR.tolist())}
    assert len(colours) == info.num_classes + 1
    assert info.class_weights is None or len(info.class_weights) == info.num_classes


def test_colourise_gives_palette_and_void():
    palette = np.array([[1, 2, 3], [4, 5, 6]], np.uint8)
    image = colourise(np.array([[0, 1], [255, -1]], np.int32), palette)
    assert image.dtype == np.uint8
    assert image.tolist() == [[[1, 2, 3], [4, 5, 6]], [VOID_COLOUR.tolist()] * 2]


def test_an_unknown_name_names_the_nearest():
    with pytest.raises(UserError, match="unknown data set 'camvit': did you mean camvid"):
        data_info("camvit")


def test_importing_is_light():
    code = (
        "import sys, jaxseg.data as d\n"
        "heavy = {'cv2', 'tensorflow_datasets', 'grain', 'tensorflow', 'PIL', 'jax'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "[d.data_info(name) for name in d.DATASETS]\n"
        "assert not {'tensorflow_datasets', 'grain', 'tensorflow', 'jax'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
