"""What every family is asked: its shapes, which features its logits hear, and whether it learns."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxseg.state import create_state, init_variables
from jaxseg.step import create_eval_step, create_mesh, create_train_step, put_batch, replicate


def random_images(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def shapes(model, size=(64, 64), batch=2):
    """Shapes of logits and of variables; nothing is computed."""
    images = jax.ShapeDtypeStruct((batch, *size, model.in_channels), jnp.float32)
    return jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x, train=False), images)


def count(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def counts(model) -> tuple[int, int, int]:
    """Numbers: trainable, of which the backbone's, and running statistics."""
    _, variables = shapes(model)
    params = variables["params"]
    return count(params), count(params.get("backbone", {})), count(variables.get("batch_stats", {}))


class Pools(nn.Module):
    """A backbone of five features that share nothing: each is the shrunk image times a parameter of its own."""

    output_stride: int = 32

    @nn.compact
    def __call__(self, images, *, train, depth=5):
        features = []
        for stride in (2, 4, 8, 16, 32)[:depth]:
            factor = self.param(f"at_{stride}", nn.initializers.ones, (images.shape[-1],))
            stride = min(stride, self.output_stride)
            features.append(nn.avg_pool(images, (stride, stride), (stride, stride)) * factor)
        return tuple(features)


def strides_heard(model, images: np.ndarray) -> set[int]:
    """The strides of the features of `Pools`, the backbone of `model`, that change its logits; others don't at all."""
    variables = jax.jit(lambda x: model.init(jax.random.key(0), x, train=False))(images)

    @jax.jit
    def grads(params):
        # Weighted by the place: a mean over classes and places could be blind to one.
        def loss(params):
            logits = model.apply({**variables, "params": params}, images, train=False)
            return (logits * jnp.cos(jnp.arange(logits.size)).reshape(logits.shape)).sum()

        return jax.grad(loss)(params)

    by_feature = {name: np.abs(value).max() for name, value in grads(variables["params"])["backbone"].items()}
    heard = {name for name, value in by_feature.items() if value > 1e-4}
    assert all(value == 0 for name, value in by_feature.items() if name not in heard), by_feature
    return {int(name.removeprefix("at_")) for name in heard}


def check_scores_alike_in_any_batch(model, images: np.ndarray) -> None:
    variables = jax.jit(lambda x: model.init(jax.random.key(0), x, train=False))(images)
    apply = jax.jit(lambda variables, images: model.apply(variables, images, train=False))
    together = apply(variables, images)
    for i in range(len(images)):
        np.testing.assert_allclose(apply(variables, images[i : i + 1])[0], together[i], atol=1e-5)


def two_images() -> tuple[np.ndarray, np.ndarray]:
    """uint8 images `[2, 64, 64, 3]` of coloured squares and their labels, three classes and 255."""
    rng = np.random.default_rng(0)
    labels = np.kron(rng.integers(0, 3, (2, 4, 4)), np.ones((16, 16))).astype(np.uint8)
    colours = rng.integers(0, 256, (3, 3))
    images = np.clip(colours[labels] + rng.normal(0, 20, (2, 64, 64, 3)), 0, 255).astype(np.uint8)
    labels[:, :3] = 255
    return images, labels


SCALE = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}


def train_on_two_images(model, steps: int = 60, learning_rate: float = 2e-3):
    """Variables of a model of three classes after a few steps on `two_images`, and the last loss."""
    images, labels = two_images()
    mesh = create_mesh(jax.devices()[:1])
    tx = optax.adam(learning_rate)
    state = replicate(create_state(init_variables(model, 0), tx), mesh)
    batch = put_batch({"images": images, "labels": labels}, mesh)
    step = create_train_step(model, tx, mesh, **SCALE, seed=0)
    for _ in range(steps):
        state, metrics = step(state, batch)
    return state.variables, float(metrics["loss"])


def score_two_images(model, variables) -> dict[str, np.ndarray]:
    """What an evaluation step says of `two_images`."""
    images, labels = two_images()
    mesh = create_mesh(jax.devices()[:1])
    batch = put_batch({"images": images, "labels": labels}, mesh)
    result = jax.tree.map(np.asarray, create_eval_step(model, mesh, **SCALE)(variables, batch))
    assert result["counts"].sum() == (labels != 255).sum()
    return result


def learn_two_images_by_heart(model, steps: int = 60, learning_rate: float = 2e-3) -> tuple[float, float]:
    """Accuracy, in evaluation, and the last loss of a model of three classes after a few steps on two images."""
    variables, loss = train_on_two_images(model, steps, learning_rate)
    counts = score_two_images(model, variables)["counts"]
    return float(np.trace(counts) / counts.sum()), loss
