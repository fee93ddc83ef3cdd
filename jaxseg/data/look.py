"""What is in a folder of images and masks; the layouts are those of `folder`."""

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxseg.data.classes import CLASSES, Classes, meanings, read_classes
from jaxseg.data.fitting import facts, fit, remarks
from jaxseg.data.headers import most_pixels
from jaxseg.data.info import DataInfo
from jaxseg.data.layout import Pair, Scoring, brief, data_root, divide, fingerprint_of, folder_of, unused
from jaxseg.data.masks import count_values
from jaxseg.data.pictures import named
from jaxseg.data.progress import bar, counted
from jaxseg.data.readings import colour_of, settle, value_of
from jaxseg.data.recipe import read_image, read_mask
from jaxseg.data.splits import find_splits
from jaxseg.errors import UserError, shown
from jaxseg.files import replacing

_MOST_VALUES = 300  # of a mask that are looked at: more than there can be classes
_SHOWN = 20  # faults that are listed
_FORM = 2  # of what is kept of the files; to be raised when it changes


@dataclass(frozen=True)
class Found:
    """What is in a folder.

    Attributes:
      folder: it.
      splits: the pairs that can be used.
      faults: a line for every file that can't be.
      left_out: a line for all else that holds images and is not used: links to nothing, folders beside those of the
        layout, a test split without masks.
      classes: names, colours, and the label of every value in the masks.
      divided: whether `val` is a share of what lay together.
      seen: of every mask, `seen[pair.labels]`: `size` [height, width]; `kind` and `bits`, see `masks.Mask`; `rows`
        [number, colour, pixels], from the most frequent on; `reading`, see `readings`, and by it `values` [value,
        pixels]; `facts` of the image, see `fitting`.
      notes: lines on how masks are read.
      fingerprint: of its files.
    """

    folder: Path
    splits: dict[str, list[Pair]]
    faults: list[str]
    left_out: list[str]
    classes: Classes
    divided: bool
    seen: dict[Path, dict[str, Any]]
    notes: list[str]
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
        lines = [f"{shown(self.folder)}: {len(used)} pairs of image and mask: {lengths}"]
        if self.divided:
            lines[0] += " (divided 80/20 by seed 42)"
        sizes = Counter("x".join(map(str, seen["size"])) for _, seen in used).most_common()
        more = f" and {len(sizes) - 5} more" if len(sizes) > 5 else ""
        lines.append("sizes (height x width): " + ", ".join(f"{size} ({number})" for size, number in sizes[:5]) + more)
        lines += remarks([seen["facts"] for _, seen in used])
        lines += [f"masks: {classes.kind}", *self.notes]
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
        for told, head in (
            (self.faults, f"{len(self.faults)} files that can't be used:"),
            (self.left_out, "left out:"),
        ):
            lines += [head, *(f"  {line}" for line in told[:_SHOWN])] if told else []
            lines += [f"  and {len(told) - _SHOWN} more"] if len(told) > _SHOWN else []
        try:
            self.check()
        except UserError as error:
            lines.append(str(error))
        return "\n".join(lines)


def look(directory: str, scoring: Scoring | None = None) -> Found:
    """What is in a folder; its files are read once and what they hold is kept beside the prepared data.

    Args:
      directory: the folder.
      scoring: a finished run to be scored there: then of one split, and under the run's classes.

    Raises:
      UserError: there is no such folder, it has another layout or fewer than two pairs, or a broken classes.yaml.
    """
    if not directory:
        raise UserError("folder has to be told which: pass --config.data.dir=FOLDER")
    folder = folder_of(directory)
    there = find_splits(folder, scoring)
    faults, splits, left_out = there.faults, there.pairs, there.left_out
    pairs = [pair for members in splits.values() for pair in members]
    seen = _seen(
        folder, pairs, fingerprint_of(Path("/"), {path for pair in pairs for path in (pair.image, pair.labels)})
    )
    faults += [seen[pair.labels]["fault"] for pair in pairs if "fault" in seen[pair.labels]]
    splits = {split: [p for p in members if "fault" not in seen[p.labels]] for split, members in splits.items()}
    if "test" in splits and not splits["test"] and scoring is None:
        left_out.append("test: none of its pairs can be used")
        del splits["test"]
    if there.divided:
        count = max(1, round(0.2 * len(splits["train"])))
        val, train = divide(splits["train"], (count, len(splits["train"]) - count))
        splits = {**splits, "train": train, "val": val}
    if scoring:
        splits = {scoring.split: splits[scoring.split]}
    empty = [split for split in splits if not splits[split]]
    if empty:
        why = [*faults, *left_out]
        raise UserError(
            f"{shown(folder)} has no pair of image and mask for the split '{empty[0]}': "
            + (brief(why, length=300) if why else "each split needs at least one")
        )
    pairs = [pair for members in splits.values() for pair in members]
    beside = unused(folder, there.named | {path for pair in pairs for path in (pair.image, pair.labels)})
    left_out += [f"not used: {beside}"] if beside and not scoring else []
    left_out += [f"{file} is not read: its name must be {CLASSES}" for file in _misnamed(folder)]
    run = scoring.info if scoring else None
    notes = _read_alike({p.labels: seen[p.labels] for p in pairs}, folder, run)
    classes = read_classes(folder, {value for p in pairs for value, _ in seen[p.labels]["values"]}, run)
    files = {path for pair in pairs for path in (pair.image, pair.labels)}
    listing = folder / CLASSES
    fingerprint = fingerprint_of(folder, files | {listing} if listing.exists() else files)
    if scoring:
        # What the run makes of the same files may be another thing.
        as_run = repr((fingerprint, scoring.split, classes.info.class_names, sorted(classes.table.items())))
        fingerprint = hashlib.sha256(as_run.encode()).hexdigest()[:12]
    return Found(folder, splits, faults, left_out, classes, there.divided, seen, notes, fingerprint)


def _misnamed(folder: Path) -> list[str]:
    return [shown(path) for path in sorted(folder.glob("[cC]*")) if _other_name(path.name)]


def _other_name(name: str) -> bool:
    return name != CLASSES and name.lower() in (CLASSES, "classes.yml", "classes.yaml.txt")


def _read_alike(masks: Mapping[Path, dict[str, Any]], folder: Path, run: DataInfo | None) -> list[str]:
    """Decides how the masks of a folder are read, adds to each its `reading` and `values`, and returns what is said."""
    numbers, colours = meanings(folder, run)
    chosen, notes = settle(masks, numbers, colours, folder / CLASSES)
    for path, mask in masks.items():
        mask["reading"] = how = chosen[path]
        mask["values"] = [(value_of(mask, number, colour, how), count) for number, colour, count in mask["rows"]]
    return notes


def _seen(folder: Path, pairs: list[Pair], fingerprint: str) -> dict[Path, dict[str, Any]]:
    # What is too large with one limit is not with another.
    kept = data_root() / "jaxseg" / f"folder_seen-{fingerprint}-{_FORM}-{most_pixels()}.json"
    with contextlib.suppress(OSError, ValueError):
        return dict(zip((pair.labels for pair in pairs), json.loads(kept.read_text()), strict=True))
    with bar(len(pairs), f"looking through {shown(folder)}", " pairs") as counter, ThreadPoolExecutor() as pool:
        rows = list(counted(pool.map(_see, pairs), counter))
    # Where it can't be written, preparing says so.
    with contextlib.suppress(OSError):
        kept.parent.mkdir(parents=True, exist_ok=True)
        with replacing(kept) as temporary:
            temporary.write_text(json.dumps(rows))
    return dict(zip((pair.labels for pair in pairs), rows, strict=True))


def _see(pair: Pair) -> dict[str, Any]:
    try:
        _, picture = read_image(pair.image)
        mask = read_mask(pair.labels)
        with named(pair.labels, "cannot use"):
            way = fit(picture.header, mask.header, "", pair.image)
    except UserError as error:
        return {"fault": str(error).rstrip(".")}
    counts = count_values(mask.values)[:_MOST_VALUES]
    return {
        "size": picture.header.shown_size if way.image else picture.header.size,
        "kind": mask.kind,
        "bits": mask.bits,
        "rows": [(number, colour_of(mask, number), count) for number, count in counts],
        "facts": facts(pair.id, picture, way.sizes),
    }
