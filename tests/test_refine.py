"""The step of the second stage: what moves, what must not, and that devices and interruptions make no difference."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from test_step import SCALE, devices, difference

from jaxseg.losses import cross_entropy
from jaxseg.models.pix2pix import PatchGAN, Refined, Refiner
from jaxseg.refine import create_refine_state, create_refine_step, discriminator_optimizer, says_false, says_true
from jaxseg.state import abstract_variables, init_variables
from jaxseg.step import create_eval_step, create_mesh, normalise, put_batch, replicate

NUM_CLASSES, WEIGHT = 3, 10.0


class First(nn.Module):
    """A network with BatchNorm and dropout, which are at work in training alone."""

    num_classes: int = NUM_CLASSES
    in_channels: int = 3

    @nn.compact
    def __call__(self, images, *, train):
        x = nn.BatchNorm(not train, name="bn")(images)
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Dense(self.num_classes, name="dense")(x)


MODEL, DISCRIMINATOR = Refined(First(), Refiner(NUM_CLASSES, width=4)), PatchGAN(width=4)
TX, DISCRIMINATOR_TX = optax.adam(5e-3), discriminator_optimizer(2e-4)


def make_batch() -> dict[str, np.ndarray]:
    """Two images of coloured squares and their labels, another share of them ignored in each."""
    rng = np.random.default_rng(0)
    labels = np.kron(rng.integers(0, NUM_CLASSES, (2, 4, 4)), np.ones((8, 8))).astype(np.uint8)
    images = (80 * labels[..., None] + rng.integers(0, 90, (2, 32, 32, 3))).astype(np.uint8)
    labels[0, :5], labels[1, :, :12] = 255, 255
    return {"images": images, "labels": labels}


def create_step(mesh, **fields):
    options = {"cross_entropy_weight": WEIGHT, **SCALE, **fields}
    return create_refine_step(MODEL, DISCRIMINATOR, TX, DISCRIMINATOR_TX, mesh, **options)


@pytest.fixture(scope="module")
def start():
    """The state before the first step, on the host."""
    variables = init_variables(MODEL, 0)
    variables["batch_stats"]["first"]["bn"]["mean"] += 0.3
    state = create_refine_state(MODEL, DISCRIMINATOR, variables, TX, DISCRIMINATOR_TX, seed=0)
    return jax.tree.map(np.asarray, state)


@pytest.fixture(scope="module")
def one_device():
    mesh = create_mesh(devices(1))
    return mesh, create_step(mesh)


@pytest.fixture(scope="module")
def run(start, one_device):
    """States on the host after 0, 1, ... 30 steps on two images, and the losses of each step."""
    mesh, step = one_device
    state, states, losses = replicate(start, mesh), [start], []
    for _ in range(30):
        state, out = step(state, put_batch(make_batch(), mesh))
        states.append(jax.tree.map(np.asarray, state))
        losses.append({name: float(value) for name, value in out.items()})
    return states, losses


def test_the_state_has_the_variables_of_the_network(start):
    like = abstract_variables(MODEL)
    due, found = (jax.tree.map(lambda x: (x.shape, x.dtype), tree) for tree in (like, start.variables))
    assert found == due
    assert start.opt_state["discriminator"].keys() == {"params", "batch_stats", "opt_state"}


def test_the_first_losses_are_those_of_the_first_stage_and_of_a_discriminator_that_knows_nothing(start, run):
    batch, (_, losses) = make_batch(), run
    variables = {"params": start.params["first"], "batch_stats": start.batch_stats["first"]}
    logits = First().apply(variables, normalise(batch["images"], **SCALE), train=False)
    assert losses[0]["cross_entropy"] == pytest.approx(float(cross_entropy(logits, batch["labels"])), rel=1e-4)
    assert losses[0]["discriminator"] == pytest.approx(np.log(2), abs=0.1)
    for out in losses:
        assert out["loss"] == pytest.approx(out["adversarial"] + WEIGHT * out["cross_entropy"], rel=1e-5)


def test_the_refiner_learns_and_the_discriminator_too(run):
    states, losses = run
    assert all(np.isfinite(list(out.values())).all() for out in losses)
    assert losses[-1]["cross_entropy"] < 0.5 * losses[0]["cross_entropy"]
    assert losses[-1]["discriminator"] < losses[0]["discriminator"] - 0.02
    before, after = states[0], states[-1]
    assert int(after.step) == 30
    assert difference(before.params["refiner"], after.params["refiner"]) > 1e-2
    assert difference(before.batch_stats["refiner"], after.batch_stats["refiner"]) > 1e-2
    then, now = (state.opt_state["discriminator"] for state in (before, after))
    assert difference(then["params"], now["params"]) > 1e-3
    assert difference(then["batch_stats"], now["batch_stats"]) > 1e-3


def test_the_discriminator_takes_true_maps_for_true(run):
    state, batch = run[0][-1], make_batch()
    images, valid = normalise(batch["images"], **SCALE), batch["labels"][..., None] != 255
    true = jax.nn.one_hot(np.where(batch["labels"] == 255, -1, batch["labels"]), NUM_CLASSES)
    refined = jax.nn.softmax(MODEL.apply(state.variables, images, train=False)) * valid

    @jax.jit
    def judge(maps):
        variables = {name: state.opt_state["discriminator"][name] for name in ("params", "batch_stats")}
        return DISCRIMINATOR.apply(variables, images, maps, train=False).mean()

    assert judge(true) > judge(refined) + 0.1


def test_the_first_stage_stays_bit_for_bit(run):
    before, after = run[0][0], run[0][-1]
    for tree in ("params", "batch_stats"):
        then, now = getattr(before, tree)["first"], getattr(after, tree)["first"]
        jax.tree.map(np.testing.assert_array_equal, then, now)


def test_the_network_is_scored_as_any(run, one_device):
    mesh, batch = one_device[0], make_batch()
    eval_step = create_eval_step(MODEL, mesh, **SCALE)
    accuracy = []
    for state in (run[0][0], run[0][-1]):
        counts = np.asarray(eval_step(state.variables, put_batch(batch, mesh))["counts"])
        assert counts.sum() == (batch["labels"] != 255).sum()
        accuracy.append(np.trace(counts) / counts.sum())
    assert accuracy[1] > accuracy[0] + 0.1


def test_a_resumed_run_is_the_unbroken_one_bit_for_bit(run, one_device):
    mesh, step = one_device
    state = replicate(run[0][7], mesh)
    for _ in range(3):
        state, _ = step(state, put_batch(make_batch(), mesh))
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, state), run[0][10])


def test_two_devices_take_the_step_of_one(start, run):
    mesh = create_mesh(devices(2))
    step = create_step(mesh)
    state, losses = replicate(start, mesh), []
    for _ in range(2):
        state, out = step(state, put_batch(make_batch(), mesh))
        losses.append({name: float(value) for name, value in out.items()})
    for got, due in zip(losses, run[1], strict=False):
        assert got == pytest.approx(due, rel=1e-4)
    # Parameters tell less: Adam makes a whole step of the smallest gradient, of whichever sign rounding gave it.
    assert difference(state.batch_stats, run[0][2].batch_stats) < 1e-4
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state))


def test_ignored_pixels_tell_nothing(start, one_device):
    """What the discriminator sees is 0 there, in true maps and in refined ones."""
    seen = []

    class Listening(PatchGAN):
        def __call__(self, images, probs, *, train):
            jax.debug.callback(lambda probs: seen.append(np.asarray(probs)), probs)
            return super().__call__(images, probs, train=train)

    batch = make_batch()
    listening = create_refine_step(
        MODEL, Listening(width=4), TX, DISCRIMINATOR_TX, one_device[0], cross_entropy_weight=WEIGHT, **SCALE
    )
    jax.block_until_ready(listening(replicate(start, one_device[0]), put_batch(batch, one_device[0])))
    jax.effects_barrier()
    ignored = batch["labels"] == 255
    assert len(seen) >= 3
    for maps in seen:
        assert (maps[ignored] == 0).all()
        np.testing.assert_allclose(maps[~ignored].sum(-1), 1, atol=1e-5)
    # One of them is the truth, the others are not.
    true = [maps for maps in seen if set(np.unique(maps)) == {0.0, 1.0}]
    assert true and len(true) < len(seen)
    np.testing.assert_array_equal(true[0].argmax(-1)[~ignored], batch["labels"][~ignored])


def test_a_batch_of_ignored_pixels_alone_gives_finite_losses(start, one_device):
    mesh, step = one_device
    batch = make_batch() | {"labels": np.full((2, 32, 32), 255, np.uint8)}
    state, out = step(replicate(start, mesh), put_batch(batch, mesh))
    assert float(out["cross_entropy"]) == 0
    assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves((state, out)))


def test_what_the_discriminator_says_costs_its_logarithm():
    patches = jnp.array([-2.0, 0.0, 3.0])
    np.testing.assert_allclose(says_true(patches), -np.log(1 / (1 + np.exp(-patches))), rtol=1e-5)
    np.testing.assert_allclose(says_false(patches), -np.log(1 - 1 / (1 + np.exp(-patches))), rtol=1e-5)
