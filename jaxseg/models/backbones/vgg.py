"""VGG-16 (Simonyan and Zisserman, ICLR 2015, table 1, column D), as torchvision builds it."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseg.models.backbones import stages
from jaxseg.models.layers import Conv, ConvBN, max_pool, max_pool_with_places

# Table 1, D: convolutions and channels of the five stages; a 2x2 max pooling after each.
STAGES = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))

# For each pooling the places of its maxima, int8 `[B, h, w, C]`, and the size (H, W) of what it pooled; None for a
# pooling that is left out.
Places = tuple[tuple[jax.Array, tuple[int, int]] | None, ...]


class VGG(nn.Module):
    """VGG-16 without its classifier; features of 128, 256, 512, 512 and 512 channels.

    They are what the convolutions of stages 2 to 5 give, each before its pooling, and the last pooling (as SMP's
    encoder; what stage 1 gives has the size of the images and is no feature). Poolings round odd sizes down.

    A pooling that would go beyond `output_stride` is left out, and the convolutions behind it are dilated, as in
    DeepLab on VGG (Chen et al., ICLR 2015, section 3.1); a stage's block is here a convolution.

    Fields:
      batch_norm: whether every convolution has a BatchNorm behind it; it keeps its bias then too.
      width: channels of every convolution; None for those of the paper.
    """

    batch_norm: bool
    width: int | None = None
    output_stride: int = 32
    dilate_first_block: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool, depth: int = 5, with_places: bool = False
    ) -> tuple[jax.Array, ...] | tuple[jax.Array, Places]:
        """Features, finest first; or, `with_places`, what the last pooling gives and the places of all poolings."""
        x, features, places = images, [], []
        # The stride of a stage is that of the pooling before it: the first has none, a sixth only consists of it.
        plan = stages.plan([1, 2, 2, 2, 2, 2], 1, self.output_stride)
        for i, (count, channels) in enumerate(STAGES):
            for j in range(count):
                dilation = plan[i].first_dilation if j == 0 and not self.dilate_first_block else plan[i].dilation
                x = self._convolve(x, self.width or channels, dilation, f"conv{i + 1}_{j + 1}", train)
            features.append(x)
            if i == depth:
                return tuple(features[1:])
            if plan[i + 1].stride == 1:
                places.append(None)
            elif with_places:
                size = x.shape[1:3]
                x, place = max_pool_with_places(x)
                places.append((place, size))
            else:
                x = max_pool(x)
        return (x, tuple(places)) if with_places else (*features[1:], x)

    def _convolve(self, x: jax.Array, channels: int, dilation: int, name: str, train: bool) -> jax.Array:
        if self.batch_norm:
            conv_bn = ConvBN(channels, 3, dilation=dilation, use_bias=True, dtype=self.dtype, name=name)
            return conv_bn(x, train=train)
        return nn.relu(Conv(channels, 3, dilation=dilation, use_bias=True, dtype=self.dtype, name=name)(x))


vgg16 = functools.partial(VGG, batch_norm=False)
vgg16_bn = functools.partial(VGG, batch_norm=True)
