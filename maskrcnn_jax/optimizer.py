"""The optax chain: schedule, clipping, decay, freezing, stages and rates by parameter path."""

import re
from typing import Any, NamedTuple

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
    """A tree like `params` of rate factors: optim.lr_rules times optim.layer_decay to the power of
    the distance from the FPN, and 0 for what freeze_at freezes."""
    rules = tuple((f"^(backbone|shared_head)/({name})", 0.0) for name in FREEZABLE[:freeze_at])
    factors = match_rules(params, rules + tuple(optim.lr_rules), "optim.lr_rules")
    distances = block_distances(params)
    return jax.tree.map(lambda factor, n: factor * optim.layer_decay**n, factors, distances)


def block_distances(params: Any) -> Any:
    """A tree like `params`: 0 outside the backbone, 1 in its last block, 2 before that, ...

    Blocks are the backbone's members in the order of the numbers in their names; the stem, without
    a number, is the farthest. ResNet-50 has 16 of them and its stem is 17 away. C4's shared head is
    the backbone's last stage and counts as such. Layer-wise decay of
    the rate by such a distance: arXiv 2106.08254 (BEiT), there per transformer layer.
    """
    rooms = ("backbone", "shared_head")
    blocks = [(place_of(name), f"{room}/{name}") for room in rooms for name in params.get(room, {})]
    distance = {path: n for n, (_, path) in enumerate(sorted(blocks, reverse=True), 1)}

    def value(path: tuple, _: Any) -> int:
        return distance.get("/".join(parameter_path(path).split("/")[:2]), 0)

    return jax.tree_util.tree_map_with_path(value, params)


def place_of(block: str) -> tuple[int, ...]:
    """Where a block stands in the backbone, by the numbers in its name: (4, 2) of res4_block2."""
    return tuple(int(n) for n in re.findall(r"\d+", block))


def first_stages(params: Any, stages: tuple[tuple[float, str], ...]) -> Any:
    """A tree like `params`: the index of the first of optim.stages whose pattern is in the path.

    -1 where no pattern is found. Raises UserError for a pattern that finds no parameter at all.
    """
    compiled = [re.compile(pattern) for _, pattern in stages]
    paths = [parameter_path(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    for pattern in compiled:
        if not any(map(pattern.search, paths)):
            raise UserError(
                f"optim.stages: {pattern.pattern!r} is in no parameter's path; they begin with "
                + ", ".join(sorted({"/".join(path.split("/")[:2]) for path in paths}))
            )

    def value(path: tuple, _: Any) -> int:
        name = parameter_path(path)
        return next((i for i, pattern in enumerate(compiled) if pattern.search(name)), -1)

    return jax.tree_util.tree_map_with_path(value, params)


def stage_begins(optim: Any, num_steps: int) -> list[int]:
    """The number of steps before each of optim.stages begins."""
    return [round(fraction * num_steps) for fraction, _ in optim.stages]


def make_optimizer(
    params: Any, optim: Any, freeze_at: int, num_steps: int, batch_size: int
) -> tuple[optax.GradientTransformation, optax.Schedule, Any]:
    """Returns the transformation, its schedule, and the tree of booleans that are ever trained.

    Parameters that are never trained have no optimizer state. Those of a later stage stand still
    until then, to the last bit, and so does their state; the steps before do not count in the bias
    correction of "adamw", nor their gradients in clip_norm. The weight decay of "sgd" enters the
    gradient before the momentum (as torch's), that of "adamw" is decoupled.
    """
    schedule = make_schedule(optim, num_steps, batch_size)
    factors = learning_rate_factors(params, optim, freeze_at)
    stages = first_stages(params, optim.stages)
    trained = jax.tree.map(lambda factor, i: factor != 0.0 and i >= 0, factors, stages)
    decays = match_rules(params, optim.decay_rules, "optim.decay_rules")
    decay = _add_decay(optim.weight_decay, decays)
    clip = [optax.clip_by_global_norm(optim.clip_norm)] if optim.clip_norm > 0 else []
    if optim.name == "sgd":
        moments = [decay, optax.trace(decay=optim.momentum)]
    else:
        moments = [optax.scale_by_adam(b1=optim.momentum, b2=optim.b2), decay]
    rate = [optax.scale_by_learning_rate(schedule), _scale(factors)]
    parts = {"frozen": optax.set_to_zero()}
    if len(optim.stages) == 1:
        labels = jax.tree.map(lambda on: "trained" if on else "frozen", trained)
        parts["trained"] = optax.chain(*clip, *moments, *rate)
        return optax.partition(parts, labels), schedule, trained

    # Clipping and the rate go over all stages; each stage has its own moments, which begin with it.
    begins = stage_begins(optim, num_steps)
    labels = jax.tree.map(lambda on, i: f"stage {i}" if on else "frozen", trained, stages)
    parts |= {f"stage {i}": _from_step(n, optax.chain(*moments)) for i, n in enumerate(begins)}
    starts = jax.tree.map(lambda on, i: begins[i] if on else None, trained, stages)
    clip = [_zero_before(starts), *clip] if clip else []
    return optax.chain(*clip, optax.partition(parts, labels), *rate), schedule, trained


class _Begun(NamedTuple):
    """State of `_from_step`."""

    count: jax.Array  # steps done
    inner: Any


def _from_step(begin: int, inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """`inner` once `begin` steps are done; before, updates are zero and its state stays."""

    def init(params: Any) -> _Begun:
        return _Begun(jnp.zeros((), jnp.int32), inner.init(params))

    def update(updates: Any, state: _Begun, params: Any) -> tuple[Any, _Begun]:
        on = state.count >= begin
        found, fresh = inner.update(updates, state.inner, params)
        found = jax.tree.map(lambda u: jnp.where(on, u, 0.0), found)
        kept = jax.tree.map(lambda a, b: jnp.where(on, a, b), fresh, state.inner)
        return found, _Begun(state.count + 1, kept)

    return optax.GradientTransformation(init, update)


def _zero_before(starts: Any) -> optax.GradientTransformation:
    """Zeroes the gradients until as many steps are done; for good where the number is None."""

    def update(updates: Any, count: jax.Array, params: Any = None) -> tuple[Any, jax.Array]:
        zeroed = lambda u, n: jnp.where(False if n is None else count >= n, u, 0.0)  # noqa: E731
        return jax.tree.map(zeroed, updates, starts), count + 1

    return optax.GradientTransformation(lambda _: jnp.zeros((), jnp.int32), update)


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
