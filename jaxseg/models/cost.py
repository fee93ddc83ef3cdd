"""What a network costs: its parameters and multiply-adds, counted without computing anything."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

IMAGES, WEIGHTS = "images", "weights"


def num_params(model: nn.Module, image_size: tuple[int, int] = (64, 64)) -> tuple[int, int]:
    """How many trainable parameters a network has, and how many running statistics beside them."""
    variables = _shapes(model, image_size)
    params, stats = (jax.tree.leaves(variables.get(kind, {})) for kind in ("params", "batch_stats"))
    return sum(x.size for x in params), sum(x.size for x in stats)


def multiply_adds(model: nn.Module, image_size: tuple[int, int] = (512, 512)) -> int:
    """Multiply-adds of one image through a network, in evaluation mode, counted over the traced program.

    One for every product of a weight and an activation in convolutions, transposed convolutions and matrix products;
    padded places count as work. Norms, biases, activations, pooling and resizing don't count, though resizing is a
    matrix product here: none of its factors is a weight. This is how torchvision counts its `_ops`. An auxiliary head
    counts.

    Args:
      model: what `create_model` gives.
      image_size: (H, W).
    """
    variables = _shapes(model, image_size)
    images = jax.ShapeDtypeStruct((1, *image_size, model.in_channels), jnp.float32)
    traced = jax.make_jaxpr(lambda variables, images: model.apply(variables, images, train=False, mutable=["aux"]))(
        variables, images
    )
    origins = [frozenset({WEIGHTS})] * len(jax.tree.leaves(variables)) + [frozenset({IMAGES})]
    return _count(traced.jaxpr, origins)[0]


def _shapes(model: nn.Module, image_size: tuple[int, int]):
    images = jax.ShapeDtypeStruct((1, *image_size, model.in_channels), jnp.float32)
    return jax.eval_shape(lambda images: model.init(jax.random.key(0), images, train=False), images)


def _count(jaxpr, origins: Sequence[frozenset]) -> tuple[int, list[frozenset]]:
    """The multiply-adds of a jaxpr, and where its results come from, given where its arguments do."""
    known = dict(zip(jaxpr.invars, origins, strict=True))

    def origin(atom) -> frozenset:
        return frozenset() if hasattr(atom, "val") else known.get(atom, frozenset())

    total = 0
    for eqn in jaxpr.eqns:
        sources = [origin(atom) for atom in eqn.invars]
        results = [frozenset().union(*sources)] * len(eqn.outvars)
        inner = [sub for value in eqn.params.values() for sub in _jaxprs(value)]
        if eqn.primitive.name == "conv_general_dilated":
            total += _is_weight(sources) * _convolution(eqn)
        elif eqn.primitive.name == "dot_general":
            total += _is_weight(sources) * _product(eqn)
        elif inner:
            # Branches of one platform or another compute the same; the default, which is the last, in the plain form.
            taken = inner[-1:] if eqn.primitive.name == "cond" else inner
            counted = [_count(sub, sources[len(sources) - len(sub.invars) :]) for sub in taken]
            most, results_of = max(counted, key=lambda pair: pair[0])
            total += most * (eqn.params["length"] if eqn.primitive.name == "scan" else 1)
            if len(results_of) == len(eqn.outvars):
                results = results_of
        known.update(zip(eqn.outvars, results, strict=True))
    return total, [origin(atom) for atom in jaxpr.outvars]


def _jaxprs(value) -> list:
    """The jaxprs within a parameter of an equation."""
    if isinstance(value, tuple | list):
        return [sub for part in value for sub in _jaxprs(part)]
    value = getattr(value, "jaxpr", value)
    return [value] if hasattr(value, "eqns") else []


def _is_weight(sources: Sequence[frozenset]) -> bool:
    """Whether a factor comes from the weights alone: an activation comes from the images too."""
    return any(source == {WEIGHTS} for source in sources)


def _convolution(eqn) -> int:
    lhs, rhs, out = eqn.invars[0].aval, eqn.invars[1].aval, eqn.outvars[0].aval
    numbers = eqn.params["dimension_numbers"]
    # A kernel's [.., in / groups, out]: every place, of the input for a transposed convolution, meets all of it once a
    # group.
    transposed = math.prod(eqn.params["lhs_dilation"]) > 1
    shape, spec = (lhs.shape, numbers.lhs_spec) if transposed else (out.shape, numbers.out_spec)
    places = math.prod(shape[i] for i in (spec[0], *spec[2:]))
    return places * math.prod(rhs.shape)


def _product(eqn) -> int:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    depth = math.prod(eqn.invars[0].aval.shape[i] for i in contracted)
    return math.prod(eqn.outvars[0].aval.shape) * depth
