"""Scores from one confusion matrix over a whole split. A ratio is never averaged over batches or images."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxseg.errors import shown
from jaxseg.partition import on_cpu


def confusion_matrix(preds: jax.Array, labels: jax.Array, num_classes: int, *, ignore_label: int = 255) -> jax.Array:
    """`counts[true, pred]` of the valid pixels of a batch, int32 `[num_classes, num_classes]`.

    Exact for any batch up to 2^31 pixels; sum batches on the host in int64 (float32 stops counting at 2^24, and JAX has
    no int64 by default). On a CPU it is a scatter, elsewhere, where that is slow, a product of one-hot rows, which
    float32 counts exactly up to 2^24 pixels a row.

    Args:
      preds: integers `[B, H, W]` in [0, num_classes).
      labels: integers `[B, H, W]`; `ignore_label` is left out.
    """
    preds, labels = preds.astype(jnp.int32), labels.astype(jnp.int32)
    settings = {"num_classes": num_classes, "ignore_label": ignore_label}
    scatter = functools.partial(_count_by_scatter, **settings)
    product = functools.partial(_count_by_product, **settings)
    return on_cpu(scatter, product, preds, labels, batched=(True, True), summed=True)


def _count_by_scatter(preds, labels, num_classes: int, ignore_label: int) -> jax.Array:
    known = (labels != ignore_label) & (labels >= 0) & (labels < num_classes)
    places = jnp.where(known, labels * num_classes + preds, num_classes**2)
    counts = jnp.zeros(num_classes**2 + 1, jnp.int32).at[places.ravel()].add(1)
    return counts[:-1].reshape(num_classes, num_classes)


def _count_by_product(preds, labels, num_classes: int, ignore_label: int) -> jax.Array:
    classes = jnp.arange(num_classes, dtype=jnp.int32)
    valid = (labels != ignore_label)[..., None]
    # 0 and 1 are exact in bfloat16, and so is the sum of a row in float32.
    true = ((labels[..., None] == classes) & valid).astype(jnp.bfloat16)
    pred = (preds[..., None] == classes).astype(jnp.bfloat16)
    rows = jnp.einsum("bhwt,bhwp->bhtp", true, pred, preferred_element_type=jnp.float32)
    return rows.astype(jnp.int32).sum(axis=(0, 1), dtype=jnp.int32)


def scores(counts: np.ndarray) -> dict[str, float | np.ndarray]:
    """All scores of a confusion matrix.

    Args:
      counts: integers `[C, C]`, `counts[true, pred]`.

    Returns:
      floats in [0, 1] and arrays `[C]`. A class without a labelled pixel is *absent*: NaN in the arrays and left out of
      every mean; what is predicted as it still costs the class that it is taken from. With tp, t, p the diagonal, the
      row and the column sums, and n all pixels:

      - `pixel_accuracy`: sum tp / n; `mean_accuracy`: mean of tp / t, which is also `mean_recall`.
      - `iou`: tp / (t + p - tp); `mean_iou` its mean; `frequency_weighted_iou`: sum t / n * iou (Long et al. 2015,
        section 5); `micro_iou`: sum tp / sum (t + p - tp).
      - `dice`: 2 tp / (t + p), which is F1; `mean_dice` (macro) and `micro_dice`, equal to the pixel accuracy.
      - `precision`: tp / p, 0 where a class was never predicted; `recall`: tp / t; `mean_precision`, `mean_recall`.
      - `absent_classes`: how many were left out of the means; `pixels`: n.

      A split without a single valid pixel gives NaN everywhere.
    """
    counts = np.asarray(counts, np.int64)
    hits, true, pred = np.diag(counts), counts.sum(1), counts.sum(0)
    union = true + pred - hits
    total = int(counts.sum())

    def ratio(above, below):
        return np.divide(above, below, out=np.full(np.shape(above), np.nan), where=np.asarray(below) > 0)

    present = true > 0
    iou, dice, recall = (
        np.where(present, ratio(above, below), np.nan)
        for above, below in ((hits, union), (2 * hits, true + pred), (hits, true))
    )
    precision = np.where(present, np.nan_to_num(ratio(hits, pred)), np.nan)
    return {
        "pixel_accuracy": float(ratio(hits.sum(), total)),
        "mean_accuracy": mean(recall),
        "mean_iou": mean(iou),
        "frequency_weighted_iou": float(ratio(np.nansum(true * iou), total)),
        "micro_iou": float(ratio(hits.sum(), union.sum())),
        "mean_dice": mean(dice),
        "micro_dice": float(ratio(2 * hits.sum(), 2 * total)),
        "mean_precision": mean(precision),
        "mean_recall": mean(recall),
        "absent_classes": int((~present).sum()),
        "pixels": total,
        "iou": iou,
        "dice": dice,
        "precision": precision,
        "recall": recall,
    }


def never_predicted(counts: np.ndarray, class_names: tuple[str, ...]) -> list[str]:
    """The classes with labelled pixels of which none was predicted, whatever pixel: `counts` as in `scores`.

    A mean over classes, or an accuracy, of a split where such a class is small says nothing of it.
    """
    counts = np.asarray(counts, np.int64)
    missed = (counts.sum(1) > 0) & (counts.sum(0) == 0)
    return [name for name, is_missed in zip(class_names, missed, strict=True) if is_missed]


def mean(values: np.ndarray) -> float:
    """The mean over the classes present, those that are not NaN; NaN where there is none."""
    present = values[~np.isnan(values)]
    return float(present.mean()) if present.size else float("nan")


def table(
    counts: np.ndarray, class_names: tuple[str, ...], *, protocol: str = "", boundary: np.ndarray | None = None
) -> str:
    """The scores per class and their means as a text table, percent; an absent class has dashes.

    Args:
      protocol: words on how the images were scored, for the last line.
      boundary: `[C]`, a column of boundary F1.
    """
    result = scores(counts)
    true = np.asarray(counts, np.int64).sum(1)
    share = true / max(true.sum(), 1)
    class_names = tuple(map(shown, class_names))
    width = max(len("class"), *map(len, class_names))
    columns = ["iou", "dice", "precision", "recall"]
    if boundary is not None:
        columns.append("boundary")
        result["boundary"] = boundary
    lines = [f"{'class':{width}}  {'pixels':>7}" + "".join(f"  {name:>9}" for name in columns)]

    def cell(value):
        return f"  {'-':>9}" if np.isnan(value) else f"  {100 * value:9.2f}"

    for i, name in enumerate(class_names):
        lines.append(f"{name:{width}}  {100 * share[i]:6.2f}%" + "".join(cell(result[key][i]) for key in columns))
    lines.append(f"{'mean':{width}}  {'':>7}" + "".join(cell(mean(result[key])) for key in columns))
    absent = [name for name, value in zip(class_names, result["iou"], strict=True) if np.isnan(value)]
    counted = len(class_names) - len(absent)
    lines.append(
        f"mean IoU {100 * result['mean_iou']:.2f} over {counted} of {len(class_names)} classes"
        + (f" (absent: {', '.join(absent)})" if absent else "")
        + f", pixel accuracy {100 * result['pixel_accuracy']:.2f}, mean accuracy {100 * result['mean_accuracy']:.2f},"
        f" frequency-weighted IoU {100 * result['frequency_weighted_iou']:.2f}, {result['pixels']} pixels"
        + (f", {protocol}" if protocol else "")
    )
    missed = never_predicted(counts, class_names)
    if missed:
        shares = {name: f"{100 * share[class_names.index(name)]:.2g} % of the pixels" for name in missed}
        lines.append(f"never predicted: {', '.join(f'{shown(name)} ({text})' for name, text in shares.items())}")
    return "\n".join(lines)
