"""DeepLabV3 (Chen et al. 2017, figure 5) and DeepLabV3+ (Chen et al., ECCV 2018, figure 2).

Both pool the last feature of a dilated backbone in an atrous spatial pyramid; DeepLabV3+ has a decoder with one skip
behind it. By default they are the networks that segmentation_models_pytorch ships, bilinear resizing with aligned
corners included.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseg.errors import UserError
from jaxseg.models.fcn import FCNHead
from jaxseg.models.layers import ConvBN, FullSize, SeparableConvBN, check_images, classifier, resize_bilinear


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling with image-level features (DeepLabV3, Chen et al. 2017, section 3.3).

    `[B, h, w, C]` to `[B, h, w, features]`. Branches: 1x1, a 3x3 at each of the rates, three as published, the image's
    mean; then a 1x1 over all of them and dropout. In training the image's mean needs more than one image a batch: its
    BatchNorm has one value an image to normalise.
    """

    features: int
    rates: tuple[int, ...]
    separable: bool
    dropout: float
    norm_between: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        branches = [ConvBN(self.features, 1, dtype=self.dtype, name="conv")(x, train=train)]
        conv = conv_3x3(self.features, self.separable, self.norm_between, self.dtype)
        for i, rate in enumerate(self.rates):
            branches.append(conv(dilation=rate, name=f"atrous_{i}")(x, train=train))
        mean = x.mean(axis=(1, 2), keepdims=True)
        mean = ConvBN(self.features, 1, dtype=self.dtype, name="pooling")(mean, train=train)
        branches.append(jnp.broadcast_to(mean, branches[0].shape))
        x = ConvBN(self.features, 1, dtype=self.dtype, name="project")(jnp.concatenate(branches, -1), train=train)
        return nn.Dropout(self.dropout, deterministic=not train)(x)


def conv_3x3(features: int, separable: bool, norm_between: bool, dtype: jnp.dtype) -> functools.partial:
    """A 3x3 convolution with BatchNorm and ReLU, depthwise separable or plain; takes `dilation` and `name`."""
    if separable:
        return functools.partial(SeparableConvBN, features, 3, norm_between=norm_between, dtype=dtype)
    return functools.partial(ConvBN, features, 3, dtype=dtype)


class DeepLabV3(nn.Module):
    """DeepLabV3 on any backbone: `[B, H, W, C]` normalised images to float32 logits `[B, H, W, num_classes]`.

    The defaults are SMP's. torchvision's differs in `align_corners=False` and in its auxiliary head; on a ResNet in the
    backbone's `dilate_first_block=False`; on MobileNetV3-Large in output stride 16, and with the auxiliary head in
    `aux_feature=2` and the backbone's `first_block_features=True`. Weights of the one are refused by the other.

    Fields:
      backbone: a backbone module.
      depth: which of its features feeds the pyramid, 3 (at stride 8) to 5 (the last). Layers behind it have no
        variables.
      rates: of the atrous convolutions, any number. The paper pairs output stride 16 with (6, 12, 18), 8 with (12, 24,
        36).
      separable: whether the pyramid's atrous convolutions are depthwise separable.
      features: channels of the pyramid's branches and of what follows.
      dropout: of the pyramid.
      aspp_out: whether a 3x3 convolution follows the pyramid.
      align_corners: of the resizing to the size of the images, see `resize_bilinear`.
      aux_head: whether there are auxiliary logits, from an `FCNHead`; see `create_model`.
      aux_feature: index of the feature that the auxiliary head sees: 3 is the stage before the last.
      aux_dropout: of the auxiliary head.
      dtype: of the computation; parameters, BatchNorm's statistics and logits are float32.

    Raises:
      UserError: `depth` is none of 3, 4 and 5, or the auxiliary head's feature lies behind it.
    """

    backbone: nn.Module
    num_classes: int
    in_channels: int = 3
    depth: int = 5
    rates: tuple[int, ...] = (12, 24, 36)
    separable: bool = False
    features: int = 256
    dropout: float = 0.5
    aspp_out: bool = True
    align_corners: bool = True
    aux_head: bool = False
    aux_feature: int = 3
    aux_dropout: float = 0.1
    dtype: jnp.dtype = jnp.float32
    default_output_stride = 8

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        check_images(images, self.in_channels)
        if self.depth not in (3, 4, 5):
            raise UserError(f"depth is {self.depth}: it must be 3, 4 or 5")
        if self.aux_head and self.aux_feature >= self.depth:
            raise UserError(f"aux_feature is {self.aux_feature}, and depth {self.depth}: it must be less than that")
        features = self.backbone(images.astype(self.dtype), train=train, depth=self.depth)

        full_size = FullSize(images.shape[1:3], align_corners=self.align_corners)

        if self.aux_head:
            head = FCNHead(self.num_classes, self.aux_dropout, self.dtype, name="auxiliary")
            aux_logits = full_size(head(features[self.aux_feature], train=train))
            if not self.is_initializing():
                self.sow("aux", "logits", aux_logits)

        aspp = ASPP(self.features, self.rates, self.separable, self.dropout, dtype=self.dtype, name="aspp")
        x = aspp(features[-1], train=train)
        if self.aspp_out:
            x = ConvBN(self.features, 3, dtype=self.dtype, name="aspp_out")(x, train=train)
        return full_size(classifier(self.num_classes, self.dtype)(x))


class DeepLabV3Plus(nn.Module):
    """DeepLabV3+ on any backbone: `[B, H, W, C]` normalised images to float32 logits `[B, H, W, num_classes]`.

    The defaults are SMP's. Two other forms that are known by name:

    - the authors' release, with Xception-65 as they publish it (TensorFlow's DeepLab, and its port to Keras):
      `aspp_out=False, decoder_convs=2, norm_between=True, dropout=0.1, rates=(6, 12, 18)`;
    - the plain form, without separable convolutions (VainF's DeepLabV3Plus-Pytorch): `separable=False,
      decoder_separable=False, aspp_out=False, skip_first=True, align_corners=False, dropout=0.1`, rates as the paper
      pairs them and, on a ResNet, the backbone's `dilate_first_block=False`.

    Fields:
      backbone: a backbone module; its last feature feeds the pyramid, the one at stride 4 the decoder.
      rates: of the atrous convolutions. The paper pairs output stride 16 with (6, 12, 18), 8 with (12, 24, 36).
      separable: whether the pyramid's atrous convolutions are depthwise separable (SMP's `decoder_aspp_separable`).
      features: channels of the pyramid's branches and of the decoder.
      dropout: of the pyramid.
      aspp_out: whether a 3x3 convolution follows the pyramid.
      decoder_separable: whether that one and the decoder's are depthwise separable.
      decoder_convs: 3x3 convolutions after the skip has joined.
      norm_between: whether separable convolutions have BatchNorm and ReLU between depthwise and 1x1.
      skip_first: whether the skip's channels come before the pyramid's.
      align_corners: of both resizings, see `resize_bilinear`.
      dtype: of the computation; parameters, BatchNorm's statistics and logits are float32.
    """

    backbone: nn.Module
    num_classes: int
    in_channels: int = 3
    rates: tuple[int, ...] = (12, 24, 36)
    separable: bool = True
    features: int = 256
    dropout: float = 0.5
    aspp_out: bool = True
    decoder_separable: bool = True
    decoder_convs: int = 1
    norm_between: bool = False
    skip_first: bool = False
    align_corners: bool = True
    dtype: jnp.dtype = jnp.float32
    default_output_stride = 16

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        check_images(images, self.in_channels)
        _, low, *_, high = self.backbone(images.astype(self.dtype), train=train)
        conv = conv_3x3(self.features, self.decoder_separable, self.norm_between, self.dtype)

        aspp = ASPP(self.features, self.rates, self.separable, self.dropout, self.norm_between, self.dtype, name="aspp")
        high = aspp(high, train=train)
        if self.aspp_out:
            high = conv(name="aspp_out")(high, train=train)
        high = resize_bilinear(high, low.shape[1:3], align_corners=self.align_corners)

        low = ConvBN(48, 1, dtype=self.dtype, name="skip")(low, train=train)
        x = jnp.concatenate([low, high] if self.skip_first else [high, low], -1)
        for i in range(self.decoder_convs):
            x = conv(name=f"fuse_{i + 1}" if i else "fuse")(x, train=train)

        logits = classifier(self.num_classes, self.dtype)(x)
        return FullSize(images.shape[1:3], align_corners=self.align_corners)(logits)
