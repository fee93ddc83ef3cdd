"""DeepLabV3+: counts of the published network, shapes, and what the logits depend on."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxseg.models import create_model
from jaxseg.models.deeplab import DeepLabV3Plus
from jaxseg.state import create_state, init_variables
from jaxseg.step import create_eval_step, create_mesh, create_train_step, put_batch, replicate

# segmentation_models_pytorch 0.6.0, 21 classes: trainable, of which encoder; float buffers.
COUNTS = {
    "mobilenet_v2": (4_383_653, 2_223_872, 38_304),
    "resnet18": (12_334_437, 11_176_512, 13_792),
    "resnet34": (22_442_597, 21_284_672, 21_216),
    "resnet50": (26_682_725, 23_508_032, 57_312),
    "resnet101": (45_674_853, 42_500_160, 109_536),
}


def deeplab(backbone: str = "resnet18", num_classes: int = 21, **options):
    return create_model("deeplabv3plus", backbone=backbone, num_classes=num_classes, **options)


def shapes(model, size=(64, 64), batch=2):
    """Shapes of logits and of variables; nothing is computed."""
    images = jax.ShapeDtypeStruct((batch, *size, 3), jnp.float32)
    return jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x, train=False), images)


def size(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("backbone", COUNTS)
def test_counts_are_those_of_the_published_network(backbone):
    _, variables = shapes(deeplab(backbone))
    params = variables["params"]
    assert (size(params), size(params["backbone"]), size(variables["batch_stats"])) == COUNTS[backbone]


def test_plain_atrous_convolutions_have_the_parameters_of_full_kernels():
    _, separable = shapes(deeplab())
    _, plain = shapes(deeplab(separable=False))
    channels, features = 512, 256
    more = 3 * (9 * channels * features - (9 * channels + channels * features))
    assert size(plain["params"]) - size(separable["params"]) == more
    assert plain["params"]["aspp"]["atrous_0"]["conv"]["kernel"].shape == (3, 3, channels, features)


@pytest.mark.parametrize("output_stride", [8, 16, 32])
@pytest.mark.parametrize("image_size", [(32, 32), (33, 47), (360, 480), (101, 64)])
def test_logits_are_as_large_as_the_images(image_size, output_stride):
    logits, _ = shapes(deeplab("mobilenet_v2", 5, output_stride=output_stride), image_size)
    assert logits.shape == (2, *image_size, 5)
    assert logits.dtype == jnp.float32


def test_computing_in_bfloat16_gives_float32_logits_from_float32_variables():
    logits, variables = shapes(deeplab("mobilenet_v2", dtype="bfloat16"))
    assert {leaf.dtype for leaf in jax.tree.leaves((logits, variables))} == {jnp.dtype(jnp.float32)}


class Pools(nn.Module):
    """A backbone of five features that share nothing: each is the shrunk image times a parameter of its own."""

    output_stride: int = 16

    @nn.compact
    def __call__(self, images, *, train):
        features = []
        for stride in (2, 4, 8, 16, 32):
            factor = self.param(f"at_{stride}", nn.initializers.ones, (images.shape[-1],))
            stride = min(stride, self.output_stride)
            features.append(nn.avg_pool(images, (stride, stride), (stride, stride)) * factor)
        return tuple(features)


def small(**fields) -> DeepLabV3Plus:
    return DeepLabV3Plus(Pools(), 3, rates=(1, 2, 3), features=8, **fields)


def random_images(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_the_logits_hear_the_skip_and_the_last_feature_and_no_other():
    model, images = small(), random_images(2, 64, 64, 3)
    variables = model.init(jax.random.key(0), images, train=False)

    @jax.jit
    def grads(params):
        # Weighted by the place: a mean over classes and places could be blind to one.
        def loss(params):
            logits = model.apply({**variables, "params": params}, images, train=False)
            return (logits * jnp.cos(jnp.arange(logits.size)).reshape(logits.shape)).sum()

        return jax.grad(loss)(params)

    by_feature = {name: np.abs(value).max() for name, value in grads(variables["params"])["backbone"].items()}
    assert {name for name, value in by_feature.items() if value > 1e-4} == {"at_4", "at_32"}
    assert by_feature["at_2"] == by_feature["at_8"] == by_feature["at_16"] == 0


def test_an_image_is_scored_alike_in_any_batch():
    model, images = small(), random_images(3, 48, 80, 3)
    variables = model.init(jax.random.key(0), images, train=False)
    apply = jax.jit(lambda variables, images: model.apply(variables, images, train=False))
    together = apply(variables, images)
    for i in range(3):
        np.testing.assert_allclose(apply(variables, images[i : i + 1])[0], together[i], atol=1e-5)


def test_in_training_dropout_and_batch_statistics_are_at_work():
    model, images = small(dropout=0.5), random_images(2, 32, 32, 3)
    variables = model.init(jax.random.key(0), images, train=False)

    @jax.jit
    def apply(key):
        return model.apply(variables, images, train=True, mutable=["batch_stats"], rngs={"dropout": key})

    logits, updates = apply(jax.random.key(0))
    again, _ = apply(jax.random.key(0))
    other, other_updates = apply(jax.random.key(1))
    np.testing.assert_array_equal(logits, again)
    assert np.abs(logits - other).max() > 1e-3
    # What comes before the dropout is blind to it.
    before = updates["batch_stats"]["aspp"]
    assert jax.tree.all(jax.tree.map(np.array_equal, before, other_updates["batch_stats"]["aspp"]))
    assert np.abs(before["conv"]["bn"]["mean"]).max() > 0


def test_it_learns_two_images_by_heart():
    rng = np.random.default_rng(0)
    labels = np.kron(rng.integers(0, 3, (2, 4, 4)), np.ones((16, 16))).astype(np.uint8)
    colours = rng.integers(0, 256, (3, 3))
    images = np.clip(colours[labels] + rng.normal(0, 20, (2, 64, 64, 3)), 0, 255).astype(np.uint8)
    labels[:, :3] = 255

    model = deeplab(num_classes=3, features=32, rates=(1, 2, 3), dropout=0.0)
    mesh = create_mesh(jax.devices()[:1])
    scale = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
    tx = optax.adam(2e-3)
    state = replicate(create_state(init_variables(model, 0), tx), mesh)
    step, batch = (
        create_train_step(model, tx, mesh, **scale, seed=0),
        put_batch({"images": images, "labels": labels}, mesh),
    )
    for _ in range(60):
        state, metrics = step(state, batch)
    counts = np.asarray(create_eval_step(model, mesh, **scale)(state.variables, batch)["counts"])
    assert counts.sum() == (labels != 255).sum()
    assert np.trace(counts) / counts.sum() > 0.99
    assert metrics["loss"] < 0.1
