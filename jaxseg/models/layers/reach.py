"""Convolutions dilated so far that of a kernel the centre alone meets the image.

So are those of DeepLab's ASPP on small images: at output stride 16 an image of 256x256 has features of 16x16, and rates
of 24 and 36 reach beyond them.
"""

from collections.abc import Callable

import jax

from jaxseg.models.layers.onednn import Sides

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def meets_the_centre_alone(size: tuple[int, int], k: int, stride: int, padding: Sides, dilation: int) -> bool:
    """Whether of a kernel of k x k all but the centre lies beyond an image of `size` (H, W) wherever it is put.

    Told of convolutions of stride 1 that keep the size alone.
    """
    reach = dilation * (k - 1) // 2
    return k > 1 and k % 2 == 1 and stride == 1 and padding == ((reach, reach),) * 2 and dilation >= max(size)


def of_the_centre(convolve: Callable, of_one_pixel: Callable, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`convolve(x, kernel)` as `of_one_pixel(x, centre)`, the kernel's centre of 1 x 1; gradients elsewhere are 0.

    `x` is `[B, H, W, C]`, `kernel` `[k, k, C, O]` or `[k, k, 1, C]`, the result `[B, H, W, O]`.
    """
    middle = slice(kernel.shape[0] // 2, kernel.shape[0] // 2 + 1)
    forms = dict.fromkeys(PLATFORMS, lambda x, kernel: of_one_pixel(x, kernel[middle, middle]))
    # The default stays as it is: `cost.multiply_adds` counts it, padded places too.
    return jax.lax.platform_dependent(x, kernel, **forms, default=convolve)
