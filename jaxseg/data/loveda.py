"""LoveDA: land cover in aerial images of 1024x1024, urban and rural, seven classes (Wang et al. 2021)."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from jaxseg.data.info import DataInfo
from jaxseg.data.layout import (
    IMAGE_SUFFIXES,
    Pair,
    Scoring,
    by_stem,
    divide,
    fingerprint_of,
    folder_of,
    pair_up,
    unused,
)
from jaxseg.data.recipe import FolderRecipe
from jaxseg.errors import UserError, shown
from jaxseg.lookup import lookup

# Names and colours in the order of labels 1 to 7 of the files, in which 0 is no data.
INFO = DataInfo(
    name="loveda",
    class_names=("background", "building", "road", "water", "barren", "forest", "agriculture"),
    palette=np.array(
        [
            [255, 255, 255],
            [255, 0, 0],
            [255, 255, 0],
            [0, 0, 255],
            [159, 129, 183],
            [0, 255, 0],
            [255, 195, 128],
        ],
        np.uint8,
    ),
)

_PLACES = {"all": ("Urban", "Rural"), "urban": ("Urban",), "rural": ("Rural",), "project_b": ("Urban",)}


class LoveDA(FolderRecipe):
    """`train` and `val` of the official layout: `Train/Urban/images_png`, `masks_png`, `Train/Rural`, `Val/...`.

    `Test` has no masks; it, and all else that holds images, is left out and said. Versions:

    - 'all' (the default), 'urban', 'rural': labels 1 to 7 become 0 to 6; 0, which is no data, counts nowhere.
    - 'project_b': a published student project's. The urban training images alone, divided 80/20 by seed 42, and label 7
      taken for 0, so that agriculture and no data are one class that counts like the others. For comparison alone.

    Raises:
      UserError: an unknown version, no folder, or images or masks that are missing.
    """

    indices_are_classes = False  # 0 is no data, 1 the first class

    @classmethod
    def info_of(cls, version: str, directory: str) -> DataInfo:
        """See `Recipe.info_of`."""
        lookup(_PLACES, version or "all", "version of loveda")
        if version != "project_b":
            return INFO
        return replace(
            INFO,
            class_names=("agriculture_and_no_data", *INFO.class_names[:-1]),
            palette=np.roll(INFO.palette, 1, axis=0),
        )

    def __init__(self, directory: str = "", version: str = "", progress: bool = True, scoring: Scoring | None = None):
        self.info = self.info_of(version, directory)
        version = version or "all"
        if not directory:
            raise UserError(
                "loveda is not fetched by itself: take Train.zip and Val.zip (https://zenodo.org/records/5706578) and "
                "pass the folder with Train and Val in it by --config.data.dir=FOLDER"
            )
        folder = folder_of(directory)
        wanted = (lookup({"train": "train", "val": "val"}, scoring.split, "split of loveda"),) if scoring else ()
        if version == "project_b":
            pairs = _pairs(folder, "Train", _PLACES[version])
            count = int(0.8 * len(pairs))
            if not count:
                raise UserError(
                    f"{shown(folder / 'Train')} has {len(pairs)} image: at least two are due, to train and to score"
                )
            train, val = divide(pairs, (count, len(pairs) - count))
            self._splits = {"train": train, "val": val}
            self._splits = {split: self._splits[split] for split in wanted or self._splits}
        else:
            splits = wanted or ("train", "val")
            self._splits = {split: _pairs(folder, split.capitalize(), _PLACES[version]) for split in splits}
        self._agriculture_is_0 = version == "project_b"
        self.key, self.origin = "loveda" if version == "all" else f"loveda-{version}", shown(folder)
        files = {path for pairs in self._splits.values() for pair in pairs for path in (pair.image, pair.labels)}
        self.fingerprint = fingerprint_of(folder, files)
        if not scoring:
            self.left_out = unused(folder, files)

    def splits(self):
        """See `Recipe.splits`."""
        return self._splits

    def read(self, item):
        """See `Recipe.read`."""
        name, image, labels = super().read(item)
        if labels.max() > 7:
            raise UserError(
                f"{shown(item.labels)} has label {labels.max()}: LoveDA's masks have 1 to 7, and 0 for no data."
            )
        if self._agriculture_is_0:
            return name, image, labels % 7
        # 0 becomes 255.
        return name, image, labels - np.uint8(1)


def _pairs(folder: Path, split: str, places: tuple[str, ...]) -> list[Pair]:
    pairs = []
    for place in places:
        home = folder / split / place
        images, masks = by_stem(home / "images_png", IMAGE_SUFFIXES), by_stem(home / "masks_png", (".png",))
        ids = sorted(images.keys() | masks.keys(), key=lambda stem: (len(stem), stem))
        due = f"Images are due in {shown(home / 'images_png')}, masks in {shown(home / 'masks_png')}"
        if not ids:
            raise UserError(
                f"{shown(home)} has no images. {due}; pass the folder above {split} with --config.data.dir=FOLDER."
            )
        for pair in pair_up(ids, images, masks, due, home):
            pairs.append(Pair(f"{place.lower()}_{pair.id}", pair.image, pair.labels))
    return pairs
