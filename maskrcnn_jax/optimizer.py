"""The optax chain: schedule, clipping, decay, freezing and rates by parameter path."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import optax

from maskrcnn_jax.errors import UserError

# Detectron2's FREEZE_AT counts the stem as 1 and res2 as 2; VGG's stages are counted from 1.
FREEZABLE = ("stem|conv1_", "res2_|conv2_", "res3_|conv3_", "res4_|conv4_", "res5_|conv5_")


def make_schedule(optim: Any, num_steps: int, batch_size: int) -> optax.Schedule:
    """The learning rate of each step, from the config's `optim` group.

    base_lr holds for base_batch images and scales linearly with the batch. A linear warm-up from
    warmup_factor multiplies the schedule, as in Detectron2. Source: arXiv 1706.02677.
    """
    peak = optim.base_lr * batch_size / optim.base_batch
    if optim.schedule == "step":
        edges = {int(f * num_steps): optim.gamma for f in optim.milestones}
        body = optax.piecewise_constant_schedule(peak, edges)
    elif optim.schedule == "cosine":
        body = optax.cosine_decay_schedule(peak, num_steps)
    else:
        body = optax.constant_schedule(peak)

    def schedule(step: Any) -> jax.Array:
        done = jnp.minimum(step / optim.warmup_steps, 1.0)
        return body(step) * (optim.warmup_factor * (1.0 - done) + done)

    return schedule if optim.warmup_steps else body


def parameter_path(path: tuple) -> str:
    """'backbone/stem/conv/kernel' of a key path of jax.tree_util."""
    return "/".join(str(getattr(key, "key", key)) for key in path)


def match_rules(params: Any, rules: tuple[tuple[str, float], ...], field: str) -> Any:
    """A tree like `params` with the value of the first rule whose pattern is in the path.

    Raises UserError when a parameter is covered by no rule, or a pattern is no regular expression.
    """
    try:
        compiled = [(re.compile(pattern), float(value)) for pattern, value in rules]
    except (re.error, TypeError, ValueError) as error:
        raise UserError(f"{field}: not a list of (pattern, number): {error}") from error

    def value(path: tuple, _: Any) -> float:
        name = parameter_path(path)
        for pattern, number in compiled:
            if pattern.search(name):
                return number
        raise UserError(f"{field}: no pattern covers {name!r}; end the list with ('.*', 1.0)")

    return jax.tree_util.tree_map_with_path(value, params)


def learning_rate_factors(params: Any, optim: Any, freeze_at: int) -> Any:
    """A tree like `params` of rate factors: optim.lr_rules, and 0 for what freeze_at freezes."""
    rules = tuple((f"^(backbone|shared_head)/({name})", 0.0) for name in FREEZABLE[:freeze_at])
    return match_rules(params, rules + tuple(optim.lr_rules), "optim.lr_rules")


def make_optimizer(
    params: Any, optim: Any, freeze_at: int, num_steps: int, batch_size: int
) -> tuple[optax.GradientTransformation, optax.Schedule, Any]:
    """Returns the transformation, its schedule, and the tree of booleans that are trained.

    Frozen parameters have no optimizer state. The weight decay of "sgd" enters the gradient before
    the momentum (as torch's), that of "adamw" is decoupled.
    """
    schedule = make_schedule(optim, num_steps, batch_size)
    factors = learning_rate_factors(params, optim, freeze_at)
    decays = match_rules(params, optim.decay_rules, "optim.decay_rules")
    decay = _add_decay(optim.weight_decay, decays)
    steps = [optax.clip_by_global_norm(optim.clip_norm)] if optim.clip_norm > 0 else []
    if optim.name == "sgd":
        steps += [decay, optax.trace(decay=optim.momentum)]
    else:
        steps += [optax.scale_by_adam(b1=optim.momentum, b2=optim.b2), decay]
    steps += [optax.scale_by_learning_rate(schedule), _scale(factors)]
    trained = jax.tree.map(lambda factor: factor != 0.0, factors)
    labels = jax.tree.map(lambda on: "trained" if on else "frozen", trained)
    parts = {"trained": optax.chain(*steps), "frozen": optax.set_to_zero()}
    return optax.partition(parts, labels), schedule, trained


def _add_decay(weight: float, factors: Any) -> optax.GradientTransformation:
    def update(updates: Any, state: Any, params: Any) -> tuple[Any, Any]:
        return _tree_map(lambda u, p, f: u + weight * f * p, updates, params, factors), state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


def _scale(factors: Any) -> optax.GradientTransformation:
    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return _tree_map(lambda u, f: u * f, updates, factors), state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


def _tree_map(fn: Any, updates: Any, *trees: Any) -> Any:
    """tree.map that leaves the holes which optax.partition puts at the other group's leaves."""
    is_hole = lambda x: isinstance(x, optax.MaskedNode)  # noqa: E731
    return jax.tree.map(
        lambda u, *rest: u if is_hole(u) else fn(u, *rest), updates, *trees, is_leaf=is_hole
    )
