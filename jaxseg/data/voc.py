"""Pascal VOC segmentation: 2007, 2012, and 2012 with the Semantic Boundaries Dataset (SBD) for training."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from jaxseg.data.fetch import Archive, unpacked
from jaxseg.data.info import DataInfo
from jaxseg.data.layout import (
    Pair,
    Scoring,
    by_stem,
    data_root,
    divide,
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


def voc_palette(count: int) -> np.ndarray:
    """uint8 [count, 3]: VOC's colours, the bits of a label dealt out to red, green and blue from the highest down."""
    labels = np.arange(count)
    palette = np.zeros((count, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            palette[:, channel] |= ((labels >> (3 * bit + channel) & 1) << (7 - bit)).astype(np.uint8)
    return palette


INFO = DataInfo(
    name="voc",
    class_names=(
        "background",
        "aeroplane",
        "bicycle",
        "bird",
        "boat",
        "bottle",
        "bus",
        "car",
        "cat",
        "chair",
        "cow",
        "diningtable",
        "dog",
        "horse",
        "motorbike",
        "person",
        "pottedplant",
        "sheep",
        "sofa",
        "train",
        "tvmonitor",
    ),
    palette=voc_palette(21),
)

_VOC = "http://host.robots.ox.ac.uk/pascal/VOC"
_VOC2012 = Archive(
    f"{_VOC}/voc2012/VOCtrainval_11-May-2012.tar",
    "sha256",
    "e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb",
)
_SBD = Archive(
    "http://www.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
    "md5",
    "82b4d87ceb2ed10f6038a1cba92111cb",
)

ARCHIVES: dict[str, tuple[Archive, ...]] = {
    "2007": (
        Archive(
            f"{_VOC}/voc2007/VOCtrainval_06-Nov-2007.tar",
            "sha256",
            "7d8cd951101b0957ddfd7a530bdc8a94f06121cfc1e511bb5937e973020c7508",
        ),
        Archive(
            f"{_VOC}/voc2007/VOCtest_06-Nov-2007.tar",
            "sha256",
            "6836888e2e01dca84577a849d339fa4f73e1e4f135d312430c4856b5609b4892",
        ),
    ),
    "2012": (_VOC2012,),
    "2012_aug": (_VOC2012, _SBD),
    "2012_resplit": (_VOC2012,),
    "2012_project_d": (_VOC2012,),
}

# The splits of every version and the images that the official archives have in them.
SPLITS: dict[str, dict[str, int]] = {
    "2007": {"train": 209, "val": 213, "test": 210},
    "2012": {"train": 1464, "val": 1449, "trainval": 2913},
    "2012_aug": {"trainaug": 10582, "val": 1449},
    "2012_resplit": {"train": 2164, "val": 449, "test": 300},
    "2012_project_d": {"train": 50, "val": 20},
}

_LISTS = {"trainaug": ("trainaug.txt", "train_aug.txt")}


class Voc(FolderRecipe):
    """Version '2007', '2012' (the default), '2012_aug', which trains on `trainaug`, '2012_resplit' or '2012_project_d'.

    '2012_resplit' deals `trainval` out anew, shuffled by seed 42: 2,164 images to train on, 449 for `val`, 300 for
    `test`; a folder with fewer images keeps these proportions, and `origin` says so. It is for comparison with figures
    that were had so: the official `val` is half of it, so its scores are no scores on VOC's `val`.

    '2012_project_d' repeats a published mistake: of 2012 the first 50 images of `train` and 20 of `val`, and masks
    read as greys, not as indices, and clipped to 20. So background stays 0 and boat and cat become 15 and 19, but all
    other classes and the border are 20.

    With a folder, which is or contains `VOCdevkit/VOC<year>`, the lists and masks in it are used: `SegmentationClass`,
    for '2012_aug' `SegmentationClassAug`. Without one the official archives are fetched. In '2012_aug' VOC's own mask
    is then taken wherever VOC has one and SBD's elsewhere, and `trainaug` is VOC's `train` and SBD's images without
    VOC's `val`, as DeepLab's authors have it.

    Raises:
      UserError: an unknown version, no such folder, or lists, images or masks that are missing.
    """

    info = INFO

    def __init__(self, directory: str = "", version: str = "", progress: bool = True, scoring: Scoring | None = None):
        version = version or "2012"
        self._counts = lookup(SPLITS, version, "version of voc")
        self._version, self._progress = version, progress
        self.key = f"voc-{version}"
        self.train_split = "trainaug" if version == "2012_aug" else "train"
        if scoring:
            lookup(self._counts, scoring.split, f"split of voc {version}")
        if directory:
            folder = _find(directory, version)
            self.origin = shown(folder)
            wanted = (scoring.split,) if scoring else tuple(self._counts)
            if version == "2012_resplit":
                listed, lists = _listed(folder, version, ("trainval",))
                self._splits = _resplit(listed["trainval"], lists[0])
                counts = {split: len(pairs) for split, pairs in self._splits.items()}
                if counts != self._counts:
                    self.origin += (
                        f" ({len(listed['trainval'])} images of trainval instead of 2913, in its proportions)"
                    )
                self._splits = {split: self._splits[split] for split in wanted}
            else:
                self._splits, lists = _listed(folder, version, wanted)
                if version == "2012_project_d":
                    self._splits = _firsts(self._splits)
            files = {path for pairs in self._splits.values() for pair in pairs for path in (pair.image, pair.labels)}
            self.fingerprint = fingerprint_of(folder, files | set(lists))
            if not scoring:
                unlabelled = [f"{split} of {folder.name} without masks" for split in self._counts if split == "test"]
                unlabelled = unlabelled if "test" not in self._splits and _listing(folder, "test") else []
                self.left_out = ", ".join(filter(None, [*unlabelled, unused(folder, files)]))
        else:
            self.origin = f"the official archives of VOC {version}"
            self._splits = None
            sums = "".join(archive.checksum for archive in ARCHIVES[version])
            self.fingerprint = hashlib.sha256(sums.encode()).hexdigest()[:12]

    def splits(self) -> Mapping[str, Sequence[Pair]]:
        """See `Recipe.splits`; the archives are fetched here."""
        if self._splits is None:
            self._splits = _official(self._version, self._progress)
        return self._splits

    def read(self, item: Pair) -> tuple[str, bytes, np.ndarray]:
        """See `Recipe.read`."""
        name, image, labels = super().read(item)
        return name, image, _AS_GREYS[labels] if self._version == "2012_project_d" else labels


_AS_GREYS = np.minimum(cv2.cvtColor(voc_palette(256)[None], cv2.COLOR_RGB2GRAY)[0], 20)


def _firsts(splits: Mapping[str, list[Pair]]) -> dict[str, list[Pair]]:
    return {split: pairs[: SPLITS["2012_project_d"][split]] for split, pairs in splits.items()}


def _find(directory: str, version: str) -> Path:
    folder, year = folder_of(directory), f"VOC{version[:4]}"
    for place in (folder, folder / year, folder / "VOCdevkit" / year):
        if (place / "JPEGImages").is_dir() and (place / "ImageSets").is_dir():
            return place
    raise UserError(
        f"{shown(folder)} neither is nor contains VOCdevkit/{year}, the folder with JPEGImages and ImageSets: pass the "
        "VOCdevkit with --config.data.dir=FOLDER, or leave it empty to have the archives fetched"
    )


def _listing(folder: Path, split: str) -> Path | None:
    """The list of a split, where there is one."""
    lists = folder / "ImageSets" / "Segmentation"
    names = _LISTS.get(split, (f"{split}.txt",))
    return next((lists / name for name in names if (lists / name).exists()), None)


def _listed(folder: Path, version: str, wanted: Sequence[str]) -> tuple[dict[str, list[Pair]], list[Path]]:
    """The pairs of the splits `wanted` that have a list, but for a test split without any mask; and these lists."""
    lists = folder / "ImageSets" / "Segmentation"
    masks_in = folder / ("SegmentationClassAug" if version == "2012_aug" else "SegmentationClass")
    images, masks = by_stem(folder / "JPEGImages", (".jpg", ".jpeg")), by_stem(masks_in, (".png",))
    due = f"Images are due in {shown(folder / 'JPEGImages')}, masks in {shown(masks_in)}"
    needed = (wanted[0], "val") if "val" in wanted else wanted
    splits, used = {}, []
    for split in wanted:
        listing = _listing(folder, split)
        if listing is not None:
            ids = read_list(listing)
            if split == "test" and len(wanted) > 1 and not masks.keys() & set(map(name_of, ids)):
                continue
            splits[split] = pair_up(ids, images, masks, due, listing)
            used.append(listing)
        elif split in needed:
            names = _LISTS.get(split, (f"{split}.txt",))
            raise UserError(
                f"{shown(lists)} has no {' or '.join(names)}, the list of the split '{split}' of VOC {version}"
            )
    return splits, used


def _resplit(pairs: Sequence[Pair], listing: Path) -> dict[str, list[Pair]]:
    due = SPLITS["2012_resplit"]
    train, val = (round(due[split] * len(pairs) / sum(due.values())) for split in ("train", "val"))
    parts = divide(pairs, (train, val, len(pairs) - train - val))
    splits = dict(zip(("train", "val", "test"), parts, strict=True))
    if not all(splits.values()):
        raise UserError(f"{shown(listing)} has {len(pairs)} images: too few to divide into {', '.join(splits)}")
    return splits


def _official(version: str, progress: bool) -> dict[str, list[Pair]]:
    folder = data_root() / "downloads" / "voc"
    otherwise = "Or pass a VOCdevkit that you have with --config.data.dir=FOLDER."
    places = unpacked(ARCHIVES[version], folder, otherwise, progress)
    homes = [place / "VOCdevkit" / f"VOC{version[:4]}" for place in places]
    if version == "2007":
        splits = _listed(homes[0], version, ("train", "val"))[0] | _official_test(homes[1])
    elif version == "2012_project_d":
        return _firsts(_listed(homes[0], version, tuple(SPLITS[version]))[0])
    elif version == "2012":
        splits = _listed(homes[0], version, tuple(SPLITS[version]))[0]
    elif version == "2012_resplit":
        listed, lists = _listed(homes[0], version, ("trainval",))
        splits = _resplit(listed["trainval"], lists[0])
    else:
        splits = _augmented(homes[0], places[1] / "benchmark_RELEASE" / "dataset")
    for split, due in SPLITS[version].items():
        if len(splits[split]) != due:
            raise UserError(
                f"the split '{split}' of the official VOC {version} has {due} images, the one unpacked in {folder} "
                f"has {len(splits[split])}: remove the folder and start again"
            )
    return splits


def _official_test(home: Path) -> dict[str, list[Pair]]:
    lists, masks_in = home / "ImageSets" / "Segmentation", home / "SegmentationClass"
    images, masks = by_stem(home / "JPEGImages", (".jpg",)), by_stem(masks_in, (".png",))
    due = f"Images are due in {home / 'JPEGImages'}, masks in {masks_in}."
    return {"test": pair_up(read_list(lists / "test.txt"), images, masks, due, lists / "test.txt")}


def _augmented(home: Path, sbd: Path) -> dict[str, list[Pair]]:
    lists = home / "ImageSets" / "Segmentation"
    train, val = read_list(lists / "train.txt"), read_list(lists / "val.txt")
    more = read_list(sbd / "train.txt") + read_list(sbd / "val.txt")
    ids = sorted({*train, *more} - {*val})
    images = by_stem(sbd / "img", (".jpg",)) | by_stem(home / "JPEGImages", (".jpg",))
    # The right operand wins: VOC's masks are finer than SBD's and have the border marked.
    masks = by_stem(sbd / "cls", (".mat",)) | by_stem(home / "SegmentationClass", (".png",))
    due = f"Images are due in {home / 'JPEGImages'}, masks in {home / 'SegmentationClass'} or {sbd / 'cls'}."
    return {
        "trainaug": pair_up(ids, images, masks, due, sbd / "train.txt"),
        "val": pair_up(val, images, masks, due, lists / "val.txt"),
    }
