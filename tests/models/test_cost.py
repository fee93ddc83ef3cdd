"""Parameters and multiply-adds against a hand count and against the published counts."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from jaxseg.models import create_model
from jaxseg.models.cost import multiply_adds, num_params
from jaxseg.models.layers import Conv, ConvTranspose, DepthwiseConvBN, adaptive_avg_pool, resize_bilinear


class Small(nn.Module):
    """One of each: what counts and what doesn't."""

    in_channels: int = 3

    @nn.compact
    def __call__(self, images, *, train):
        x = Conv(8, 3, stride=2, use_bias=True)(images)  # 32x48 -> 16x24
        x = DepthwiseConvBN(3)(x, train=train)
        x = x * nn.sigmoid(Conv(8, 1)(x.mean((1, 2), keepdims=True)))
        x = x + resize_bilinear(adaptive_avg_pool(x, 3), x.shape[1:3], align_corners=True)
        x = Conv(4, 1)(x)
        x = ConvTranspose(2, 4, 2, 1)(x)  # -> 32x48
        return ConvTranspose(2, 2, 2)(x)


def test_a_hand_count():
    places = 16 * 24
    due = places * 27 * 8 + places * 9 * 8 + 8 * 8 + places * 8 * 4 + places * 4 * 16 * 2 + 4 * places * 2 * 4 * 2
    assert multiply_adds(Small(), (32, 48)) == due
    params = 27 * 8 + 8 + 9 * 8 + 16 + 64 + 32 + 16 * 4 * 2 + 2 + 4 * 2 * 2 + 2
    assert num_params(Small()) == (params, 16)


# segmentation_models_pytorch 0.6.0 and torchvision 0.28.0, 21 classes, 512x512, in units of 1e9.
PUBLISHED = {
    ("deeplabv3plus", "mobilenet_v2"): (4_383_653, 38_304, 6.009),
    ("deeplabv3plus", "resnet18"): (12_334_437, 13_792, 18.332),
    ("deeplabv3plus", "resnet50"): (26_682_725, 57_312, 36.645),
    ("deeplabv3plus", "resnet101"): (45_674_853, 109_536, 56.040),
}


@pytest.mark.parametrize(("family", "backbone"), PUBLISHED)
def test_the_published_counts(family, backbone):
    model = create_model(family, backbone=backbone, num_classes=21)
    *params, billions = PUBLISHED[family, backbone]
    assert num_params(model) == tuple(params)
    assert round(multiply_adds(model) / 1e9, 3) == billions


def test_a_scan_counts_each_of_its_rounds():
    class Scanned(nn.Module):
        in_channels: int = 3

        @nn.compact
        def __call__(self, images, *, train):
            kernel = self.param("kernel", nn.initializers.ones, (3, 3))
            return jax.lax.scan(lambda x, _: (x @ kernel, None), images, jnp.arange(5))[0]

    assert multiply_adds(Scanned(), (2, 2)) == 5 * 4 * 9
