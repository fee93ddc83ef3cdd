"""Optimizers and schedules, by name, from the `optim` part of a config."""

from typing import Any

import jax
import optax
import optax.contrib

from jaxseg.errors import UserError
from jaxseg.lookup import lookup


def constant(learning_rate: float, num_steps: int, power: float) -> optax.Schedule:
    """The same rate at every step."""
    return optax.constant_schedule(learning_rate)


def poly(learning_rate: float, num_steps: int, power: float) -> optax.Schedule:
    """`learning_rate * (1 - step / num_steps) ** power` (DeepLab, Chen et al. 2017, section 4.1)."""
    return optax.polynomial_schedule(learning_rate, 0.0, power, num_steps)


def cosine(learning_rate: float, num_steps: int, power: float) -> optax.Schedule:
    """Half a cosine from `learning_rate` to 0 (SGDR, Loshchilov & Hutter 2017, section 3)."""
    return optax.cosine_decay_schedule(learning_rate, num_steps)


# Plateau is constant by the step; the evaluations lower it, see `note_evaluation`.
SCHEDULES = {"constant": constant, "poly": poly, "cosine": cosine, "plateau": constant}


def adam(optim: Any) -> list[optax.GradientTransformation]:
    """Adam (Kingma & Ba 2015); weight decay is L2, added to the gradient as PyTorch's `Adam` does."""
    return [_decay(optim), optax.scale_by_adam()]


def adamw(optim: Any) -> list[optax.GradientTransformation]:
    """AdamW (Loshchilov & Hutter 2019): weight decay beside the adaptive step, scaled by the rate."""
    return [optax.scale_by_adam(), _decay(optim)]


def sgd(optim: Any) -> list[optax.GradientTransformation]:
    """SGD with heavy-ball momentum and L2 weight decay, as PyTorch's `SGD`."""
    return [_decay(optim), optax.trace(decay=optim.momentum)]


OPTIMIZERS = {"adam": adam, "adamw": adamw, "sgd": sgd}


def _decay(optim: Any) -> optax.GradientTransformation:
    # Kernels alone: BatchNorm's scale and every bias are vectors.
    return optax.add_decayed_weights(optim.weight_decay, mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params))


def create_schedule(optim: Any, num_steps: int) -> optax.Schedule:
    """The learning rate as a function of the step: `warmup_steps` of a line from 0, then the schedule to `num_steps`.

    Raises:
      UserError: an unknown schedule, or a warm-up that leaves nothing of the run.
    """
    schedule = lookup(SCHEDULES, optim.schedule, "schedule (optim.schedule)")
    warmup = optim.warmup_steps
    if not 0 <= warmup < num_steps:
        raise UserError(f"optim.warmup_steps is {warmup} of {num_steps} steps: it must be at least 0 and less than all")
    after = schedule(optim.learning_rate, num_steps - warmup, optim.poly_power)
    if not warmup:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, optim.learning_rate, warmup), after], [warmup])


def create_optimizer(optim: Any, schedule: optax.Schedule) -> optax.GradientTransformation:
    """The optimizer of a config's `optim`; parameters under `backbone` move at `backbone_lr_scale` of the rate.

    A frozen backbone has no part in it: no decay, no state, no share in the gradient's norm.

    Raises:
      UserError: an unknown optimizer.
    """
    parts = lookup(OPTIMIZERS, optim.name, "optimizer (optim.name)")(optim)
    if optim.clip_norm:
        parts = [optax.clip_by_global_norm(optim.clip_norm), *parts]
    if optim.backbone_lr_scale != 1.0:
        parts.append(optax.masked(optax.scale(optim.backbone_lr_scale), _is_backbone))
    parts.append(optax.scale_by_learning_rate(schedule))
    if optim.schedule == "plateau":
        parts.append(_scale_by_plateau(optim))
    tx = optax.chain(*parts)
    if optim.freeze_backbone:
        tx = optax.partition(
            {"trained": tx, "frozen": optax.set_to_zero()},
            lambda params: jax.tree.map(lambda frozen: "frozen" if frozen else "trained", _is_backbone(params)),
        )
    return tx


def learning_rate(schedule: optax.Schedule, opt_state: Any, step: int) -> float:
    """The rate at which a step is taken, `step` steps being done, with what plateaus have made of it."""
    rate = float(schedule(step))
    for state in _plateaus(opt_state):
        rate *= float(state.scale)
    return rate


def note_evaluation(optim: Any, opt_state: Any, value: jax.Array | float) -> Any:
    """The optimizer's state after an evaluation that gave `value`, of which less is better.

    With the schedule `plateau` the rate is multiplied by `plateau_factor` after `plateau_patience` evaluations in a row
    that were not better than the best by 1e-4, and never goes below `plateau_floor`, as Keras' `ReduceLROnPlateau` has
    it; with any other nothing changes.
    """

    def note(state):
        return _plateau(optim).update({}, state, value=value)[1] if _is_plateau(state) else state

    return jax.tree.map(note, opt_state, is_leaf=_is_plateau)


def _plateau(optim: Any) -> optax.GradientTransformationExtraArgs:
    return optax.contrib.reduce_on_plateau(
        factor=optim.plateau_factor,
        patience=optim.plateau_patience,
        rtol=0.0,  # a share of the best would be of the wrong sign where that is below 0
        atol=1e-4,
        min_scale=optim.plateau_floor / optim.learning_rate,
    )


def _scale_by_plateau(optim: Any) -> optax.GradientTransformation:
    """Scales updates by the plateau's state; an evaluation, not a step, is what changes that."""

    def update(updates, state, params=None):
        return jax.tree.map(lambda x: state.scale * x, updates), state

    return optax.GradientTransformation(_plateau(optim).init, update)


def _plateaus(opt_state: Any) -> list[Any]:
    return [leaf for leaf in jax.tree.leaves(opt_state, is_leaf=_is_plateau) if _is_plateau(leaf)]


def _is_plateau(state: Any) -> bool:
    return isinstance(state, optax.contrib.ReduceLROnPlateauState)


def _is_backbone(params: Any) -> Any:
    return {name: jax.tree.map(lambda _, is_backbone=name == "backbone": is_backbone, p) for name, p in params.items()}
