"""Schedules by hand, optimizers against PyTorch's, and which parameters they touch."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import default
from jaxseg.errors import UserError
from jaxseg.optim import create_optimizer, create_schedule


def optim(**changes):
    config = default.get_config().optim
    config.update(changes)
    return config


# ----------------------------------------------------------------------------------------------------------- schedules


def rates(num_steps: int, steps, **changes) -> list[float]:
    schedule = create_schedule(optim(learning_rate=0.4, **changes), num_steps)
    return [float(schedule(step)) for step in steps]


def test_constant():
    assert rates(10, (0, 5, 9, 20), schedule="constant") == pytest.approx([0.4] * 4)


def test_poly_goes_to_0_by_its_power():
    due = [0.4, 0.4 * 0.75**0.9, 0.4 * 0.5**0.9, 0.4 * 0.01**0.9, 0]
    assert rates(100, (0, 25, 50, 99, 100), schedule="poly") == pytest.approx(due)
    assert rates(100, (50,), schedule="poly", poly_power=2.0) == pytest.approx([0.1])


def test_cosine_is_half_a_wave():
    due = [0.4, 0.2 * (1 + np.sqrt(0.5)), 0.2, 0]
    assert rates(100, (0, 25, 50, 100), schedule="cosine") == pytest.approx(due, abs=1e-7)


@pytest.mark.parametrize(("schedule", "middle"), [("constant", 0.4), ("poly", 0.4 * 0.5**0.9), ("cosine", 0.2)])
def test_after_the_warm_up_the_schedule_takes_what_is_left(schedule, middle):
    got = rates(110, (0, 1, 5, 10, 60), schedule=schedule, warmup_steps=10)
    assert got == pytest.approx([0, 0.04, 0.2, 0.4, middle])
    if schedule != "constant":
        assert rates(110, (110,), schedule=schedule, warmup_steps=10) == pytest.approx([0], abs=1e-7)


@pytest.mark.parametrize("warmup", [-1, 10, 11])
def test_a_warm_up_that_leaves_nothing_is_refused(warmup):
    with pytest.raises(UserError, match=f"warmup_steps is {warmup} of 10"):
        create_schedule(optim(warmup_steps=warmup), 10)


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(UserError, match=r"optim\.schedule.* 'polly'.*did you mean poly"):
        create_schedule(optim(schedule="polly"), 10)
    with pytest.raises(UserError, match=r"optim\.name.* 'adamx'.*did you mean adam"):
        create_optimizer(optim(name="adamx"), optax.constant_schedule(0.1))


# ---------------------------------------------------------------------------------------------------------- optimizers

START = {
    "backbone": {"kernel": np.array([[1.0, -2.0], [0.5, 3.0]], np.float32), "scale": np.array([1.0, 2.0], np.float32)},
    "head": {"kernel": np.array([[0.3, 0.7], [-1.0, 2.0]], np.float32), "bias": np.array([0.1, -0.4], np.float32)},
}


def gradient(step: int):
    rng = np.random.default_rng(step)
    return jax.tree.map(lambda p: rng.normal(size=p.shape).astype(np.float32), START)


def ours(num_steps: int = 4, schedule=0.1, **changes):
    """The parameters after `num_steps`."""
    tx = create_optimizer(optim(**changes), optax.constant_schedule(schedule))
    params = jax.tree.map(jnp.asarray, START)
    state = tx.init(params)
    for step in range(num_steps):
        updates, state = tx.update(gradient(step), state, params)
        params = optax.apply_updates(params, updates)
    return params


def check_equal(params, due, rtol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6), params, due)


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
@pytest.mark.parametrize(
    ("name", "theirs", "options"),
    [("adam", "Adam", {}), ("adamw", "AdamW", {}), ("sgd", "SGD", {"momentum": 0.9})],
)
def test_steps_equal_pytorch(name, theirs, options, weight_decay):
    """Weight decay is L2 for Adam and SGD, decoupled for AdamW, and none for vectors."""
    torch = pytest.importorskip("torch")
    leaves, structure = jax.tree.flatten(START)
    params = [torch.tensor(leaf, requires_grad=True) for leaf in leaves]
    groups = [{"params": [p], "weight_decay": weight_decay if p.ndim > 1 else 0.0} for p in params]
    optimizer = getattr(torch.optim, theirs)(groups, lr=0.1, **options)
    for step in range(4):
        for param, grad in zip(params, jax.tree.leaves(gradient(step)), strict=True):
            param.grad = torch.from_numpy(grad)
        optimizer.step()
    due = jax.tree.unflatten(structure, [param.detach().numpy() for param in params])
    check_equal(ours(name=name, weight_decay=weight_decay, momentum=0.9), due)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_the_backbone_alone_moves_at_its_share_of_the_rate(name):
    fields = {"name": name, "weight_decay": 0.3, "num_steps": 1}
    full, scaled, frozen = (ours(**fields, backbone_lr_scale=scale) for scale in (1.0, 0.2, 0.0))
    moves = jax.tree.map(lambda after, before: after - before, full, START)
    check_equal(scaled["head"], full["head"])
    check_equal(frozen["head"], full["head"])
    check_equal(frozen["backbone"], START["backbone"])
    check_equal(scaled["backbone"], jax.tree.map(lambda p, move: p + 0.2 * move, START["backbone"], moves["backbone"]))
    assert all(np.abs(move).min() > 1e-3 for move in jax.tree.leaves(moves))


def test_clipping_shortens_the_gradient_and_not_the_decay():
    norm = float(np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(gradient(0)))))
    fields = {"name": "sgd", "num_steps": 1, "weight_decay": 0.3}
    decay = jax.tree.map(lambda p: 0.3 * p if p.ndim > 1 else 0 * p, START)
    due = jax.tree.map(lambda p, g, d: p - 0.1 * (g / norm * 0.5 + d), START, gradient(0), decay)
    check_equal(ours(**fields, clip_norm=0.5), due)
    check_equal(ours(**fields, clip_norm=2 * norm), ours(**fields))


def test_the_schedule_is_read_at_the_step():
    tx = create_optimizer(optim(name="sgd", momentum=0.0), optax.piecewise_constant_schedule(1.0, {2: 0.1}))
    params, sizes = {"head": jnp.zeros((2, 2))}, []
    state = tx.init(params)
    for _ in range(4):
        updates, state = tx.update({"head": jnp.ones((2, 2))}, state, params)
        sizes.append(float(-updates["head"][0, 0]))
    assert sizes == pytest.approx([1, 1, 0.1, 0.1])
