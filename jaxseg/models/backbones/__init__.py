"""Backbones: images to features.

A backbone is a Linen module with the fields `output_stride`, `dilate_first_block` and `dtype`, called as
`backbone(images, train=...)` on `[B, H, W, C]` (any number of channels) and giving a tuple of five features, finest
first, at the strides (2, 4, 8, 16, 32); at `output_stride=16` (2, 4, 8, 16, 16), at 8 (2, 4, 8, 8, 8). Sizes are halved
by rounding up (VGG's poolings and MobileNet's strides round down, Keras' Xception loses its borders). With `depth=3`,
say, it stops at the third feature and gives three; layers behind it have no variables. The feature at a stride is the
last one of its size; the fifth is what the network's classifier pools. All fields of what stands in `BACKBONES` have
defaults: `BACKBONES[name]()` makes it.

`dilate_first_block`: whether the first block of a stage that lost its stride has the stage's dilation already (SMP) or
still that of the stage before (torchvision).
"""

from jaxseg.models.backbones import mobilenet, mobilenet_v3, resnet, vgg, xception

BACKBONES = {
    "vgg16": vgg.vgg16,
    "vgg16_bn": vgg.vgg16_bn,
    "mobilenet_v1": mobilenet.MobileNetV1,
    "mobilenet_v2": mobilenet.MobileNetV2,
    "mobilenet_v3_large": mobilenet_v3.mobilenet_v3_large,
    "mobilenet_v3_small": mobilenet_v3.mobilenet_v3_small,
    "resnet18": resnet.resnet18,
    "resnet34": resnet.resnet34,
    "resnet50": resnet.resnet50,
    "resnet101": resnet.resnet101,
    "xception": xception.Xception,
    "xception65": xception.Xception65,
}

OUTPUT_STRIDES = (8, 16, 32)
