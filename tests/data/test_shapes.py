"""The drawn data set as it is read back."""

from pathlib import Path

import numpy as np
import pytest

from jaxseg.data import open_dataset, shapes, shapes_draw
from jaxseg.errors import UserError


def test_what_is_read_is_what_was_drawn(monkeypatch):
    monkeypatch.setattr(shapes_draw, "TRAIN", 5)
    monkeypatch.setattr(shapes_draw, "VAL", 3)
    data = open_dataset("shapes", progress=False)
    assert data.lengths == {"train": 5, "val": 3}
    for seed, split in enumerate(data.splits):
        for index, record in enumerate(data.source(split)):
            images, labels = shapes_draw.draw(seed, index)
            np.testing.assert_array_equal(record["images"], images)
            np.testing.assert_array_equal(record["labels"], labels)
            assert record["id"] == f"{split}_{index:05}"


def test_another_drawing_is_prepared_anew(monkeypatch, tmp_path):
    before = shapes.Shapes().fingerprint
    changed = tmp_path / "shapes_draw.py"
    changed.write_bytes(Path(shapes_draw.__file__).read_bytes() + b"\n")
    monkeypatch.setattr(shapes_draw, "__file__", str(changed))
    assert shapes.Shapes().fingerprint != before


@pytest.mark.parametrize("given", [{"directory": "/some/where"}, {"version": "2"}])
def test_it_takes_neither_folder_nor_version(given):
    with pytest.raises(UserError, match=r"leave config\.data\.(dir|version) empty"):
        open_dataset("shapes", **given)
