"""Every layer that is written for its speed, alone: `python -m jaxseg.benchmark.layers [WORD...] [--against=torch]`.

Forward, and forward with the gradients of all inputs, beside what XLA makes of the plain form, in turns. WORDs choose
the layers whose names have one of them.
"""

import argparse
import dataclasses
import itertools
import json
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxseg import losses, metrics
from jaxseg.benchmark.measure import Contender, alternate, machine
from jaxseg.benchmark.peers import import_torch
from jaxseg.environment import check_environment, find_devices
from jaxseg.errors import UserError
from jaxseg.models import layers
from jaxseg.process import one_line_errors, use_huge_pages
from jaxseg.streams import keep_streams


@dataclasses.dataclass
class Case:
    """A layer on arrays of one size.

    Fields:
      name: in words, with sizes.
      inputs: float32 arrays, images `[B, H, W, C]` and kernels `[k, k, I, O]`; the layer has a gradient for each.
      ours: a function of the inputs; plain: the same in jax.numpy, jax.lax or Flax alone; None where it is ours.
      torch: given `torch`, a function of the inputs as PyTorch has them, `[B, C, H, W]` in channels-last memory and
        kernels `[O, I, k, k]`; None where PyTorch has none.
      constants: integer arrays behind the inputs, of which there is no gradient.
    """

    name: str
    inputs: Sequence[np.ndarray]
    ours: Callable
    plain: Callable | None
    torch: Callable | None
    constants: Sequence[np.ndarray] = ()
    differentiable: bool = True


def _random(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


def plain_conv(x, kernel, stride=1, padding=0, dilation=1, groups=1):
    """XLA's convolution: `x` `[B, H, W, C]`, `kernel` `[k, k, C / groups, O]`, `padding` pixels on all sides."""
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(padding, padding)] * 2,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def dense(batch, size, before, after, k=3, stride=1, dilation=1) -> Case:
    """A convolution over all channels."""
    padding = dilation * (k - 1) // 2
    words = f"{k}x{k}" + f" stride {stride}" * (stride > 1) + f" dilation {dilation}" * (dilation > 1)
    sides = ((padding, padding),) * 2
    return Case(
        f"dense {words}, {batch}x{size}x{size}, {before} to {after}",
        (_random(batch, size, size, before), _random(k, k, before, after)),
        lambda x, kernel: layers.dense_conv(x, kernel, stride, sides, dilation),
        lambda x, kernel: plain_conv(x, kernel, stride, padding, dilation),
        lambda torch: (
            lambda x, kernel: torch.nn.functional.conv2d(x, kernel, stride=stride, padding=padding, dilation=dilation)
        ),
    )


def pointwise(batch, size, before, after) -> Case:
    """A 1x1 convolution, which is a matrix product here."""
    return Case(
        f"dense 1x1, {batch}x{size}x{size}, {before} to {after}",
        (_random(batch, size, size, before), _random(1, 1, before, after)),
        lambda x, kernel: layers.pointwise_conv(x, kernel[0, 0]),
        plain_conv,
        lambda torch: torch.nn.functional.conv2d,
    )


def transposed(batch, size, before, after) -> Case:
    """A 3x3 transposed convolution of stride 2 that doubles the size."""
    return Case(
        f"transposed 3x3 stride 2, {batch}x{size}x{size}, {before} to {after}",
        (_random(batch, size, size, before), _random(3, 3, after, before)),
        lambda x, kernel: layers.dense_conv_transpose(x, kernel, 2, 1, 1),
        lambda x, kernel: jax.lax.conv_transpose(
            x, kernel, (2, 2), [(1, 2)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC"), transpose_kernel=True
        ),
        lambda torch: (
            lambda x, kernel: torch.nn.functional.conv_transpose2d(x, kernel, stride=2, padding=1, output_padding=1)
        ),
    )


def depthwise(batch, size, channels, k=3, stride=1, dilation=1) -> Case:
    """A filter a channel."""
    padding = dilation * (k - 1) // 2
    words = f"{k}x{k}" + f" stride {stride}" * (stride > 1) + f" dilation {dilation}" * (dilation > 1)
    return Case(
        f"depthwise {words}, {batch}x{size}x{size}, {channels}",
        (_random(batch, size, size, channels), _random(k, k, 1, channels)),
        lambda x, kernel: layers.depthwise_conv(x, kernel, stride, padding, dilation),
        lambda x, kernel: plain_conv(x, kernel, stride, padding, dilation, channels),
        lambda torch: (
            lambda x, kernel: torch.nn.functional.conv2d(
                x, kernel, stride=stride, padding=padding, dilation=dilation, groups=channels
            )
        ),
    )


def pooled(batch, size, channels, k=2, stride=2, padding=0) -> Case:
    """Max pooling."""
    return Case(
        f"max pooling {k}x{k} stride {stride}, {batch}x{size}x{size}, {channels}",
        (_random(batch, size, size, channels),),
        lambda x: layers.max_pool(x, k, stride, ((padding, padding),) * 2),
        lambda x: nn.max_pool(x, (k, k), (stride, stride), ((padding, padding),) * 2),
        lambda torch: lambda x: torch.nn.functional.max_pool2d(x, k, stride, padding),
    )


def unpooled(batch, size, channels) -> Case:
    """SegNet's pooling that keeps places, and values put back there."""

    def ours(x):
        pooled, places = layers.max_pool_with_places(x)
        return layers.max_unpool(pooled, places, x.shape[1:3])

    def theirs(torch):
        def both(x):
            pooled, indices = torch.nn.functional.max_pool2d(x, 2, return_indices=True)
            return torch.nn.functional.max_unpool2d(pooled, indices, 2)

        return both

    name = f"pooling and unpooling by places, {batch}x{size}x{size}, {channels}"
    return Case(name, (_random(batch, size, size, channels),), ours, None, theirs)


def resized(batch, size, to, channels) -> Case:
    """Bilinear resizing, corners not aligned."""
    return Case(
        f"bilinear, {batch}x{size}x{size} to {to}x{to}, {channels}",
        (_random(batch, size, size, channels),),
        lambda x: layers.resize_bilinear(x, (to, to), align_corners=False),
        lambda x: jax.image.resize(x, (batch, to, to, channels), "bilinear", antialias=False),
        lambda torch: lambda x: torch.nn.functional.interpolate(x, (to, to), mode="bilinear"),
    )


def normalised(batch, size, channels) -> Case:
    """BatchNorm with a batch's statistics."""

    def flax(x, scale, bias):
        mean, var = x.mean((0, 1, 2)), jnp.square(x).mean((0, 1, 2)) - jnp.square(x.mean((0, 1, 2)))
        return (x - mean) * jax.lax.rsqrt(var + 1e-5) * scale + bias

    norm = layers.batch_norm(True)

    def ours(x, scale, bias):
        stats = {"mean": jnp.zeros_like(scale), "var": jnp.ones_like(scale)}
        variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": stats}
        return norm.apply(variables, x, mutable=["batch_stats"])[0]

    return Case(
        f"BatchNorm, {batch}x{size}x{size}, {channels}",
        (_random(batch, size, size, channels), _random(channels), _random(channels)),
        ours,
        flax,
        lambda torch: lambda x, scale, bias: torch.nn.functional.batch_norm(x, None, None, scale, bias, training=True),
    )


def upsampled_loss(batch, size, to, classes) -> Case:
    """Logits brought to the labels' size, and their cross entropy."""
    labels = np.random.default_rng(0).integers(0, classes, (batch, to, to)).astype(np.int32)
    labels[:, ::16] = 255

    def theirs(torch):
        def loss(x, labels):
            logits = torch.nn.functional.interpolate(x, (to, to), mode="bilinear")
            return torch.nn.functional.cross_entropy(logits, labels.long(), ignore_index=255)

        return loss

    return Case(
        f"bilinear and cross entropy, {batch}x{size}x{size} to {to}x{to}, {classes} classes",
        (_random(batch, size, size, classes),),
        lambda x, labels: losses.cross_entropy(layers.resize_bilinear(x, (to, to), align_corners=False), labels),
        None,
        theirs,
        constants=(labels,),
    )


def counted(batch, size, classes) -> Case:
    """The confusion matrix of predictions."""
    rng = np.random.default_rng(0)
    preds, labels = (rng.integers(0, classes, (batch, size, size)).astype(np.int32) for _ in range(2))

    def theirs(torch):
        def count(preds, labels):
            return torch.bincount((labels * classes + preds).flatten(), minlength=classes**2)

        return count

    return Case(
        f"confusion matrix, {batch}x{size}x{size}, {classes} classes",
        (),
        lambda preds, labels: metrics.confusion_matrix(preds, labels, classes),
        lambda preds, labels: jnp.bincount((labels * classes + preds).ravel(), length=classes**2),
        theirs,
        constants=(preds, labels),
        differentiable=False,
    )


CASES: tuple[Callable[[], Case], ...] = (
    lambda: depthwise(4, 128, 32),
    lambda: depthwise(4, 128, 96, stride=2),
    lambda: depthwise(4, 64, 144),
    lambda: depthwise(4, 32, 192),
    lambda: depthwise(4, 32, 240, k=5),
    lambda: depthwise(4, 16, 960, dilation=2),
    lambda: depthwise(4, 64, 304),
    lambda: pointwise(4, 32, 256, 1024),
    lambda: pointwise(4, 32, 1024, 256),
    lambda: pointwise(4, 64, 24, 144),
    lambda: dense(4, 64, 64, 64),
    lambda: dense(4, 256, 64, 64),
    lambda: dense(4, 112, 128, 128),
    lambda: dense(4, 28, 512, 512),
    lambda: dense(4, 256, 16, 16),
    lambda: dense(4, 32, 256, 256, dilation=12),
    lambda: dense(4, 256, 3, 64, k=7, stride=2),
    lambda: transposed(4, 16, 256, 128),
    lambda: transposed(4, 128, 32, 16),
    lambda: pooled(4, 256, 64),
    lambda: pooled(4, 128, 64, 3, 2, 1),
    lambda: unpooled(4, 256, 64),
    lambda: resized(4, 64, 256, 64),
    lambda: normalised(4, 128, 96),
    lambda: upsampled_loss(4, 64, 256, 21),
    lambda: counted(4, 256, 21),
)


def contenders(case: Case, gradient: bool, against_torch: bool) -> Iterator[Contender]:
    """Ours, the plain form and PyTorch's, forward alone or with the gradients for all inputs."""
    inputs, constants = [jnp.asarray(x) for x in case.inputs], [jnp.asarray(x) for x in case.constants]
    for name, function in (("jaxseg", case.ours), ("plain", case.plain)):
        if function is not None:
            yield Contender(name, _repeat(_jax(function, gradient), (*inputs, *constants), jax.block_until_ready))
    if against_torch and case.torch is not None:
        torch = import_torch()
        yield Contender("PyTorch", _repeat(_torch(torch, case, gradient), (), lambda result: _wait(torch)))


def _repeat(function, arguments, wait) -> Callable[[int], None]:
    def run(n):
        for _ in range(n):
            result = function(*arguments)
        wait(result)

    return run


def _jax(function: Callable, gradient: bool) -> Callable:
    def both(*arguments):
        floats = [x for x in arguments if jnp.issubdtype(x.dtype, jnp.floating)]
        y, vjp = jax.vjp(lambda *floats: function(*floats, *arguments[len(floats) :]), *floats)
        return y, vjp(jnp.ones_like(y))

    return jax.jit(both if gradient else function)


def _torch(torch, case: Case, gradient: bool) -> Callable:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def convert(array):
        tensor = torch.from_numpy(array).to(device)
        if array.ndim < 4:
            return tensor
        order = (0, 3, 1, 2) if len(inputs) == 0 else (3, 2, 0, 1)
        return tensor.permute(order).contiguous(memory_format=torch.channels_last)

    inputs: list = []
    for array in case.inputs:
        inputs.append(convert(array).requires_grad_(gradient))
    constants = [torch.from_numpy(array).to(device) for array in case.constants]
    function = case.torch(torch)

    def both():
        y = function(*inputs, *constants)
        return torch.autograd.grad(y, inputs, torch.ones_like(y))

    def forward():
        with torch.inference_mode():
            return function(*inputs, *constants)

    return both if gradient else forward


def _wait(torch) -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m jaxseg.benchmark.layers", description=__doc__.split("\n\n")[0])
    parser.add_argument("words", nargs="*", metavar="WORD", help="measure the layers whose names have one of these")
    parser.add_argument("--against", choices=("torch",), help="PyTorch's beside them")
    parser.add_argument(
        "--rounds", type=int, default=5, help="figures that the median is taken of; %(default)s by default"
    )
    arguments = parser.parse_args(argv)
    cases = [make() for make in CASES]
    chosen = [case for case in cases if not arguments.words or any(word in case.name for word in arguments.words)]
    if not chosen:
        raise UserError(f"no layer has {' or '.join(arguments.words)} in its name: {'; '.join(c.name for c in cases)}")
    names = ["jaxseg", "plain", *(["PyTorch"] if arguments.against else [])]
    print(f"milliseconds in float32, forward / with gradients; {machine()}\n")
    print(f"| layer | {' | '.join(names)} | {' | '.join(f'{name} / jaxseg' for name in names[1:])} |")
    print(f"|---|{'---:|' * (2 * len(names) - 1)}", flush=True)
    results = []
    for case in chosen:
        results.append(measure(case, bool(arguments.against), arguments.rounds))
        print(_row(results[-1], names), flush=True)
    print(json.dumps({"machine": machine(), "jax": jax.__version__, "layers": results}))


def measure(case: Case, against_torch: bool, rounds: int) -> dict:
    """Milliseconds of each contender, forward and with gradients."""
    result: dict = {"name": case.name, "forward": {}, "gradients": {}}
    for kind, gradient in (("forward", False), ("gradients", True))[: 1 + case.differentiable]:
        seconds = alternate(list(contenders(case, gradient, against_torch)), rounds)
        result[kind] = {name: 1000 * statistics.median(values) for name, values in seconds.items()}
    return result


def _row(result: dict, names: Sequence[str]) -> str:
    kinds = [result["forward"], result["gradients"]]

    def cell(form, *of):
        values = [form(*(kind[name] for name in of)) for kind in kinds if all(name in kind for name in of)]
        return " / ".join(values)

    times = [cell(lambda t: f"{t:.1f}", name) for name in names]
    ratios = [cell(lambda ours, theirs: f"{theirs / ours:.2f}", "jaxseg", name) for name in names[1:]]
    return f"| {' | '.join(itertools.chain([result['name']], times, ratios))} |"


if __name__ == "__main__":
    with one_line_errors():
        use_huge_pages(keep=True)
        keep_streams()
        check_environment()
        find_devices()
        main(sys.argv[1:])
