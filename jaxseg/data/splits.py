"""The splits of a folder of images and masks: where each lies, which pairs it has, and what of it can't be used."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from jaxseg.data.layout import (
    ANY_IMAGE,
    IMAGE_SUFFIXES,
    SPLIT_NAMES,
    TIFF_SUFFIXES,
    Pair,
    Scoring,
    brief,
    by_stem,
    name_of,
)
from jaxseg.errors import UserError, shown

IMAGES = (*IMAGE_SUFFIXES, *TIFF_SUFFIXES, ".webp", ".bmp")  # that are read
MASKS = (".png", *TIFF_SUFFIXES, ".bmp")


@dataclass
class Splits:
    """What lies in a folder.

    Attributes:
      pairs: of each split.
      faults: a line for each file that ought to be used and can't be.
      left_out: a line for each thing that is left out without being a fault: links to nothing, a test split without
        masks.
      named: the files that these lines speak of.
      divided: whether the split `train` is still to be divided into train and val.
    """

    pairs: dict[str, list[Pair]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    named: set[Path] = field(default_factory=set)
    divided: bool = False


def find_splits(folder: Path, scoring: Scoring | None = None) -> Splits:
    """The pairs of every split of `folder`, or of the one that a finished run is scored on.

    Raises:
      UserError: a split is not there, or is there twice.
    """
    places = _places(folder)
    whole = _whole(folder)
    found = Splits()
    if scoring and scoring.split in ("train", "val") and scoring.divided and "val" not in places:
        places = {"train": places.get("train", whole)} if "train" in places or whole else {}
        found.divided = True
    elif scoring:
        if not places and whole:
            places = {scoring.split: whole}
        if scoring.split not in places:
            there = ", ".join([*places, *(["images"] if whole else [])])
            raise UserError(
                f"{shown(folder)} has no split {shown(repr(scoring.split))}"
                + (f"; there is {there}: name one of them with --split" if there else f": {_due(folder)}")
            )
        places = {scoring.split: places[scoring.split]}
    else:
        if "train" not in places and whole:
            places = {"train": whole, **places}
        found.divided = "val" not in places
    if not places or (scoring is None and "train" not in places):
        raise UserError(f"{shown(folder)} has no images to train on: {_due(folder)}")
    for split, (images, masks) in places.items():
        if split == "test" and scoring is None and not by_stem(masks, MASKS, []):
            lying = by_stem(images, IMAGES, [])
            found.left_out.append(f"{shown(images)}: {len(lying)} images without masks")
            found.named |= {*lying.values()}
            continue
        found.pairs[split] = _pairs(images, masks, found)
    return found


def _due(folder: Path) -> str:
    there = [path.name for path in _folders(folder)]
    return (
        "its folders must be images and masks, or train/images and train/masks, or images/train and masks/train; "
        + (f"it has {brief(there, 8)}" if there else "it has no folders")
        + ". Pass the folder above them with --config.data.dir=FOLDER"
    )


def _folders(folder: Path, name: str = "") -> list[Path]:
    """The folders in `folder`, or those of a name, in small or capital letters."""
    try:
        with os.scandir(folder) as entries:
            found = sorted(folder / entry.name for entry in entries if entry.is_dir())
    except OSError:
        return []
    return [path for path in found if not name or path.name.lower() == name]


def _whole(folder: Path) -> tuple[Path, Path] | None:
    """The folders of images and masks that lie together, if there are any.

    Raises:
      UserError: there are several.
    """
    places = [images for images in _folders(folder, "images") if _holds_images(images)]
    return (_one(folder, "images", places), _first(folder, "masks")) if places else None


def _places(folder: Path) -> dict[str, tuple[Path, Path]]:
    """The folders of images and masks of each split, in either order of the names.

    Raises:
      UserError: a split is there twice.
    """
    found = {}
    for split, names in SPLIT_NAMES.items():
        homes = [home for name in names for home in _folders(folder, name)]
        places = {images: _first(home, "masks") for home in homes for images in _folders(home, "images")}
        for kind in _folders(folder, "images"):
            masks = [path for name in names for path in _folders(_first(folder, "masks"), name)]
            for images in [path for name in names for path in _folders(kind, name)]:
                of_name = [path for path in masks if path.name.lower() == images.name.lower()]
                places[images] = [*of_name, *masks, _first(folder, "masks") / images.name][0]
        full = [images for images in places if _holds_images(images)]
        if places:
            images = _one(folder, f"the split {split}", full or list(places)[:1])
            found[split] = (images, places[images])
    return found


def _first(folder: Path, name: str) -> Path:
    return [*_folders(folder, name), folder / name][0]


def _one(folder: Path, what: str, places: list[Path]) -> Path:
    if len(places) > 1:
        raise UserError(
            f"{shown(folder)} has {what} {len(places)} times, in "
            f"{brief([os.path.relpath(images, folder) for images in places])}: put them together, or move all but one "
            "away"
        )
    return places[0]


def _holds_images(folder: Path) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(os.path.splitext(entry.name)[1].lower() in ANY_IMAGE for entry in entries)
    except OSError:
        return False


def _pairs(images_in: Path, masks_in: Path, found: Splits) -> list[Pair]:
    images, masks = by_stem(images_in, IMAGES, found.faults), by_stem(masks_in, MASKS, found.faults)
    lying = {place: _files(place) for place in (images_in, masks_in)}
    _take_out(images, masks, found)
    _take_out(masks, images, found)
    told: set[Path] = set()
    other_kinds = {}
    for place, kinds in ((images_in, IMAGES), (masks_in, MASKS)):
        strange = [file for file in lying[place] if file.suffix.lower() not in kinds]
        other_kinds[place] = {name_of(file.stem): file for file in strange}
    for files, others, what, place in ((images, masks, "mask", masks_in), (masks, images, "image", images_in)):
        for name in files:
            if name not in others:
                other = other_kinds[place].get(name)
                told |= {other} if other else set()
                kind = f" ({shown(other)} is of a kind that is not read)" if other else ""
                found.faults.append(f"{shown(files[name])} has no {what}{kind}")
    for place in (images_in, masks_in):
        for file in other_kinds[place].values():
            if file.suffix.lower() in ANY_IMAGE and file not in told:
                found.faults.append(f"{shown(file)} is of a kind that is not read")
        # Whatever is no pair by now is in one of the lines.
        found.named |= {file for file in lying[place] if file.suffix.lower() in ANY_IMAGE}
    return [Pair(name, images[name], masks[name]) for name in images if name in masks]


def _files(folder: Path) -> list[Path]:
    try:
        return sorted(p for p in folder.iterdir() if not p.name.startswith(".") and not p.is_dir())
    except OSError:
        return []


def _take_out(files: dict[str, Path], others: dict[str, Path], found: Splits) -> None:
    """Takes what is no regular file out of `files`, and its partner out of `others`; a link to nothing is no fault."""
    for name, file in list(files.items()):
        if os.path.isfile(file):
            continue
        partner = others.pop(name, None)
        with_partner = f", left out with {shown(partner.name)}" if partner else ""
        if file.is_symlink() and not os.path.exists(file):
            found.left_out.append(f"{shown(file)} is a link to nothing{with_partner}")
        else:
            found.faults.append(f"{shown(file)} is no regular file{with_partner}")
        found.named |= {file, *([partner] if partner else [])}
        del files[name]
