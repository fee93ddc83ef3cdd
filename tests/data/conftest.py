"""Small data sets made on the spot, and the real ones where they lie beside the repository."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def _no_writing_to_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "prepared"))


@pytest.fixture(scope="session")
def real():
    """The folder of a real data set; the test is skipped where it is missing."""

    def find(name: str) -> Path:
        shared = Path(os.environ.get("JAXSEG_SHARED") or Path(__file__).parents[2].parent / "shared")
        if not (shared / "data" / name).is_dir():
            pytest.skip(f"no {shared / 'data' / name}: set JAXSEG_SHARED to the folder with data/{name}")
        return shared / "data" / name

    return find


def picture(seed: int, height: int, width: int) -> np.ndarray:
    """A smooth uint8 image, so that JPEG keeps it."""
    coarse = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)


def write_jpeg(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, quality=95)


def write_mask(path: Path, labels: np.ndarray, mode: str = "L") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(labels)
    if mode == "P":
        image.putpalette(np.random.default_rng(0).integers(0, 256, 768, dtype=np.uint8).tobytes())
    image.save(path)


@pytest.fixture
def camvid_folder(tmp_path) -> Path:
    """Four, three and two images in the layout of the SegNet tutorial, without lists."""
    folder = tmp_path / "files"
    rng = np.random.default_rng(7)
    for split, count in (("train", 4), ("val", 3), ("test", 2)):
        for index in range(count):
            write_jpeg(folder / split / f"{split}_{index}.jpg", picture(index, 36, 48))
            write_mask(folder / f"{split}annot" / f"{split}_{index}.png", rng.integers(0, 12, (36, 48), dtype=np.uint8))
    return folder
