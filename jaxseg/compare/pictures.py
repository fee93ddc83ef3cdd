"""The same images through every network: the best and the worst of a split, with truth and each prediction."""

import base64
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from jaxseg.compare.runs import Group, data_key
from jaxseg.errors import UserError

CANDIDATES = 64  # images of a split among which the best and the worst are looked for, spread evenly over it
SIDE = 480  # pixels of the longer side of a picture in the report


@dataclass(eq=False)
class Picture:
    """An image through all networks of a sheet; the pictures are data URIs.

    Attributes:
      scores: mean IoU of this image, one a network; `score` is their mean.
    """

    id: str
    image: str
    truth: str
    preds: list[str]
    scores: list[float]
    score: float


@dataclass(eq=False)
class Sheet:
    """The pictures of one data set, the best first; `among` of its split's `total` images were looked at."""

    data: str
    split: str
    networks: list[str]
    class_names: tuple[str, ...]
    palette: np.ndarray
    pictures: list[Picture]
    among: int
    total: int


def sheets(groups: Sequence[Group], count: int, log: Callable[[str], object]) -> tuple[list[Sheet], list[str]]:
    """A sheet a data set with `count` images, half of them the best and half the worst; and why one is left out.

    An image's score is its mean IoU, averaged over the networks; a group of several seeds is shown by its first.
    """
    by_data: dict[tuple, list[Group]] = {}
    for group in groups:
        by_data.setdefault(data_key(group), []).append(group)
    found, notes = [], []
    for of_data in by_data.values():
        try:
            sheet = _sheet(of_data, count, log, notes)
        except UserError as error:
            labels = ", ".join(group.label for group in of_data)
            notes.append(f"no pictures of {of_data[0].data} ({labels}): {error}")
        else:
            found += [sheet] if sheet else []
    return found, notes


def _sheet(groups: Sequence[Group], count: int, log: Callable, notes: list[str]) -> Sheet | None:
    from jaxseg import config as configs
    from jaxseg.score import eval_split, open_data

    config = configs.read(groups[0].runs[0].path)
    dataset = open_data(config)
    info, split = dataset.info, eval_split(config, dataset)
    source, total = dataset.source(split), dataset.lengths[split]
    places = np.unique(np.linspace(0, total - 1, CANDIDATES).round().astype(int)) if total else []
    networks, preds, scores = [], [], []
    for number, group in enumerate(groups, 1):
        log(f"{len(places)} images of {group.data} {split} through {group.label} ({number} of {len(groups)})")
        try:
            pairs = _predict(group, source, places, info)
        except Exception as error:
            # A checkpoint that is missing or of other code, or memory that is short: the other networks go on.
            lines = str(error).strip().splitlines() or [type(error).__name__]
            notes.append(f"{group.label} has no predictions among the pictures: {lines[0]}")
            continue
        networks.append(group.label)
        preds.append([pred for pred, _ in pairs])
        scores.append([score for _, score in pairs])
    if not networks:
        return None
    of_image = np.mean(scores, 0)
    best_first = [int(index) for index in np.argsort(-of_image) if math.isfinite(of_image[index])]
    pictures = []
    for index in best_and_worst(best_first, count):
        record = source[int(places[index])]
        pictures.append(
            Picture(
                record["id"],
                _jpeg(record["images"]),
                _palette_png(record["labels"], info.palette),
                [of_network[index] for of_network in preds],
                [of_network[index] for of_network in scores],
                float(of_image[index]),
            )
        )
    return Sheet(groups[0].data, split, networks, info.class_names, info.palette, pictures, len(places), total)


def best_and_worst(best_first: Sequence[int], count: int) -> list[int]:
    """`count` of the places in a split that are given best first: half from either end, still best first.

    Neighbours in a split are often frames of one film: one beside another of its half comes only where there are too
    few others.
    """
    if not count:
        return []
    middle = len(best_first) * (count // 2) // count
    best = _apart(best_first[:middle], count // 2)
    return best + _apart(best_first[middle:][::-1], count - count // 2)[::-1]


def _apart(places: Sequence[int], count: int) -> list[int]:
    for distance in (4, 2, 1):
        chosen: list[int] = []
        for place in places:
            if all(abs(place - other) >= distance for other in chosen):
                chosen.append(place)
        if len(chosen) >= count:
            break
    return sorted(chosen[:count], key=places.index)


def _predict(group: Group, source, places: Sequence[int], info) -> list[tuple[str, float]]:
    """Each image's prediction as a picture, and its mean IoU."""
    import jaxseg

    predictor, found = jaxseg.load(group.runs[0].path), []
    for place in places:
        record = source[int(place)]
        preds = predictor(record["images"])
        found.append((_palette_png(preds, info.palette), mean_iou(preds, record["labels"], info)))
    return found


def mean_iou(preds: np.ndarray, labels: np.ndarray, info) -> float:
    """Of one image, over the classes that it has; NaN without a valid pixel. `preds` and `labels` are uint8 [H, W]."""
    from jaxseg import metrics

    valid = labels != info.ignore_label
    pairs = labels[valid].astype(np.int64) * info.num_classes + preds[valid]
    counts = np.bincount(pairs, minlength=info.num_classes**2).reshape(info.num_classes, info.num_classes)
    return metrics.scores(counts)["mean_iou"]


def _shrunk(array: np.ndarray, resample) -> "Image.Image":  # noqa: F821
    from PIL import Image

    image = Image.fromarray(array)
    factor = SIDE / max(image.size)
    if factor >= 1:
        return image
    return image.resize([max(1, round(side * factor)) for side in image.size], resample)


def _uri(image, kind: str, **options) -> str:
    data = io.BytesIO()
    image.save(data, format=kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(data.getvalue()).decode()}"


def _jpeg(image: np.ndarray) -> str:
    from PIL import Image

    return _uri(_shrunk(image, Image.Resampling.BOX), "JPEG", quality=85)


def _palette_png(labels: np.ndarray, palette: np.ndarray) -> str:
    from PIL import Image

    from jaxseg.data import VOID_COLOUR

    # Whatever is no class, 255 among it, takes the colour after the last class.
    image = _shrunk(np.minimum(labels, len(palette)).astype(np.uint8), Image.Resampling.NEAREST).convert("P")
    image.putpalette(np.concatenate([palette, VOID_COLOUR[None]]).astype(np.uint8).tobytes())
    return _uri(image, "PNG", optimize=True)
