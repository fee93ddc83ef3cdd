"""What training carries from step to step."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct


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
        held = isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer)
        return jax.device_put(x, x.sharding, may_alias=False) if held else x

    return jax.tree.map(copied, tree)


def create_state(variables: dict[str, Any], tx: optax.GradientTransformation, *, ema: bool = False) -> TrainState:
    """The state before the first step, with moving averages where `ema` says so; `variables` are copied."""
    # The step is given all buffers of the state to write to, each once.
    variables = own_buffers(variables)
    params, batch_stats = variables["params"], variables["batch_stats"]
    averages = jax.tree.map(jnp.copy, {"params": params, "batch_stats": batch_stats}) if ema else None
    return TrainState(jnp.zeros((), jnp.int32), params, batch_stats, jax.jit(tx.init)(params), averages)
