"""Losses over labelled pixels: pure functions of logits and labels, float32 whatever the network computed in.

Each takes `logits` `[..., num_classes]` of two classes or more and integer `labels` `[...]`, and gives a float32 scalar
over all their pixels at once, the whole batch: 0 where no pixel is valid. Pixels of `ignore_label` have no say,
whatever their logits. `class_weights` `[num_classes]` (None for ones) weigh a mean: times any number they are the same.

Where segmentation_models_pytorch (SMP 0.6.0) has the loss too, it is the same but for two things that are not right
there: its Dice, Jaccard and Tversky losses count a class that is absent from the batch as a perfect 0, and its
`SoftBCEWithLogitsLoss` divides by the ignored pixels as well.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from jaxseg.lookup import lookup
from jaxseg.models.layers import resize_bilinear


def cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    *,
    ignore_label: int = 255,
    class_weights: jax.Array | None = None,
    label_smoothing: float = 0.0,
) -> jax.Array:
    """Mean cross entropy over the valid pixels of a batch, as `torch.nn.functional.cross_entropy` defines it.

    A pixel of class y costs `w[y] * (1 - s) * -log p[y] + s / C * sum_c w[c] * -log p[c]`; the mean divides by the sum
    of `w[y]` over the valid pixels, not by their number (pitfall of weighted losses: the two differ).

    Args:
      logits: `[..., num_classes]`.
      labels: integers `[...]`; pixels of `ignore_label` count neither above nor below the line.
      class_weights: `[num_classes]`, None for ones.
      label_smoothing: `s` in [0, 1), the share of the target spread over all classes (Szegedy et al. 2016, section 7).

    Returns:
      A float32 scalar; 0 where no pixel is valid.
    """
    return _ratio(*_entropy_and_weight(logits, labels, ignore_label, class_weights, label_smoothing))


def upsampled_cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    *,
    align_corners: bool,
    together: int = 1,
    ignore_label: int = 255,
    class_weights: jax.Array | None = None,
    label_smoothing: float = 0.0,
) -> jax.Array:
    """`cross_entropy` of `resize_bilinear(logits, labels' size)`, without all of these logits at once.

    The images are taken one after another, and a second time for the gradient, so that only `logits` are kept for it.

    Args:
      logits: `[B, h, w, num_classes]`.
      labels: integers `[B, H, W]`.
      align_corners: see `resize_bilinear`.
      together: images at a time, the first of each of so many parts of the batch: the number of devices that it is
        sharded over, so that none of them moves.
      others: see `cross_entropy`.
    """

    @jax.checkpoint
    def add(totals, images):
        logits, labels = images
        logits = resize_bilinear(logits.astype(jnp.float32), labels.shape[1:], align_corners=align_corners)
        sums = _entropy_and_weight(logits, labels, ignore_label, class_weights, label_smoothing)
        return jax.tree.map(jnp.add, totals, sums), None

    turns = [x.reshape(together, -1, *x.shape[1:]).swapaxes(0, 1) for x in (logits, labels)]
    zero = jnp.zeros((), jnp.float32)
    return _ratio(*jax.lax.scan(add, (zero, zero), tuple(turns))[0])


def _entropy_and_weight(logits, labels, ignore_label, class_weights, label_smoothing) -> tuple[jax.Array, jax.Array]:
    """What `cross_entropy` divides by what."""
    num_classes = logits.shape[-1]
    valid = labels != ignore_label
    # Replaced before the gather (255 is no class) and zeroed after it, so that no NaN meets a 0.
    safe = jnp.where(valid, labels, 0).astype(jnp.int32)
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
    one_hot = jax.nn.one_hot(safe, num_classes, dtype=jnp.float32)
    weights = _weights(class_weights, num_classes)
    target = one_hot
    if label_smoothing:
        target = (1 - label_smoothing) * one_hot + label_smoothing / num_classes
    per_pixel = -jnp.sum(target * weights * log_probs, axis=-1)
    pixel_weights = jnp.where(valid, jnp.sum(one_hot * weights, axis=-1), 0.0)
    return jnp.sum(jnp.where(valid, per_pixel, 0.0)), jnp.sum(pixel_weights)


def binary_cross_entropy(
    logits: jax.Array, labels: jax.Array, *, ignore_label: int = 255, class_weights: jax.Array | None = None
) -> jax.Array:
    """Each class against the rest: the mean over valid pixels and classes of the sigmoid's cross entropy.

    Without class weights it is `torch.nn.BCEWithLogitsLoss` on the one-hot labels of the valid pixels; with them the
    mean over classes is weighted.
    """
    logits, one_hot, valid = _valid_only(logits, labels, ignore_label)
    weights = _weights(class_weights, logits.shape[-1])
    per_pixel = jnp.sum(weights * (jax.nn.softplus(logits) - logits * one_hot), axis=-1)
    return _ratio(jnp.sum(jnp.where(valid, per_pixel, 0.0)), jnp.sum(valid) * jnp.sum(weights))


def focal(
    logits: jax.Array,
    labels: jax.Array,
    *,
    ignore_label: int = 255,
    class_weights: jax.Array | None = None,
    gamma: float = 2.0,
) -> jax.Array:
    """Cross entropy of which a pixel counts `(1 - p[y]) ** gamma` (Lin et al. 2017, equation 4), over the softmax.

    At `gamma` 0 it is `cross_entropy`; below 1 and not 0 it has no finite gradient. As SMP's
    `softmax_focal_loss_with_logits` and Keras' categorical focal loss; SMP's `FocalLoss` is over sigmoids.
    """
    logits, one_hot, _ = _valid_only(logits, labels, ignore_label)
    pixel_weights = jnp.sum(one_hot * _weights(class_weights, logits.shape[-1]), axis=-1)
    entropy = -jnp.sum(one_hot * jax.nn.log_softmax(logits), axis=-1)
    missed = -jnp.expm1(-entropy)
    return _ratio(jnp.sum(pixel_weights * missed**gamma * entropy), jnp.sum(pixel_weights))


def tversky(
    logits: jax.Array,
    labels: jax.Array,
    *,
    ignore_label: int = 255,
    class_weights: jax.Array | None = None,
    alpha: float = 0.3,
    beta: float = 0.7,
) -> jax.Array:
    """1 - tp / (tp + alpha fp + beta fn) of each class, averaged over the classes present (Salehi et al. 2017).

    tp, fp and fn are sums of softmax probabilities over the valid pixels of the batch. A class without a valid pixel is
    left out of the mean. `alpha` and `beta` are the paper's best: a missed pixel costs more than a false one.
    """
    logits, one_hot, valid = _valid_only(logits, labels, ignore_label)
    pixels = tuple(range(logits.ndim - 1))
    probs = jnp.where(valid[..., None], jax.nn.softmax(logits), 0.0)
    hits, pred, true = (jnp.sum(x, axis=pixels) for x in (probs * one_hot, probs, one_hot))
    below = hits + alpha * (pred - hits) + beta * (true - hits)
    # A class may be absent and its probabilities round to 0.
    values = 1.0 - hits / jnp.where(below > 0, below, 1.0)
    return _mean_of_present(values, true, class_weights)


def dice(
    logits: jax.Array, labels: jax.Array, *, ignore_label: int = 255, class_weights: jax.Array | None = None
) -> jax.Array:
    """1 - 2 tp / (pred + true) of each class present, averaged (Milletari et al. 2016, without the squares)."""
    return tversky(logits, labels, ignore_label=ignore_label, class_weights=class_weights, alpha=0.5, beta=0.5)


def jaccard(
    logits: jax.Array, labels: jax.Array, *, ignore_label: int = 255, class_weights: jax.Array | None = None
) -> jax.Array:
    """1 - tp / (pred + true - tp) of each class present, averaged (Rahman & Wang 2016): IoU of probabilities."""
    return tversky(logits, labels, ignore_label=ignore_label, class_weights=class_weights, alpha=1.0, beta=1.0)


def lovasz(
    logits: jax.Array, labels: jax.Array, *, ignore_label: int = 255, class_weights: jax.Array | None = None
) -> jax.Array:
    """Lovász-Softmax over the classes present in the batch (Berman et al. 2018, equation 11): convex IoU of errors.

    It sorts all pixels once a class, and costs accordingly.
    """
    logits, one_hot, valid = _valid_only(logits, labels, ignore_label)
    classes = logits.shape[-1]
    errors = jnp.where(valid[..., None], jnp.abs(one_hot - jax.nn.softmax(logits)), 0.0)
    errors, one_hot, valid = errors.reshape(-1, classes).T, one_hot.reshape(-1, classes).T, valid.reshape(-1)
    # The extension is linear as long as the order stays: its gradient is the sorted weights, sorted back.
    ranked = jnp.where(valid, jax.lax.stop_gradient(errors), -1.0)
    slopes = jax.lax.map(lambda pair: _lovasz_slopes(*pair), (ranked, one_hot))
    return _mean_of_present(jnp.sum(errors * slopes, axis=1), jnp.sum(one_hot, axis=1), class_weights)


def _lovasz_slopes(errors: jax.Array, foreground: jax.Array) -> jax.Array:
    """By how much the Jaccard distance grows as each pixel `[N]` joins those of larger errors."""
    _, order, foreground = jax.lax.sort((-errors, jnp.arange(errors.size), foreground.astype(jnp.int32)), num_keys=1)
    missed = jnp.cumsum(foreground)
    total = missed[-1]
    hits = (total - missed).astype(jnp.float32)
    union = (total + jnp.arange(1, errors.size + 1) - missed).astype(jnp.float32)
    # 1 - hits / union less that of the pixel before, in closed form: float32 loses the difference itself.
    alone = jnp.where(union > 1, union * (union - 1), 1.0)
    slopes = jnp.where(foreground == 1, 1.0 / union, hits / alone)
    return jax.lax.sort((order, slopes), num_keys=1)[1]


def ohem(
    logits: jax.Array,
    labels: jax.Array,
    *,
    ignore_label: int = 255,
    class_weights: jax.Array | None = None,
    threshold: float = 0.7,
    min_kept: float = 100_000 / (512 * 1024),
) -> jax.Array:
    """Cross entropy over the hard pixels: those whose class has a probability below `threshold`.

    Where these are fewer than `min_kept` of all pixels of the batch, the hardest so many. As mmsegmentation's
    `OHEMPixelSampler` and SegFix's `FSOhemCELoss` choose them (Shrivastava et al. 2016), and averaged over the pixels
    chosen as the latter does. They keep at least 100,000 pixels an image, of Cityscapes crops of 512x1024; here it is
    that share, for smaller crops have no more pixels than that.
    """
    masked, one_hot, valid = _valid_only(jax.lax.stop_gradient(logits), labels, ignore_label)
    probs = jnp.where(valid, jnp.sum(jax.nn.softmax(masked) * one_hot, axis=-1), jnp.inf)
    last = jnp.maximum(jnp.sum(valid) - 1, 0)
    at_least = jnp.sort(probs, axis=None)[jnp.minimum(int(min_kept * labels.size), last)]
    hard = valid & (probs < jnp.maximum(at_least, threshold))
    labels = jnp.where(hard, labels, ignore_label)
    return cross_entropy(logits, labels, ignore_label=ignore_label, class_weights=class_weights)


LOSSES = {
    "cross_entropy": cross_entropy,
    "binary_cross_entropy": binary_cross_entropy,
    "dice": dice,
    "jaccard": jaccard,
    "focal": focal,
    "lovasz": lovasz,
    "tversky": tversky,
    "ohem": ohem,
}


def total_loss(
    logits: jax.Array,
    labels: jax.Array,
    losses: Mapping[str, float],
    *,
    ignore_label: int = 255,
    class_weights: jax.Array | None = None,
    label_smoothing: float = 0.0,
) -> jax.Array:
    """The sum of the losses named in `losses`, each times its weight; one of weight 0 is not computed.

    Label smoothing is for `cross_entropy` alone.

    Raises:
      UserError: a name that is not in `LOSSES`; with the nearest.
    """
    total = jnp.zeros((), jnp.float32)
    for name, weight in losses.items():
        loss = lookup(LOSSES, name, "loss")
        if weight:
            smoothing = {"label_smoothing": label_smoothing} if loss is cross_entropy else {}
            total += weight * loss(logits, labels, ignore_label=ignore_label, class_weights=class_weights, **smoothing)
    return total


def _valid_only(logits: jax.Array, labels: jax.Array, ignore_label: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """float32 logits and one-hot labels `[..., C]`, both 0 where a pixel is to be ignored; which ones are valid."""
    valid = labels != ignore_label
    # Replaced, not multiplied: 0 times NaN is NaN.
    logits = jnp.where(valid[..., None], logits.astype(jnp.float32), 0.0)
    one_hot = (labels[..., None] == jnp.arange(logits.shape[-1])) & valid[..., None]
    return logits, one_hot.astype(jnp.float32), valid


def _weights(class_weights: jax.Array | None, num_classes: int) -> jax.Array:
    return jnp.ones(num_classes, jnp.float32) if class_weights is None else jnp.asarray(class_weights, jnp.float32)


def _mean_of_present(values: jax.Array, pixels: jax.Array, class_weights: jax.Array | None) -> jax.Array:
    """The weighted mean of `values` `[C]` over the classes of which there are `pixels` `[C]`."""
    weights = jnp.where(pixels > 0, _weights(class_weights, values.shape[0]), 0.0)
    return _ratio(jnp.sum(weights * values), jnp.sum(weights))


def _ratio(above: jax.Array, below: jax.Array) -> jax.Array:
    """`above / below`, and 0 with a gradient of 0 where there is nothing below."""
    return jnp.where(below > 0, above / jnp.where(below > 0, below, 1.0), 0.0)
