"""Training: one run from a config to a workdir with checkpoints, metrics, figures and curves."""

import contextlib
import functools
import math
import os
import pathlib
import signal
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxseg import checkpoint, figures
from jaxseg import config as configs
from jaxseg.data import Dataset, data_info, pipeline, transforms
from jaxseg.errors import UserError
from jaxseg.models import pretrained
from jaxseg.optim import create_optimizer, create_schedule
from jaxseg.process import Interrupted, catch_signals
from jaxseg.protocols import WORDS, from_config
from jaxseg.score import build_eval_step, eval_split, open_data, score_split, write_evaluation
from jaxseg.state import create_state, init_variables
from jaxseg.step import (
    check_batch_size,
    create_mesh,
    create_train_step,
    fill_colour,
    put_batch,
    replicate,
)
from jaxseg.writers import METRICS, Writers, open_writers, print_line, read_metrics


def train(config: ConfigDict, workdir: str | os.PathLike, log=print_line) -> None:
    """Trains, scores and saves the run of `config` in `workdir`; goes on where a run of the same config was stopped.

    Leaves there `config.json`, `info.json`, `metrics.jsonl`, `events/`, `checkpoints/`, `evaluations/`, `figures/` and
    `curves.png`.

    Raises:
      UserError: a mistake in the config, the data, the weights or the workdir, or a loss that is no number.
      Interrupted: after a signal, once the state is saved.
    """
    workdir = pathlib.Path(workdir)
    configs.validate(config)
    model = configs.build_model(config, data_info(config.data.name, config.data.version, config.data.dir).num_classes)
    weights = None
    if checkpoint.has_any(workdir, "latest"):
        # All is saved there: it goes on without the weights' file.
        before = configs.read(workdir).data
        config = configs.with_normalisation(config, before.mean, before.std)
    else:
        if config.model.weights:
            weights = pretrained.read_weights(model, config.model.weights)
        config, notes = _resolve_normalisation(config, weights)
    if checkpoint.has_any(workdir):
        configs.check_same(config, workdir)
    mesh = create_mesh()
    check_batch_size(config.data.batch_size, mesh.size)
    check_batch_size(config.data.eval_batch_size, mesh.size, "data.eval_batch_size")

    # ------------------------------------------------------------------------------------------- data, network, state
    dataset = open_data(config)
    info = dataset.info
    if checkpoint.has_any(workdir):
        configs.check_same_classes(info, workdir, config)
    eval_split(config, dataset)
    num_steps = configs.num_steps(config, dataset.lengths[dataset.train_split])
    schedule = create_schedule(config.optim, num_steps)
    tx = create_optimizer(config.optim, schedule)
    class_weights = _class_weights(config, info)
    eval_step = build_eval_step(config, model, mesh, info)

    variables = init_variables(model, config.train.seed)
    if weights:
        variables = weights.into(variables)
    state = replicate(create_state(variables, tx), mesh)

    with (
        _disk_errors(workdir),
        checkpoint.Checkpoints(_make_workdir(workdir)) as checkpoints,
        contextlib.ExitStack() as stack,
    ):
        # ---------------------------------------------------------------------------------------- where it goes on
        start, progress = checkpoints.latest or 0, {"best_mean_iou": None, "best_step": 0, "evaluated": 0, "losses": []}
        if start > num_steps:
            raise UserError(f"{workdir} is trained to step {start} already, beyond train.num_steps {num_steps}")
        if start:
            state, progress = checkpoints.restore(state)
        _write(workdir / configs.FILE, configs.to_json(config))
        _write(workdir / configs.INFO_FILE, info.to_json())
        writers = stack.enter_context(
            open_writers(
                workdir,
                num_steps=num_steps,
                resume_step=start,
                scored_step=progress["evaluated"],
                log=log,
                enabled=jax.process_index() == 0,
            )
        )
        _greet(config, workdir, dataset, state, mesh, num_steps, writers)
        if weights:
            for line in (*weights.report, *notes):
                writers.message(line)
        for name in checkpoints.half_written:
            writers.message(f"stepped over the half-written checkpoint {name}")
        if start:
            writers.message(f"going on from step {start}")

        # ----------------------------------------------------------------------------------------------------- steps
        train_step = create_train_step(
            model,
            tx,
            mesh,
            mean=config.data.mean,
            std=config.data.std,
            seed=config.train.seed,
            cross_entropy_weight=config.loss.cross_entropy,
            auxiliary_weight=config.loss.auxiliary,
            class_weights=class_weights,
            label_smoothing=config.loss.label_smoothing,
            ignore_label=info.ignore_label,
        )
        run = _Run(config, workdir, dataset, mesh, eval_step, checkpoints, writers, schedule, progress)

        # ------------------------------------------------------------------------------------------------- the loop
        caught = stack.enter_context(catch_signals())
        batches = stack.enter_context(contextlib.closing(_train_batches(config, dataset, start)))
        clock, timed = time.perf_counter(), 0  # steps since `clock`
        for step in range(start, num_steps + 1):
            if step > start:
                batch = next(batches)
                state, out = train_step(state, put_batch(batch, mesh))
                run.pending.append((out["loss"], batch["ids"]))
                timed += 1
                if step == start + 1:
                    jax.block_until_ready(out)
                    took = time.perf_counter() - clock
                    writers.message(f"first step after {took:.1f} s, most of them to compile")
                    if config.train.log_every > 1:
                        clock, timed = time.perf_counter(), 0
            if step > start and (step % config.train.log_every == 0 or step == num_steps):
                loss = run.flush(step)
                rate = timed * config.data.batch_size / (time.perf_counter() - clock)
                run.log(step, loss, rate)
                clock, timed = time.perf_counter(), 0

            due = step > progress["evaluated"] and _due(step, config.train.eval_every, num_steps)
            saving = step > start and _due(step, config.train.checkpoint_every, num_steps)
            if due or saving or caught:
                run.flush(step)
                if due and not caught and run.evaluate(step, state, caught):
                    checkpoints.save("best", state, {**progress, "losses": run.losses})
                if step > start and (saving or caught):
                    checkpoints.save("latest", state, {**progress, "losses": run.losses})
                clock, timed = time.perf_counter(), 0
            if caught:
                checkpoints.wait()
                saved = f"step {step} is saved, start again to go on" if step else "no step was done yet"
                writers.message(f"stopped by {signal.Signals(caught[0]).name}; {saved}")
                raise Interrupted(caught[0])

        checkpoints.wait()
        writers.flush()
        _finish(workdir, progress, writers)


class _Run:
    """What the loop needs at its stops: losses not yet fetched, scores, pictures."""

    def __init__(self, config, workdir, dataset, mesh, eval_step, checkpoints, writers, schedule, progress):
        self.config, self.workdir, self.dataset, self.mesh = config, workdir, dataset, mesh
        self.eval_step, self.checkpoints, self.writers, self.schedule = eval_step, checkpoints, writers, schedule
        self.progress = progress
        self.pending: list[tuple[jax.Array, list[str]]] = []
        self.losses: list[float] = list(progress["losses"])  # of the steps since the last row of metrics

    def flush(self, step: int) -> float:
        """Fetches the losses of the steps since the last call; the mean since the last row.

        Raises:
          UserError: one of them is NaN or infinite.
        """
        fetched = jax.device_get([loss for loss, _ in self.pending])
        first = step - len(fetched) + 1
        for number, (loss, (_, ids)) in enumerate(zip(fetched, self.pending, strict=True), first):
            if not math.isfinite(loss):
                self.checkpoints.wait()
                saved = self.checkpoints.latest
                raise UserError(
                    f"the loss of step {number} is {loss}; its batch holds {', '.join(ids)}. "
                    + (f"The last good checkpoint is step {saved}" if saved else "No checkpoint was saved before it")
                    + "; a lower optim.learning_rate, optim.clip_norm=1 or optim.warmup_steps often mends this"
                )
        self.losses += [float(loss) for loss in fetched]
        self.pending = []
        return float(np.mean(self.losses)) if self.losses else float("nan")

    def log(self, step: int, loss: float, images_per_second: float) -> None:
        rate = float(self.schedule(step - 1))
        self.writers.scalars(
            step,
            {
                "train/loss": loss,
                "train/learning_rate": rate,
                "train/images_per_second": images_per_second,
                "train/steps_per_second": images_per_second / self.config.data.batch_size,
            },
        )
        self.writers.progress(step, loss=loss, images_per_second=images_per_second, lr=rate)
        self.losses = []

    def evaluate(self, step: int, state, caught: list[int]) -> bool:
        """Scores the evaluation split, writes scores and pictures; whether the score is the best so far.

        A signal ends it halfway with nothing written: the run that goes on from here does it again.
        """

        def on_batch(images: int) -> None:
            if caught:
                raise Interrupted(caught[0])

        info, split, started = self.dataset.info, eval_split(self.config, self.dataset), time.perf_counter()
        try:
            result = score_split(self.config, self.dataset, split, self.eval_step, state.variables, self.mesh, on_batch)
        except Interrupted:
            return False
        scalars = result.scalars(info.class_names)
        mean_iou, best = scalars["val/mean_iou"], self.progress["best_mean_iou"]
        is_best = math.isfinite(mean_iou) and (best is None or mean_iou > best)
        if is_best:
            self.progress |= {"best_mean_iou": mean_iou, "best_step": step}
        self.progress["evaluated"] = step
        self.writers.scalars(step, scalars)
        seconds, protocol = time.perf_counter() - started, from_config(self.config.eval).words
        if jax.process_index() == 0:
            if is_best:
                named = {"split": split, "which": "best", "step": step, "protocol": protocol, "seconds": seconds}
                write_evaluation(self.workdir, "val-best", result, info, **named)
            picture = figures.prediction_figure(
                [example["images"] for example in result.examples],
                [example["labels"] for example in result.examples],
                [example["preds"] for example in result.examples],
                class_names=info.class_names,
                palette=info.palette,
                titles=[example["id"] for example in result.examples],
            )
            self.writers.images(step, {"val/predictions": picture})
            figures.write_png(self.workdir / "figures" / f"step_{step:07d}.png", picture)
        absent = scalars["val/absent_classes"]
        present = f" over {info.num_classes - absent} of {info.num_classes} classes (the others are absent)"
        self.writers.message(
            f"step {step}: {split} mean IoU {mean_iou:.4f}"
            + (present if absent else "")
            + f", pixel accuracy {scalars['val/pixel_accuracy']:.4f}, loss {result.loss:.4f}"
            + f" ({result.images} images"
            + (f", {protocol}" if protocol != WORDS["whole"] else "")
            + f", {time.perf_counter() - started:.1f} s)"
            + (", the best so far" if is_best else "")
        )
        return is_best


def _due(step: int, every: int, num_steps: int) -> bool:
    return step == num_steps or bool(every and step and step % every == 0)


def _resolve_normalisation(config: ConfigDict, weights: pretrained.Weights | None) -> tuple[ConfigDict, list[str]]:
    """The config with the normalisation of the run, and lines on what it is; what the user set is left alone."""
    mean, std = (weights.mean, weights.std) if weights else (pretrained.IMAGENET_MEAN, pretrained.IMAGENET_STD)
    resolved = configs.with_normalisation(config, mean, std)
    lines = [f"images are normalised by mean {resolved.data.mean} and std {resolved.data.std}"]
    for field, theirs in (("mean", mean), ("std", std)):
        set_to = tuple(config.data[field])
        if weights and set_to and not np.allclose(set_to, theirs, atol=1e-3):
            lines.append(f"data.{field} is set to {set_to}; the weights were trained with {theirs}")
    return resolved, lines


def _class_weights(config: ConfigDict, info) -> tuple[float, ...] | None:
    if not config.loss.class_weights:
        return None
    if info.class_weights is None:
        raise UserError(
            f"loss.class_weights is {config.loss.class_weights}, but {info.name} has no class weights: leave it ''"
        )
    return info.class_weights


def _train_batches(config: ConfigDict, dataset: Dataset, start_step: int) -> Iterator[dict[str, Any]]:
    data = config.data
    return pipeline.train_batches(
        dataset.source(dataset.train_split),
        seed=config.train.seed,
        batch_size=data.batch_size,
        augment=functools.partial(
            transforms.augment,
            crop_size=data.crop_size,
            resize_to=tuple(data.resize),
            scale=tuple(data.scale),
            center_crop=data.center_crop,
            flip=data.flip,
            vertical_flip=data.vertical_flip,
            rotate90=data.rotate90,
            grid_distortion=data.grid_distortion,
            elastic=data.elastic,
            jitter=data.jitter,
            stain=data.stain,
            fill=fill_colour(data.mean),
        ),
        variants=tuple(data.variants),
        start_step=start_step,
        workers=data.workers,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def _make_workdir(workdir: pathlib.Path) -> pathlib.Path:
    try:
        (workdir / "figures").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"the workdir {workdir} can't be written ({error.strerror}): choose another --workdir"
        ) from error
    return workdir


def _write(path: pathlib.Path, text: str) -> None:
    if jax.process_index() == 0:
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        temporary.write_text(text)
        os.replace(temporary, path)


@contextlib.contextmanager
def _disk_errors(workdir: pathlib.Path) -> Iterator[None]:
    """A full disk as one readable error, also where metrics or pictures meet it first."""
    try:
        yield
    except OSError as error:
        where = error.filename or workdir
        raise UserError(
            f"{where} can't be read or written ({error.strerror or error}): mend that or make room, then start again "
            "to go on from the last checkpoint"
        ) from error


def _greet(config, workdir, dataset, state, mesh, num_steps, writers: Writers) -> None:
    """What is about to happen, for the terminal and for TensorBoard."""
    size = sum(x.size for x in jax.tree.leaves(state.params))
    lengths = ", ".join(f"{count} {split}" for split, count in dataset.lengths.items())
    device = mesh.devices.flat[0]
    writers.message(
        f"{config.model.name} on {config.model.backbone}, {size / 1e6:.2f} million parameters, {config.model.dtype}; "
        f"{dataset.info.name}: {lengths} images, {dataset.info.num_classes} classes; "
        f"{num_steps} steps of {config.data.batch_size} on {mesh.size} {device.device_kind} device"
        + ("s" if mesh.size > 1 else "")
        + f"; all of it goes to {workdir}"
    )
    writers.hparams(configs.flatten(config))
    writers.text(0, {"config": f"```json\n{configs.to_json(config)}```"})
    writers.overview(state.variables)


def _finish(workdir: pathlib.Path, progress: dict[str, Any], writers: Writers) -> None:
    if jax.process_index() != 0:
        return
    figures.curves(read_metrics(workdir / METRICS), workdir / "curves.png")
    best = progress["best_mean_iou"]
    score = "no pixel was valid" if best is None else f"best mean IoU {best:.4f} at step {progress['best_step']}"
    writers.message(f"done: {score}; curves in {workdir / 'curves.png'}, pictures in {workdir / 'figures'}")
