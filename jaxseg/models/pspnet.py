"""PSPNet (Zhao et al., CVPR 2017, figure 3): a backbone's feature beside its means over pyramids of windows.

The network is, by default, the one that segmentation_models_pytorch ships (`PSPNet`): it takes the feature at stride 8
and leaves out what a classification network has behind it. The paper's takes the last feature of a network dilated to
that stride, and has an auxiliary head: `PAPER`, as its author's hszhao/semseg builds it.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseg.errors import UserError
from jaxseg.models.layers import Conv, ConvBN, FullSize, adaptive_avg_pool, check_images, classifier, resize_bilinear

# The paper's form, as fields.
PAPER = {"depth": 5, "kernel_sizes": (3, 1), "norm_one_window": True, "dropout": 0.1, "aux_head": True}


class PyramidPooling(nn.Module):
    """`[B, h, w, C]` to `[B, h, w, C + C']`: means over bins x bins windows, each by a 1x1 convolution, and the input.

    Fields:
      bins: windows along a side; every entry gives C / len(bins) channels.
      norm_one_window: whether the branch of one window has a BatchNorm too, and no bias. In training it then needs
        more than one image a batch: it has one value an image to normalise.
    """

    bins: tuple[int, ...]
    norm_one_window: bool
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        branches, features = [], x.shape[-1] // len(self.bins)
        for bins in self.bins:
            mean, name = adaptive_avg_pool(x, bins), f"bins_{bins}"
            if bins > 1 or self.norm_one_window:
                mean = ConvBN(features, 1, dtype=self.dtype, name=name)(mean, train=train)
            else:
                mean = nn.relu(Conv(features, 1, use_bias=True, dtype=self.dtype, name=name)(mean))
            branches.append(resize_bilinear(mean, x.shape[1:3], align_corners=True))
        return jnp.concatenate([*branches, x], -1)


class PSPHead(nn.Module):
    """A convolution, dropout of whole channels, and the classifier: `[B, h, w, C]` to logits `[B, h, w, num_classes]`.

    Fields:
      kernel_sizes: of the two convolutions.
    """

    num_classes: int
    features: int
    kernel_sizes: tuple[int, int]
    dropout: float
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = ConvBN(self.features, self.kernel_sizes[0], dtype=self.dtype, name="conv")(x, train=train)
        x = nn.Dropout(self.dropout, broadcast_dims=(1, 2), deterministic=not train)(x)
        return classifier(self.num_classes, self.dtype, kernel_size=self.kernel_sizes[1])(x)


class PSPNet(nn.Module):
    """PSPNet on any backbone: `[B, H, W, C]` normalised images to float32 logits `[B, H, W, num_classes]`.

    Fields:
      backbone: a backbone module, of output stride 8 for either form.
      depth: which feature feeds the pyramid, 3 (at stride 8) to 5 (the last). Layers behind it have no variables.
      bins: windows along a side of each pyramid level.
      norm_one_window: see `PyramidPooling`; the paper's form has it.
      features: channels of the convolution behind the pyramid.
      kernel_sizes: of that convolution and of the classifier; the paper's are (3, 1).
      dropout: of whole channels, before the classifier; the paper's is 0.1.
      aux_head: whether the fourth feature has a head too, a convolution to 256 channels, dropout 0.1 and a classifier;
        its logits are sown as `aux`.
      dtype: of the computation; parameters, BatchNorm's statistics and logits are float32.

    Raises:
      UserError: `depth` is none of 3, 4 and 5, or too small for the auxiliary head.
    """

    backbone: nn.Module
    num_classes: int
    in_channels: int = 3
    depth: int = 3
    bins: tuple[int, ...] = (1, 2, 3, 6)
    norm_one_window: bool = False
    features: int = 512
    kernel_sizes: tuple[int, int] = (1, 3)
    dropout: float = 0.2
    aux_head: bool = False
    dtype: jnp.dtype = jnp.float32
    default_output_stride = 8

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        check_images(images, self.in_channels)
        if self.depth not in (3, 4, 5):
            raise UserError(f"depth is {self.depth}: it must be 3, 4 or 5")
        if self.aux_head and self.depth == 3:
            raise UserError(
                "depth is 3, and aux_head stands on the fourth feature: make it 4 or 5, or leave the head out"
            )
        features = self.backbone(images.astype(self.dtype), train=train, depth=self.depth)

        x = PyramidPooling(self.bins, self.norm_one_window, self.dtype, name="pyramid")(features[-1], train=train)
        head = PSPHead(self.num_classes, self.features, self.kernel_sizes, self.dropout, self.dtype, name="head")
        logits = head(x, train=train)
        full_size = FullSize(images.shape[1:3], align_corners=True)
        if self.aux_head:
            head = PSPHead(self.num_classes, 256, (3, 1), 0.1, self.dtype, name="auxiliary")
            aux_logits = head(features[3], train=train)
            if not self.is_initializing():
                self.sow("aux", "logits", full_size(aux_logits))
        return full_size(logits)
