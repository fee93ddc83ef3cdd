"""Scoring a split does not depend on how it was cut into batches."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.evaluate import Evaluation, evaluate
from jaxseg.step import create_eval_step, create_mesh

SIZES = [(40, 50), (33, 64), (64, 64), (20, 20), (64, 31), (7, 60), (50, 50)]
SIDE = 64
SCALE = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


class Colours(nn.Module):
    """The class of a pixel is its strongest colour."""

    @nn.compact
    def __call__(self, images, *, train):
        return 4 * images


def split():
    """Images of all sizes, with labels of which some are void."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in SIZES]
    labels = [rng.integers(0, 3, size).astype(np.uint8) for size in SIZES]
    for label in labels:
        label[rng.random(label.shape) < 0.2] = 255
    return images, labels


def batches(batch_size: int):
    """What the pipeline gives: padded at the bottom and right, the last batch filled up with empty rows."""
    images, labels = split()
    for start in range(0, len(images), batch_size):
        rows = range(start, min(start + batch_size, len(images)))
        batch = {
            "images": np.full((batch_size, SIDE, SIDE, 3), 99, np.uint8),
            "labels": np.full((batch_size, SIDE, SIDE), 255, np.uint8),
            "valid": np.arange(batch_size) < len(rows),
            "ids": [""] * batch_size,
            "sizes": np.zeros((batch_size, 2), np.int32),
        }
        for row, index in enumerate(rows):
            height, width = batch["sizes"][row] = SIZES[index]
            batch["images"][row, :height, :width] = images[index]
            batch["labels"][row, :height, :width] = labels[index]
            batch["ids"][row] = f"image_{index}"
        yield batch


def run(batch_size: int, num_devices: int = 1, **options) -> Evaluation:
    mesh = create_mesh(jax.devices("cpu")[:num_devices])
    return evaluate(create_eval_step(Colours(), mesh, **SCALE), {}, batches(batch_size), mesh, **options)


@pytest.fixture(scope="module")
def due():
    """Counts and loss in plain numpy, image by image at its own size."""
    counts, loss = np.zeros((3, 3), np.int64), 0.0
    for image, label in zip(*split(), strict=True):
        valid = label != 255
        np.add.at(counts, (label[valid], image.argmax(-1)[valid]), 1)
        logits = 4 * image[valid].astype(np.float64) / 255
        loss += (np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, label[valid][:, None], -1)[:, 0]).sum()
    return counts, loss / counts.sum()


@pytest.mark.parametrize(("batch_size", "num_devices"), [(1, 1), (3, 1), (8, 1), (2, 2), (8, 2)])
def test_counts_and_loss_are_those_of_the_images_however_they_are_cut(batch_size, num_devices, due):
    counts, loss = due
    result = run(batch_size, num_devices)
    np.testing.assert_array_equal(result.counts, counts)
    assert result.counts.dtype == np.int64
    assert result.loss == pytest.approx(loss, rel=1e-5)
    assert result.images == len(SIZES)


@pytest.mark.parametrize(("batch_size", "num_devices"), [(1, 1), (3, 1), (8, 2)])
def test_examples_are_the_images_asked_for_at_their_own_sizes(batch_size, num_devices):
    images, labels = split()
    result = run(batch_size, num_devices, examples_at={0, 3, 6})
    assert [example["id"] for example in result.examples] == ["image_0", "image_3", "image_6"]
    for index, example in zip((0, 3, 6), result.examples, strict=True):
        np.testing.assert_array_equal(example["images"], images[index])
        np.testing.assert_array_equal(example["labels"], labels[index])
        np.testing.assert_array_equal(example["preds"], images[index].argmax(-1))
        assert example["preds"].dtype == np.uint8


def test_no_example_is_kept_where_none_is_asked_for():
    assert run(3).examples == []


def test_progress_counts_the_images_and_not_the_empty_rows():
    seen = []
    run(3, on_batch=seen.append)
    assert seen == [3, 3, 1]


def test_batches_are_added_in_64_bits():
    most = 2**31 - 1

    def eval_step(variables, batch):
        return {"counts": jnp.full((2, 2), most, jnp.int32), "loss_sum": jnp.float32(0), "preds": batch["labels"]}

    result = evaluate(eval_step, {}, batches(4), create_mesh(jax.devices("cpu")[:1]))
    np.testing.assert_array_equal(result.counts, np.full((2, 2), 2 * most))


def test_a_split_without_a_valid_pixel_has_no_loss():
    def void():
        for batch in batches(4):
            yield {**batch, "labels": np.full_like(batch["labels"], 255)}

    mesh = create_mesh(jax.devices("cpu")[:1])
    result = evaluate(create_eval_step(Colours(), mesh, **SCALE), {}, void(), mesh)
    assert np.isnan(result.loss)
    assert result.counts.sum() == 0
    assert result.images == len(SIZES)


def test_scalars_have_every_score_and_the_iou_of_every_class_by_name():
    result = Evaluation(np.array([[3, 0, 1], [0, 0, 0], [0, 0, 4]]), 0.5, 2, [])
    scalars = result.scalars(("sky", "fence", "road"), "val")
    assert scalars["val/loss"] == 0.5
    assert scalars["val/mean_iou"] == pytest.approx((3 / 4 + 4 / 5) / 2)
    assert scalars["val/pixel_accuracy"] == pytest.approx(7 / 8)
    assert (scalars["val/iou/sky"], scalars["val/iou/road"]) == (3 / 4, 4 / 5)
    assert np.isnan(scalars["val/iou/fence"])
    assert all(np.ndim(value) == 0 for value in scalars.values())
    assert set(result.scalars(("sky", "fence", "road"), "test")) == {name.replace("val", "test", 1) for name in scalars}
