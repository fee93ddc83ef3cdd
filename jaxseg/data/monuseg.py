"""MoNuSeg: nuclei in H&E-stained tissue, 30 training and 14 test images of 1000x1000 (Kumar et al. 2017, 2020).

Two layouts: the challenge's folders, `MoNuSeg 2018 Training Data` with `Tissue Images` and `Annotations`, and
`MoNuSegTestData`; or `train` and `test`, each with `images`, `annotations` and `masks`. Images are JPEG, PNG or TIFF.
Labels are drawn from ImageScope's XML of the image's name, or read from its ready PNG mask (nonzero: nucleus) where
there is none; a nucleus ends where `polygons.draw` says, which is where it ends in the usual ready masks.

Versions, several parted by commas:

- '': the images are divided, 90/10, shuffled by seed 42: what is scored comes of images that were not trained on.
- 'by_patch': the patches are, as published by some: they overlap by half, so `val` has pixels that were trained on.
- 'full_polygons': polygons with their rim, by cv2.fillPoly, as many projects draw their test masks. Ready masks stay as
  they are, so that one data set may have masks of two conventions; it is said how many.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np

from jaxseg.data.fitting import BOTH, encode_png, facts, fit, kept
from jaxseg.data.headers import ORIENTATIONS, SHOWN, read_header
from jaxseg.data.info import DataInfo
from jaxseg.data.layout import (
    IMAGE_SUFFIXES,
    TIFF_SUFFIXES,
    Pair,
    Scoring,
    by_stem,
    divide,
    fingerprint_of,
    folder_of,
    unused,
)
from jaxseg.data.masks import COLOURS, PALETTE, Mask, count_values
from jaxseg.data.pictures import named, read_file
from jaxseg.data.polygons import draw, read_polygons
from jaxseg.data.progress import say
from jaxseg.data.readings import colour_of
from jaxseg.data.recipe import FolderRecipe, read_image, read_mask
from jaxseg.data.source import decode_image
from jaxseg.errors import UserError, shown
from jaxseg.lookup import lookup

T = TypeVar("T")

PATCH, STRIDE = 256, 128  # 36 patches of an image of 1000x1000; its last 104 rows and columns are in none

INFO = DataInfo(
    name="monuseg",
    class_names=("background", "nucleus"),
    palette=np.array([[235, 225, 235], [70, 30, 140]], np.uint8),
)

_VERSIONS = {"by_patch": True, "full_polygons": True}
_SPLITS, _SPLIT = ("train", "val", "test"), "split of monuseg"
_HOMES = {"train": ("train", "MoNuSeg 2018 Training Data"), "test": ("test", "MoNuSegTestData")}


@dataclass(frozen=True)
class Part(Pair):
    """An image, or the patch of it whose upper left corner is `top`, `left`."""

    top: int = -1
    left: int = -1


class MoNuSeg(FolderRecipe):
    """Patches of 256x256 every 128 pixels in `train`, `val`, `test`; whole images in `train_images` and the like.

    By patch there are no `val_images`: every image has patches in `train`. Without test images, or without any
    annotation or mask of them, there is no `test`, which is said, as is all else that holds images and is not used.

    Raises:
      UserError: an unknown version, no folder, no images, or an image without annotation and mask.
    """

    info = INFO

    def __init__(self, directory: str = "", version: str = "", progress: bool = True, scoring: Scoring | None = None):
        words = sorted({word.strip() for word in version.split(",") if word.strip()})
        for word in words:
            lookup(_VERSIONS, word, "version of monuseg")
        self._by_patch, self._full, self._progress = "by_patch" in words, "full_polygons" in words, progress
        if not directory:
            raise UserError(
                "monuseg is not fetched by itself: take the training and test data of the challenge "
                "(https://monuseg.grand-challenge.org) and pass the folder with both by --config.data.dir=FOLDER"
            )
        folder = folder_of(directory)
        self._only, left_out = scoring.split if scoring else "", []
        if scoring:
            lookup(dict.fromkeys(f"{split}{kind}" for split in _SPLITS for kind in ("", "_images")), self._only, _SPLIT)
        self._images = {}
        for home in _HOMES:
            if not scoring or (home == "test") == self._only.startswith("test"):
                self._images[home], unlabelled = _images(folder, home, needed=bool(scoring) or home == "train")
                left_out += unlabelled
        files = {file for pairs in self._images.values() for pair in pairs for file in (pair.image, pair.labels)}
        self.key, self.origin = "-".join(["monuseg", *words, *([self._only] if scoring else [])]), shown(folder)
        self.fingerprint = fingerprint_of(folder, files)
        if not scoring:
            self.left_out = ", ".join(filter(None, [*left_out, unused(folder, files)]))
        self._splits, self._lock, self._read = None, threading.Lock(), {}

    def splits(self) -> dict[str, Sequence[Part]]:
        """See `Recipe.splits`."""
        if self._splits is None:
            self._splits = self._divide()
        return self._splits

    def _divide(self) -> dict[str, list[Part]]:
        train, test = self._images.get("train", []), self._images.get("test", [])
        ready = [pair for pair in (*train, *test) if pair.labels.suffix.lower() == ".png"]
        if self._full and ready:
            say(
                f"{len(ready)} of {len(train) + len(test)} masks are ready ones, without the polygons' rim",
                self._progress,
            )
        parts = {}
        if train or not test:
            if len(train) < 2:
                raise UserError(
                    f"{self.origin} has one training image: at least two are due, to train on and to score on"
                )
            if self._by_patch:
                held_out, kept = _tenth(self._patches(train))
                parts = {"train": kept, "val": held_out}
                parts["train_images"] = [Part(**vars(pair)) for pair in train]
            else:
                held_out, kept = _tenth(train)
                parts = {"train": self._patches(kept), "val": self._patches(held_out)}
                parts["train_images"] = [Part(**vars(pair)) for pair in kept]
                parts["val_images"] = [Part(**vars(pair)) for pair in held_out]
        if test:
            parts["test"] = self._patches(test)
            parts["test_images"] = [Part(**vars(pair)) for pair in test]
        if self._only:
            parts = {self._only: lookup(parts, self._only, _SPLIT)}
        return parts

    def _patches(self, pairs: Sequence[Pair]) -> list[Part]:
        patches = []
        for pair in pairs:
            height, width = self._size(pair)
            if min(height, width) < PATCH:
                raise UserError(
                    f"{shown(pair.image)} is {height}x{width}: at least {PATCH}x{PATCH} are due, the size of a patch."
                )
            tops, lefts = range(0, height - PATCH + 1, STRIDE), range(0, width - PATCH + 1, STRIDE)
            patches += [Part(**vars(pair), top=top, left=left) for top in tops for left in lefts]
        return patches

    def _size(self, pair: Pair) -> tuple[int, int]:
        """(height, width) of an image as it will lie."""
        with named(pair.image):
            image = read_header(read_file(pair.image))
        turn = ORIENTATIONS[self.orientation] == SHOWN
        if pair.labels.suffix.lower() != ".xml":
            with named(pair.labels, "cannot use"):
                turn = fit(image, read_header(read_file(pair.labels)), self.orientation, pair.image).image
        return image.shown_size if turn else image.size

    def read(self, item: Part) -> tuple[str, bytes, np.ndarray]:
        """See `Recipe.read`; the id of a patch is `<image>_y<top>_x<left>`."""
        # The patches of an image come one after the other, from several threads: it is read once.
        with self._lock:
            if item.image not in self._read:
                self._read[item.image] = self._whole(item)
            data, image, labels = self._read[item.image]
        if item.top < 0:
            return item.id, data, labels
        window = np.s_[item.top : item.top + PATCH, item.left : item.left + PATCH]
        patch = encode_png(cv2.cvtColor(image[window], cv2.COLOR_RGB2BGR))
        return f"{item.id}_y{item.top}_x{item.left}", patch, np.ascontiguousarray(labels[window])

    def _whole(self, pair: Pair) -> tuple[bytes, np.ndarray, np.ndarray]:
        data, picture = read_image(pair.image)
        if pair.labels.suffix.lower() == ".xml":
            size = self._size(pair)
            polygons, notes = read_polygons(pair.labels, size)
            for note in notes:
                say(f"{shown(pair.labels)}: {note}", self._progress)
            labels = draw(polygons, size, full=self._full)
            self.facts.append(facts(pair.id, picture, BOTH if picture.header.orientation > 1 else ""))
            kept_data = kept(data, picture, ORIENTATIONS[self.orientation] == SHOWN)
        else:
            mask = read_mask(pair.labels)
            with named(pair.labels, "cannot use"):
                nuclei = _nuclei(mask)
            kept_data, labels = self.fitted(pair, data, picture, nuclei, mask.header)
        return kept_data, decode_image(kept_data), labels


def _nuclei(mask: Mask) -> np.ndarray:
    """uint8 [H, W], 1 where a grey or indexed mask is not black.

    Raises:
      ValueError: it holds colours, or the palette shows index 0 as anything but black, or another index as black.
    """
    if mask.kind == COLOURS:
        raise ValueError("it holds colours; save it as grey PNG, 0 for the background")
    for index, _ in count_values(mask.values) if mask.kind == PALETTE else ():
        if (colour_of(mask, index) == 0) != (index == 0):
            raise ValueError(f"its palette contradicts its index {index}: save it as grey PNG, 0 for the background")
    return (mask.values > 0).astype(np.uint8)


def _tenth(items: Sequence[T]) -> list[list[T]]:
    count = -(-len(items) // 10)
    return divide(items, (count, len(items) - count))


def _images(folder: Path, split: str, needed: bool) -> tuple[list[Pair], list[str]]:
    """The pairs of a split, and what is left out of it: all of it where it is not `needed` and has no labels."""
    homes = [place / name for place in (folder, folder / "MoNuSeg") for name in _HOMES[split]]
    homes += [home / home.name for home in homes]  # as some archives unpack
    for home in homes:
        images = {}
        for place in ("images", "Tissue Images", ""):
            images = images or by_stem(home / place, (*IMAGE_SUFFIXES, *TIFF_SUFFIXES))
        if images:
            break
    else:
        if not needed:
            return [], [f"{split}, of which there are no images"]
        raise UserError(
            f"{shown(folder)} has no images of the split '{split}': they are due in {' or '.join(_HOMES[split])}, in a "
            "folder 'images' or 'Tissue Images' there. Pass the folder that has both splits with "
            "--config.data.dir=FOLDER"
        )
    drawn, ready = {}, by_stem(home / "masks", (".png",))
    for place in ("annotations", "Annotations", ""):
        drawn = drawn or by_stem(home / place, (".xml",))
    labels = ready | drawn
    missing = [images[stem] for stem in images if stem not in labels]
    if len(missing) == len(images) and not needed:
        return [], [f"{split} ({len(images)} images without annotation or mask)"]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(images)} images of {shown(home)} have neither an annotation nor a mask, "
            f"{shown(missing[0])} among them: {shown(missing[0].stem)}.xml is due in 'annotations' or "
            f"{shown(missing[0].stem)}.png in 'masks'"
        )
    return [Pair(stem, images[stem], labels[stem]) for stem in images], []
