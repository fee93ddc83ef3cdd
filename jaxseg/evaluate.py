"""A split through the network: one confusion matrix, one loss, and the predictions of a few images."""

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxseg import metrics
from jaxseg.step import put_batch


@dataclasses.dataclass
class Evaluation:
    """What scoring a split gives.

    Fields:
      counts: int64 `[C, C]`, `counts[true, pred]` over the valid pixels of the whole split.
      loss: cross entropy a valid pixel.
      images: how many were scored.
      examples: the first few as dicts of `id`, `images` uint8 `[H, W, 3]`, `labels` and `preds` uint8 `[H, W]`, each
        at its own size.
    """

    counts: np.ndarray
    loss: float
    images: int
    examples: list[dict[str, Any]]

    def scalars(self, class_names: tuple[str, ...], prefix: str = "val") -> dict[str, float]:
        """All scores under their names in `metrics.jsonl`: `val/mean_iou`, `val/iou/<class>`, ..."""
        result = metrics.scores(self.counts)
        values = {f"{prefix}/loss": self.loss}
        values |= {f"{prefix}/{name}": value for name, value in result.items() if np.ndim(value) == 0}
        iou = zip(class_names, result["iou"], strict=True)
        return values | {f"{prefix}/iou/{name}": float(value) for name, value in iou}


def evaluate(
    eval_step: Callable[[Mapping[str, Any], Mapping[str, jax.Array]], dict[str, jax.Array]],
    variables: Mapping[str, Any],
    batches: Iterable[Mapping[str, Any]],
    mesh: Mesh,
    *,
    examples_at: Collection[int] = (),
    on_batch: Callable[[int], None] = lambda images: None,
) -> Evaluation:
    """Scores `batches` (see `data.pipeline.eval_batches`) with a step of `step.create_eval_step`.

    Every image is counted once at its own size: what pads a batch carries the ignore label. Counts are summed in int64
    on the host, so the result does not depend on how the split was cut into batches.

    Args:
      examples_at: places in the order of `batches` (0 is the first image) of those kept with their predictions.
      on_batch: called with the number of images after each batch.
    """
    counts, loss_sum, images, examples = np.int64(0), 0.0, 0, []
    for batch in batches:
        out = eval_step(variables, put_batch({key: batch[key] for key in ("images", "labels")}, mesh))
        counts = counts + np.asarray(out["counts"], np.int64)
        loss_sum += float(out["loss_sum"])
        done = int(np.sum(batch["valid"]))
        rows = [row for i, row in enumerate(np.flatnonzero(batch["valid"]), images) if i in examples_at]
        if rows:
            preds = np.concatenate([np.asarray(shard.data) for shard in _in_order(out["preds"])])
            for row in rows:
                height, width = batch["sizes"][row]
                cut = {"images": batch["images"], "labels": batch["labels"], "preds": preds}
                example = {key: value[row, :height, :width] for key, value in cut.items()}
                examples.append({"id": batch["ids"][row], **example})
        images += done
        on_batch(done)
    pixels = int(np.sum(counts))
    return Evaluation(counts, loss_sum / pixels if pixels else float("nan"), images, examples)


def _in_order(array: jax.Array) -> list:
    """This process's shards of an array split by row, first row first."""
    return sorted(array.addressable_shards, key=lambda shard: shard.index[0].start or 0)
