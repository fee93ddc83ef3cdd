"""What is in a folder of images and masks; the layouts are those of `folder`."""

import contextlib
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from jaxseg.data.classes import CLASSES, Classes, read_classes
from jaxseg.data.progress import bar, counted
from jaxseg.data.recipe import (
    IMAGE_SUFFIXES,
    LABEL_MODES,
    TIFF_SUFFIXES,
    Pair,
    by_stem,
    data_root,
    divide,
    fingerprint_of,
    folder_of,
    read_image,
    read_pixels,
)
from jaxseg.errors import UserError
from jaxseg.files import replacing

_SPLITS = ("train", "val", "test")
_IMAGES, _MASKS = (*IMAGE_SUFFIXES, *TIFF_SUFFIXES), (".png",)
_MOST_VALUES = 300  # of a mask that are looked at: more than there can be classes
_SHOWN = 20  # faults that are listed


@dataclass(frozen=True)
class Found:
    """What is in a folder.

    Attributes:
      folder: it.
      splits: the pairs that can be used.
      faults: a line for every file that can't be.
      classes: names, colours, and the label of every value in the masks.
      divided: whether `val` is a share of what lay together.
      seen: of every mask, `seen[pair.labels]`: `size` [height, width]; `values` [value, pixels], from the most frequent
        on; `largest`, of the image's values where they have 16 bits, else 0.
      fingerprint: of its files.
    """

    folder: Path
    splits: dict[str, list[Pair]]
    faults: list[str]
    classes: Classes
    divided: bool
    seen: dict[Path, dict[str, Any]]
    fingerprint: str

    def used(self) -> list[tuple[Pair, dict[str, Any]]]:
        """The pairs of all splits with what was seen in them."""
        return [(pair, self.seen[pair.labels]) for pairs in self.splits.values() for pair in pairs]

    def check(self) -> None:
        """Refuses masks with a value that is in no class.

        Raises:
          UserError: names the first of them with the value.
        """
        self.classes.check({pair.labels: seen["values"] for pair, seen in self.used()})

    def describe(self) -> str:
        """Pairs, sizes, classes and faults, as lines."""
        used, classes = self.used(), self.classes
        lengths = ", ".join(f"{split} {len(pairs)}" for split, pairs in self.splits.items())
        lines = [f"{self.folder}: {len(used)} pairs of image and mask: {lengths}"]
        if self.divided:
            lines[0] += " (divided 80/20 by seed 42)"
        sizes = Counter("x".join(map(str, seen["size"])) for _, seen in used).most_common()
        more = f" and {len(sizes) - 5} more" if len(sizes) > 5 else ""
        lines.append("sizes (height x width): " + ", ".join(f"{size} ({number})" for size, number in sizes[:5]) + more)
        deep = [seen["largest"] for _, seen in used if seen["largest"]]
        if deep:
            lines.append(
                f"{len(deep)} images of 16 bits, values up to {max(deep)}, which become 0 to {max(deep) // 256}"
                + ("; that is nearly black: scale them up" if max(deep) < 16384 else "")
            )
        lines.append(f"masks: {classes.kind}")
        pixels, images = Counter(), Counter()
        for _, seen in used:
            labels = Counter()
            for value, count in seen["values"]:
                labels[classes.table.get(value, -1)] += count
            pixels += labels
            images.update(labels.keys())
        rows = [(name, label) for label, name in enumerate(classes.info.class_names)]
        rows += [(name, label) for name, label in (("ignored", 255), ("of no class", -1)) if pixels[label]]
        width = max(len(name) for name, _ in rows)
        for name, label in rows:
            share = 100 * pixels[label] / max(1, pixels.total())
            lines.append(f"  {name:{width}}  {share:7.3f} % of the pixels, in {images[label]} images")
        if self.faults:
            lines.append(f"{len(self.faults)} files that can't be used:")
            lines += [f"  {fault}" for fault in self.faults[:_SHOWN]]
            lines += [f"  and {len(self.faults) - _SHOWN} more"] if len(self.faults) > _SHOWN else []
        try:
            self.check()
        except UserError as error:
            lines.append(str(error))
        return "\n".join(lines)


def look(directory: str) -> Found:
    """What is in a folder; its files are read once and what they hold is kept beside the prepared data.

    Raises:
      UserError: there is no such folder, it has another layout or fewer than two pairs, or a broken classes.yaml.
    """
    if not directory:
        raise UserError("folder has to be told which: pass --config.data.dir=FOLDER.")
    folder = folder_of(directory)
    faults, splits = [], {}
    for split, (images, masks) in _layout(folder).items():
        splits[split] = _pairs(images, masks, faults)
    pairs = [pair for members in splits.values() for pair in members]
    files = {path for pair in pairs for path in (pair.image, pair.labels)}
    seen = _seen(folder, pairs, fingerprint_of(Path("/"), files))
    faults += [seen[pair.labels]["fault"] for pair in pairs if "fault" in seen[pair.labels]]
    splits = {split: [p for p in members if "fault" not in seen[p.labels]] for split, members in splits.items()}
    divided = "val" not in splits
    if divided:
        count = max(1, round(0.2 * len(splits["train"])))
        val, train = divide(splits["train"], (count, len(splits["train"]) - count))
        splits = {**splits, "train": train, "val": val}
    empty = [split for split in splits if not splits[split]]
    if empty:
        raise UserError(
            f"{folder} has no pair of image and mask for the split '{empty[0]}'"
            + (f": {'; '.join(faults[:3])}." if faults else ": at least one for each split is due.")
        )
    kept = [seen[pair.labels] for members in splits.values() for pair in members]
    classes = read_classes(folder, {value for row in kept for value, _ in row["values"]})
    listing = folder / CLASSES
    fingerprint = fingerprint_of(folder, files | {listing} if listing.exists() else files)
    return Found(folder, splits, faults, classes, divided, seen, fingerprint)


def _layout(folder: Path) -> dict[str, tuple[Path, Path]]:
    def there(places):
        return {split: (images, masks) for split, images, masks in places if images.is_dir()}

    found = there((split, folder / split / "images", folder / split / "masks") for split in _SPLITS)
    found = found or there((split, folder / "images" / split, folder / "masks" / split) for split in _SPLITS)
    found = found or there([("train", folder / "images", folder / "masks")])
    if "train" not in found:
        raise UserError(
            f"{folder} has no images to train on: due are its folders images and masks, or train/images and "
            "train/masks, or images/train and masks/train. Pass the folder above them with --config.data.dir=FOLDER."
        )
    return found


def _pairs(images_in: Path, masks_in: Path, faults: list[str]) -> list[Pair]:
    images, masks = by_stem(images_in, _IMAGES), by_stem(masks_in, _MASKS)
    lying = {place: sorted(place.iterdir()) if place.is_dir() else [] for place in (images_in, masks_in)}
    for place, files, suffixes in ((images_in, images, _IMAGES), (masks_in, masks, _MASKS)):
        taken = {file.stem: file for file in files.values()}
        doubles = [f for f in lying[place] if f.stem in taken and f.suffix.lower() in suffixes and f != taken[f.stem]]
        faults += [f"{file} has the name of {taken[file.stem].name}" for file in doubles]
    for files, others, what, place in ((images, masks, "mask", masks_in), (masks, images, "image", images_in)):
        of_other_kind = {file.stem: f" ({file} is of a kind that is not read)" for file in lying[place]}
        faults += [f"{files[name]} has no {what}{of_other_kind.get(name, '')}" for name in files if name not in others]
    return [Pair(stem, images[stem], masks[stem]) for stem in images if stem in masks]


def _seen(folder: Path, pairs: list[Pair], fingerprint: str) -> dict[Path, dict[str, Any]]:
    kept = data_root() / "jaxseg" / f"folder_seen-{fingerprint}.json"
    with contextlib.suppress(OSError, ValueError):
        return dict(zip((pair.labels for pair in pairs), json.loads(kept.read_text()), strict=True))
    with bar(len(pairs), f"looking through {folder}", " pairs") as counter, ThreadPoolExecutor() as pool:
        rows = list(counted(pool.map(_see, pairs), counter))
    # Where it can't be written, preparing says so.
    with contextlib.suppress(OSError):
        kept.parent.mkdir(parents=True, exist_ok=True)
        with replacing(kept) as temporary:
            temporary.write_text(json.dumps(rows))
    return dict(zip((pair.labels for pair in pairs), rows, strict=True))


def _see(pair: Pair) -> dict[str, Any]:
    try:
        _, size = read_image(pair.image)
        values = read_values(pair.labels)
    except UserError as error:
        return {"fault": str(error).rstrip(".")}
    if values.shape != size:
        shape = "x".join(map(str, values.shape))
        return {"fault": f"{pair.labels} is {shape} (height x width) and its image {pair.image} {size[0]}x{size[1]}"}
    largest = 0
    if pair.image.suffix.lower() not in (".jpg", ".jpeg"):
        pixels = cv2.imdecode(np.fromfile(pair.image, np.uint8), cv2.IMREAD_UNCHANGED)
        largest = int(pixels.max()) if pixels is not None and pixels.dtype == np.uint16 else 0
    counts = Counter(dict(zip(*(array.tolist() for array in np.unique(values, return_counts=True)), strict=True)))
    return {"size": size, "values": counts.most_common(_MOST_VALUES), "largest": largest}


def read_values(path: Path) -> np.ndarray:
    """int32 [H, W]: the labels of a mask as they lie in it, or its colours as -(1 + red * 65536 + green * 256 + blue).

    Raises:
      UserError: it can't be read or holds neither.
    """
    mode, pixels = read_pixels(path)
    if mode in LABEL_MODES:
        return pixels.astype(np.int32)
    if mode in ("RGB", "RGBA"):
        return -1 - (pixels[..., :3].astype(np.int32) @ np.array([65536, 256, 1], np.int32))
    raise UserError(f"{path} is an image of mode {mode}; a mask is an 8-bit PNG of labels or of RGB colours.")
