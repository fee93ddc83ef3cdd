"""What training carries from step to step."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import struct

_SMALL = 2**12  # values


@struct.dataclass
class TrainState:
    """The state of a run; a pytree of arrays.

    Fields:
      step: int32 scalar, how many steps are done.
      params, batch_stats: the model's variables, float32.
      opt_state: optax's.
      ema: moving averages of `{'params', 'batch_stats'}`, None for none. BatchNorm's statistics are averaged as the
        parameters are, for those of the last step alone belong to other parameters.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: dict[str, Any] | None = None

    @property
    def variables(self) -> dict[str, Any]:
        """What `model.apply` takes, as training has them."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def eval_variables(self) -> dict[str, Any]:
        """What is scored, and what others load: the moving averages where there are any, else `variables`."""
        return self.variables if self.ema is None else self.ema

    def to_items(self) -> dict[str, Any]:
        """The state as a checkpoint's items: `variables`, which others load, and `optimizer`, all that is left."""
        left = {"step": self.step, "opt_state": self.opt_state}
        return {"variables": self.eval_variables, "optimizer": left if self.ema is None else left | self.variables}

    def from_items(self, items: Mapping[str, Any]) -> "TrainState":
        """A state like this one from what `to_items` gave."""
        scored, left = items["variables"], items["optimizer"]
        variables, ema = (scored, None) if self.ema is None else (left, scored)
        return TrainState(left["step"], variables["params"], variables["batch_stats"], left["opt_state"], ema)


def init_variables(model: nn.Module, seed: int) -> dict[str, Any]:
    """Fresh float32 variables `{'params', 'batch_stats'}` of a `model` of RGB images, from `jax.random.key(seed)`."""
    # Compiled as one program: run operation by operation it takes many times longer.
    init = jax.jit(lambda key: model.init(key, jnp.zeros((1, 64, 64, 3)), train=False))
    variables = init(jax.random.key(seed))
    return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}


def abstract_variables(model: nn.Module, sharding: jax.sharding.Sharding | None = None) -> dict[str, Any]:
    """The shapes and types of `model`'s variables, without computing any, with `sharding`; None for one device."""
    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shapes = jax.eval_shape(lambda: init_variables(model, 0))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)


def own_buffers(tree: Any) -> Any:
    """`tree` with every array in a buffer of its own, where it lies: a step that is given them takes nobody else's."""

    def copied(x):
        if not isinstance(x, jax.Array) or isinstance(x, jax.core.Tracer):
            return x
        if jax.process_count() > 1 and x.is_fully_addressable:
            # Bound to a device of this process it could not be laid over a mesh of several.
            return np.array(x)
        return jax.device_put(x, x.sharding, may_alias=False)

    return jax.tree.map(copied, tree)


def nonfinite(tree: Any) -> list[str]:
    """The arrays of `tree` that hold NaN or infinity, by their places in it: `.params['head']['kernel']`.

    One reduction on the devices, as the arrays lie there, split or whole; where there are several processes all of them
    call it, and all get the same. One process on a CPU has them at hand, and need compile nothing. It costs a pass over
    the arrays: it is for saving, not for every step.
    """
    arrays = {
        jax.tree_util.keystr(path): array
        for path, array in jax.tree_util.tree_flatten_with_path(tree)[0]
        # The best value of a plateau that has seen none yet is infinite.
        if jnp.issubdtype(array.dtype, jnp.inexact) and "best_value" not in jax.tree_util.keystr(path[-1:])
    }
    if not arrays or _all_finite(list(arrays.values())):
        return []
    return [name for name, array in arrays.items() if not _all_finite([array])]


@jax.jit
def _are_finite(arrays: list[jax.Array]) -> jax.Array:
    # Those of one shape in one pass, and all small ones: a kernel for each of a thousand takes long to compile.
    small = [x.ravel() for x in arrays if x.size <= _SMALL]
    groups = {"small": [jnp.concatenate(small)] if small else []}
    for x in arrays:
        if x.size > _SMALL:
            groups.setdefault(x.shape, []).append(x)
    alike = [functools.reduce(jnp.logical_and, map(jnp.isfinite, group)).all() for group in groups.values() if group]
    return functools.reduce(jnp.logical_and, alike)


def _all_finite(arrays: list[jax.Array]) -> bool:
    on_host = jax.process_count() == 1 and all(device.platform == "cpu" for device in arrays[0].devices())
    return all(np.isfinite(x).all() for x in map(np.asarray, arrays)) if on_host else bool(_are_finite(arrays))


def create_state(variables: dict[str, Any], tx: optax.GradientTransformation, *, ema: bool = False) -> TrainState:
    """The state before the first step, with moving averages where `ema` says so; `variables` are copied."""
    # The step is given all buffers of the state to write to, each once.
    variables = own_buffers(variables)
    params, batch_stats = variables["params"], variables["batch_stats"]
    averages = jax.tree.map(jnp.copy, {"params": params, "batch_stats": batch_stats}) if ema else None
    return TrainState(jnp.zeros((), jnp.int32), params, batch_stats, jax.jit(tx.init)(params), averages)
