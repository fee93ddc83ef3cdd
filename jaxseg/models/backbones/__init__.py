"""Backbones: images to features.

A backbone is a Linen module with the fields `output_stride`, `dilate_first_block` and `dtype`, called as
`backbone(images, train=...)` on `[B, H, W, C]` (any number of channels) and giving a tuple of five features, finest
first, at the strides (2, 4, 8, 16, 32); at `output_stride=16` (2, 4, 8, 16, 16), at 8 (2, 4, 8, 8, 8). Sizes are halved
by rounding up (VGG's poolings round down).

`dilate_first_block`: whether the first block of a stage that lost its stride has the stage's dilation already (SMP) or
still that of the stage before (torchvision).
"""

from jaxseg.models.backbones import mobilenet, resnet

BACKBONES = {
    "mobilenet_v2": mobilenet.MobileNetV2,
    "resnet18": resnet.resnet18,
    "resnet34": resnet.resnet34,
    "resnet50": resnet.resnet50,
    "resnet101": resnet.resnet101,
}

OUTPUT_STRIDES = (8, 16, 32)
