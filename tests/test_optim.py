"""Schedules by hand, optimizers against PyTorch's, and which parameters they touch."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import default
from jaxseg.errors import UserError
from jaxseg.optim import create_optimizer, create_schedule, learning_rate, note_evaluation


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


def ours(num_steps: int = 4, schedule=0.1, *, gradient=gradient, **changes):
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


def test_a_frozen_backbone_has_no_part_in_anything():
    """No move, no decay, no state, and its gradients don't shorten those of the rest."""
    fields = {"name": "adam", "weight_decay": 0.3, "clip_norm": 0.5}
    frozen = ours(**fields, freeze_backbone=True)
    jax.tree.map(np.testing.assert_array_equal, frozen["backbone"], START["backbone"])

    def without_backbone(step):
        return {**gradient(step), "backbone": jax.tree.map(np.zeros_like, START["backbone"])}

    check_equal(frozen["head"], ours(**fields, gradient=without_backbone)["head"])
    assert np.abs(frozen["head"]["kernel"] - START["head"]["kernel"]).max() > 1e-2
    tx = create_optimizer(optim(**fields, freeze_backbone=True), optax.constant_schedule(0.1))
    shapes = [leaf.shape for leaf in jax.tree.leaves(tx.init(START)) if leaf.ndim]
    assert sorted(shapes) == sorted(2 * [leaf.shape for leaf in jax.tree.leaves(START["head"])])


# ------------------------------------------------------------------------------------------------------------- plateau


def rates_after(values, **changes) -> list[float]:
    """The learning rate after each of these evaluations, which must be that of the next step too."""
    config = optim(name="sgd", momentum=0.0, schedule="plateau", learning_rate=0.1, **changes)
    schedule = create_schedule(config, 100)
    tx = create_optimizer(config, schedule)
    params = {"head": jnp.zeros(3)}
    state, rates = tx.init(params), []
    for step, value in enumerate(values):
        state = jax.jit(lambda state, value: note_evaluation(config, state, value))(state, value)
        updates, state = tx.update({"head": jnp.ones(3)}, state, params)
        rates.append(learning_rate(schedule, state, step))
        assert -updates["head"] == pytest.approx([rates[-1]] * 3, rel=1e-6)
    return rates


@pytest.mark.parametrize(
    ("values", "due"),
    [
        # Two evaluations that are not better: the rate falls, and the count begins anew.
        ([0.5, 0.4, 0.4, 0.4, 0.45, 0.41, 0.3], [0.1, 0.1, 0.1, 0.02, 0.02, 0.004, 0.004]),
        # Better by less than 1e-4 is not better; scores below 0 are scores too.
        ([-0.5, -0.50005, -0.50008, -0.502], [0.1, 0.1, 0.02, 0.02]),
        ([float("nan"), float("nan")], [0.1, 0.02]),
        # It never goes below the floor.
        ([1.0] * 8, [0.1, 0.1, 0.02, 0.02, 0.004, 0.004, 0.003, 0.003]),
    ],
)
def test_the_rate_falls_on_a_plateau(values, due):
    assert rates_after(values, plateau_factor=0.2, plateau_patience=2, plateau_floor=0.003) == pytest.approx(due)


def test_a_plateau_begins_after_the_warm_up():
    config = optim(schedule="plateau", warmup_steps=10, learning_rate=0.1)
    state = create_optimizer(config, create_schedule(config, 100)).init({"head": jnp.zeros(3)})
    assert learning_rate(create_schedule(config, 100), state, 5) == pytest.approx(0.05)
    assert learning_rate(create_schedule(config, 100), state, 99) == pytest.approx(0.1)


def test_evaluations_change_nothing_with_another_schedule():
    config = optim(schedule="poly")
    state = create_optimizer(config, create_schedule(config, 100)).init({"head": jnp.zeros(3)})
    for _ in range(9):
        noted = note_evaluation(config, state, 1.0)
    jax.tree.map(np.testing.assert_array_equal, noted, state)


def test_a_plateau_lowers_the_rate_of_a_network_whose_backbone_is_frozen():
    config = optim(schedule="plateau", plateau_patience=1, freeze_backbone=True, learning_rate=0.1)
    schedule = create_schedule(config, 100)
    state = create_optimizer(config, schedule).init(START)
    for _ in range(2):
        state = note_evaluation(config, state, 1.0)
    assert learning_rate(schedule, state, 0) == pytest.approx(0.01)
