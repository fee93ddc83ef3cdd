"""From a config to what a run is made of: where it starts, its steps and its batches."""

import collections
import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from jaxseg import checkpoint, checksums, memory, protocols, resident
from jaxseg import config as configs
from jaxseg.data import DataInfo, Dataset, data_info, pipeline, transforms
from jaxseg.errors import UserError, shown
from jaxseg.evaluate import Evaluation
from jaxseg.lookup import lookup
from jaxseg.losses import LOSSES
from jaxseg.models import pretrained
from jaxseg.models.pix2pix import PatchGAN, Refined
from jaxseg.optim import create_optimizer, create_schedule, learning_rate, note_evaluation
from jaxseg.process import without_convolutions
from jaxseg.published import DEFINITIONS
from jaxseg.refine import create_refine_state, create_refine_step, discriminator_optimizer
from jaxseg.score import build_eval_step
from jaxseg.state import abstract_variables, create_state, init_variables
from jaxseg.step import check_batch_size, create_train_step, fill_colour, replicate, split_shardings, split_state
from jaxseg.weights import tensors_of

_WORKER = 2**27  # bytes that a process of `data.workers` takes at the least


@dataclasses.dataclass
class Steps:
    """A way of training, as the loop calls it.

    Fields:
      state: before the first step; a pytree with `step`, `eval_variables`, `to_items` and `from_items` of `TrainState`.
      train: `(state, batch) -> (state, losses)`, scalars, `loss` among them; the state that goes in may be donated.
      evaluate: `(state.eval_variables, batch) -> {'counts', 'loss_sum', 'nonfinite', 'preds'}`, of
        `step.create_eval_step`.
      learning_rate: of a state: the rate its last step was taken at.
      note_evaluation: `(state, value) -> state` once an evaluation gave `value`, of which less is better.
    """

    state: Any
    train: Callable
    evaluate: Callable
    learning_rate: Callable[[Any], float]
    note_evaluation: Callable


def create_steps(
    config: ConfigDict,
    model: nn.Module,
    dataset: Dataset,
    weights: pretrained.Weights | None,
    mesh: Mesh,
    num_steps: int,
) -> Steps:
    """The steps of a config and the state that they begin with. Another way of training is another `Steps` from here.

    With a `refine.base` they are those of the second stage, see `refine.create_refine_step`.

    Raises:
      UserError: an unknown optimizer or schedule, class weights for other classes, no backbone to freeze, a norm that
        takes its statistics from one value, or more than memory holds.
    """
    info, optim, scale = dataset.info, config.optim, {"mean": config.data.mean, "std": config.data.std}
    schedule = create_schedule(optim, num_steps)
    tx = create_optimizer(optim, schedule)
    class_weights = _class_weights(config, dataset)
    shapes = abstract_variables(model)
    if optim.freeze_backbone and "backbone" not in shapes["params"]:
        raise UserError(f"optim.freeze_backbone is set, but {config.model.name} on {config.model.backbone} has none")
    if config.refine.base:
        discriminator = PatchGAN(config.refine.discriminator_width, dtype=model.refiner.dtype)
        networks = (model, discriminator)
        txs = (tx, discriminator_optimizer(config.refine.discriminator_learning_rate))
        start = functools.partial(_refine_start, networks, txs, config.train.seed)
        train_step = create_refine_step(
            *networks,
            *txs,
            mesh,
            **scale,
            cross_entropy_weight=config.refine.lambda_cross_entropy,
            class_weights=class_weights,
            ignore_label=info.ignore_label,
        )
    else:
        start = functools.partial(create_state, tx=tx, ema=config.train.ema_decay > 0)
        train_step = create_train_step(
            model,
            tx,
            mesh,
            **scale,
            seed=config.train.seed,
            losses={name: config.loss[name] for name in LOSSES},
            auxiliary_weight=config.loss.auxiliary,
            class_weights=class_weights,
            label_smoothing=config.loss.label_smoothing,
            ignore_label=info.ignore_label,
            freeze_backbone=optim.freeze_backbone,
            accumulate=config.train.accumulate,
            remat=config.train.remat,
            ema_decay=config.train.ema_decay,
            fsdp=config.train.fsdp,
        )
    _check_step(config, train_step, jax.eval_shape(start, shapes), mesh)
    with without_convolutions():
        variables = init_variables(model, config.train.seed)
    state = start(weights.into(variables) if weights else variables)
    state = split_state(state, mesh) if config.train.fsdp else replicate(state, mesh)
    placed = jax.tree.map(lambda x: x.sharding, state.opt_state)
    note = jax.jit(functools.partial(note_evaluation, optim), out_shardings=placed)
    return Steps(
        state=state,
        train=train_step,
        evaluate=build_eval_step(config, model, mesh, info),
        learning_rate=lambda state: learning_rate(schedule, state.opt_state, int(state.step) - 1),
        note_evaluation=lambda state, value: state.replace(opt_state=note(state.opt_state, value)),
    )


def _refine_start(networks, txs, seed: int, variables: Mapping[str, Any]) -> Any:
    return create_refine_state(*networks, variables, *txs, seed=seed)


def _check_step(config: ConfigDict, train_step: Callable, state: Any, mesh: Mesh) -> None:
    """Traces the step of `state`, shapes, without computing anything; its first call need not trace it again.

    Raises:
      UserError: the step refuses what it is given, see `step.check_statistics`, or takes more memory than is free.
    """
    data, local, processes = config.data, len(mesh.local_devices), jax.process_count()
    size = (data.batch_size, *transforms.as_pair(data.crop_size))
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    # Batches of bytes that are read ahead, and Python with its libraries in every process that reads.
    batches = 4 * math.prod(size) // processes * (2 * data.workers + 2) + data.workers * _WORKER
    remedy = (
        f"lower data.batch_size, which is {data.batch_size}, or data.crop_size, {data.crop_size}, raise "
        f"train.accumulate, {config.train.accumulate}, or take a smaller network"
    )
    if on_cpu:
        memory.check_fits(batches, mesh, f"reading with data.workers={data.workers}", remedy)
    whole, by_row = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
    placed = split_shardings(state, mesh) if config.train.fsdp else jax.tree.map(lambda x: whole, state)
    state = jax.tree.map(lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), state, placed)
    batch = {
        "images": jax.ShapeDtypeStruct((*size, 3), np.uint8, sharding=by_row),
        "labels": jax.ShapeDtypeStruct(size, np.uint8, sharding=by_row),
    }
    with memory.layer_inputs() as inputs:
        train_step.eval_shape(state, batch)
    frozen = config.optim.freeze_backbone
    kept = [taken for path, taken in inputs.values() if not (frozen and path[:1] == ("backbone",))]
    together = max if config.train.remat or config.refine.base else sum
    parts = mesh.size if config.train.fsdp else 1
    held, gradient = memory.bytes_of(state) // parts, memory.bytes_of(state.params) // parts
    of_device = held + max(gradient, together(kept or [0]) // mesh.size)
    memory.check_fits(local * of_device + batches if on_cpu else of_device, mesh, "a training step", remedy)
    protocol = protocols.from_config(config.eval)
    # Windows are as large at every scale.
    pixels = math.prod(protocol.size) * (1 if protocol.name == "slide" else max(protocol.scales) ** 2)
    if pixels:
        rows = pipeline.most_rows(data.eval_batch_size, math.ceil(pixels), mesh.size)
        largest = max((taken for _, taken in inputs.values()), default=0)
        of_device = int(largest * rows * pixels / (math.prod(size) / config.train.accumulate)) // mesh.size
        remedy = f"lower eval.size, which is {tuple(config.eval.size)}, or eval.scales, {tuple(config.eval.scales)}"
        memory.check_fits(local * of_device if on_cpu else of_device, mesh, "evaluation", remedy)


def read_weights(
    config: ConfigDict,
    model: nn.Module,
    workdir: pathlib.Path,
    class_names: Sequence[str],
    *,
    best_if_damaged: bool = False,
) -> tuple[ConfigDict, pretrained.Weights | None, list[str]]:
    """What a run starts from: its config with the normalisation it will have, weights if any, and lines on both.

    Args:
      class_names: of the data; the last layer of another run is taken only if it has the same.

    Raises:
      UserError: the weights, or the run that is to be refined, can't be read or are of another network.
    """
    if checkpoint.has_any(workdir, "latest") or (best_if_damaged and checkpoint.has_any(workdir, "best")):
        # All is saved there: it goes on without the weights' file.
        before = configs.read(workdir).data
        return configs.with_normalisation(config, before.mean, before.std), None, []
    weights = None
    if config.refine.base:
        weights = _first_stage(config, model)
    elif config.model.weights:
        may_differ = [name for name in config.model.may_differ.split(",") if name]
        weights = tensors_of(model, config.model.weights, may_differ, class_names)
    mean, std = (weights.mean, weights.std) if weights else (pretrained.IMAGENET_MEAN, pretrained.IMAGENET_STD)
    resolved = configs.with_normalisation(config, mean, std)
    if not weights:
        return resolved, None, []
    lines = [*weights.report, f"images are normalised by mean {resolved.data.mean} and std {resolved.data.std}"]
    for field, theirs in (("mean", mean), ("std", std)):
        set_to = tuple(config.data[field])
        if set_to and not np.allclose(set_to, theirs, atol=1e-3):
            lines.append(f"data.{field} is set to {set_to}; the weights were trained with {theirs}")
    return resolved, weights, lines


def _first_stage(config: ConfigDict, model: Refined) -> pretrained.Weights:
    """The trained network of the run at `refine.base`, as weights of the network that has a refiner behind it."""
    base, folder = configs.read(config.refine.base), config.refine.base
    if base.refine.base:
        raise UserError(f"refine.base is {folder}, which has a refiner already: give the run that it refined")
    theirs, ours = (configs.flatten(c.model, "model.") for c in (base, config))
    for field in sorted({*theirs, *ours} - {"model.weights", "model.may_differ", "model.dtype"}):
        if theirs.get(field) != ours.get(field):
            raise UserError(
                f"refine.base is {folder}, a run with {field} {theirs.get(field, 'not set')}, and here it is "
                f"{ours.get(field, 'not set')}: set it so, or take all from there, --config={configs.__file__}:{folder}"
            )
    configs.check_same_classes(data_info(config.data.name, config.data.version, config.data.dir), folder, base)
    notes = list(filter(None, [checksums.note(folder)]))
    variables, _, step = checkpoint.read_variables(folder, abstract_variables(model.first), note=notes.append)
    tensors = {(path[0], "first", *path[1:]): np.asarray(tensor) for path, tensor in flatten_dict(variables).items()}
    report = (*notes, f"the network of {folder} at step {step} is the first stage, and stays as it is")
    return pretrained.Weights(tensors, tuple(base.data.mean), tuple(base.data.std), report)


def check_batch_sizes(config: ConfigDict, mesh: Mesh) -> None:
    """Raises a `UserError` where the devices, or slices of a batch on them, don't divide a batch of the config."""
    check_batch_size(config.data.batch_size, mesh.size, accumulate=config.train.accumulate)
    check_batch_size(config.data.eval_batch_size, mesh.size, "data.eval_batch_size")


def check_score(config: ConfigDict, info: DataInfo) -> None:
    """Raises a `UserError` with the nearest names where `train.best` is no score of an evaluation."""
    classes = info.num_classes
    nothing = Evaluation(counts=np.zeros((classes, classes), np.int64), loss=float("nan"), images=0, examples=[])
    if config.eval.boundary_tolerance:
        nothing.boundary = np.zeros(classes)
    if config.eval.published:
        no_images = collections.defaultdict(lambda: np.zeros(0))
        nothing.published = DEFINITIONS[config.eval.published](nothing.counts, no_images)
    scores = nothing.named(info.class_names)
    scores = {
        name: value for name, value in scores.items() if name not in ("absent_classes", "never_predicted", "pixels")
    }
    lookup(scores, config.train.best, "score (train.best)")


def open_resident(config: ConfigDict, dataset: Dataset, mesh: Mesh) -> resident.Resident:
    """The training split decoded on the devices, for `data.on_device`.

    Raises:
      UserError: it takes more memory than is free.
    """
    data, split = config.data, dataset.train_split
    frame = {"crop_size": data.crop_size, "resize_to": tuple(data.resize), "fill": fill_colour(data.mean)}
    sizes = dataset.sizes(split)
    pixels = len(sizes) * math.prod(data.resize) if data.resize else int(np.prod(sizes, axis=1, dtype=np.int64).sum())
    remedy = "leave data.on_device out, or make images smaller by data.resize"
    memory.check_fits(4 * pixels, mesh, f"keeping {len(sizes)} images (data.on_device)", remedy)
    return resident.Resident(dataset.source(split), sizes, mesh, **frame)


def train_batches(
    config: ConfigDict, dataset: Dataset, start_step: int, images: resident.Resident | None = None
) -> Iterator[dict[str, Any]]:
    """The batches of the training split from `start_step` on, this process's rows of them.

    With `images` they hold what that is to be called on, for the same images changed in the same way.
    """
    data = config.data
    source, augment = dataset.source(dataset.train_split), augmentation(config)
    if images is not None:
        source, augment = resident.Places(images), functools.partial(resident.draw, **_changes(config))
    return pipeline.train_batches(
        source,
        seed=config.train.seed,
        batch_size=data.batch_size,
        augment=augment,
        variants=tuple(data.variants),
        start_step=start_step,
        workers=data.workers,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def augmentation(config: ConfigDict) -> pipeline.Augment:
    """What a config does to every training image and its labels, given chance."""
    data = config.data
    frame = {"resize_to": tuple(data.resize), "fill": fill_colour(data.mean)}
    return functools.partial(transforms.augment, **frame, **_changes(config))


def _changes(config: ConfigDict) -> dict[str, Any]:
    """The arguments of `transforms.draw`."""
    data = config.data
    return {
        "crop_size": data.crop_size,
        "scale": tuple(data.scale),
        "center_crop": data.center_crop,
        "flip": data.flip,
        "vertical_flip": data.vertical_flip,
        "rotate90": data.rotate90,
        "grid_distortion": data.grid_distortion,
        "elastic": data.elastic,
        "jitter": data.jitter,
        "stain": data.stain,
    }


def _class_weights(config: ConfigDict, dataset: Dataset) -> tuple[float, ...] | None:
    given, info = configs.class_weights(config), dataset.info
    if not given:
        return None
    if given == "median_frequency":
        return info.class_weights or tuple(dataset.median_frequency_weights(dataset.train_split).tolist())
    if len(given) != info.num_classes:
        raise UserError(
            f"loss.class_weights has {len(given)} numbers, and {info.name} {info.num_classes} classes: give one "
            f"for each of {', '.join(map(shown, info.class_names))}"
        )
    return given
