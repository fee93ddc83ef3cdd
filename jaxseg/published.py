"""Scores as five published student projects define them, so that their figures can be checked.

They are called Dice, mean IoU and F1 there and are other things than in `metrics.py`, so they go by `published/NAME`.
Ignored pixels count nowhere: where a project scored them as a class, the data set has to have that class.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

BATCH = 32  # patches over which project C's F1 is taken
SMOOTH = 1e-5  # of project A's F1
EPSILON = 1e-7  # Keras'


def of_a(counts: np.ndarray, images: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Project A, FCN-VGG16 and FPN-MobileNet on CamVid.

    `mean_iou` is one IoU of the one-hot maps over pixels and classes, acc / (2 - acc): no class mean. `f1` is the mean
    over all classes of 2 tp / (t + p) with 1e-5 above and below, so that a class that is neither there nor predicted
    scores 1. `dice` is the Dice loss, 1 - f1: lower is better.
    """
    hits, true, pred = _sums(counts)
    f1 = float(np.mean((2 * hits + SMOOTH) / (true + pred + SMOOTH)))
    return {
        **accuracy(counts, images),
        "mean_iou": _ratio(hits.sum(), (true + pred - hits).sum()),
        "f1": f1,
        "dice": 1 - f1,
    }


def of_b(counts: np.ndarray, images: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Project B, FCN, U-Net, PSPNet and DeepLabV3 on LoveDA: scikit-learn with average="macro" and zero_division=0.

    The means are over the classes that are there or were predicted; one predicted without being there scores 0.
    """
    hits, true, pred = _sums(counts)
    there = true + pred > 0

    def macro(above, below):
        values = np.divide(above, below, out=np.zeros(len(hits)), where=below > 0)
        return float(values[there].mean()) if there.any() else float("nan")

    return {
        **accuracy(counts, images),
        "f1": macro(2 * hits, true + pred),
        "precision": macro(hits, pred),
        "recall": macro(hits, true),
        "mean_iou": macro(hits, true + pred - hits),
    }


def of_c(counts: np.ndarray, images: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Project C, U-Net, SegNet and DeepLabV3+ on MoNuSeg, from `sums_of_c` of each image in the split's order.

    `f1` is that of class 1 over 32 images together, with Keras' epsilon, averaged over such batches. `dice` is
    (2yp + 1) / (y + p^2 + 1) of each pixel with its label y and probability p of class 1, averaged over pixels: a right
    and sure pixel scores 1, of class 0 too, and a wrong one 0.5; on hard maps it is (1 + accuracy) / 2.
    """
    f1s = []
    for start in range(0, len(images["hits"]), BATCH):
        hits, pred, true = (float(images[name][start : start + BATCH].sum()) for name in ("hits", "pred", "true"))
        precision, recall = hits / (pred + EPSILON), hits / (true + EPSILON)
        f1s.append(2 * precision * recall / (precision + recall + EPSILON))
    return {
        **accuracy(counts, images),
        "f1": float(np.mean(f1s)) if f1s else float("nan"),
        "dice": _ratio(images["dice"].sum(), images["pixels"].sum()),
    }


def accuracy(counts: np.ndarray, images: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Projects D and E, DeepLab and U-Net on MobileNetV2 on VOC: Keras' pixel accuracy, and nothing else."""
    return {"accuracy": _ratio(_sums(counts)[0].sum(), np.sum(counts))}


DEFINITIONS = {"a": of_a, "b": of_b, "c": of_c, "d": accuracy, "e": accuracy}


def sums_of_c(probs: jax.Array, labels: jax.Array, *, ignore_label: int = 255) -> dict[str, jax.Array]:
    """What `of_c` wants of each image of a batch, on the device.

    Args:
      probs: float32 `[B, H, W, 2]`.
      labels: int32 `[B, H, W]`: 0, 1 or `ignore_label`.

    Returns:
      `hits`, `pred`, `true` and `pixels`, int32 `[B]`, of class 1 and of all valid pixels, and `dice`, float32 `[B]`,
      summed over these.
    """
    valid, p = labels != ignore_label, probs[..., 1]
    true, pred = valid & (labels == 1), valid & (p > 0.5)
    y = true.astype(jnp.float32)
    dice = jnp.where(valid, (2 * y * p + 1) / (y + p * p + 1), 0.0)
    sums = {"hits": true & pred, "pred": pred, "true": true, "pixels": valid}
    return {name: value.sum((1, 2), jnp.int32) for name, value in sums.items()} | {"dice": dice.sum((1, 2))}


def _sums(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    counts = np.asarray(counts, np.int64)
    return np.diag(counts), counts.sum(1), counts.sum(0)


def _ratio(above, below) -> float:
    return float(above / below) if below else float("nan")
