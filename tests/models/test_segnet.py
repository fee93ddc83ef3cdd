"""SegNet: counts of its three forms, shapes, and what the logits depend on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family_checks import (
    check_scores_alike_in_any_batch,
    counts,
    learn_two_images_by_heart,
    random_images,
    shapes,
)

from jaxseg.errors import UserError
from jaxseg.models import create_model
from jaxseg.models.backbones import vgg
from jaxseg.models.segnet import SegNet, local_response_norm

# Trainable, of which the backbone, and float buffers.
COUNTS = [
    ("vgg16_bn", 21, (29_455_125, 14_723_136, 15_872)),
    ("vgg16_bn", 12, (29_449_932, 14_723_136, 15_872)),
    ("vgg16_bn", 11, (29_449_355, 14_723_136, 15_872)),
    ("vgg16_bn", 1, (29_443_585, 14_723_136, 15_872)),
    ("basic", 11, (1_416_587, 0, 1_024)),
    ("basic", 21, (1_417_237, 0, 1_024)),
    ("constant", 1, (364_561, 0, 2_080)),
]
FORMS = ["vgg16_bn", "vgg16", "basic", "constant"]


def segnet(backbone: str, num_classes: int = 3, **options):
    return create_model("segnet", backbone=backbone, num_classes=num_classes, **options)


@pytest.mark.parametrize(("backbone", "num_classes", "due"), COUNTS)
def test_counts_are_those_of_the_published_networks(backbone, num_classes, due):
    assert counts(segnet(backbone, num_classes)) == due


@pytest.mark.parametrize("backbone", FORMS)
@pytest.mark.parametrize("image_size", [(32, 32), (33, 47), (360, 480), (101, 64)])
def test_logits_are_as_large_as_the_images(image_size, backbone):
    logits, _ = shapes(segnet(backbone, 5), image_size)
    assert logits.shape == (2, *image_size, 5)
    assert logits.dtype == jnp.float32


@pytest.mark.parametrize("output_stride", [8, 16])
def test_a_pooling_that_was_left_out_has_no_inverse(output_stride):
    logits, variables = shapes(segnet("vgg16_bn", 5, output_stride=output_stride), (33, 47))
    assert logits.shape == (2, 33, 47, 5)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, shapes(segnet("vgg16_bn", 5))[1])


@pytest.mark.parametrize("backbone", FORMS)
def test_computing_in_bfloat16_gives_float32_logits_from_float32_variables(backbone):
    logits, variables = shapes(segnet(backbone, dtype="bfloat16"))
    assert {leaf.dtype for leaf in jax.tree.leaves((logits, variables))} == {jnp.dtype(jnp.float32)}


def test_a_backbone_without_places_is_refused_with_the_reason():
    with pytest.raises(UserError, match=r"segnet can't stand on resnet18: .*poolings.*basic, constant"):
        segnet("resnet18")


def small() -> SegNet:
    return SegNet(vgg.VGG(batch_norm=True, width=8), 3)


@pytest.mark.parametrize("model", [small(), segnet("basic", features=8)], ids=["vgg", "basic"])
def test_an_image_is_scored_alike_in_any_batch(model):
    check_scores_alike_in_any_batch(model, random_images(3, 45, 72, 3))


def test_every_convolution_and_every_pooling_has_a_part_in_the_logits():
    """Without skips all that the logits hear goes through the last pooling, so no gradient may be zero anywhere."""
    model, images = small(), random_images(2, 45, 72, 3)
    variables = jax.jit(lambda x: model.init(jax.random.key(0), x, train=False))(images)

    @jax.jit
    def grads(params):
        def loss(params):
            logits, _ = model.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
            return (logits * jnp.cos(jnp.arange(logits.size)).reshape(logits.shape)).sum()

        return jax.grad(loss)(params)

    kernels = {
        jax.tree_util.keystr(path): np.abs(leaf).max()
        for path, leaf in jax.tree_util.tree_leaves_with_path(grads(variables["params"]))
        if leaf.ndim == 4
    }
    assert len(kernels) == 26
    assert min(kernels.values()) > 1e-3, kernels


def test_local_response_norm_equals_pytorch():
    torch = pytest.importorskip("torch")
    for channels in (1, 3, 8):
        x = 100 * random_images(2, 4, 5, channels)
        due = torch.nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75)(torch.from_numpy(x.transpose(0, 3, 1, 2).copy()))
        np.testing.assert_allclose(local_response_norm(x), due.numpy().transpose(0, 2, 3, 1), rtol=1e-5)


@pytest.mark.nightly
def test_it_learns_two_images_by_heart():
    accuracy, loss = learn_two_images_by_heart(segnet("basic", features=16))
    assert accuracy > 0.99
    assert loss < 0.1
