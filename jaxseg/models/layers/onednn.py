"""Convolutions by oneDNN, which jaxlib carries for x86 CPUs: dense and depthwise, and all their gradients.

XLA's own convolution for a CPU reaches half to four fifths of oneDNN's rate in float32 and a tenth in bfloat16, and
is sixty times as slow with a filter a channel. Programs can call oneDNN's forward convolution by name, as XLA itself
does in builds that rewrite convolutions; this file writes that call. Gradients are forward convolutions too: that for
the input, of `dy` with the kernel turned about; that for the kernel, of the image with `dy` as its kernel.

The call is no public interface of jaxlib, and what it says was tried with the releases in `_TRIED` alone, on Linux.
Elsewhere `usable` is false, and the layers take forms of XLA's operations, with the same values up to rounding.
"""

import functools
import json
import os
import platform

import jax
import jax.numpy as jnp
import jaxlib

Sides = tuple[tuple[int, int], tuple[int, int]]

_TRIED = ("0.10.2",)
_FLAGS = {"float32": "avx2", "bfloat16": "avx512_bf16"}  # of the processor, which each type needs

# Images at a time in `weight_grad`: as channels of one call. In bfloat16 a product takes channels 32 at a time; in
# float32 more images mean more copying.
_IMAGES = {"float32": 4, "bfloat16": 16}

_FILLED = 3  # pixels of padding that depthwise convolutions are left to fill, the least of the processors' limits
_NARROW = 8  # pixels of a result's width that bfloat16 is computed in float32 for


def usable(dtype: jnp.dtype, stride: int = 1, dilation: int = 1) -> bool:
    """Whether a CPU's convolutions of `dtype` can be oneDNN's, in the program that is being traced.

    Not those both strided and dilated, which no network has: some of them never end.

    Not with a compile cache on disk: jaxlib can't write such a program there (it reads memory at random when it
    tries), so whoever sets `jax_compilation_cache_dir` keeps the cache and gets XLA's forms. Not where the
    environment says `JAXSEG_ONEDNN=0`. XLA can't divide the call among devices: see `jaxseg.partition`.
    """
    name = jnp.dtype(dtype).name
    return (
        (stride == 1 or dilation == 1)
        and name in _FLAGS
        and _FLAGS[name] in _processor()
        and not jax.config.jax_compilation_cache_dir
    )


@functools.cache
def _processor() -> frozenset[str]:
    """The flags of an x86 processor under Linux, where oneDNN can be called at all."""
    tried = jaxlib.__version__ in _TRIED and platform.system() == "Linux" and platform.machine() == "x86_64"
    if not tried or os.environ.get("JAXSEG_ONEDNN") == "0":
        return frozenset()
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        line = next((line for line in file if line.startswith("flags")), "")
    return frozenset(line.split())


def _call(x, kernel, strides, padding: Sides, dilations, groups: int, dtype) -> jax.Array:
    """The call itself, `[B, H, W, C]` with `[h, w, C / groups, O]` to `[B, H', W', O]`; every size at least 1.

    Its words are fields of XLA's `OneDnnConvolutionConfig`. A call that oneDNN does not know ends the process.
    """
    # oneDNN 3.7 hangs or writes beyond its memory where a kernel reaches further than an image that it fills itself.
    # With a filter a channel its fast forms fill no more than a few pixels, and its general one corrupts memory too.
    beyond = (dilation * (k - 1) >= n for n, k, dilation in zip(x.shape[1:3], kernel.shape, dilations, strict=False))
    if any(beyond) or (groups > 1 and max(map(max, padding)) > _FILLED):
        x, padding = jnp.pad(x, ((0, 0), *padding, (0, 0))), _NONE
    size = [
        (n + sum(sides) - dilation * (k - 1) - 1) // stride + 1
        for n, k, stride, sides, dilation in zip(x.shape[1:3], kernel.shape, strides, padding, dilations, strict=False)
    ]
    # Its matrix units (AMX) give wrong sums for results of a column or three.
    if x.dtype == jnp.bfloat16 and size[1] < _NARROW:
        x, kernel = x.astype(jnp.float32), kernel.astype(jnp.float32)
    images = {"dims": 4, "data": {"batch_dim": 0, "feature_dim": 3, "spatial_dims": [1, 2]}}
    config = {
        "dims": 4,
        "input": images,
        "kernel": {"dims": 4, "filter": {"input_feature_dim": 2, "output_feature_dim": 3, "spatial_dims": [0, 1]}},
        "output": images,
        "window": {
            "size": list(kernel.shape[:2]),
            "pad_left": [low for low, _ in padding],
            "pad_right": [high for _, high in padding],
            "strides": list(strides),
            "window_dilations": list(dilations),
        },
        "feature_groups": groups,
    }
    call = jax.ffi.ffi_call(
        "__onednn$convolution",
        jax.ShapeDtypeStruct((x.shape[0], *size, kernel.shape[3]), dtype if x.dtype == jnp.bfloat16 else x.dtype),
        custom_call_api_version=1,
        legacy_backend_config=json.dumps({"onednn_conv_config": config}),
    )
    return call(x, kernel).astype(dtype)


def convolve(x: jax.Array, kernel: jax.Array, stride: int, padding: Sides, dilation: int) -> jax.Array:
    """`[B, H, W, C]` with `[k, k, C, O]`, or with `[k, k, 1, C]` a filter a channel, to `[B, H', W', O]`."""
    groups = x.shape[3] // kernel.shape[2]
    return _call(x, kernel, (stride,) * 2, padding, (dilation,) * 2, groups, x.dtype)


def input_grad(
    dy: jax.Array,
    kernel: jax.Array,
    size: tuple[int, int],
    stride: int,
    padding: Sides,
    dilation: int,
    *,
    depthwise: bool = False,
) -> jax.Array:
    """The gradient of `convolve` for an input of `size` (H, W), `[B, H, W, C]`.

    Of `stride` s, every s-th pixel of the input meets the same part of the kernel's pixels: a convolution of `dy` with
    each part gives those pixels, and the parts are laid side by side.
    """
    groups = kernel.shape[3] if depthwise else 1
    turned = kernel[::-1, ::-1] if depthwise else kernel[::-1, ::-1].swapaxes(2, 3)
    axes = [_phases(n, dy.shape[1 + i], kernel.shape[0], stride, padding[i][0], dilation) for i, n in enumerate(size)]

    def part(row, column):
        if row is None or column is None:
            return jnp.zeros((dy.shape[0], high, wide, turned.shape[3]), dy.dtype)
        taps, sides, steps = zip(row, column, strict=True)
        cut = [slice(max(0, -low), dy.shape[1 + i] + min(0, end)) for i, (low, end) in enumerate(sides)]
        sides = tuple((max(0, low), max(0, end)) for low, end in sides)
        return _call(dy[:, cut[0], cut[1]], turned[taps[0], taps[1]], (1, 1), sides, steps, groups, dy.dtype)

    (high, rows), (wide, columns) = axes
    if stride == 1:
        dx = part(rows[0], columns[0])
    else:
        parts = [[part(row, column) for column in columns] for row in rows]
        dx = jnp.stack([jnp.stack(row, axis=3) for row in parts], axis=2)
        dx = dx.reshape(dy.shape[0], high * stride, wide * stride, turned.shape[3])
    top, left = (padding[0][0], padding[1][0]) if stride > 1 else (0, 0)
    return dx[:, top : top + size[0], left : left + size[1]]


def _phases(size: int, given: int, k: int, stride: int, low: int, dilation: int):
    """Along one axis: pixels of a phase, and of each phase its taps, the padding of `dy` and the taps' distance.

    Pixel m of the input, m + low = stride * q + r, gets of tap a, where dilation * a = r + stride * e, the pixel q - e
    of `dy`. Taps are those of the kernel turned about. The pixels of a phase are the padded input's, at stride 1 those
    of the input itself.
    """
    first = low if stride == 1 else 0
    count = size if stride == 1 else -(-(low + size) // stride)
    phases = []
    for r in range(stride):
        taps = [a for a in range(k) if dilation * a % stride == r % stride and dilation * a >= r]
        if not taps:
            phases.append(None)
            continue
        shifts = [(dilation * a - r) // stride for a in taps]
        step = shifts[1] - shifts[0] if len(taps) > 1 else 1
        every = taps[1] - taps[0] if len(taps) > 1 else 1
        turned = slice(k - 1 - taps[-1], k - taps[0], every)
        phases.append((turned, (shifts[-1] - first, first + count - 1 - shifts[0] - (given - 1)), step))
    return count, phases


def weight_grad(x: jax.Array, dy: jax.Array, k: int, stride: int, padding: Sides, dilation: int) -> jax.Array:
    """The gradient of a dense `convolve` for its kernel, `[k, k, C, O]` in float32.

    An image's rows are read as rows of W * C pixels of one channel, and `dy` as a kernel over them whose columns lie C
    apart. It then fits at k rows, and at k * C places of a row: the kernel's columns and, within each, the channels.
    Images that are taken at a time are the channels.
    """
    batch, (h, w), c, o = x.shape[0], dy.shape[1:3], x.shape[3], dy.shape[3]
    x = _fill(x, k, (h, w), stride, padding, dilation)
    most = _IMAGES[x.dtype.name]
    images = max(n for n in range(1, min(batch, most) + 1) if batch % n == 0)
    # The k columns of a dilated kernel are not neighbours: each is a call.
    columns, reach = (1, k) if dilation == 1 else (k, 1)

    def add(i, total):
        seen = jax.lax.dynamic_slice_in_dim(x, i * images, images).transpose(1, 2, 3, 0)
        kernel = jax.lax.dynamic_slice_in_dim(dy, i * images, images).transpose(1, 2, 0, 3)
        of_columns = []
        for b in range(columns):
            width = stride * (w - 1) + reach
            rows = seen[:, b * dilation : b * dilation + width].reshape(1, -1, width * c, images)
            of_columns.append(_call(rows, kernel, (dilation, 1), _NONE, (stride, stride * c), 1, jnp.float32))
        return total + jnp.concatenate(of_columns, axis=2)

    total = jnp.zeros((1, k, k * c, o), jnp.float32)
    total = add(0, total) if images == batch else jax.lax.fori_loop(0, batch // images, add, total)
    return total.reshape(k, k, c, o)


def depthwise_weight_grad(x: jax.Array, dy: jax.Array, k: int, stride: int, padding: Sides, dilation: int) -> jax.Array:
    """The gradient of `convolve` with a filter a channel for its kernel, `[k, k, 1, C]` in float32.

    Every channel of every image is a channel of one call, with its `dy` as its filter.
    """
    batch, c = x.shape[0], x.shape[3]
    x = _fill(x, k, dy.shape[1:3], stride, padding, dilation)
    x, dy = (a.transpose(1, 2, 0, 3).reshape(*a.shape[1:3], batch * c) for a in (x, dy))
    of_images = _call(x[None], dy[:, :, None], (dilation,) * 2, _NONE, (stride,) * 2, batch * c, jnp.float32)
    return of_images.reshape(k, k, batch, c).sum(axis=2, keepdims=True)


_NONE = ((0, 0), (0, 0))


def _fill(x, k: int, of_dy: tuple[int, int], stride: int, padding: Sides, dilation: int) -> jax.Array:
    """`x` with its padding, and without pixels beyond the last window."""
    sides = [
        (low, stride * (n - 1) + dilation * (k - 1) + 1 - low - size, 0)
        for n, size, (low, _) in zip(of_dy, x.shape[1:3], padding, strict=True)
    ]
    return jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *sides, (0, 0, 0)])
