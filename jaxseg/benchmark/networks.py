"""Our networks as contenders: a training step, or a batch of logits."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from jaxseg.benchmark.measure import Contender
from jaxseg.models.pretrained import IMAGENET_MEAN, IMAGENET_STD
from jaxseg.state import create_state, init_variables
from jaxseg.step import create_mesh, create_train_step, normalise, put_batch, replicate

LEARNING_RATE = 1e-3
AUXILIARY_WEIGHT = 0.4


def random_batch(batch_size: int, size: tuple[int, int], num_classes: int) -> dict[str, np.ndarray]:
    """Images uint8 `[B, H, W, 3]` and labels uint8 `[B, H, W]`, some of them 255, as the pipeline gives them."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, num_classes, (batch_size, *size)).astype(np.uint8)
    labels[:, ::16] = 255
    return {"images": rng.integers(0, 256, (batch_size, *size, 3)).astype(np.uint8), "labels": labels}


def training(
    model: nn.Module, batch: dict[str, np.ndarray], remat: bool = False
) -> tuple[Contender, Callable[[], Any]]:
    """The training step with Adam and cross entropy, as `jaxseg.main` takes it, and the compiled program's text.

    `remat` is that of `create_train_step`.
    """
    mesh = create_mesh(jax.devices()[:1])
    tx = optax.adam(LEARNING_RATE)
    state = replicate(create_state(init_variables(model, 0), tx), mesh)
    step = create_train_step(
        model, tx, mesh, mean=IMAGENET_MEAN, std=IMAGENET_STD, seed=0, auxiliary_weight=AUXILIARY_WEIGHT, remat=remat
    )
    on_device = put_batch(batch, mesh)

    def once(carry):
        state, metrics = step_of(carry, on_device)
        return state, metrics["loss"]

    started = time.perf_counter()
    step_of = step.lower(state, on_device).compile()
    return _contender(once, state, step_of, started)


def inference(model: nn.Module, batch: dict[str, np.ndarray]) -> tuple[Contender, Callable[[], Any]]:
    """Images to logits in evaluation mode, and the compiled program's text."""
    variables = init_variables(model, 0)
    images = jnp.asarray(batch["images"])

    @jax.jit
    def logits_of(variables, images):
        return model.apply(variables, normalise(images, IMAGENET_MEAN, IMAGENET_STD), train=False)

    started = time.perf_counter()
    compiled = logits_of.lower(variables, images).compile()
    return _contender(lambda carry: (carry, compiled(carry, images)), variables, compiled, started)


def _contender(once, carry, compiled, started):
    """`once(carry) -> (carry, result)` as a contender; `started` is when its compilation began."""

    def run(n):
        nonlocal carry
        for _ in range(n):
            carry, result = once(carry)
        jax.block_until_ready(result)

    run(1)
    seconds = time.perf_counter() - started
    return Contender("jaxseg", run, seconds, _memory(compiled)), compiled.as_text


def _memory(compiled) -> int | None:
    """Bytes that a compiled program holds while it runs: arguments, results and all between, donated buffers once."""
    analysis = compiled.memory_analysis()
    if analysis is None:
        return None
    held = analysis.argument_size_in_bytes + analysis.output_size_in_bytes + analysis.temp_size_in_bytes
    return held - analysis.alias_size_in_bytes
