"""Scoring by config: a split while a run trains, and a finished run, `--mode=eval`."""

import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from jaxseg import checkpoint, metrics
from jaxseg import config as configs
from jaxseg.data import Dataset, open_dataset, pipeline
from jaxseg.errors import UserError
from jaxseg.evaluate import Evaluation, evaluate
from jaxseg.state import abstract_variables
from jaxseg.step import check_batch_size, create_eval_step, create_mesh, fill_colour, replicate
from jaxseg.writers import print_line

NUM_EXAMPLES = 4  # images of the split whose predictions are kept to be drawn


def open_data(config: ConfigDict) -> Dataset:
    """The data set of a config, prepared."""
    return open_dataset(config.data.name, directory=config.data.dir, version=config.data.version)


def score_split(
    config: ConfigDict, dataset: Dataset, split: str, eval_step, variables, mesh, on_batch=lambda images: None
) -> Evaluation:
    """`variables` on a whole split of a config's data; `on_batch` is called with the number of images after each."""
    batches = pipeline.eval_batches(
        dataset.source(split),
        dataset.sizes(split),
        batch_size=config.data.eval_batch_size // jax.process_count(),
        fill=fill_colour(config.data.mean),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    # Neighbours in a split are often frames of one film: the examples are spread over it.
    examples_at = set(np.linspace(0, dataset.lengths[split] - 1, NUM_EXAMPLES).astype(int).tolist())
    return evaluate(eval_step, variables, batches, mesh, examples_at=examples_at, on_batch=on_batch)


def eval_run(
    workdir: str | os.PathLike,
    *,
    which: str = "best",
    split: str = "",
    overrides: Mapping[str, Any] | None = None,
    log=print_line,
) -> dict[str, float]:
    """Scores a checkpoint of the run in `workdir` on a split, prints the table per class and returns the scores.

    Args:
      which: the checkpoint: 'best' by mean IoU, 'latest' or a step.
      split: '' for the data set's evaluation split.
      overrides: fields of the run's config set anew, `{'data.dir': ...}`; those that no score depends on.

    Raises:
      UserError: there is no such run, checkpoint or split, or an override would make another run of it.
    """
    config = configs.read(workdir)
    for field, value in (overrides or {}).items():
        if field not in ("data.dir", "data.eval_batch_size"):
            raise UserError(f"--mode=eval scores the run as it was trained: --config.{field} can't be set anew")
        config.update_from_flattened_dict({field: value})
    configs.validate(config)
    mesh = create_mesh()
    check_batch_size(config.data.eval_batch_size, mesh.size, "data.eval_batch_size")
    dataset = open_data(config)
    configs.check_same_classes(dataset.info, workdir, config)
    info, split = dataset.info, split or dataset.eval_split
    model = configs.build_model(config, info.num_classes)
    with checkpoint.Checkpoints(workdir, read_only=True) as checkpoints:
        kind, step = checkpoints.find(which)
        variables = replicate(checkpoints.restore_variables(abstract_variables(model), kind, step), mesh)
    eval_step = create_eval_step(
        model, mesh, mean=config.data.mean, std=config.data.std, ignore_label=info.ignore_label
    )
    with tqdm(total=len(dataset.source(split)), unit="image", desc=split, disable=None) as bar:
        result = score_split(config, dataset, split, eval_step, variables, mesh, bar.update)
    log(f"step {step} of {workdir} on {info.name} {split}: {result.images} images at their own sizes")
    log(metrics.table(result.counts, info.class_names))
    return result.scalars(info.class_names, split)
