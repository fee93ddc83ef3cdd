"""The second stage of pix2pix's kind: a trained network is frozen, and a generator behind it learns to refine what it
predicts, from the labels and from a discriminator of patches (Isola et al., CVPR 2017).

The network trained here is `models.pix2pix.Refined`, and its state a `TrainState`: what is scored, saved and predicted
with are its variables as any network's. What serves training alone lies in `opt_state`: `refiner`, the refiner's
optimizer, and `discriminator`, that network's `params`, `batch_stats` and `opt_state`.

Runs on jax, flax, optax and numpy alone.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxseg.losses import cross_entropy
from jaxseg.models.pix2pix import PatchGAN, Refined
from jaxseg.state import TrainState, own_buffers
from jaxseg.step import check_statistics, normalise


def discriminator_optimizer(learning_rate: float) -> optax.GradientTransformation:
    """Adam with the moments 0.5 and 0.999 (Isola et al. 2017, section 3.3); there the rate is 2e-4."""
    return optax.adam(learning_rate, b1=0.5)


def create_refine_state(
    model: Refined,
    discriminator: PatchGAN,
    variables: Mapping[str, Any],
    tx: optax.GradientTransformation,
    discriminator_tx: optax.GradientTransformation,
    *,
    seed: int,
) -> TrainState:
    """The state before the first step.

    Args:
      variables: of `model`: those of a trained network at `first`, fresh ones at `refiner`. They are copied.
      tx: the refiner's optimizer.
      seed: of the discriminator.
    """

    def init(key):
        images, probs = jnp.zeros((1, 64, 64, model.in_channels)), jnp.zeros((1, 64, 64, model.num_classes))
        judge = discriminator.init(key, images, probs, train=False)
        judge["opt_state"] = discriminator_tx.init(judge["params"])
        return {"refiner": tx.init(variables["params"]["refiner"]), "discriminator": judge}

    variables = own_buffers(variables)
    # Compiled as one program: run operation by operation it takes many times longer.
    opt_state = jax.jit(init)(jax.random.key(seed))
    return TrainState(jnp.zeros((), jnp.int32), variables["params"], variables["batch_stats"], opt_state)


def create_refine_step(
    model: Refined,
    discriminator: PatchGAN,
    tx: optax.GradientTransformation,
    discriminator_tx: optax.GradientTransformation,
    mesh: Mesh,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    cross_entropy_weight: float = 100.0,
    class_weights: Sequence[float] | None = None,
    ignore_label: int = 255,
) -> Callable[[TrainState, Mapping[str, jax.Array]], tuple[TrainState, dict[str, jax.Array]]]:
    """`refine_step(state, batch) -> (state, losses)`, jitted, on batches as `step.create_train_step`; donates `state`.

    First the discriminator takes a step to tell true label maps (one-hot) from refined ones (probabilities); then the
    refiner takes one, to pass for true before it, with `cross_entropy_weight` times the cross entropy over valid pixels
    added. Pixels of `ignore_label` are 0 in all classes of both maps, so they tell nothing. The first stage stays what
    it is, bit for bit. Nothing is drawn at random: the step is a function of state and batch.

    Returns:
      The step. `losses` are float32 scalars: `loss`, the refiner's, which is `adversarial + cross_entropy_weight *
      cross_entropy`, those two, and `discriminator`, the mean over patches of half its loss on the true and half on the
      refined map.

    Raises:
      UserError: when the step is first called or traced, see `step.check_statistics`.
    """

    def refine_step(state, batch):
        images, labels = normalise(batch["images"], mean, std), batch["labels"].astype(jnp.int32)
        valid = labels != ignore_label
        true = jax.nn.one_hot(jnp.where(valid, labels, -1), model.num_classes)
        first = {"params": state.params["first"], "batch_stats": state.batch_stats.get("first", {})}
        probs = jax.nn.softmax(model.first.apply(first, images, train=False))

        def refine(params):
            variables = {"params": params, "batch_stats": state.batch_stats["refiner"]}
            with nn.intercept_methods(check_statistics):
                logits, updates = model.refiner.apply(variables, images, probs, train=True, mutable=["batch_stats"])
            return logits, updates["batch_stats"]

        def judge(params, batch_stats, maps):
            variables = {"params": params, "batch_stats": batch_stats}
            with nn.intercept_methods(check_statistics):
                patches, updates = discriminator.apply(variables, images, maps, train=True, mutable=["batch_stats"])
            return patches, updates["batch_stats"]

        def refined_map(logits):
            return jnp.where(valid[..., None], jax.nn.softmax(logits), 0.0)

        def discriminator_loss(params, batch_stats, refined):
            on_true, batch_stats = judge(params, batch_stats, true)
            on_refined, batch_stats = judge(params, batch_stats, refined)
            return 0.5 * (says_true(on_true) + says_false(on_refined)).mean(), batch_stats

        def refiner_loss(logits, params, batch_stats):
            patches, _ = judge(params, batch_stats, refined_map(logits))
            adversarial = says_true(patches).mean()
            pixels = cross_entropy(logits, labels, ignore_label=ignore_label, class_weights=class_weights)
            return adversarial + cross_entropy_weight * pixels, {"adversarial": adversarial, "cross_entropy": pixels}

        # The refiner runs once: its logits serve both losses.
        logits, pull_back, refiner_stats = jax.vjp(refine, state.params["refiner"], has_aux=True)

        other = state.opt_state["discriminator"]
        loss_and_grads = jax.value_and_grad(discriminator_loss, has_aux=True)
        (judged, other_stats), grads = loss_and_grads(other["params"], other["batch_stats"], refined_map(logits))
        updates, other_opt = discriminator_tx.update(grads, other["opt_state"], other["params"])
        other_params = optax.apply_updates(other["params"], updates)

        loss_and_grad = jax.value_and_grad(refiner_loss, has_aux=True)
        (loss, parts), grad = loss_and_grad(logits, other_params, other_stats)
        (grads,) = pull_back(grad)
        updates, refiner_opt = tx.update(grads, state.opt_state["refiner"], state.params["refiner"])
        refiner_params = optax.apply_updates(state.params["refiner"], updates)

        opt_state = {
            "refiner": refiner_opt,
            "discriminator": {"params": other_params, "batch_stats": other_stats, "opt_state": other_opt},
        }
        state = TrainState(
            state.step + 1,
            {**state.params, "refiner": refiner_params},
            {**state.batch_stats, "refiner": refiner_stats},
            opt_state,
        )
        return state, {"loss": loss, "discriminator": judged, **parts}

    whole, by_row = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
    return jax.jit(refine_step, in_shardings=(whole, by_row), out_shardings=whole, donate_argnums=0)


def says_true(patches: jax.Array) -> jax.Array:
    """What it costs the discriminator, a patch, to have said `patches` (logits) of a true map: `-log sigmoid`."""
    return jax.nn.softplus(-patches)


def says_false(patches: jax.Array) -> jax.Array:
    """The same of a map that is not: `-log(1 - sigmoid)`."""
    return jax.nn.softplus(patches)
