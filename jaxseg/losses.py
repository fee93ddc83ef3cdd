"""Losses over labelled pixels: pure functions of logits and labels, float32 whatever the network computed in."""

import jax
import jax.numpy as jnp


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
    num_classes = logits.shape[-1]
    valid = labels != ignore_label
    # Replaced before the gather (255 is no class) and zeroed after it, so that no NaN meets a 0.
    safe = jnp.where(valid, labels, 0).astype(jnp.int32)
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
    one_hot = jax.nn.one_hot(safe, num_classes, dtype=jnp.float32)
    weights = jnp.ones(num_classes, jnp.float32) if class_weights is None else jnp.asarray(class_weights, jnp.float32)
    target = one_hot
    if label_smoothing:
        target = (1 - label_smoothing) * one_hot + label_smoothing / num_classes
    per_pixel = -jnp.sum(target * weights * log_probs, axis=-1)
    pixel_weights = jnp.where(valid, jnp.sum(one_hot * weights, axis=-1), 0.0)
    total = jnp.sum(jnp.where(valid, per_pixel, 0.0))
    weight = jnp.sum(pixel_weights)
    return jnp.where(weight > 0, total / jnp.where(weight > 0, weight, 1.0), 0.0)
