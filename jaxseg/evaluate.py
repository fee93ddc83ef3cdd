"""A split through the network: one confusion matrix, one loss, and the predictions of a few images."""

import dataclasses
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxseg import metrics
from jaxseg.files import score_key
from jaxseg.step import put_batch


@dataclasses.dataclass
class Evaluation:
    """What scoring a split gives.

    Fields:
      counts: int64 `[C, C]`, `counts[true, pred]` over the valid pixels of the whole split.
      loss: cross entropy a valid pixel; NaN without one.
      images: how many were scored.
      examples: the first few as dicts of `id`, `images` uint8 `[H, W, 3]`, `labels` and `preds` uint8 `[H, W]`, each
        at its own size.
      boundary: float64 `[C]`, boundary F1 of each class, NaN for an absent one; None where it was not asked for.
      per_image: what the step sums over the pixels of each image, `[images]`, in the order of the batches.
      published: a project's own scores by name, where there are any, see `jaxseg.published`.
      nonfinite: valid pixels with a logit that is NaN or infinite. They count as class 0, so scores look like scores.
    """

    counts: np.ndarray
    loss: float
    images: int
    examples: list[dict[str, Any]]
    boundary: np.ndarray | None = None
    per_image: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    published: dict[str, float] = dataclasses.field(default_factory=dict)
    nonfinite: int = 0

    @property
    def finite(self) -> bool:
        """Whether loss and logits are, as far as there was anything to score; else its scores are never the best."""
        return not self.nonfinite and (math.isfinite(self.loss) or not self.counts.sum())

    def scores(self, class_names: tuple[str, ...]) -> dict[str, float]:
        """`mean_iou`, `iou/<class>` and all others of `metrics.scores`; `boundary_f1` of the classes and their mean.

        `never_predicted` is how many classes `metrics.never_predicted` names.
        """
        result = metrics.scores(self.counts)
        values = {name: value for name, value in result.items() if np.ndim(value) == 0}
        values["never_predicted"] = len(metrics.never_predicted(self.counts, class_names))
        values |= {f"iou/{name}": float(iou) for name, iou in zip(class_names, result["iou"], strict=True)}
        if self.boundary is not None:
            values["boundary_f1"] = metrics.mean(self.boundary)
            boundary = zip(class_names, self.boundary, strict=True)
            values |= {f"boundary_f1/{name}": float(value) for name, value in boundary}
        return values

    def named(self, class_names: tuple[str, ...]) -> dict[str, float]:
        """All scores and the loss under the names that `train.best` has for them: `mean_iou`, `published/f1`, ..."""
        values = {"loss": self.loss, **self.scores(class_names)}
        values |= {f"published/{name}": value for name, value in self.published.items()}
        return values | ({"nonfinite_pixels": self.nonfinite} if self.nonfinite else {})

    def scalars(self, class_names: tuple[str, ...], split: str) -> dict[str, float]:
        """The same under their names in `metrics.jsonl`, see `files.score_key`: `test/mean_iou`, ..."""
        return {score_key(split, name): value for name, value in self.named(class_names).items()}


def evaluate(
    eval_step: Callable[[Mapping[str, Any], Mapping[str, jax.Array]], dict[str, jax.Array]],
    variables: Mapping[str, Any],
    batches: Iterable[Mapping[str, Any]],
    mesh: Mesh,
    *,
    examples_at: Collection[int] = (),
    on_batch: Callable[[int], None] = lambda images: None,
    boundary_tolerance: float = 0.0,
    ignore_label: int = 255,
) -> Evaluation:
    """Scores `batches` (see `data.pipeline.eval_batches`) with a step of `step.create_eval_step` or of `protocols`.

    Every image is counted once at its own size: what pads a batch carries the ignore label. Counts are summed in int64
    on the host, so the result does not depend on how the split was cut into batches.

    Args:
      eval_step: `(variables, batch) -> {'counts', 'loss_sum', 'nonfinite', 'preds'}` and, for some scores, `per_image`.
      variables: `{'params', 'batch_stats'}`, whole on every device of `mesh`.
      examples_at: places in the order of `batches` (0 is the first image) of those kept with their predictions.
      on_batch: called with the number of images after each batch.
      boundary_tolerance: pixels, of boundary F1; 0 for none of it.
      ignore_label: of the batches' labels.
    """
    counts, loss_sum, nonfinite, images, examples, boundaries, sums = np.int64(0), 0.0, 0, 0, [], [], []
    for batch, out in _one_ahead(eval_step, variables, batches, mesh):
        counts = counts + np.asarray(out["counts"], np.int64)
        loss_sum += float(out["loss_sum"])
        nonfinite += int(out.get("nonfinite", 0))
        valid = np.flatnonzero(batch["valid"])
        sums.append({name: np.asarray(value)[valid] for name, value in out.get("per_image", {}).items()})
        wanted = [row for i, row in enumerate(valid, images) if i in examples_at]
        if wanted or boundary_tolerance:
            cut = {"images": batch["images"], "labels": batch["labels"], "preds": _rows(out["preds"])}
            for row in valid:
                height, width = batch["sizes"][row]
                example = {key: value[row, :height, :width] for key, value in cut.items()}
                if row in wanted:
                    examples.append({"id": batch["ids"][row], **example})
                if boundary_tolerance:
                    boundaries.append(_boundary_f1(example, len(counts), boundary_tolerance, ignore_label))
        images += len(valid)
        on_batch(len(valid))
    pixels = int(np.sum(counts))
    loss = loss_sum / pixels if pixels else float("nan")
    per_image = {name: np.concatenate([part[name] for part in sums]) for name in (sums[0] if sums else ())}
    boundary = _over_images(boundaries, counts)
    return Evaluation(counts, loss, images, examples, boundary, per_image, nonfinite=nonfinite)


def _one_ahead(eval_step, variables, batches, mesh) -> Iterator[tuple[Mapping[str, Any], dict[str, jax.Array]]]:
    """Batches with what `eval_step` makes of them; the device has the next one already while a result is fetched."""
    before = None
    for batch in batches:
        fields = {key: batch[key] for key in ("images", "labels", "sizes")}
        now = batch, eval_step(variables, put_batch(fields, mesh))
        if before:
            yield before
        before = now
    if before:
        yield before


def _rows(array: jax.Array | np.ndarray) -> np.ndarray:
    """This process's rows of an array that is split by row, first row first."""
    if isinstance(array, np.ndarray):
        return array
    shards = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    return np.concatenate([np.asarray(shard.data) for shard in shards])


def _boundary_f1(example: Mapping[str, Any], num_classes: int, tolerance: float, ignore_label: int) -> np.ndarray:
    from jaxseg.boundary import boundary_f1

    return boundary_f1(example["preds"], example["labels"], num_classes, tolerance=tolerance, ignore_label=ignore_label)


def _over_images(boundaries: list[np.ndarray], counts: np.ndarray) -> np.ndarray | None:
    if not boundaries:
        return None
    from jaxseg.boundary import mean_over_images

    return mean_over_images(np.array(boundaries), counts.sum(1) > 0)
