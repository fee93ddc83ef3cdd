"""Scoring by config: a split while a run trains, and a finished run, `--mode=eval`."""

import contextlib
import functools
import json
import math
import os
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict
from tqdm import tqdm

from jaxseg import checkpoint, checksums, files, metrics, protocols, published
from jaxseg import config as configs
from jaxseg.data import DataInfo, Dataset, Scoring, default_split, open_dataset, pipeline
from jaxseg.errors import UserError
from jaxseg.evaluate import Evaluation, evaluate
from jaxseg.files import EVALUATIONS, replacing
from jaxseg.forms import read_run
from jaxseg.lookup import lookup
from jaxseg.processes.facts import of_data, of_records
from jaxseg.processes.group import Group
from jaxseg.state import abstract_variables
from jaxseg.step import check_batch_size, create_eval_step, create_mesh, fill_colour
from jaxseg.writers import print_line

NUM_EXAMPLES = 4  # images of the split whose predictions are kept to be drawn
# What may be set anew for a finished run: no weight depends on it.
OVERRIDES = ("data.dir", "data.version", "data.orientation", "data.eval_batch_size")


def open_data(config: ConfigDict) -> Dataset:
    """The data set of a config, prepared."""
    data = config.data
    return open_dataset(data.name, directory=data.dir, version=data.version, orientation=data.orientation)


def open_to_score(config: ConfigDict, own: ConfigDict, info: DataInfo, split: str, content: str) -> Dataset:
    """The one split that a finished run is scored on, prepared; nothing else has to be there.

    An undivided folder is divided where it is the run's own, wherever it lies by now, and scored whole elsewhere.

    Args:
      config: of the run, with what is set anew.
      own: the run's.
      info: the run's classes, by which a folder of masks is read.
      split: its name.
      content: the hash of that split in the run, '' where it is not known.

    Raises:
      UserError: there is no such split, or the data is not as it should be.
    """
    data = config.data
    where = {"directory": data.dir, "version": data.version, "orientation": data.orientation}
    divided = Scoring(split, info, divided=True)
    if os.path.realpath(data.dir) == os.path.realpath(own.data.dir) or data.name != "folder":
        return open_dataset(data.name, **where, scoring=divided)
    if content:
        with contextlib.suppress(UserError):
            dataset = open_dataset(data.name, **where, scoring=divided, progress=False)
            if dataset.contents[split] == content:
                return dataset
    return open_dataset(data.name, **where, scoring=Scoring(split, info))


def eval_split(config: ConfigDict, dataset: Dataset) -> str:
    """The split that a config scores.

    Raises:
      UserError: `eval.split` is none of the data set's.
    """
    split = config.eval.split or dataset.eval_split
    lookup(dataset.lengths, split, f"split of {dataset.info.name}")
    return split


def with_padding(config: ConfigDict, dataset: Dataset, split: str, workdir: str | os.PathLike) -> ConfigDict:
    """A copy of the config with `eval.multiple` set where it is left open, 0, and the protocol pads images.

    It is that of the run in `workdir`, where there is one, or what the images of `split` ask for. So an image is padded
    alike whenever it is scored and where it is predicted, whatever other images there are.
    """
    config = config.copy_and_resolve_references()
    if not config.eval.multiple and config.eval.protocol not in protocols.FITTING:
        before = configs.read(workdir).eval.multiple if checkpoint.has_any(workdir) else 0
        config.eval.multiple = before or pipeline.padding_multiple(dataset.sizes(split))
    return config


def build_eval_step(config: ConfigDict, model: nn.Module, mesh: Mesh, info: DataInfo) -> protocols.Step:
    """The step that scores by the config's protocol, for `score_split`.

    Raises:
      UserError: the protocol or a score that is asked for can't be had of these classes or processes.
    """
    protocol = protocols.from_config(config.eval)
    data = {"mean": config.data.mean, "std": config.data.std, "ignore_label": info.ignore_label}
    by_image = {
        f"eval.protocol {protocol.name}": protocol.name == "slide",
        f"eval.published {config.eval.published}": config.eval.published == "c",
        f"eval.boundary_tolerance {config.eval.boundary_tolerance}": config.eval.boundary_tolerance > 0,
    }
    if jax.process_count() > 1 and any(by_image.values()):
        asked = " and ".join(name for name, wanted in by_image.items() if wanted)
        raise UserError(f"{asked}: scored by one process alone; score the finished run with --mode=eval on one machine")
    per_image = None
    if config.eval.published == "c":
        if info.num_classes != 2:
            raise UserError(f"eval.published c scores two classes, and {info.name} has {info.num_classes}")
        per_image = functools.partial(published.sums_of_c, ignore_label=info.ignore_label)
    if protocol.name == "slide":
        batch_size = pipeline.most_rows(config.data.eval_batch_size, math.prod(protocol.size), mesh.size)
        return protocols.create_window_step(model, mesh, protocol, batch_size=batch_size, per_image=per_image, **data)
    if protocol.once and protocol.name != "resize" and per_image is None:
        return create_eval_step(model, mesh, **data)
    return protocols.create_averaging_step(model, mesh, protocol, per_image=per_image, **data)


def score_split(
    config: ConfigDict, dataset: Dataset, split: str, eval_step, variables, mesh, on_batch=lambda images: None
) -> Evaluation:
    """`variables` on a whole split of a config's data.

    Args:
      eval_step: of `build_eval_step`, for the devices of `mesh`.
      variables: `{'params', 'batch_stats'}`, whole on every device.
      on_batch: called with the number of images after each batch.

    Raises:
      UserError: the protocol of the config is none.
    """
    protocol = protocols.from_config(config.eval)
    source, sizes, multiple = dataset.source(split), dataset.sizes(split), protocol.multiple
    if protocol.name in protocols.FITTING:
        source, sizes, multiple = protocols.FittedSource(source, protocol), np.tile(protocol.size, (len(sizes), 1)), 1
    batches = pipeline.eval_batches(
        source,
        sizes,
        batch_size=config.data.eval_batch_size // jax.process_count(),
        multiple=multiple,
        fill=fill_colour(config.data.mean),
        pixels=protocol.pixels,
        devices=mesh.size // jax.process_count(),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    # Neighbours in a split are often frames of one film: the examples are spread over it, or this process's part of it.
    seen = -(-len(source) // jax.process_count())
    examples_at = set(np.linspace(0, seen - 1, NUM_EXAMPLES).astype(int).tolist())
    result = evaluate(
        eval_step,
        variables,
        batches,
        mesh,
        examples_at=examples_at,
        on_batch=on_batch,
        boundary_tolerance=config.eval.boundary_tolerance,
        ignore_label=dataset.info.ignore_label,
    )
    result.images = len(source)  # over all processes
    if config.eval.published:
        result.published = published.DEFINITIONS[config.eval.published](result.counts, result.per_image)
    return result


def write_evaluation(
    workdir: str | os.PathLike,
    name: str,
    result: Evaluation,
    info: DataInfo,
    *,
    split: str,
    which: str,
    step: int,
    protocol: str,
    content: str,
    seconds: float,
) -> pathlib.Path:
    """Writes `WORKDIR/evaluations/NAME`, whole or not at all; NaN as null. `content` is the split's hash.

    Raises:
      OSError: it can't be written.
    """
    path = pathlib.Path(workdir) / EVALUATIONS / name
    values = {
        "split": split,
        "checkpoint": which,
        "step": int(step),
        "protocol": protocol,
        "images": result.images,
        "content": content,
        "class_names": list(info.class_names),
        "counts": result.counts.tolist(),
        "scores": _plain(result.scores(info.class_names)),
        "published": _plain(result.published),
        "nonfinite": result.nonfinite,
        "never_predicted": metrics.never_predicted(result.counts, info.class_names),
        **_plain({"loss": result.loss, "seconds": seconds}),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(values, allow_nan=False) + "\n")
    return path


def _plain(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def _many_sizes(sizes: np.ndarray, protocol: protocols.Protocol) -> str:
    """A line where images are padded to more sizes than a split's own padding leaves; '' where they are not."""
    wanted = pipeline.padding_multiple(sizes)
    if protocol.name in protocols.FITTING or not 0 < protocol.multiple < wanted:
        return ""
    count = len(np.unique(pipeline.padded_sizes(sizes, protocol.multiple), axis=0))
    return (
        f"images are padded as the run's are, to {count} sizes, and a program is compiled for each; with "
        f"--config.eval.multiple={wanted} there are fewer, and scores of that padding"
    )


def eval_run(
    workdir: str | os.PathLike,
    *,
    which: str = "best",
    split: str = "",
    overrides: Mapping[str, Any] | None = None,
    log=print_line,
    group: Group | None = None,
) -> dict[str, float]:
    """Scores a checkpoint of the run in `workdir` on a split, prints the table per class and returns the scores.

    They are written to `WORKDIR/evaluations/SPLIT-CHECKPOINT.json`, under another protocol than the run's own to
    `SPLIT-CHECKPOINT-PROTOCOL.json`; with a hash behind it where the data is another. Of other data than the run's own,
    `data.dir`, only the split that is scored has to be there; a folder that is not divided is that split, whole. The
    masks of a folder are read by the run's classes: by name where the folder has a classes.yaml with names, else by the
    values that they had where it was trained.

    Args:
      which: the checkpoint: 'best' by the score that `train.best` names, 'latest' or a step.
      split: '' for `eval.split`, and where that is '' for the data set's evaluation split.
      overrides: fields of the run's config set anew, `{'data.dir': ...}`; those that no weight depends on.
      group: the processes that score together, each of which calls this; None for this one alone.

    Raises:
      UserError: there is no such run, checkpoint or split, an override would make another run of it, or the scores
        can't be written.
    """
    config, own_config = configs.read(workdir), configs.read(workdir)
    own = protocols.from_config(config.eval)
    flat = configs.flatten(config)
    for field, value in (overrides or {}).items():
        if field not in OVERRIDES and not field.startswith("eval."):
            if flat.get(field) == (list(value) if isinstance(value, tuple) else value):
                continue  # of the command that it was trained by
            raise UserError(
                f"--mode=eval scores the run as it was trained, with {field} {flat.get(field, 'not set')}: "
                f"--config.{field} can't be {value}"
            )
        config.update_from_flattened_dict({field: value})
    configs.validate(config)
    configs.check_normalised(config, workdir)
    protocol = protocols.from_config(config.eval)
    mesh = create_mesh()
    check_batch_size(config.data.eval_batch_size, mesh.size, "data.eval_batch_size")
    trained, contents = configs.read_info(workdir, own_config), read_run(workdir).get("contents", {})
    wanted = split or config.eval.split or default_split(config.data.name)
    dataset = open_to_score(config, own_config, trained, wanted, contents.get(wanted, ""))
    info, split = dataset.info, dataset.eval_split
    if group:
        group.agree(of_data(dataset, [split]), lambda: {"data": of_records(dataset, [split])})
    configs.check_same_classes(info, workdir, own_config)
    model = configs.build_model(config, info.num_classes)
    eval_step = build_eval_step(config, model, mesh, info)
    silent = jax.process_index() > 0
    note = log if not silent else lambda line: None
    if line := checksums.note(workdir):
        note(line)
    whole = abstract_variables(model, NamedSharding(mesh, P()))
    variables, kind, step = checkpoint.read_variables(workdir, whole, which, note)
    if line := _many_sizes(dataset.sizes(split), protocol):
        note(line)
    started = time.perf_counter()
    with tqdm(total=len(dataset.source(split)), unit="image", desc=split, disable=silent or None) as bar:
        result = score_split(config, dataset, split, eval_step, variables, mesh, bar.update)
    if silent:
        return result.scalars(info.class_names, split)
    log(f"step {step} of {workdir} on {info.name} {split}: {result.images} images, {protocol.words}")
    log(metrics.table(result.counts, info.class_names, protocol=protocol.words, boundary=result.boundary))
    if result.nonfinite:
        log(f"the logits of {result.nonfinite:,} pixels are not finite and count as class 0: these are no scores")
    if result.published:
        log(", ".join(f"published/{name} {value:.4f}" for name, value in result.published.items()))
    which = kind if which in checkpoint.KINDS else which
    content, others = dataset.contents[split], [protocol.slug] if protocol != own else []
    if contents and contents.get(split) != content:
        others.append(content)
        log(f"not the images and labels that the run had as {split}: it may have been trained on some of them")
    timing = {"step": step, "seconds": time.perf_counter() - started}
    try:
        path = write_evaluation(
            workdir,
            files.evaluation(split, which, *others),
            result,
            info,
            split=split,
            which=which,
            protocol=protocol.words,
            content=content,
            **timing,
        )
    except OSError as error:
        raise UserError(
            f"the scores can't be written to {workdir}/{EVALUATIONS} ({error.strerror}): make room"
        ) from error
    log(f"written to {path}")
    return result.scalars(info.class_names, split)
