"""The jitted steps: one batch on a mesh of devices to a new state, or to counts and predictions.

Runs on jax, flax, optax and numpy alone. A batch is a dict of numpy arrays as the pipeline gives them: `images` uint8
`[B, H, W, 3]`, `labels` uint8 `[B, H, W]`. They go to the devices as bytes and are widened there: a quarter of the
traffic of float32.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxseg.errors import UserError
from jaxseg.losses import cross_entropy
from jaxseg.metrics import confusion_matrix
from jaxseg.state import TrainState


def create_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of one axis, `data`, over all devices of all processes, or over `devices`."""
    return Mesh(np.asarray(jax.devices() if devices is None else devices), ("data",))


def check_batch_size(batch_size: int, num_devices: int, field: str = "data.batch_size") -> None:
    """Raises a `UserError` with the nearest sizes that work where the devices don't divide the batch."""
    if batch_size % num_devices:
        below, above = batch_size // num_devices * num_devices, -(-batch_size // num_devices) * num_devices
        near = " or ".join(str(size) for size in (below, above) if size)
        raise UserError(f"{field} is {batch_size}, which {num_devices} devices don't divide: take {near}")


def put_batch(batch: Mapping[str, Any], mesh: Mesh) -> dict[str, jax.Array]:
    """The batch's arrays, this process's rows of them, as global arrays sharded over the mesh by row."""
    sharding = NamedSharding(mesh, P("data"))
    arrays = {key: value for key, value in batch.items() if isinstance(value, np.ndarray)}
    return {key: jax.make_array_from_process_local_data(sharding, value) for key, value in arrays.items()}


def replicate(tree: Any, mesh: Mesh) -> Any:
    """`tree` with every array whole on every device of the mesh, in buffers of its own."""
    return jax.device_put(tree, NamedSharding(mesh, P()), may_alias=False)


def normalise(images: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """uint8 images `[..., 3]` as float32: divided by 255, less `mean`, over `std`, both RGB in [0, 1]."""
    return (images.astype(jnp.float32) / 255.0 - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)


def fill_colour(mean: Sequence[float]) -> tuple[int, ...]:
    """The uint8 colour that is nearest 0 once normalised: what images are padded with."""
    return tuple(round(255 * value) for value in mean)


def create_train_step(
    model: nn.Module,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    seed: int,
    cross_entropy_weight: float = 1.0,
    auxiliary_weight: float = 0.4,
    class_weights: Sequence[float] | None = None,
    label_smoothing: float = 0.0,
    ignore_label: int = 255,
) -> Callable[[TrainState, Mapping[str, jax.Array]], tuple[TrainState, dict[str, jax.Array]]]:
    """`train_step(state, batch) -> (state, {'loss': float32 scalar})`, jitted; the state that goes in is donated.

    The batch is sharded over the mesh's `data` axis and the state is whole on every device, so BatchNorm's statistics,
    the loss and the gradient are those of the global batch. Dropout's key is folded from the seed and the step: a
    resumed run draws what the unbroken one draws. Logits that the network sows as `aux` add their cross entropy, times
    `auxiliary_weight`, to the loss.
    """

    def loss_fn(params, state, batch):
        logits, updates = model.apply(
            {"params": params, "batch_stats": state.batch_stats},
            normalise(batch["images"], mean, std),
            train=True,
            mutable=["batch_stats", "aux"],
            rngs={"dropout": jax.random.fold_in(jax.random.key(seed), state.step)},
        )
        labels = batch["labels"].astype(jnp.int32)
        pixel_loss = functools.partial(
            cross_entropy,
            labels=labels,
            ignore_label=ignore_label,
            class_weights=class_weights,
            label_smoothing=label_smoothing,
        )
        loss = cross_entropy_weight * pixel_loss(logits)
        for aux_logits in jax.tree.leaves(updates.get("aux", {})):
            loss += auxiliary_weight * pixel_loss(aux_logits)
        return loss, updates.get("batch_stats", {})

    def train_step(state, batch):
        (loss, batch_stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params, state, batch)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, batch_stats, opt_state), {"loss": loss}

    whole, by_row = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
    return jax.jit(train_step, in_shardings=(whole, by_row), out_shardings=whole, donate_argnums=0)


def create_eval_step(
    model: nn.Module, mesh: Mesh, *, mean: Sequence[float], std: Sequence[float], ignore_label: int = 255
) -> Callable[[Mapping[str, Any], Mapping[str, jax.Array]], dict[str, jax.Array]]:
    """`eval_step(variables, batch) -> {'counts', 'loss_sum', 'preds'}`, jitted, in evaluation mode.

    `counts` int32 `[C, C]` and `loss_sum` (cross entropy summed over valid pixels, float32) are of the global batch;
    `preds` uint8 `[B, H, W]` stays sharded by row. Logits are as large as the images, padding included; padded pixels
    and rows carry `ignore_label` and count nowhere.
    """

    def eval_step(variables, batch):
        logits = model.apply(variables, normalise(batch["images"], mean, std), train=False)
        labels = batch["labels"].astype(jnp.int32)
        preds = logits.argmax(-1)
        valid = (labels != ignore_label).sum()
        loss = cross_entropy(logits, labels, ignore_label=ignore_label)
        counts = confusion_matrix(preds, labels, logits.shape[-1], ignore_label=ignore_label)
        return {"counts": counts, "loss_sum": loss * valid, "preds": preds.astype(jnp.uint8)}

    whole, by_row = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
    return jax.jit(
        eval_step,
        in_shardings=(whole, by_row),
        out_shardings={"counts": whole, "loss_sum": whole, "preds": by_row},
    )
