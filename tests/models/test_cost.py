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


# segmentation_models_pytorch 0.6.0, 21 classes, 512x512: multiply-adds in units of 1e9. Its PSPNet on MobileNetV2
# computes a stage more than it uses, so that pair has no place here.
SMP = {
    ("unet", "vgg16_bn"): 99.694,
    ("unet", "mobilenet_v2"): 14.135,
    ("unet", "resnet18"): 22.347,
    ("unet", "resnet50"): 43.285,
    ("fpn", "vgg16_bn"): 89.777,
    ("fpn", "mobilenet_v2"): 9.628,
    ("fpn", "resnet18"): 17.799,
    ("fpn", "resnet50"): 31.187,
    ("pspnet", "vgg16_bn"): 75.478,
    ("pspnet", "resnet18"): 6.113,
    ("pspnet", "resnet50"): 12.022,
    ("deeplabv3", "mobilenet_v2"): 50.710,
    ("deeplabv3", "resnet18"): 66.942,
    ("deeplabv3", "resnet101"): 241.157,
    ("deeplabv3plus", "mobilenet_v2"): 6.009,
    ("deeplabv3plus", "resnet18"): 18.332,
    ("deeplabv3plus", "resnet50"): 36.645,
    ("deeplabv3plus", "resnet101"): 56.040,
}


@pytest.mark.parametrize(("family", "backbone"), SMP)
def test_multiply_adds_are_those_of_smp(family, backbone):
    model = create_model(family, backbone=backbone, num_classes=21)
    assert round(multiply_adds(model) / 1e9, 3) == SMP[family, backbone]


@pytest.mark.parametrize(
    ("family", "backbone", "options", "due"),
    [
        ("fcn", "resnet50", {"aux_head": False}, 138.368),
        ("fcn", "resnet50", {"aux_head": True}, 148.054),
        ("deeplabv3", "resnet50", {"aux_head": True}, 173.265),
    ],
)
def test_multiply_adds_are_those_of_torchvision(family, backbone, options, due):
    model = create_model(family, backbone=backbone, num_classes=21, **options)
    assert round(multiply_adds(model) / 1e9, 3) == due


@pytest.mark.parametrize(
    ("family", "backbone", "options", "due"),
    [
        ("unet", "plain", {"batch_norm": False}, 193.005),
        ("segnet", "vgg16_bn", {}, 163.075),
        ("segnet", "basic", {}, 89.959),
        ("fcn", "vgg16", {"stride": 32, "learned_upsampling": True}, 111.264),
    ],
)
def test_multiply_adds_are_those_of_the_papers_networks(family, backbone, options, due):
    model = create_model(family, backbone=backbone, num_classes=21, **options)
    assert round(multiply_adds(model) / 1e9, 3) == due


def test_a_scan_counts_each_of_its_rounds():
    class Scanned(nn.Module):
        in_channels: int = 3

        @nn.compact
        def __call__(self, images, *, train):
            kernel = self.param("kernel", nn.initializers.ones, (3, 3))
            return jax.lax.scan(lambda x, _: (x @ kernel, None), images, jnp.arange(5))[0]

    assert multiply_adds(Scanned(), (2, 2)) == 5 * 4 * 9
