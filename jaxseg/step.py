"""The jitted steps: one batch on a mesh of devices to a new state, or to counts and predictions.

Runs on jax, flax, optax and numpy alone. A batch is a dict of numpy arrays as the pipeline gives them: `images` uint8
`[B, H, W, 3]`, `labels` uint8 `[B, H, W]`. They go to the devices as bytes and are widened there: a quarter of the
traffic of float32.
"""

import contextlib
import dataclasses
import functools
import math
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
from jaxseg.losses import cross_entropy, total_loss, upsampled_cross_entropy
from jaxseg.metrics import confusion_matrix
from jaxseg.models.layers import FullSize, resize_bilinear
from jaxseg.state import TrainState, own_buffers

# Bytes of a device's logits at the size of the images, on a CPU (whose caches they should stay near) and on others.
# Beyond, they are made and used an image at a time.
_LARGE, _LARGE_ELSEWHERE = 2**27, 2**30
_SMALL = 2**10  # values of an array, or fewer, that every device keeps whole


def create_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of one axis, `data`, over all devices of all processes, or over `devices`."""
    return Mesh(np.asarray(jax.devices() if devices is None else devices), ("data",))


def check_batch_size(batch_size: int, num_devices: int, field: str = "data.batch_size", accumulate: int = 1) -> None:
    """Raises a `UserError` with the nearest sizes that work where devices and slices don't divide the batch."""
    parts = num_devices * accumulate
    if batch_size % parts:
        below, above = batch_size // parts * parts, -(-batch_size // parts) * parts
        near = " or ".join(str(size) for size in (below, above) if size)
        times = f" times train.accumulate {accumulate}" if accumulate > 1 else ""
        raise UserError(f"{field} is {batch_size}, which {num_devices} devices{times} don't divide: take {near}")


def put_batch(batch: Mapping[str, Any], mesh: Mesh) -> dict[str, jax.Array]:
    """The batch's arrays, this process's rows of them, as global arrays sharded over the mesh by row."""
    sharding = NamedSharding(mesh, P("data"))
    arrays = {key: value for key, value in batch.items() if isinstance(value, np.ndarray)}
    return {key: jax.make_array_from_process_local_data(sharding, value) for key, value in arrays.items()}


def replicate(tree: Any, mesh: Mesh) -> Any:
    """`tree` with every array whole on every device of the mesh, in buffers of its own: a step may be given them."""
    return jax.device_put(own_buffers(tree), NamedSharding(mesh, P()), may_alias=False)


def split_largest_axis(x: jax.Array | jax.ShapeDtypeStruct, mesh: Mesh) -> NamedSharding:
    """Of an array of a split state: its largest axis that the devices divide, split over them; else whole on each."""
    axes = [axis for axis, size in enumerate(x.shape) if size % mesh.size == 0]
    if not axes or x.size <= _SMALL:
        return NamedSharding(mesh, P())
    largest = max(axes, key=lambda axis: x.shape[axis])
    return NamedSharding(mesh, P(*("data" if axis == largest else None for axis in range(x.ndim))))


def split_state(state: TrainState, mesh: Mesh) -> TrainState:
    """`state` for a step with `fsdp`: each device has its part of parameters, optimizer state and moving averages.

    In buffers of its own, as `replicate`.
    """
    return jax.device_put(own_buffers(state), split_shardings(state, mesh), may_alias=False)


def gather(tree: Any, mesh: Mesh) -> Any:
    """`tree` with every array whole on every device; what is so already stays as it is."""
    if all(x.sharding.is_fully_replicated for x in jax.tree.leaves(tree)):
        return tree
    return jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, P()))(tree)


def split_shardings(state: TrainState, mesh: Mesh) -> TrainState:
    """For every array of a state how `split_state` lays it over the mesh."""
    shardings = jax.tree.map(functools.partial(split_largest_axis, mesh=mesh), state)
    # Statistics are small, and every device computes all of them.
    return shardings.replace(batch_stats=jax.tree.map(lambda x: NamedSharding(mesh, P()), state.batch_stats))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gathered(x: jax.Array, mesh: Mesh) -> jax.Array:
    """`x` whole on every device; its gradient is split again, so that no device need sum all of it."""
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P()))


def _gathered_backward(mesh, _, dy):
    return (jax.lax.with_sharding_constraint(dy, split_largest_axis(dy, mesh)),)


_gathered.defvjp(lambda x, mesh: (_gathered(x, mesh), None), _gathered_backward)


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
    losses: Mapping[str, float] | None = None,
    auxiliary_weight: float = 0.4,
    class_weights: Sequence[float] | None = None,
    label_smoothing: float = 0.0,
    ignore_label: int = 255,
    freeze_backbone: bool = False,
    accumulate: int = 1,
    remat: bool = False,
    ema_decay: float = 0.0,
    fsdp: bool = False,
) -> Callable[[TrainState, Mapping[str, jax.Array]], tuple[TrainState, dict[str, jax.Array]]]:
    """`train_step(state, batch) -> (state, {'loss': float32 scalar})`, jitted; the state that goes in is donated.

    The batch is sharded over the mesh's `data` axis and the state is whole on every device, so BatchNorm's statistics,
    the loss and the gradient are those of the global batch. Dropout's key is folded from the seed and the step: a
    resumed run draws what the unbroken one draws.

    Where the loss is cross entropy alone and the logits, at the size of the images, would take a CPU more than 128 MiB
    or another device more than 1 GiB, a network that ends in `FullSize` has them enlarged an image at a time, see
    `losses.upsampled_cross_entropy`.

    Args:
      losses: name in `losses.LOSSES` to weight; None for cross entropy.
      auxiliary_weight: of the same sum over logits that the network sows as `aux`.
      freeze_backbone: what is under `backbone` runs in evaluation mode: its BatchNorm normalises by the statistics it
        has and leaves them, and there is no gradient. `tx` must leave its parameters alone too, see `create_optimizer`.
      accumulate: slices that the batch goes through the network in, one after another, for less memory: the activations
        are those of one slice, and are computed a second time for the gradient. The loss is taken over the logits of
        all slices at once, so for any loss it and the gradient are those of the whole batch; but where there is
        BatchNorm, it sees a slice at a time and its running statistics take that many steps. Dropout differs by slice.
      remat: whether only what goes into each block of the network is kept for the gradient, see `remat_blocks`.
      ema_decay: of `state.ema`, which the state must have unless it is 0. With t steps done it is at most
        (1 + t) / (10 + t), as in TensorFlow's `ExponentialMovingAverage`: the first weights would stay for long.
      fsdp: whether the state is that of `split_state`, and stays so: fully sharded data parallelism (Rajbhandari et al.
        2020, ZeRO's third stage). Parameters are gathered where the step uses them; values are equal up to rounding.

    Raises:
      UserError: when the step is first called or traced, where a norm has one value to take its statistics from, see
        `check_statistics`.
    """
    losses = {"cross_entropy": 1.0} if losses is None else losses
    whole, by_row = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
    large = mesh.size * (_LARGE if mesh.devices.flat[0].platform == "cpu" else _LARGE_ELSEWHERE)

    def forward(params, batch_stats, images, key):
        """New statistics, and the logits: the network's own, then the auxiliary ones."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(nn.intercept_methods(_leave_size))
            stack.enter_context(nn.intercept_methods(check_statistics))
            if freeze_backbone:
                stack.enter_context(nn.intercept_methods(_freeze_backbone))
            if remat:
                stack.enter_context(remat_blocks())
            logits, updates = model.apply(
                {"params": params, "batch_stats": batch_stats},
                normalise(images, mean, std),
                train=True,
                mutable=["batch_stats", "aux"],
                rngs={"dropout": key},
            )
        aux = jax.tree.leaves(updates.get("aux", {}), is_leaf=lambda x: isinstance(x, _Resizable))
        return updates.get("batch_stats", {}), [logits, *aux]

    def forward_in_slices(params, batch_stats, images, key):
        # Every device has rows in every slice, so that none of them moves.
        slices = images.reshape(-1, accumulate, *images.shape[1:]).swapaxes(0, 1)
        slices = jax.lax.with_sharding_constraint(slices, NamedSharding(mesh, P(None, "data")))

        def one(batch_stats, number_and_images):
            number, images = number_and_images
            return forward(params, batch_stats, images, jax.random.fold_in(key, number))

        one = jax.checkpoint(one, prevent_cse=False)
        batch_stats, logits = jax.lax.scan(one, batch_stats, (jnp.arange(accumulate), slices))
        return batch_stats, jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), logits)

    def loss_fn(params, state, batch):
        if fsdp:
            params = jax.tree.map(lambda x: _gathered(x, mesh), params)
        if freeze_backbone:
            params = {**params, "backbone": jax.lax.stop_gradient(params["backbone"])}
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        run = forward if accumulate == 1 else forward_in_slices
        batch_stats, (logits, *aux) = run(params, state.batch_stats, batch["images"], key)
        labels = batch["labels"].astype(jnp.int32)
        settings = {
            "ignore_label": ignore_label,
            "class_weights": class_weights,
            "label_smoothing": label_smoothing,
        }
        weighted = {name: weight for name, weight in losses.items() if weight}

        def pixel_loss(logits):
            if not isinstance(logits, _Resizable):
                return total_loss(logits, labels, losses, **settings)
            small, by = logits.small, {"align_corners": logits.align_corners}
            if labels.size * small.shape[-1] * 4 > large and set(weighted) == {"cross_entropy"}:
                loss = upsampled_cross_entropy(small, labels, together=mesh.size, **by, **settings)
                return weighted["cross_entropy"] * loss
            logits = resize_bilinear(small.astype(jnp.float32), labels.shape[1:], **by)
            return total_loss(logits, labels, losses, **settings)

        loss = pixel_loss(logits)
        for aux_logits in aux:
            loss += auxiliary_weight * pixel_loss(aux_logits)
        return loss, batch_stats

    def train_step(state, batch):
        (loss, batch_stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params, state, batch)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = _averaged(state, {"params": params, "batch_stats": batch_stats}, ema_decay) if ema_decay else state.ema
        state = TrainState(state.step + 1, params, batch_stats, opt_state, ema)
        if fsdp:
            state = jax.lax.with_sharding_constraint(state, split_shardings(state, mesh))
        return state, {"loss": loss}

    placed = None if fsdp else whole  # None: as it comes and as it is left
    return jax.jit(train_step, in_shardings=(placed, by_row), out_shardings=(placed, whole), donate_argnums=0)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["small"], meta_fields=["align_corners"])
@dataclasses.dataclass
class _Resizable:
    """Logits before the network's `FullSize`, and how that would resize them to the labels' size."""

    small: jax.Array
    align_corners: bool


def _leave_size(call, arguments, keywords, context):
    """For `nn.intercept_methods`: logits are left as they are before `FullSize`."""
    if isinstance(context.module, FullSize):
        return _Resizable(*arguments, context.module.align_corners)
    return call(*arguments, **keywords)


def check_statistics(call, arguments, keywords, context):
    """For `nn.intercept_methods`: refuses a norm that takes mean and variance from one value.

    What it gives is 0 whatever the image, and its running variance goes to 0, so evaluation blows up: an image's mean
    behind global pooling in a batch of one image, or features of one pixel. Counted are the values of a channel, or of
    a group of them, over the slice of the batch that the network sees at once, on all devices.

    Raises:
      UserError: names the layer, the shape of its features and the remedy.
    """
    norm = context.module
    if context.method_name == "__call__" and isinstance(norm, nn.BatchNorm | nn.GroupNorm):
        x = arguments[0]
        if isinstance(norm, nn.GroupNorm):
            groups = norm.num_groups or x.shape[-1] // norm.group_size
            values = math.prod(x.shape[1:]) // groups
        else:
            running = keywords.get("use_running_average", norm.use_running_average)
            # Under an axis name others join in, whose number is theirs to know.
            counted = not running and norm.axis_name is None
            axes = norm.axis if isinstance(norm.axis, tuple) else (norm.axis,)
            values = x.size // math.prod(x.shape[axis] for axis in axes) if counted else 2
        if values == 1:
            name, shape = "/".join(norm.path) or type(norm).__name__, "x".join(map(str, x.shape[1:-1]))
            what = "a channel" if isinstance(norm, nn.BatchNorm) else "a group"
            raise UserError(
                f"the norm {name} would take mean and variance from one value {what}: its features are of {shape} "
                f"pixels, of {x.shape[0]} image at once. Give it more: a data.batch_size of 2 times train.accumulate "
                "or more, or a larger data.crop_size where they are no image's mean"
            )
    return call(*arguments, **keywords)


def _freeze_backbone(call, arguments, keywords, context):
    """For `nn.intercept_methods`: the backbone runs as in evaluation, whatever it is told."""
    if context.module.path == ("backbone",) and context.method_name == "__call__":
        keywords = {**keywords, "train": False}
    return call(*arguments, **keywords)


def remat_blocks() -> contextlib.AbstractContextManager:
    """Within it a network's blocks are computed a second time for the gradient (Chen et al. 2016), so that only what
    goes into each is kept.

    Blocks are the modules right below `backbone`, and those beside it: a bottleneck of a ResNet, a block of a decoder.
    The values are those of the first time, BatchNorm's and dropout's too. On 2x256x256 a gradient keeps, beside the
    weights, a third (SegNet on VGG16) to a tenth (FPN on MobileNetV2). XLA's CPU compiler takes most of it back.
    """
    within: list[tuple[str, ...]] = []

    def call_block(call, arguments, keywords, context):
        path = context.module.path
        depth = 2 if path[:1] == ("backbone",) else 1
        if context.method_name != "__call__" or len(path) != depth or path in within:
            return call(*arguments, **keywords)
        leaves, tree = jax.tree.flatten((arguments, keywords))
        places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, jax.Array)]

        def block(module, *arrays):
            whole = list(leaves)
            for i, array in zip(places, arrays, strict=True):
                whole[i] = array
            arguments, keywords = jax.tree.unflatten(tree, whole)
            within.append(path)  # or it would come here again
            try:
                return module(*arguments, **keywords)
            finally:
                within.pop()

        return nn.remat(block)(context.module, *(leaves[i] for i in places))

    return nn.intercept_methods(call_block)


def _averaged(state: TrainState, variables: Mapping[str, Any], ema_decay: float) -> dict[str, Any]:
    decay = jnp.minimum(ema_decay, (1.0 + state.step) / (10.0 + state.step))
    return jax.tree.map(lambda average, x: decay * average + (1.0 - decay) * x, state.ema, variables)


def scored(
    logits: jax.Array, labels: jax.Array, ignore_label: int, preds: jax.Array | None = None
) -> dict[str, jax.Array]:
    """What `create_eval_step` gives of float32 logits `[B, H, W, C]` and int32 labels `[B, H, W]`.

    `preds`, int `[B, H, W]`, are the classes where they aren't those of the largest logits.
    """
    preds, valid = logits.argmax(-1) if preds is None else preds, labels != ignore_label
    loss = cross_entropy(logits, labels, ignore_label=ignore_label)
    return {
        "counts": confusion_matrix(preds, labels, logits.shape[-1], ignore_label=ignore_label),
        "loss_sum": loss * valid.sum(),
        # The argmax of NaN is class 0: its scores look like scores.
        "nonfinite": (valid & ~jnp.isfinite(logits).all(-1)).sum(),
        "preds": preds.astype(jnp.uint8),
    }


def create_eval_step(
    model: nn.Module, mesh: Mesh, *, mean: Sequence[float], std: Sequence[float], ignore_label: int = 255
) -> Callable[[Mapping[str, Any], Mapping[str, jax.Array]], dict[str, jax.Array]]:
    """`eval_step(variables, batch) -> {'counts', 'loss_sum', 'nonfinite', 'preds'}`, jitted, in evaluation mode.

    `counts` int32 `[C, C]`, `loss_sum` (cross entropy summed over valid pixels, float32) and `nonfinite` (valid pixels
    with a logit that is NaN or infinite, int32) are of the global batch;
    `preds` uint8 `[B, H, W]` stays sharded by row. Logits are as large as the images, padding included; padded pixels
    and rows carry `ignore_label` and count nowhere.
    """

    def eval_step(variables, batch):
        logits = model.apply(variables, normalise(batch["images"], mean, std), train=False)
        return scored(logits, batch["labels"].astype(jnp.int32), ignore_label)

    whole, by_row = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
    return jax.jit(
        eval_step,
        in_shardings=(whole, by_row),
        out_shardings={"counts": whole, "loss_sum": whole, "nonfinite": whole, "preds": by_row},
    )
