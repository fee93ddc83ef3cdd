"""Whatever the protocol, every valid pixel counts once, and probabilities are brought back to where they belong."""

import dataclasses
import functools

import cv2
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from ml_collections import ConfigDict

from jaxseg.data import pipeline, transforms
from jaxseg.errors import UserError
from jaxseg.evaluate import evaluate
from jaxseg.models.layers import resize_bilinear
from jaxseg.predictor import Predictor
from jaxseg.protocols import (
    FITTING,
    FittedSource,
    Protocol,
    center_crop,
    create_averaging_step,
    create_window_step,
    from_config,
)
from jaxseg.published import sums_of_c
from jaxseg.score import _many_sizes
from jaxseg.step import create_eval_step, create_mesh, fill_colour
from jaxseg.views import in_strips, resample

SIZES = [(40, 50), (64, 64), (33, 64), (20, 40)]
SCALE = {"mean": (0.4011, 0.5023, 0.6037), "std": (0.2, 0.2, 0.2)}  # so that no two colours are equal
FILL = fill_colour(SCALE["mean"])
RESAMPLE = jax.jit(resample, static_argnames=("canvas", "mirror"))
MESH = create_mesh(jax.devices("cpu")[:1])


class Colours(nn.Module):
    """Without context: what a pixel is follows from its colour."""

    @nn.compact
    def __call__(self, images, *, train):
        return 2 * images


class Blur(nn.Module):
    """With context: the strongest colour around a pixel, more of it to its right."""

    @nn.compact
    def __call__(self, images, *, train):
        kernel = (
            np.array([0.05, 0.1, 0.2, 0.25, 0.4])[None, :, None, None] * np.array([0.2, 0.3, 0.5])[:, None, None, None]
        )
        blur = jnp.asarray(np.tile(kernel, (1, 1, 1, 3)), jnp.float32)
        return 4 * jax.lax.conv_general_dilated(
            images, blur, (1, 1), "SAME", feature_group_count=3, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )


class Records:
    """Images of all sizes, with labels of which some are void."""

    def __init__(self, sizes=SIZES, mirrored=False):
        rng = np.random.default_rng(0)
        self.records = []
        for index, (height, width) in enumerate(sizes):
            coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
            images = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
            if mirrored:
                images = np.where(np.arange(width)[:, None] < width / 2, images, images[:, ::-1])
            labels = rng.integers(0, 3, (height, width)).astype(np.uint8)
            labels[rng.random(labels.shape) < 0.2] = 255
            self.records.append({"images": images, "labels": labels, "id": str(index)})

    def __len__(self):
        return len(self.records)

    def __getitem__(self, index):
        return self.records[index]


@functools.cache
def step_of(model, protocol, batch_size, per_image):
    if protocol is None:
        return create_eval_step(model, MESH, **SCALE)
    if protocol.name == "slide":
        return create_window_step(model, MESH, protocol, batch_size=batch_size, per_image=per_image, **SCALE)
    return create_averaging_step(model, MESH, protocol, per_image=per_image, **SCALE)


def batches_of(source, protocol, batch_size=2):
    sizes = np.array([source[index]["labels"].shape for index in range(len(source))])
    multiple = protocol.multiple if protocol else 0
    if protocol and protocol.name in FITTING:
        source, sizes, multiple = FittedSource(source, protocol), np.tile(protocol.size, (len(sizes), 1)), 1
    return pipeline.eval_batches(source, sizes, batch_size=batch_size, multiple=multiple, fill=FILL)


def score(model, protocol, *, source=None, batch_size=2, per_image=None):
    """With `protocol` None by the plain path."""
    source = source or Records()
    step = step_of(model, protocol, batch_size, per_image)
    batches = batches_of(source, protocol, batch_size)
    return evaluate(step, {}, batches, MESH, examples_at=set(range(len(source))))


def whole(model, source=None):
    return score(model, None, source=source)


def same(result, due):
    np.testing.assert_array_equal(result.counts, due.counts)
    assert result.loss == pytest.approx(due.loss, rel=1e-4)
    assert result.images == due.images
    for one, other in zip(result.examples, due.examples, strict=True):
        assert one["id"] == other["id"]
        for key in ("images", "labels", "preds"):
            np.testing.assert_array_equal(one[key], other[key])


def softmax(logits):
    return np.asarray(jax.nn.softmax(logits))


def network(model, image):
    """The logits of one image, by the network alone."""
    normal = (image.astype(np.float32) / 255 - np.float32(SCALE["mean"])) / np.float32(SCALE["std"])
    return model.apply({}, jnp.asarray(normal)[None], train=False)


# ---------------------------------------------------------------------------------------------------------------- laws


def test_one_look_at_the_whole_image_is_the_plain_path():
    same(score(Blur(), Protocol()), whole(Blur()))


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_windows_beside_each_other_are_the_whole_image_for_a_network_without_context(batch_size, flip):
    source = Records([(64, 96), (32, 32), (96, 64)])
    protocol = Protocol("slide", (32, 32), (32, 32), flip=flip)
    same(score(Colours(), protocol, source=source, batch_size=batch_size), whole(Colours(), source))


def test_windows_that_overlap_and_small_images_are_the_same_to_it():
    same(score(Colours(), Protocol("slide", (48, 32), (20, 13))), whole(Colours()))


def test_the_mirror_image_alone_is_the_same_to_a_network_without_context():
    same(score(Colours(), Protocol(flip=True)), whole(Colours()))


@pytest.mark.parametrize("protocol", [Protocol(flip=True), Protocol("slide", (32, 32), (16, 16), flip=True)])
def test_averaged_over_its_mirror_image_a_symmetric_image_has_symmetric_predictions(protocol):
    source = Records([(40, 50), (40, 64)], mirrored=True)
    averaged = score(Blur(), protocol, source=source)
    for example in averaged.examples:
        np.testing.assert_array_equal(example["images"], example["images"][:, ::-1])
        np.testing.assert_array_equal(example["preds"], example["preds"][:, ::-1])
    once = whole(Blur(), source)
    assert any((example["preds"] != example["preds"][:, ::-1]).any() for example in once.examples)


@pytest.mark.parametrize(
    "protocol",
    [
        Protocol(scales=(0.5, 1.0, 1.5), flip=True),
        Protocol("resize", (48, 40)),
        Protocol("resize", (48, 40), scales=(1.0, 1.3), flip=True),
        Protocol("slide", (32, 40), (20, 20)),
        Protocol("slide", (32, 32), (16, 16), scales=(0.75, 1.5), flip=True),
    ],
    ids=lambda protocol: protocol.slug,
)
@pytest.mark.parametrize("batch_size", [2, 5])
def test_every_valid_pixel_counts_once(protocol, batch_size):
    source = Records()
    due = np.sum([np.bincount(record["labels"].ravel(), minlength=256)[:3] for record in source.records], 0)
    result = score(Colours(), protocol, source=source, batch_size=batch_size)
    np.testing.assert_array_equal(result.counts.sum(1), due)
    assert result.counts.dtype == np.int64
    plain = whole(Colours(), source)
    agree = [
        np.mean(one["preds"] == other["preds"]) for one, other in zip(result.examples, plain.examples, strict=True)
    ]
    assert min(agree) > 0.9, "the pictures are smooth: what is brought back lies where it was"


VIEWS = [{}, {"scales": (0.75, 1.5), "flip": True}]


@pytest.mark.parametrize("views", VIEWS, ids=lambda views: "-".join(views) or "once")
@pytest.mark.parametrize(
    "protocol",
    [
        Protocol(multiple=64),
        Protocol("resize", (48, 40)),
        Protocol("slide", (32, 40), (20, 20)),
    ],
    ids=lambda protocol: protocol.slug,
)
def test_predictions_are_what_is_scored(protocol, views):
    """One function brings a picture to size for both: bytes that are rounded on the way gave other classes."""
    protocol = dataclasses.replace(protocol, **views)
    result = score(Blur(), protocol, source=Records([(40, 50), (50, 40), (33, 70)]), batch_size=3)
    predictor = Predictor(Blur(), {}, None, 0, **SCALE, protocol=protocol)
    for example in result.examples:
        preds = predictor(example["images"])
        assert preds.dtype == np.uint8
        np.testing.assert_array_equal(preds, example["preds"])
        assert not predictor.unlike_scoring(preds.shape)
        probs = predictor(example["images"], probabilities=True)
        assert probs.dtype == np.float32
        np.testing.assert_allclose(probs.sum(-1), 1, atol=1e-5)
        assert np.mean(probs.argmax(-1) == preds) > 0.999
    assert any(len(np.unique(example["preds"])) > 1 for example in result.examples)


@pytest.mark.parametrize("views", VIEWS, ids=lambda views: "-".join(views) or "once")
@pytest.mark.parametrize("protocol", [Protocol("resize_labels", (48, 40)), Protocol("center_crop", (40, 40))])
def test_predictions_are_what_is_scored_at_the_size_that_is_scored_at(protocol, views):
    protocol = dataclasses.replace(protocol, **views)
    predictor = Predictor(Blur(), {}, None, 0, **SCALE, protocol=protocol)
    for example in score(Blur(), protocol, source=Records(SIZES[:2])).examples:
        preds = predictor(example["images"])
        np.testing.assert_array_equal(preds, example["preds"])
        assert not predictor.unlike_scoring(preds.shape)
    image = Records()[0]["images"]
    assert predictor(image).shape == image.shape[:2]
    assert "evaluation scores" in predictor.unlike_scoring(image.shape[:2])


def test_resized_labels_are_predicted_from_what_the_network_saw():
    predictor = Predictor(Blur(), {}, None, 0, **SCALE, protocol=Protocol("resize_labels", (48, 40)))
    image, labels = Records()[0]["images"], Records()[0]["labels"]
    small, _ = transforms.resize(image, labels, (48, 40))
    due = resize_bilinear(predictor(small, probabilities=True)[None], labels.shape, align_corners=False)[0]
    np.testing.assert_allclose(predictor(image, probabilities=True), due, atol=1e-5)


def test_how_an_image_is_padded_does_not_hang_on_the_others():
    """Of many sizes the padding is larger for all; the run keeps how much, and predicting pads alike."""
    sizes = [(33 + 32 * i, 50) for i in range(9)]
    assert pipeline.padding_multiple(np.array(sizes)) == 64
    many = score(Blur(), Protocol(multiple=64), source=Records(sizes)).examples
    predictor = Predictor(Blur(), {}, None, 0, **SCALE, protocol=Protocol(multiple=64))
    shapes = {batch["images"].shape[1:3] for batch in batches_of(Records(sizes), Protocol(multiple=32))}
    assert len(shapes) == 9, "a multiple that is given stays"
    for example in many:
        np.testing.assert_array_equal(predictor(example["images"]), example["preds"])


def test_more_padded_sizes_than_a_split_would_have_are_said():
    sizes = np.array([(33 + 32 * i, 50) for i in range(9)])
    assert "to 9 sizes" in _many_sizes(sizes, Protocol(multiple=32))
    for fine in (Protocol(multiple=64), Protocol(), Protocol("center_crop", (64, 64), multiple=32)):
        assert not _many_sizes(sizes, fine)


@pytest.mark.parametrize(("size", "most"), [((70, 45), 1), ((70, 45), 10_000), ((70, 45), 30_000), ((5, 3), 1)])
def test_strips_are_the_whole(size, most):
    probs = np.random.default_rng(0).random((1, 13, 17, 3), np.float32)
    canvas = tuple(-(-side // 32) * 32 for side in size)
    parts = list(in_strips(probs, size, canvas, most))
    assert len(parts) == -(-size[0] // (32 * max(1, most // (32 * canvas[1] * 3))))
    whole = RESAMPLE(probs, np.array([[13, 17]]), np.array([size]), size)
    np.testing.assert_allclose(np.concatenate(parts), whole[0], atol=1e-6)


# -------------------------------------------------------------------------------------------------- against plain loops


def test_windows_are_those_of_a_loop():
    source, model = Records([(50, 70)]), Blur()
    image, labels = source[0]["images"], source[0]["labels"]
    sums, count = np.zeros((50, 70, 3)), np.zeros((50, 70, 1))
    for top in (0, 16, 18):
        for left in (0, 16, 32, 38):
            window = np.s_[top : top + 32, left : left + 32]
            sums[window] += softmax(network(model, image[window]))[0]
            count[window] += 1
    probs = sums / count
    result = score(model, Protocol("slide", (32, 32), (16, 16)), source=source, batch_size=5)
    np.testing.assert_array_equal(result.examples[0]["preds"], probs.argmax(-1))
    right = np.take_along_axis(probs, np.where(labels == 255, 0, labels)[..., None], -1)[..., 0]
    assert result.loss == pytest.approx(-np.log(right[labels != 255]).mean(), rel=1e-5)
    assert (probs.argmax(-1) != whole(model, source).examples[0]["preds"]).any()


def test_scales_and_mirror_images_are_those_of_a_loop():
    source, model = Records([(64, 96)]), Blur()
    image = source[0]["images"].astype(np.float32) / 255
    total = 0
    for scale in (0.5, 1.5):
        for mirror in (1, -1):
            size = (int(64 * scale), int(96 * scale))
            seen = resize_bilinear(image[None, :, ::mirror], size, align_corners=False)
            logits = network(model, np.asarray(seen[0]) * 255)
            back = resize_bilinear(logits, (64, 96), align_corners=False)[:, :, ::mirror]
            total += softmax(back)[0]
    result = score(model, Protocol(scales=(0.5, 1.5), flip=True), source=source)
    np.testing.assert_array_equal(result.examples[0]["preds"], total.argmax(-1))


def test_resized_probabilities_come_back_to_the_labels():
    source, model = Records([(50, 70)]), Blur()
    small = resize_bilinear(source[0]["images"][None].astype(np.float32), (32, 48), align_corners=False)
    probs = resize_bilinear(jax.nn.softmax(network(model, np.asarray(small[0]))), (50, 70), align_corners=False)
    result = score(model, Protocol("resize", (32, 48)), source=source)
    np.testing.assert_array_equal(result.examples[0]["preds"], np.asarray(probs[0]).argmax(-1))


def test_labels_are_resized_with_the_image():
    source = Records()
    result = score(Colours(), Protocol("resize_labels", (48, 40)), source=source)
    for record, example in zip(source.records, result.examples, strict=True):
        images, labels = transforms.resize(record["images"], record["labels"], (48, 40))
        np.testing.assert_array_equal(example["images"], images)
        np.testing.assert_array_equal(example["labels"], labels)
    assert result.counts.sum() == sum((example["labels"] != 255).sum() for example in result.examples)


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from([Protocol("resize_labels", (9, 14)), Protocol("center_crop", (9, 9))]),
    hnp.arrays(
        np.uint8,
        hnp.array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=40),
        elements=st.sampled_from([0, 3, 7, 255]),
    ),
)
def test_no_label_is_invented(protocol, labels):
    record = {"images": labels[..., None].repeat(3, -1), "labels": labels, "id": ""}
    fitted = FittedSource([record], protocol)[0]
    assert fitted["labels"].shape == fitted["images"].shape[:2] == protocol.size
    assert set(np.unique(fitted["labels"])) <= set(np.unique(labels))


@pytest.mark.parametrize(("shape", "scaled"), [((30, 50), (12, 20)), ((50, 30), (20, 12)), ((40, 40), (12, 12))])
def test_the_centre_crop_is_the_square_in_the_middle_of_the_shorter_side(shape, scaled):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (*shape, 3), dtype=np.uint8), rng.integers(0, 9, shape).astype(np.uint8)
    cropped = center_crop(images, labels, 12)
    top, left = (scaled[0] - 12) // 2, (scaled[1] - 12) // 2
    for found, full in zip(cropped, transforms.resize(images, labels, scaled), strict=True):
        np.testing.assert_array_equal(found, full[top : top + 12, left : left + 12])


def test_a_centre_crop_of_513_is_not_padded():
    shapes = []

    class Seen(Colours):
        @nn.compact
        def __call__(self, images, *, train):
            shapes.append(images.shape)
            return images

    score(Seen(), Protocol("center_crop", (33, 33)), source=Records([(40, 50)]))
    assert shapes == [(1, 33, 33, 3)]


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 20), st.integers(2, 24), st.integers(2, 20), st.integers(2, 24), st.booleans())
def test_each_image_of_a_batch_is_resized_by_its_own_factor(height, width, to_height, to_width, mirror):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 20, 24, 2)).astype(np.float32)
    sizes, to_sizes = np.array([[height, width], [20, 24]]), np.array([[to_height, to_width], [20, 24]])
    found = np.asarray(RESAMPLE(x, sizes, to_sizes, (20, 24), mirror=mirror))
    turned = np.ascontiguousarray(x[0, :height, :width][:, :: -1 if mirror else 1])
    due = cv2.resize(turned, (to_width, to_height), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(found[0, :to_height, :to_width], due, atol=1e-5)
    assert not found[0, to_height:].any() and not found[0, :, to_width:].any()
    np.testing.assert_array_equal(found[1], x[1, :, :: -1 if mirror else 1])


@pytest.mark.parametrize(("batch_size", "due"), [(1, 1), (2, 2), (5, 4), (16, 4)])
def test_no_more_windows_are_computed_than_the_next_power_of_two(batch_size, due):
    rows = []

    class Seen(Colours):
        @nn.compact
        def __call__(self, images, *, train):
            rows.append(len(images))
            return images

    score(Seen(), Protocol("slide", (32, 32), (32, 32)), source=Records([(32, 90)]), batch_size=batch_size)
    assert rows == [due], "three windows"


def test_the_pixels_that_are_seen_are_those_of_the_largest_view():
    assert Protocol().pixels((64, 96)) == 64 * 96
    assert Protocol(scales=(0.5,)).pixels((64, 96)) == 64 * 96
    assert Protocol(scales=(0.5, 2.0)).pixels((64, 96)) == 4 * 64 * 96
    assert Protocol("resize", (128, 128)).pixels((64, 96)) == 128 * 128
    assert Protocol("slide", (512, 512), (256, 256), scales=(2.0,)).pixels((64, 96)) == 64 * 96


# ------------------------------------------------------------------------------------------------------ sums of images


class Two(Colours):
    """Two classes."""

    @nn.compact
    def __call__(self, images, *, train):
        return 2 * images[..., :2]


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("protocol", [Protocol(), Protocol("slide", (32, 32), (16, 16))], ids=lambda p: p.slug)
def test_sums_of_each_image_are_in_the_order_of_the_images(protocol, batch_size):
    source = Records([(40, 50)] * 5)
    for record in source.records:
        record["labels"][record["labels"] == 2] = 0
    result = score(Two(), protocol, source=source, batch_size=batch_size, per_image=sums_of_c)
    assert {len(value) for value in result.per_image.values()} == {5}
    for index, record in enumerate(source.records):
        valid = record["labels"] != 255
        p = softmax(network(Two(), record["images"]))[0, ..., 1][valid].astype(np.float64)
        y = record["labels"][valid]
        due = {"hits": ((p > 0.5) & (y == 1)).sum(), "pred": (p > 0.5).sum(), "true": y.sum(), "pixels": len(y)}
        assert {name: result.per_image[name][index] for name in due} == due
        assert result.per_image["dice"][index] == pytest.approx(np.sum((2 * y * p + 1) / (y + p**2 + 1)), rel=1e-5)


# ----------------------------------------------------------------------------------------------------------- by config


def fields(**values):
    return ConfigDict(
        {"protocol": "whole", "size": (), "stride": 0, "scales": (1.0,), "flip": False, "multiple": 0, **values},
        convert_dict=False,
    )


@pytest.mark.parametrize(
    ("values", "words", "slug"),
    [
        ({}, "whole image", "whole"),
        ({"flip": True}, "whole image, mirrored too", "whole-flip"),
        (
            {"scales": (0.5, 1.0, 1.5), "flip": True},
            "whole image, scales 0.5, 1 and 1.5, mirrored too",
            "whole-scales0.5,1,1.5-flip",
        ),
        ({"scales": (2.0,)}, "whole image, scale 2", "whole-scales2"),
        ({"protocol": "resize", "size": (224,)}, "resized to 224x224 and back", "resize224x224"),
        (
            {"protocol": "resize_labels", "size": (224, 320)},
            "resized to 224x320, labels too",
            "resize_labels224x320",
        ),
        (
            {"protocol": "center_crop", "size": (513,)},
            "centre crop of 513x513, the shorter side resized to it, labels too",
            "center_crop513x513",
        ),
        ({"protocol": "slide", "size": (256,)}, "windows of 256x256 every 128", "slide256x256-128x128"),
        ({"protocol": "slide", "size": (64, 96)}, "windows of 64x96 every 32x48", "slide64x96-32x48"),
        ({"protocol": "slide", "size": (256,), "stride": 200}, "windows of 256x256 every 200", "slide256x256-200x200"),
    ],
)
def test_a_protocol_has_words_and_a_name_for_files(values, words, slug):
    protocol = from_config(fields(**values))
    assert (protocol.words, protocol.slug) == (words, slug)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": (256,)}, r"eval.size is \(256,\), but eval.protocol whole has none"),
        ({"stride": 8}, "eval.stride is 8, but eval.protocol is whole: only slide has one, leave it 0"),
        ({"protocol": "resize"}, r"eval.size is \(\): eval.protocol resize wants pixels or \(height, width\)"),
        ({"protocol": "resize", "size": (31,)}, "each at least 32"),
        ({"protocol": "slide", "size": (64, 64, 64)}, r"eval.size is \(64, 64, 64\)"),
        ({"protocol": "slide", "size": ("64",)}, r"eval.size is \('64',\)"),
        ({"protocol": "slide", "size": (64, 96), "stride": 65}, "eval.stride is 65: it must be at most eval.size"),
        ({"protocol": "center_crop", "size": (64, 96)}, "a centre crop is square, give one number"),
        ({"scales": ()}, r"eval.scales is \(\): it must be factors above 0"),
        ({"scales": (1.0, 0.0)}, "it must be factors above 0"),
        ({"scales": ("1",)}, "it must be factors above 0"),
        ({"protocol": "sliding"}, r"unknown protocol \(eval.protocol\) 'sliding': did you mean slide"),
    ],
)
def test_fields_that_make_no_protocol_are_refused(values, message):
    with pytest.raises(UserError, match=message):
        from_config(fields(**values))
