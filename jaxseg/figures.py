"""Pictures of a run: predictions beside their truth, overlays and curves.

Everything is drawn through matplotlib's object interface, so that no window system is asked for and no state is shared.
"""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import IdentityTransform

from jaxseg.files import replacing, score_key
from jaxseg.lettering import letter, letter_legend

DPI = 100
OVERLAY_PIXELS = 2**20  # that are computed at a time, in float64
CELL = 320  # pixels across a picture in a figure
GAP = 10
LINE = 24  # pixels for a line of text
IGNORED = (224, 224, 192)  # the colour that VOC draws its borders in
BACKGROUND = "white"
LONGEST_NAME = 80  # characters of a class's name in a legend, which is as wide as its longest


def _figure(width: int, height: int) -> Figure:
    figure = Figure((width / DPI, height / DPI), dpi=DPI, facecolor=BACKGROUND)
    FigureCanvasAgg(figure)
    return figure


def _pixels(figure: Figure) -> np.ndarray:
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()


def _coloured(labels: np.ndarray, palette: np.ndarray, ignore_label: int) -> np.ndarray:
    """uint8 [H, W, 3]: the labels in the data set's colours, and what is no class in `IGNORED`."""
    labels = np.asarray(labels)
    colours = np.concatenate([palette, [IGNORED]]).astype(np.uint8)
    no_class = (labels == ignore_label) | (labels < 0) | (labels >= len(palette))
    return colours[np.where(no_class, len(palette), labels)]


def _shares(arrays: Sequence[np.ndarray], class_names: Sequence[str], ignore_label: int) -> dict[int, float]:
    """Class to its share of all pixels, only the classes that appear; the ignored ones under `len(class_names)`."""
    counts = np.zeros(len(class_names) + 1, np.int64)
    for array in arrays:
        for row in np.atleast_2d(array):  # an image may be too large for a copy in int64
            classes = row.astype(np.int64)
            classes[(classes == ignore_label) | (classes < 0) | (classes >= len(class_names))] = len(class_names)
            counts += np.bincount(classes, minlength=len(counts))
    return {int(index): counts[index] / counts.sum() for index in np.flatnonzero(counts)}


def _entries(
    shares: Mapping[int, float], class_names: Sequence[str], palette: np.ndarray
) -> list[tuple[str, tuple[int, ...]]]:
    """Name and colour of each line of a legend, in the order of `shares`."""
    names, colours = [*map(_short, class_names), "ignored"], [*palette, IGNORED]
    return [(names[index], tuple(colours[index])) for index in shares]


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"


def _legend(figure: Figure, entries: Sequence[tuple[str, tuple]], width: int) -> tuple[Legend, int, int]:
    """A legend in as many columns as fit into `width` pixels; and its width and height with its margins."""
    names = [name for name, _ in entries]
    handles = [Patch(facecolor=np.array(colour) / 255, edgecolor="0.4", linewidth=0.5) for _, colour in entries]
    renderer = figure.canvas.get_renderer()
    for columns in range(max(len(entries), 1), 0, -1):
        legend = figure.legend(
            handles,
            ["x"] * len(names),
            loc="lower left",
            bbox_to_anchor=(0, 0),
            ncols=columns,
            frameon=False,
            fontsize=9,
        )
        letter_legend(legend, names)
        figure.draw_without_rendering()
        box = legend.get_window_extent(renderer)
        if box.x1 + box.x0 <= width or columns == 1:
            return legend, math.ceil(box.x1 + box.x0), math.ceil(box.y1 + box.y0)
        legend.remove()
    raise AssertionError("one column is always taken")


def overlay(image: np.ndarray, preds: np.ndarray, palette: np.ndarray, alpha: float = 0.55) -> np.ndarray:
    """The predicted classes as a tint over the image.

    Args:
      image: uint8 [H, W, 3], RGB.
      preds: integer [H, W].
      palette: uint8 [num_classes, 3]. A class whose colour is black, as the background is in VOC, and a value that is
        no class leave the image as it is.
      alpha: share of the class's colour, 0 to 1.

    Returns:
      uint8 [H, W, 3].

    Raises:
      ValueError: the sizes differ.
    """
    preds = np.asarray(preds)
    if image.shape[:2] != preds.shape:
        raise ValueError(f"the image is {image.shape[:2]} and its prediction {preds.shape}")
    palette = np.asarray(palette)
    weights = np.append(alpha * palette.any(1), 0.0)
    colours = np.concatenate([palette, [IGNORED]]) * weights[:, None]
    picture = np.empty(image.shape, np.uint8)
    rows = max(1, OVERLAY_PIXELS // max(1, preds.shape[1]))
    for top in range(0, len(preds), rows):
        part = np.s_[top : top + rows]
        no_class = (preds[part] < 0) | (preds[part] >= len(palette))
        classes = np.where(no_class, len(palette), preds[part])
        picture[part] = np.rint(image[part] * (1 - weights[classes][..., None]) + colours[classes])
    return picture


def overlay_with_legend(
    image: np.ndarray,
    preds: np.ndarray,
    *,
    class_names: Sequence[str],
    palette: np.ndarray,
    ignore_label: int = 255,
) -> np.ndarray:
    """`overlay` at the image's own size with a legend: below a wide image, beside a tall one.

    The legend has only the classes that appear, with their share of the pixels, the largest first.

    Args:
      image: uint8 [H, W, 3], RGB.
      preds: integer [H, W].
      class_names: one name a class.
      palette: uint8 [num_classes, 3].
      ignore_label: the value that is no class.

    Returns:
      uint8 [h, w, 3] with h >= H and w >= W; the overlay is its upper left corner.

    Raises:
      ValueError: the sizes differ.
    """
    picture = overlay(image, preds, palette)
    height, width = picture.shape[:2]
    shares = _shares([preds], class_names, ignore_label)
    shares = dict(sorted(shares.items(), key=lambda item: -item[1]))
    colours = _entries(shares, class_names, palette)
    entries = [
        (f"{name} {_percent(share)}", colour) for (name, colour), share in zip(colours, shares.values(), strict=True)
    ]

    below = width >= height
    strip = _figure(max(width, CELL), CELL)
    _, legend_width, legend_height = _legend(strip, entries, max(width, CELL) if below else 1)
    strip.set_size_inches(legend_width / DPI, legend_height / DPI)
    legend = _pixels(strip)
    top, left = (height, 0) if below else (0, width)
    bottom, right = top + len(legend), left + legend.shape[1]
    sheet = np.full((max(height, bottom), max(width, right), 3), 255, np.uint8)
    sheet[:height, :width] = picture
    sheet[top:bottom, left:right] = legend
    return sheet


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.001 else "< 0.1 %"


def _given(values: Sequence | None, length: int) -> list:
    return [None] * length if values is None else list(values)


def prediction_figure(
    images: Sequence[np.ndarray],
    labels: Sequence[np.ndarray | None] | None,
    preds: Sequence[np.ndarray | None] | None,
    *,
    class_names: Sequence[str],
    palette: np.ndarray,
    titles: Sequence[str] | None = None,
    ignore_label: int = 255,
) -> np.ndarray:
    """A row an image: the image, its truth, the prediction, and the prediction over the image.

    A column that no image has anything for is left out. The legend has only the classes that appear.

    Args:
      images: uint8 [H, W, 3] each, RGB, of any sizes.
      labels: integer [H, W] each, or None where there is no truth.
      preds: integer [H, W] each, or None where there is no prediction.
      class_names: one name a class.
      palette: uint8 [num_classes, 3].
      titles: a line above each row.
      ignore_label: the value in `labels` that is no class.

    Returns:
      uint8 [h, w, 3].

    Raises:
      ValueError: there are no images, or the lists differ in length.
    """
    labels, preds, titles = (_given(values, len(images)) for values in (labels, preds, titles))
    if not images or not len(images) == len(labels) == len(preds) == len(titles):
        raise ValueError(f"{len(images)} images, {len(labels)} labels, {len(preds)} preds and {len(titles)} titles")
    palette = np.asarray(palette)

    def coloured(values):
        return None if values is None else _coloured(values, palette, ignore_label)

    columns = {
        "image": list(images),
        "truth": [coloured(values) for values in labels],
        "prediction": [coloured(values) for values in preds],
        "overlay": [None if p is None else overlay(i, p, palette) for i, p in zip(images, preds, strict=True)],
    }
    columns = {name: cells for name, cells in columns.items() if any(cell is not None for cell in cells)}

    heights = [round(CELL * min(max(len(image) / image.shape[1], 0.4), 1.1)) for image in images]
    title_line = LINE if any(titles) else 0
    width = len(columns) * (CELL + GAP) + GAP
    rows_height = LINE + sum(heights) + len(heights) * (title_line + GAP)
    present = [values for values in (*labels, *preds) if values is not None]
    entries = []
    if present:
        shares = _shares(present, class_names, ignore_label)
        entries = _entries(dict(sorted(shares.items())), class_names, palette)

    figure = _figure(width, rows_height)
    legend_height = 0
    if entries:
        legend, legend_width, legend_height = _legend(figure, entries, width)
        legend.set_bbox_to_anchor(((width - legend_width) / 2, 0), transform=IdentityTransform())
    height = rows_height + legend_height
    figure.set_size_inches(width / DPI, height / DPI)

    top = LINE
    for column, name in enumerate(columns):
        x = GAP + column * (CELL + GAP) + CELL / 2
        figure.text(x / width, 1 - LINE / 2 / height, name, ha="center", va="center", fontsize=11, weight="bold")
    for row, row_height in enumerate(heights):
        if titles[row]:
            y = 1 - (top + title_line / 2) / height
            letter(figure.text(GAP / width, y, "", va="center", fontsize=9), titles[row])
        top += title_line
        for column, (name, cells) in enumerate(columns.items()):
            if cells[row] is None:
                continue
            left = GAP + column * (CELL + GAP)
            axes = figure.add_axes(
                (left / width, 1 - (top + row_height) / height, CELL / width, row_height / height),
                anchor="N",
            )
            axes.imshow(cells[row], interpolation="nearest" if name in ("truth", "prediction") else "antialiased")
            axes.set_axis_off()
        top += row_height + GAP
    return _pixels(figure)


def _series(metrics: Sequence[Mapping], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and finite values of the rows that have the key."""
    pairs = [(row["step"], row[key]) for row in metrics if row.get(key) is not None and math.isfinite(row[key])]
    return np.array([step for step, _ in pairs], float), np.array([value for _, value in pairs], float)


def _smoothed(values: np.ndarray) -> np.ndarray:
    """Mean over a window around each point, a twentieth of all points wide, and shorter at both ends."""
    half = max(len(values) // 40, 2)
    return np.array([values[max(i - half, 0) : i + half + 1].mean() for i in range(len(values))])


def curves(metrics: Sequence[Mapping], path: str | os.PathLike, split: str) -> None:
    """Draws the curves of a run as a PNG: the losses, and mean IoU and pixel accuracy with the best step marked.

    Args:
      metrics: the rows of `metrics.jsonl`: `step` and any of `train/loss`, `SPLIT/loss`, `SPLIT/mean_iou` and
        `SPLIT/pixel_accuracy`. A value that is missing, None or not finite is left out.
      path: the file; it appears whole or not at all.
      split: that is scored.
    """
    figure = _figure(1200, 450)
    losses, scores = figure.subplots(1, 2)

    steps, values = _series(metrics, "train/loss")
    if len(steps):
        smooth = len(steps) > 4
        marker, alpha = ("", 0.35) if smooth else (".", 1.0)
        losses.plot(steps, values, color="tab:blue", alpha=alpha, linewidth=0.8, marker=marker, label="train")
        if smooth:
            losses.plot(steps, _smoothed(values), color="tab:blue", linewidth=1.8, label="train, smoothed")
    steps, values = _series(metrics, score_key(split, "loss"))
    if len(steps):
        name = split if split != "train" else "train, whole split"
        losses.plot(steps, values, color="tab:orange", marker="o", markersize=4, label=name)
    losses.set_title("loss")

    best = ""
    for score, name, colour in (
        ("mean_iou", "mean IoU", "tab:green"),
        ("pixel_accuracy", "pixel accuracy", "tab:purple"),
    ):
        steps, values = _series(metrics, score_key(split, score))
        if not len(steps):
            continue
        scores.plot(steps, values, color=colour, marker="o", markersize=4, label=name)
        if score == "mean_iou":
            top = int(values.argmax())
            best = f": best mean IoU {values[top]:.3f} at step {steps[top]:.0f}"
            scores.plot(
                steps[top], values[top], "*", color=colour, markersize=16, markeredgecolor="black", label="best"
            )
    letter(scores.title, f"{split}{best}")
    scores.set_ylim(0, 1)

    for axes in (losses, scores):
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        if axes.lines:
            legend = axes.legend(axes.lines, ["x"] * len(axes.lines), fontsize=9)
            letter_legend(legend, [str(line.get_label()) for line in axes.lines])
        else:
            axes.text(0.5, 0.5, "nothing yet", ha="center", va="center", transform=axes.transAxes, color="0.5")
    figure.tight_layout()
    write_png(path, _pixels(figure))


def write_png(path: str | os.PathLike, array: np.ndarray) -> None:
    """Writes a PNG under a temporary name beside `path` and then renames it, so that no reader sees half a file.

    Args:
      path: the file; missing folders are made.
      array: uint8 [H, W, 3], RGB, or [H, W], grey.

    Raises:
      ValueError: the array is not uint8 or not an image.
    """
    from PIL import Image

    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
        raise ValueError(f"a PNG is written from uint8 [H, W, 3] or [H, W], not from {array.dtype} {array.shape}")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        Image.fromarray(array).save(temporary, format="PNG")
