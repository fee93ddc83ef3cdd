"""One device or two: the same step, the same counts."""

import contextlib
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from configs import default
from jaxseg.errors import UserError
from jaxseg.losses import total_loss
from jaxseg.models import create_model
from jaxseg.models.deeplab import DeepLabV3Plus
from jaxseg.models.layers import ConvBN, DepthwiseConvBN, FullSize, relu6
from jaxseg.optim import create_optimizer
from jaxseg.state import abstract_variables, create_state, init_variables
from jaxseg.step import (
    check_batch_size,
    create_eval_step,
    create_mesh,
    create_train_step,
    fill_colour,
    gather,
    normalise,
    put_batch,
    remat_blocks,
    replicate,
    split_largest_axis,
    split_state,
)

SCALE = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def make_batch(size: int = 4, num_classes: int = 3, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, (size, 64, 64)).astype(np.uint8)
    # Another share of ignored pixels in each image: a mean of means over devices would be another loss.
    for i in range(size):
        labels[i, : 12 * i] = 255
    return {"images": rng.integers(0, 256, (size, 64, 64, 3), dtype=np.uint8), "labels": labels}


def devices(count: int):
    found = jax.devices("cpu")
    assert len(found) >= 2
    return found[:count]


class Backbone(nn.Module):
    """Five features by layers of every kind; little to compile."""

    output_stride: int = 16
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images, *, train):
        half = ConvBN(8, 3, 2, dtype=self.dtype)(images, train=train)
        quarter = DepthwiseConvBN(3, 2, activation=relu6, dtype=self.dtype)(half, train=train)
        last = ConvBN(16, 5, 4, dtype=self.dtype)(nn.max_pool(quarter, (3, 3)), train=train)
        return half, quarter, last, last, last


def small_network(dtype=jnp.float32) -> DeepLabV3Plus:
    return DeepLabV3Plus(Backbone(dtype=dtype), 3, rates=(1, 2, 3), features=8, dtype=dtype)


@pytest.fixture(scope="module")
def runs():
    """Two training steps and one of evaluation on one device and on two, from the same start."""
    model = small_network()
    tx = optax.sgd(0.01, momentum=0.9)
    start = jax.tree.map(np.asarray, create_state(init_variables(model, 0), tx))
    results = []
    for count in (1, 2):
        mesh = create_mesh(devices(count))
        state = replicate(start, mesh)
        out = create_eval_step(model, mesh, **SCALE)(state.variables, put_batch(make_batch(), mesh))
        scored = {key: np.asarray(value) for key, value in out.items()}
        step, losses = create_train_step(model, tx, mesh, **SCALE, seed=3, label_smoothing=0.1), []
        for i in range(2):
            state, metrics = step(state, put_batch(make_batch(seed=i), mesh))
            losses.append(float(metrics["loss"]))
        results.append((start, state, losses, scored))
    return results


def difference(a, b) -> float:
    """The largest between two trees, over the value where that is above 1."""

    def gap(x, y):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        return (np.abs(x - y) / np.maximum(np.abs(x), 1)).max()

    return max(jax.tree.leaves(jax.tree.map(gap, a, b)))


def test_two_devices_take_the_step_of_one(runs):
    (start, one, losses_one, _), (_, two, losses_two, _) = runs
    assert losses_two == pytest.approx(losses_one, abs=1e-5)
    assert difference(one.params, two.params) < 1e-5
    assert difference(one.batch_stats, two.batch_stats) < 1e-5
    # Not because nothing moved.
    assert difference(one.params, start.params) > 1e-3
    assert difference(one.batch_stats, start.batch_stats) > 1e-2
    assert int(one.step) == int(two.step) == 2


def test_the_state_is_whole_on_both_devices(runs):
    _, (_, state, *_) = runs
    for leaf in jax.tree.leaves(state):
        assert leaf.sharding.is_fully_replicated
        assert len(leaf.sharding.device_set) == 2


@pytest.fixture(scope="module")
def split_run(runs):
    """The two steps of `runs` with the state split over the devices."""
    start, *_ = runs[0]
    tx, mesh = optax.sgd(0.01, momentum=0.9), create_mesh(devices(2))
    state = split_state(start, mesh)
    step = create_train_step(small_network(), tx, mesh, **SCALE, seed=3, label_smoothing=0.1, fsdp=True)
    losses = []
    for i in range(2):
        state, metrics = step(state, put_batch(make_batch(seed=i), mesh))
        losses.append(float(metrics["loss"]))
    return state, losses, mesh


def test_a_split_state_takes_the_same_steps(runs, split_run):
    (_, one, losses_one, _), (state, losses, _) = runs[0], split_run
    assert losses == pytest.approx(losses_one, abs=1e-5)
    assert difference(one.params, state.params) < 1e-5
    assert difference(one.batch_stats, state.batch_stats) < 1e-5
    assert difference(one.opt_state, state.opt_state) < 1e-4


def test_each_device_keeps_its_part_of_a_split_state(split_run):
    state, _, mesh = split_run

    def here(tree) -> int:
        return sum(x.addressable_shards[0].data.size for x in jax.tree.leaves(tree))

    kernels = [x for x in jax.tree.leaves((state.params, state.opt_state)) if x.size > 1024]
    assert kernels and here(kernels) == sum(x.size for x in kernels) // 2
    assert all(x.sharding.is_fully_replicated for x in jax.tree.leaves(state.batch_stats))
    whole = gather(state.variables, mesh)
    assert all(x.sharding.is_fully_replicated for x in jax.tree.leaves(whole))
    assert gather(whole, mesh) is whole


@pytest.mark.parametrize(
    ("shape", "due"),
    [((3, 3, 64, 128), 3), ((3, 3, 128, 64), 2), ((4096,), 0), ((64,), None), ((3, 3, 127, 33), None), ((), None)],
)
def test_the_largest_axis_that_the_devices_divide_is_split(shape, due):
    spec = split_largest_axis(jax.ShapeDtypeStruct(shape, jnp.float32), create_mesh(devices(2))).spec
    assert [axis for axis, name in enumerate(spec) if name == "data"] == ([] if due is None else [due])


def test_two_devices_count_as_one(runs):
    (*_, one), (*_, two) = runs
    np.testing.assert_array_equal(one["counts"], two["counts"])
    np.testing.assert_array_equal(one["preds"], two["preds"])
    assert one["loss_sum"] == pytest.approx(two["loss_sum"], rel=1e-6)


def test_evaluation_counts_every_valid_pixel_of_the_predictions_it_gives(runs):
    out, batch = runs[0][-1], make_batch()
    valid = batch["labels"] != 255
    due = np.zeros((3, 3), int)
    np.add.at(due, (batch["labels"][valid], out["preds"][valid]), 1)
    np.testing.assert_array_equal(out["counts"], due)
    assert out["preds"].dtype == np.uint8
    assert np.isfinite(out["loss_sum"])


def test_bfloat16_trains_with_finite_numbers_and_float32_state():
    model = small_network(jnp.bfloat16)
    tx, mesh = optax.adam(1e-3), create_mesh(devices(1))
    state = replicate(create_state(init_variables(model, 0), tx), mesh)
    step = create_train_step(model, tx, mesh, **SCALE, seed=0)
    losses = []
    for _ in range(2):
        state, metrics = step(state, put_batch(make_batch(), mesh))
        losses.append(float(metrics["loss"]))
    assert np.isfinite(losses).all()
    assert losses[0] != losses[1]
    leaves = jax.tree.leaves((state.params, state.batch_stats))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype(jnp.float32)}
    assert all(np.isfinite(leaf).all() for leaf in leaves)


class Dropped(nn.Module):
    """Logits that are nothing but dropout."""

    @nn.compact
    def __call__(self, images, *, train):
        self.variable("batch_stats", "none", jnp.zeros, ())
        kernel = self.param("kernel", nn.initializers.ones, (3, 2))
        return nn.Dropout(0.5, deterministic=not train)(jnp.ones_like(images)) @ (kernel * jnp.array([1.0, -1.0]))


def test_dropout_is_drawn_from_the_seed_and_the_step():
    model, tx, mesh = Dropped(), optax.sgd(0.0), create_mesh(devices(1))
    variables = jax.tree.map(np.asarray, init_variables(model, 0))
    batch = put_batch(make_batch(num_classes=2), mesh)

    def loss_at(number: int, seed: int) -> float:
        state = create_state(variables, tx).replace(step=jnp.asarray(number))
        return float(create_train_step(model, tx, mesh, **SCALE, seed=seed)(replicate(state, mesh), batch)[1]["loss"])

    assert loss_at(5, 0) == loss_at(5, 0)
    assert len({loss_at(5, 0), loss_at(6, 0), loss_at(5, 1)}) == 3


def test_the_weight_of_the_loss_scales_it():
    model, tx, mesh = Dropped(), optax.sgd(0.0), create_mesh(devices(1))
    variables = jax.tree.map(np.asarray, init_variables(model, 0))

    def loss(**options):
        step = create_train_step(model, tx, mesh, **SCALE, seed=0, **options)
        return float(
            step(replicate(create_state(variables, tx), mesh), put_batch(make_batch(num_classes=2), mesh))[1]["loss"]
        )

    assert loss(losses={"cross_entropy": 0.25}) == pytest.approx(0.25 * loss())
    assert loss(class_weights=(2.0, 0.5)) != pytest.approx(loss(), rel=1e-4)


class TwoHeads(nn.Module):
    """Logits by a 1x1 convolution, and auxiliary ones by another; no BatchNorm, no dropout."""

    @nn.compact
    def __call__(self, images, *, train):
        aux_logits = nn.Dense(3, name="auxiliary")(images)
        if not self.is_initializing():
            self.sow("aux", "logits", aux_logits)
        return nn.Dense(3, name="classifier")(images)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"auxiliary_weight": 0.0},
        {"auxiliary_weight": 2.0, "label_smoothing": 0.1},
        {"losses": {"cross_entropy": 0.0, "dice": 0.5, "lovasz": 2.0}},
    ],
)
def test_auxiliary_logits_add_their_loss_times_its_weight(options):
    model, tx, mesh = TwoHeads(), optax.sgd(1.0), create_mesh(devices(2))
    variables, batch = jax.tree.map(np.asarray, init_variables(model, 0)), make_batch()
    images, labels = normalise(batch["images"], **SCALE), batch["labels"].astype(np.int32)

    def loss(head: str):
        def of(params):
            logits = images @ params["kernel"] + params["bias"]
            losses = options.get("losses", {"cross_entropy": 1.0})
            return total_loss(logits, labels, losses, label_smoothing=options.get("label_smoothing", 0.0))

        return jax.value_and_grad(of)(variables["params"][head])

    weight = options.get("auxiliary_weight", 0.4)
    (main, main_grads), (aux, aux_grads) = loss("classifier"), loss("auxiliary")
    assert abs(main - aux) > 1e-2
    step = create_train_step(model, tx, mesh, **SCALE, seed=0, **options)
    state, metrics = step(replicate(create_state(variables, tx), mesh), put_batch(batch, mesh))
    assert float(metrics["loss"]) == pytest.approx(float(main + weight * aux), rel=1e-5)
    moved = jax.tree.map(lambda before, after: before - after, variables["params"], state.params)
    due = {"classifier": main_grads, "auxiliary": jax.tree.map(lambda grad: weight * grad, aux_grads)}
    assert difference(moved, due) < 1e-5


class Coarse(nn.Module):
    """Logits of a quarter of the size, enlarged, and auxiliary ones likewise."""

    @nn.compact
    def __call__(self, images, *, train):
        full_size = FullSize(images.shape[1:3], align_corners=False)
        x = nn.relu(nn.Conv(8, (4, 4), 4)(images))
        aux_logits = full_size(nn.Dense(21, name="auxiliary")(x))
        if not self.is_initializing():
            self.sow("aux", "logits", aux_logits)
        return full_size(nn.Dense(21, name="classifier")(x))


@pytest.mark.parametrize(("count", "accumulate"), [(1, 1), (2, 1), (2, 2)])
def test_logits_enlarged_an_image_at_a_time_give_the_same_step_in_less_memory(count, accumulate, monkeypatch):
    model, tx, mesh = Coarse(), optax.sgd(1.0), create_mesh(devices(count))
    start = jax.tree.map(np.asarray, create_state(init_variables(model, 0), tx))
    batch = put_batch(make_batch(8 * count, num_classes=21), mesh)
    settings = {"class_weights": np.linspace(0.5, 2, 21), "label_smoothing": 0.1, "losses": {"cross_entropy": 0.7}}

    def step():
        train_step = create_train_step(model, tx, mesh, **SCALE, seed=0, accumulate=accumulate, **settings)
        compiled = train_step.lower(replicate(start, mesh), batch).compile()
        # No image moves to another device.
        assert not re.search("all-gather|all-to-all|collective-permute", compiled.as_text())
        return *compiled(replicate(start, mesh), batch), compiled.memory_analysis().temp_size_in_bytes

    state, metrics, memory = step()
    monkeypatch.setattr("jaxseg.step._LARGE", 0)
    by_image, by_image_metrics, less = step()
    assert float(by_image_metrics["loss"]) == pytest.approx(float(metrics["loss"]), rel=1e-6)
    assert difference(by_image.params, state.params) < 1e-5
    # Logits of eight images on each device, of both heads.
    assert memory - less > 2 * 7 * 64 * 64 * 21 * 4


def test_losses_other_than_cross_entropy_see_all_logits(monkeypatch):
    monkeypatch.setattr("jaxseg.step._LARGE", 0)
    model, tx, mesh, batch = Coarse(), optax.sgd(1.0), create_mesh(devices(1)), make_batch(num_classes=21)
    variables = jax.tree.map(np.asarray, init_variables(model, 0))
    losses = {"cross_entropy": 1.0, "dice": 1.0}
    step = create_train_step(model, tx, mesh, **SCALE, seed=0, losses=losses, auxiliary_weight=0.0)
    _, metrics = step(replicate(create_state(variables, tx), mesh), put_batch(batch, mesh))
    logits = model.apply(variables, normalise(batch["images"], **SCALE), train=False)
    due = total_loss(logits, batch["labels"].astype(np.int32), losses)
    assert float(metrics["loss"]) == pytest.approx(float(due), rel=1e-6)


def test_a_network_without_batch_norm_trains_and_is_scored():
    model, tx, mesh = TwoHeads(), optax.adam(1e-2), create_mesh(devices(2))
    state = replicate(create_state(init_variables(model, 0), tx), mesh)
    step, batch = create_train_step(model, tx, mesh, **SCALE, seed=0), put_batch(make_batch(), mesh)
    losses = []
    for _ in range(5):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert state.batch_stats == {}
    assert losses == sorted(losses, reverse=True)
    out = create_eval_step(model, mesh, **SCALE)(state.variables, batch)
    assert np.asarray(out["counts"]).sum() == (make_batch()["labels"] != 255).sum()


# ------------------------------------------------------------------------------------------------------ frozen backbone


class NormedBackbone(nn.Module):
    """A convolution and BatchNorm; `fixed`: in evaluation mode for good."""

    fixed: bool = False

    @nn.compact
    def __call__(self, images, *, train):
        x = nn.Conv(8, (4, 4), strides=4)(images)
        return nn.relu(nn.BatchNorm(self.fixed or not train, momentum=0.9)(x))


class OnBackbone(nn.Module):
    backbone: nn.Module

    @nn.compact
    def __call__(self, images, *, train):
        x = nn.BatchNorm(not train, momentum=0.9)(self.backbone(images, train=train))
        return jax.image.resize(nn.Dense(3)(x), (*images.shape[:3], 3), "bilinear")


def test_a_frozen_backbone_stays_as_it_is_with_its_statistics_and_the_rest_learns():
    model, mesh, batch = OnBackbone(NormedBackbone()), create_mesh(devices(2)), make_batch()
    optim = default.get_config().optim
    optim.update({"name": "adamw", "weight_decay": 0.1, "freeze_backbone": True})
    tx = create_optimizer(optim, optax.constant_schedule(0.01))
    start = jax.tree.map(np.asarray, create_state(init_variables(model, 0), tx))

    def step(model, freeze_backbone):
        train_step = create_train_step(model, tx, mesh, **SCALE, seed=0, freeze_backbone=freeze_backbone)
        state, metrics = train_step(replicate(start, mesh), put_batch(batch, mesh))
        return state, float(metrics["loss"])

    state, loss = step(model, True)
    for kind in ("params", "batch_stats"):
        before, after = dict(getattr(start, kind)), dict(getattr(state, kind))
        assert difference(before.pop("backbone"), after.pop("backbone")) == 0
        assert difference(before, after) > 1e-3
    fixed, fixed_loss = step(OnBackbone(NormedBackbone(fixed=True)), False)
    assert loss == pytest.approx(fixed_loss, rel=1e-6)
    assert difference(state.params, fixed.params) < 1e-6
    assert abs(loss - step(model, False)[1]) > 1e-4


# ---------------------------------------------------------------------------------------------------- slices of a batch


class Plain(nn.Module):
    """Every pixel by itself, with BatchNorm or without; auxiliary logits on the way."""

    batch_norm: bool = False
    features: int = 8

    @nn.compact
    def __call__(self, images, *, train):
        x = nn.relu(nn.Dense(self.features)(images))
        if self.batch_norm:
            x = nn.BatchNorm(not train, momentum=0.9, name="bn")(x)
        aux_logits = nn.Dense(3, name="auxiliary")(x)
        if not self.is_initializing():
            self.sow("aux", "logits", aux_logits)
        return nn.Dense(3, name="classifier")(nn.relu(nn.Dense(self.features)(x)))


@pytest.mark.parametrize("count", [1, 2])
def test_the_step_of_a_batch_in_slices_is_that_of_the_whole(count):
    """For a loss that is no mean over pixels too; every image has another number of valid ones."""
    model, tx, mesh = Plain(), optax.sgd(1.0), create_mesh(devices(count))
    start = jax.tree.map(np.asarray, create_state(init_variables(model, 0), tx))
    losses = {"cross_entropy": 1.0, "dice": 1.0}
    results = []
    for accumulate in (1, 2):
        step = create_train_step(model, tx, mesh, **SCALE, seed=0, losses=losses, accumulate=accumulate)
        state, metrics = step(replicate(start, mesh), put_batch(make_batch(), mesh))
        results.append((state.params, float(metrics["loss"])))
    (params, loss), (sliced, sliced_loss) = results
    assert sliced_loss == pytest.approx(loss, rel=1e-6)
    assert difference(sliced, params) < 1e-5
    assert difference(params, start.params) > 1e-2


def test_a_batch_in_slices_takes_less_memory():
    model, tx, mesh = Plain(features=64), optax.sgd(1.0), create_mesh(devices(1))
    state = replicate(create_state(init_variables(model, 0), tx), mesh)
    batch = put_batch(make_batch(16), mesh)

    def peak(accumulate: int) -> int:
        step = create_train_step(model, tx, mesh, **SCALE, seed=0, accumulate=accumulate)
        return step.lower(state, batch).compile().memory_analysis().temp_size_in_bytes

    assert peak(8) < peak(1) / 2


def test_blocks_computed_twice_give_the_same_step(runs):
    (start, plain, losses, _), _ = runs
    mesh, tx = create_mesh(devices(1)), optax.sgd(0.01, momentum=0.9)
    step = create_train_step(small_network(), tx, mesh, **SCALE, seed=3, label_smoothing=0.1, remat=True)
    state, found = replicate(start, mesh), []
    for i in range(2):
        state, metrics = step(state, put_batch(make_batch(seed=i), mesh))
        found.append(float(metrics["loss"]))
    assert found == pytest.approx(losses, abs=1e-5)
    assert difference(state.params, plain.params) < 1e-5
    assert difference(state.batch_stats, plain.batch_stats) < 1e-5


@pytest.mark.parametrize(
    ("family", "backbone", "share"),
    [
        ("unet", "resnet18", 0.45),
        ("segnet", "vgg16_bn", 0.45),
        ("deeplabv3plus", "mobilenet_v2", 0.2),
        ("pspnet", "resnet50", 0.3),
        ("fpn", "mobilenet_v3_large", 0.3),
        ("deeplabv3plus", "xception65", 0.3),
    ],
)
def test_blocks_computed_twice_keep_less(family, backbone, share):
    """What a gradient keeps of the way forward is what its second half is a function of."""
    model = create_model(family, backbone=backbone, num_classes=3)
    variables = abstract_variables(model)
    images = jax.ShapeDtypeStruct((2, 128, 128, 3), jnp.float32)
    weights = sum(leaf.size for leaf in jax.tree.leaves(variables))

    def kept(context) -> int:
        def backward(variables, images):
            def loss(params):
                with context():
                    logits, _ = model.apply(
                        {**variables, "params": params},
                        images,
                        train=True,
                        mutable=["batch_stats", "aux"],
                        rngs={"dropout": jax.random.key(0)},
                    )
                return logits.sum()

            return jax.vjp(loss, variables["params"])[1]

        return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(backward, variables, images))) - weights

    assert 0 < kept(remat_blocks) < share * kept(contextlib.nullcontext)


def test_batch_norm_sees_a_slice_at_a_time_and_its_statistics_take_as_many_steps():
    model, tx, mesh = Plain(batch_norm=True), optax.sgd(1.0), create_mesh(devices(2))
    start = replicate(create_state(init_variables(model, 0), tx), mesh)
    images = normalise(make_batch()["images"], **SCALE)
    stats = jax.tree.map(np.asarray, start.batch_stats)
    params = jax.tree.map(np.asarray, start.params)
    for rows in (images[0::2], images[1::2]):
        variables = {"params": params, "batch_stats": stats}
        _, updates = model.apply(variables, rows, train=True, mutable=["batch_stats", "aux"])
        stats = updates["batch_stats"]
    step = create_train_step(model, tx, mesh, **SCALE, seed=0, accumulate=2)
    state, _ = step(start, put_batch(make_batch(), mesh))
    assert difference(state.batch_stats, stats) < 1e-5


def test_every_slice_draws_its_own_dropout():
    model, tx, mesh = Dropped(), optax.sgd(0.0), create_mesh(devices(1))
    variables = jax.tree.map(np.asarray, init_variables(model, 0))
    step = create_train_step(model, tx, mesh, **SCALE, seed=0, accumulate=2)

    def loss_of(image: int) -> float:
        """Where that of the two images has labels; what is drawn is all that they differ in."""
        batch = {key: value[[0, 0]].copy() for key, value in make_batch(num_classes=2).items()}
        batch["labels"][1 - image] = 255
        return float(step(replicate(create_state(variables, tx), mesh), put_batch(batch, mesh))[1]["loss"])

    assert loss_of(0) != loss_of(1)


# ------------------------------------------------------------------------------------------------------ moving averages


def test_moving_averages_are_of_parameters_and_statistics_and_are_what_is_scored():
    model, tx, mesh = Plain(batch_norm=True), optax.sgd(0.1), create_mesh(devices(2))
    state = replicate(create_state(init_variables(model, 0), tx, ema=True), mesh)
    due = jax.tree.map(np.asarray, state.variables)
    step = create_train_step(model, tx, mesh, **SCALE, seed=0, ema_decay=0.15)
    for decay in (0.1, 0.15, 0.15):  # (1 + t) / (10 + t) at t = 0, and then the one that is set
        state, _ = step(state, put_batch(make_batch(), mesh))
        due = jax.tree.map(lambda a, x, d=decay: d * a + (1 - d) * np.asarray(x), due, state.variables)
    assert difference(state.ema, due) < 1e-6
    assert difference(state.ema["params"], state.params) > 1e-4
    assert difference(state.ema["batch_stats"], state.batch_stats) > 1e-4
    assert state.eval_variables is state.ema
    assert state.replace(ema=None).eval_variables == state.variables


# -------------------------------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize(("size", "count", "near"), [(10, 4, "8 or 12"), (3, 4, "4"), (9, 2, "8 or 10")])
def test_a_batch_that_the_devices_do_not_divide_is_refused_with_the_nearest_sizes(size, count, near):
    with pytest.raises(UserError, match=f"^data.batch_size is {size}, which {count} devices .*: take {near}$"):
        check_batch_size(size, count)
    with pytest.raises(UserError, match=r"^eval is"):
        check_batch_size(size, count, "eval")


def test_slices_that_do_not_divide_a_batch_are_refused():
    message = "^data.batch_size is 6, which 2 devices times train.accumulate 2 don't divide: take 4 or 8$"
    with pytest.raises(UserError, match=message):
        check_batch_size(6, 2, accumulate=2)
    assert check_batch_size(8, 2, accumulate=2) is None


@pytest.mark.parametrize(("size", "count"), [(8, 4), (4, 4), (3, 1)])
def test_a_batch_that_the_devices_divide_is_taken(size, count):
    assert check_batch_size(size, count) is None


def test_a_batch_goes_to_the_devices_by_row_and_leaves_what_is_no_array():
    mesh, batch = create_mesh(devices(2)), make_batch()
    put = put_batch({**batch, "ids": ["a", "b", "c", "d"]}, mesh)
    assert put.keys() == {"images", "labels"}
    assert put["images"].dtype == jnp.uint8
    halves = sorted(put["images"].addressable_shards, key=lambda shard: shard.index[0].start)
    np.testing.assert_array_equal(np.concatenate([shard.data for shard in halves]), batch["images"])
    assert [shard.data.shape[0] for shard in halves] == [2, 2]


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("given", ["one device", "all devices", "another device", "numpy"])
@pytest.mark.parametrize("place", [replicate, split_state])
def test_a_step_takes_no_buffer_of_what_its_state_was_made_of(place, given, count):
    """The step donates its state: what it was made from must live on."""
    mesh, values = create_mesh(devices(count)), np.arange(4096.0, dtype=np.float32)
    variables = {
        "one device": lambda: jax.device_put(values, devices(1)[0]),
        "another device": lambda: jax.device_put(values, devices(2)[1]),
        "all devices": lambda: jax.device_put(values, NamedSharding(mesh, P())),
        "numpy": values.copy,
    }[given]
    variables = {"params": {"kernel": variables()}, "batch_stats": {"bn": {"mean": variables()}}}
    step = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    state = create_state(variables, optax.adam(1e-3), ema=True)
    placed = place(state, mesh)
    jax.block_until_ready(step(placed))
    assert placed.params["kernel"].is_deleted()
    jax.block_until_ready(step(state))  # it is all there still
    for x in jax.tree.leaves(variables):
        np.testing.assert_array_equal(x, values)


# ------------------------------------------------------------------------------------------ norms over a single value


def trace(model, size, *, accumulate=1, count=1, freeze_backbone=False):
    """Traces a training step of a batch of `size` [B, H, W] on `count` devices; nothing is computed."""
    mesh, tx = create_mesh(devices(count)), optax.sgd(0.1)
    step = create_train_step(model, tx, mesh, **SCALE, seed=0, accumulate=accumulate, freeze_backbone=freeze_backbone)
    state = jax.eval_shape(lambda variables: create_state(variables, tx), abstract_variables(model))
    batch = {"images": jax.ShapeDtypeStruct((*size, 3), jnp.uint8), "labels": jax.ShapeDtypeStruct(size, jnp.uint8)}
    return step.eval_shape(state, batch)


@pytest.mark.parametrize(
    ("family", "options", "size", "layer"),
    [
        ("deeplabv3plus", {}, (1, 64, 64), "aspp/pooling/bn"),
        ("deeplabv3", {"rates": (1,)}, (1, 64, 64), "aspp/pooling/bn"),
        ("pspnet", {"norm_one_window": True}, (1, 64, 64), "pyramid/bins_1/bn"),
        ("unet", {}, (1, 32, 32), "backbone/layer4_0/"),
        ("fpn", {"features": 32, "norm": "batch"}, (1, 32, 32), "backbone/layer4_0/"),
    ],
)
def test_a_norm_over_one_value_is_refused_when_the_step_is_traced(family, options, size, layer):
    model = create_model(family, backbone="resnet18", num_classes=2, **options)
    with pytest.raises(UserError, match=f"norm {layer}.*data.batch_size"):
        trace(model, size)


def test_a_slice_of_one_image_is_refused_and_one_of_two_is_not():
    for size, slices, count in ((2, 2, 1), (4, 4, 2)):
        with pytest.raises(UserError, match=r"norm aspp/pooling/bn.*train.accumulate"):
            trace(small_network(), (size, 64, 64), accumulate=slices, count=count)
    # Statistics are of the images of all devices.
    for size, slices, count in ((2, 1, 1), (2, 1, 2), (4, 2, 2)):
        trace(small_network(), (size, 64, 64), accumulate=slices, count=count)


def test_norms_that_keep_their_statistics_or_see_several_pixels_take_a_batch_of_one():
    model = create_model("unet", backbone="resnet18", num_classes=2)
    trace(model, (1, 64, 64))
    with pytest.raises(UserError, match="norm "):
        trace(model, (1, 32, 32))
    trace(create_model("pspnet", backbone="resnet18", num_classes=2), (1, 64, 64))
    trace(create_model("fcn", backbone="vgg16", num_classes=2, width=8), (1, 32, 32), freeze_backbone=True)


def test_a_group_of_one_value_is_refused():
    model = create_model("fpn", backbone="vgg16", num_classes=2, features=32)
    with pytest.raises(UserError, match="norm level_5_to_4/norm"):
        trace(model, (4, 32, 32))
    trace(model, (4, 64, 64))


def test_normalise_by_hand():
    images = np.array([[[[0, 51, 255]]]], np.uint8)
    result = normalise(jnp.asarray(images), (0.5, 0.2, 0.0), (0.25, 0.5, 2.0))
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, [[[[-2.0, 0.0, 0.5]]]], atol=1e-6)


def test_the_fill_colour_is_the_one_nearest_to_0():
    mean, std = SCALE["mean"], SCALE["std"]
    colour = fill_colour(mean)
    assert colour == (124, 116, 104)
    # Half a step of a byte is as near as a byte comes.
    values = np.asarray(normalise(np.array([colour], np.uint8), mean, std))
    assert np.abs(values * std).max() <= 0.5 / 255 + 1e-6
