"""What stands on pix2pix: counts, what logits depend on, what a patch sees, and a refiner that begins as nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family_checks import (
    Pools,
    check_scores_alike_in_any_batch,
    counts,
    learn_two_images_by_heart,
    random_images,
    shapes,
    strides_heard,
)
from flax import linen as nn

from jaxseg.errors import UserError
from jaxseg.models import create_model
from jaxseg.models.cost import num_params
from jaxseg.models.pix2pix import PatchGAN, Refined, Refiner, UNetPix2Pix

SIZES = [(32, 32), (33, 47), (360, 480), (101, 64)]


def unet(num_classes: int = 21, backbone: str = "mobilenet_v2", **options):
    return create_model("unet_pix2pix", backbone=backbone, num_classes=num_classes, **options)


@pytest.mark.parametrize(("num_classes", "due"), [(21, (4_686_261, 6_530_165)), (22, (4_687_702, 6_531_606))])
def test_counts_are_those_of_the_tutorial(num_classes, due):
    """Of what is behind the encoder, which the tutorial freezes, and of all with running statistics."""
    trainable, encoder, statistics = counts(unet(num_classes, backbone_options={"expanded_features": True}))
    assert (trainable - encoder, trainable + statistics) == due


@pytest.mark.parametrize("backbone", ["mobilenet_v2", "vgg16", "xception"])
@pytest.mark.parametrize("output_stride", [8, 32])
@pytest.mark.parametrize("image_size", SIZES)
def test_logits_are_as_large_as_the_images(image_size, output_stride, backbone):
    logits, _ = shapes(unet(5, backbone, output_stride=output_stride), image_size)
    assert logits.shape == (2, *image_size, 5)
    assert logits.dtype == jnp.float32


def small() -> UNetPix2Pix:
    return UNetPix2Pix(Pools(), 3, features=(32, 32, 16, 16))


def test_the_logits_hear_every_feature():
    # The paper's weights are small, and let little through.
    assert strides_heard(small(), 1e4 * random_images(2, 64, 64, 3)) == {2, 4, 8, 16, 32}


def test_an_image_is_scored_alike_in_any_batch():
    check_scores_alike_in_any_batch(small(), random_images(3, 48, 80, 3))


@pytest.mark.nightly
def test_it_learns_two_images_by_heart():
    accuracy, loss = learn_two_images_by_heart(
        unet(3, "vgg16_bn", features=(32, 32, 16, 16), backbone_options={"width": 16})
    )
    assert accuracy > 0.95
    assert loss < 0.1


def label_maps(images: np.ndarray, num_classes: int = 4) -> np.ndarray:
    logits = np.random.default_rng(1).normal(size=(*images.shape[:3], num_classes))
    return np.array(nn.softmax(logits * 3), np.float32)


def test_a_patch_sees_70_by_70_pixels():
    """By the gradient of one logit with respect to image and label map."""
    model, images = PatchGAN(width=4), random_images(1, 120, 136, 3)
    maps = label_maps(images)

    @jax.jit
    def gradients(images, maps):
        variables = model.init(jax.random.key(0), images, maps, train=False)
        patches = model.apply(variables, images, maps, train=False)

        def one(images, maps):
            return model.apply(variables, images, maps, train=False)[0, 6, 7]

        return patches, jax.grad(one, (0, 1))(images, maps)

    patches, grads = gradients(images, maps)
    assert patches.shape == (1, 13, 15)
    for grad in grads:
        seen = np.abs(np.asarray(grad)[0]).max(-1) > 0
        # It is 8 pixels from one patch to the next, and the first one begins 23 pixels outside.
        top, left = 8 * 6 - 23, 8 * 7 - 23
        due = np.zeros_like(seen)
        due[top : top + 70, left : left + 70] = True
        np.testing.assert_array_equal(seen, due)


def test_the_discriminator_is_that_of_the_paper():
    """C64-C128-C256-C512 and a last convolution: biases in the first and the last, BatchNorm in the others."""
    images = jnp.zeros((1, 64, 64, 3))
    variables = jax.eval_shape(lambda: PatchGAN().init(jax.random.key(0), images, images, train=False))
    kernels = 16 * (6 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512)
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert count == kernels + 64 + 1 + 2 * (128 + 256 + 512)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["batch_stats"])) == 2 * (128 + 256 + 512)


@pytest.mark.parametrize("image_size", [(32, 32), (33, 47)])
def test_a_fresh_refiner_is_the_identity(image_size):
    model, images = Refiner(4, width=2), random_images(2, *image_size, 3)
    probs = label_maps(images)
    probs[0, 0, 0] = (1, 0, 0, 0)

    @jax.jit
    def run(images, probs):
        return model.init_with_output(jax.random.key(0), images, probs, train=False)[0]

    logits = run(images, probs)
    assert logits.dtype == jnp.float32
    assert np.isfinite(logits).all()
    np.testing.assert_allclose(nn.softmax(logits), probs, atol=1e-5)


class Blurred(nn.Module):
    """A first stage with a BatchNorm, whose statistics would move in training."""

    num_classes: int = 4
    in_channels: int = 3

    @nn.compact
    def __call__(self, images, *, train):
        return nn.Dense(self.num_classes, name="dense")(nn.BatchNorm(not train, name="bn")(images))


def test_refined_logits_hear_the_image_and_every_level_of_the_refiner_and_leave_the_first_stage_alone():
    model, images = Refined(Blurred(), Refiner(4, width=4)), random_images(2, 37, 50, 3)

    @jax.jit
    def run(images):
        variables = model.init(jax.random.key(0), images, train=False)
        # As if something had been learned: the last layer begins at 0, and lets no gradient through.
        variables["params"]["refiner"]["classifier"]["kernel"] += 0.1

        def loss(params):
            logits, updates = model.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
            return (logits * jnp.cos(jnp.arange(logits.size)).reshape(logits.shape)).sum() * 1e4, updates

        grads, updates = jax.grad(loss, has_aux=True)(variables["params"])
        return variables, grads, updates

    variables, grads, updates = run(images)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(grads["first"]))
    sizes = {
        jax.tree_util.keystr(path): np.abs(leaf).max()
        for path, leaf in jax.tree_util.tree_leaves_with_path(grads["refiner"])
        if leaf.ndim == 4
    }
    assert len(sizes) == 4 + 4 + 1
    assert min(sizes.values()) > 1e-3, sizes
    before, after = variables["batch_stats"], updates["batch_stats"]
    assert jax.tree.all(jax.tree.map(np.array_equal, before["first"], after["first"]))
    assert not np.array_equal(before["refiner"]["up_0"]["bn"]["mean"], after["refiner"]["up_0"]["bn"]["mean"])


def test_a_refined_network_is_counted_as_any():
    model = Refined(Blurred(), Refiner(4, width=4))
    assert (model.num_classes, model.in_channels) == (4, 3)
    trainable, statistics = num_params(model)
    assert (num_params(model.first), trainable > 1000, statistics > 6) == ((3 * 4 + 4 + 6, 6), True, True)


def test_images_that_are_too_small_are_refused():
    images = jnp.zeros((1, 31, 64, 3))
    with pytest.raises(UserError, match="31x64: at least 32x32"):
        jax.eval_shape(lambda: PatchGAN().init(jax.random.key(0), images, images, train=False))
