"""PSPNet: counts of the published networks, shapes, the auxiliary head, and what the logits depend on."""

import jax
import jax.numpy as jnp
import pytest
from family_checks import (
    Pools,
    check_scores_alike_in_any_batch,
    count,
    counts,
    learn_two_images_by_heart,
    random_images,
    shapes,
    strides_heard,
)

from jaxseg.errors import UserError
from jaxseg.models import create_model
from jaxseg.models.backbones import BACKBONES
from jaxseg.models.pspnet import PAPER, PSPNet

# segmentation_models_pytorch 0.6.0, 21 classes: parameters that take part in the forward, those behind the encoder.
COUNTS = {
    "vgg16": (8_520_405, 885_141),
    "vgg16_bn": (8_525_781, 885_141),
    # SMP computes seven more blocks, up to the next feature, and drops what they give.
    "mobilenet_v2": (674_189 - 487_040, 131_661),
    "resnet18": (928_565, 245_493),
    "resnet34": (1_593_397, 245_493),
    "resnet50": (2_330_069, 885_141),
    "resnet101": (2_330_069, 885_141),
}
# The paper's form, 21 classes: encoder (torchvision's), pyramid, convolution, classifier, auxiliary head.
PARTS = (4 * (2048 * 512 + 2 * 512), 9 * 4096 * 512 + 2 * 512, 512 * 21 + 21, 9 * 1024 * 256 + 2 * 256 + 256 * 21 + 21)
PAPER_COUNTS = {"resnet50": 23_508_032 + sum(PARTS), "resnet101": 42_500_160 + sum(PARTS)}
SIZES = [(32, 32), (33, 47), (360, 480), (101, 64)]


def pspnet(backbone: str = "resnet18", num_classes: int = 21, **options):
    return create_model("pspnet", backbone=backbone, num_classes=num_classes, **options)


@pytest.mark.parametrize("backbone", COUNTS)
def test_counts_are_those_of_what_takes_part_in_the_published_network(backbone):
    trainable, encoder, _ = counts(pspnet(backbone))
    assert (trainable, trainable - encoder) == COUNTS[backbone]


@pytest.mark.parametrize("backbone", PAPER_COUNTS)
def test_counts_of_the_papers_form(backbone):
    params = shapes(pspnet(backbone, **PAPER))[1]["params"]
    assert count(params) == PAPER_COUNTS[backbone]
    assert params["head"]["conv"]["conv"]["kernel"].shape == (3, 3, 4096, 512)
    assert params["auxiliary"]["conv"]["conv"]["kernel"].shape == (3, 3, 1024, 256)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_backbone_stops_at_the_depth_that_is_asked_for(backbone):
    def features(**how):
        images, module = jnp.zeros((1, 75, 97, 3)), BACKBONES[backbone]()
        return jax.eval_shape(lambda x: module.init_with_output(jax.random.key(0), x, train=False, **how), images)

    whole, whole_variables = features()
    before = 0
    for depth in range(1, 6):
        cut, variables = features(depth=depth)
        assert cut == whole[:depth]
        assert variables["params"].items() <= whole_variables["params"].items()
        assert before <= len(variables["params"])
        before = len(variables["params"])
    assert before == len(whole_variables["params"])


@pytest.mark.parametrize("options", [{}, PAPER, {"depth": 4, "output_stride": 16}])
@pytest.mark.parametrize("image_size", SIZES)
def test_logits_are_as_large_as_the_images(image_size, options):
    logits, _ = shapes(pspnet("mobilenet_v2", 5, **options), image_size)
    assert logits.shape == (2, *image_size, 5)
    assert logits.dtype == jnp.float32


@pytest.mark.parametrize("train", [True, False])
def test_auxiliary_logits_are_sown_as_large_as_the_images(train):
    model, images = pspnet(num_classes=5, **PAPER), jnp.zeros((2, 45, 71, 3))

    def run():
        variables = model.init(jax.random.key(0), images, train=False)
        rngs = {"dropout": jax.random.key(0)}
        return variables, *model.apply(variables, images, train=train, mutable=["batch_stats", "aux"], rngs=rngs)

    variables, logits, updates = jax.eval_shape(run)
    assert variables.keys() == {"params", "batch_stats"}
    (aux_logits,) = updates["aux"]["logits"]
    assert aux_logits.shape == logits.shape == (2, 45, 71, 5)
    assert aux_logits.dtype == jnp.float32


@pytest.mark.parametrize("options", [{"depth": 2}, {"depth": 6}, {"aux_head": True}])
def test_a_depth_that_can_not_be_is_refused(options):
    with pytest.raises(UserError, match=rf"^depth .*is {options.get('depth', 3)}.* 4(, | or )5"):
        shapes(pspnet(**options))


def small(**fields) -> PSPNet:
    return PSPNet(Pools(), 3, bins=(1, 2), features=8, **fields)


@pytest.mark.parametrize("depth", [3, 4, 5])
def test_the_logits_hear_the_feature_at_that_depth_and_no_other(depth):
    assert strides_heard(small(depth=depth), random_images(2, 64, 64, 3)) == {2**depth}


def test_an_image_is_scored_alike_in_any_batch():
    check_scores_alike_in_any_batch(small(), random_images(3, 48, 80, 3))


@pytest.mark.nightly
def test_it_learns_two_images_by_heart():
    accuracy, loss = learn_two_images_by_heart(pspnet(num_classes=3, features=32, dropout=0.0))
    assert accuracy > 0.99
    assert loss < 0.1
