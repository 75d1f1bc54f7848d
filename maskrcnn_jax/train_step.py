"""The training state and the one jitted program that advances it. No TensorFlow, no files."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from maskrcnn_jax import runtime
from maskrcnn_jax.models import families
from maskrcnn_jax.models.mask_rcnn import MaskRCNN
from maskrcnn_jax.ops.platform import platform
from maskrcnn_jax.optimizer import make_optimizer
from maskrcnn_jax.traces import Traces
from maskrcnn_jax.types import Array, Batch

# Counts that a log line sums over its window; all others it averages.
COUNTS = ("dropped_instances",)


class TrainState(NamedTuple):
    """All that a step reads and writes, replicated over the mesh."""

    step: Array  # int32, steps done
    bad_step: Array  # int32, the step whose loss or gradient was not finite; -1: none
    seed: Array  # uint32, of the random keys; here, so that runs of all seeds are one program
    params: dict[str, Any]
    batch_stats: dict[str, Any]
    ema: dict[str, Any]  # {"params", "batch_stats"} averaged, or {} when ema_decay is 0
    opt_state: Any


class Initializer:
    """Random parameters and fresh statistics, {"params", "batch_stats"}.

    `shapes` of jax.ShapeDtypeStruct are known at once; the call computes the values, in any thread.
    """

    def __init__(self, model: MaskRCNN, seed: int, traces: Traces | None = None):
        """seed: of the random key, modulo 2**32. traces: of earlier processes, told the model."""

        def variables(seed: Array) -> dict[str, Any]:
            return families.init(model, jax.random.key(seed))

        self._seed = np.uint32(seed % 2**32)
        self._lowered = (traces or Traces()).lower("variables", jax.jit(variables), self._seed)
        self.shapes = self._lowered.out_info

    def __call__(self) -> dict[str, Any]:
        """Compiles and computes."""
        # It runs once: what XLA's CPU compiler takes to make it fast is many times what it saves.
        quick = {"xla_backend_optimization_level": 0} if platform() == "cpu" else None
        return self._lowered.compile(quick)(self._seed)


def init_variables(model: MaskRCNN, seed: int) -> dict[str, Any]:
    """The values of an `Initializer`."""
    return Initializer(model, seed)()


def init_state(
    variables: dict[str, Any], tx: optax.GradientTransformation, ema_decay: float, seed: int = 0
) -> TrainState:
    """The state before the first step. seed: of the random keys; any whole number, modulo 2**32."""
    params, stats = variables["params"], variables["batch_stats"]
    averaged = {"params": params, "batch_stats": stats} if ema_decay > 0 else {}
    # One program for both; each of the optimizer's zeros would be one of its own. The averages are
    # copies, as the step donates its buffers, and one buffer cannot be donated twice.
    opt_state, ema = jax.jit(lambda p, a: (tx.init(p), jax.tree.map(jnp.copy, a)))(params, averaged)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        bad_step=jnp.full((), -1, jnp.int32),
        seed=jnp.asarray(seed % 2**32, jnp.uint32),
        params=params,
        batch_stats=stats,
        ema=ema,
        opt_state=opt_state,
    )


def make_programs(
    config: Any,
    model: MaskRCNN,
    params: Any,
    mesh: Mesh,
    say: Callable[[str], None],
    traces: Traces,
) -> tuple[runtime.Programs, optax.GradientTransformation]:
    """The training step that a config asks for, for each canvas; and its optimizer.

    config: the whole tree. params: parameters, or jax.ShapeDtypeStruct. say: prints a line.
    traces: of earlier processes, told the model.
    """
    t, o = config.train, config.optim
    # All that the step is made of beside the model; it is what tells one kept trace from another.
    made_of = o.to_dict(), t.num_steps, t.batch_size, t.accumulate
    tx, schedule, trained = make_optimizer(
        params, o, config.model.freeze_at, t.num_steps, t.batch_size
    )
    step = make_train_step(
        model, tx, schedule, trained, mesh, accumulate=t.accumulate, ema_decay=o.ema_decay
    )
    return runtime.Programs(step, "training step", say, traces.about(*made_of)), tx


def make_train_step(
    model: MaskRCNN,
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
    trained: Any,
    mesh: Mesh,
    accumulate: int = 1,
    ema_decay: float = 0.0,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]:
    """Returns the jitted step: (state, batch) -> (state, metrics), the state's buffers donated.

    The batch is sharded over the mesh's 'data' axis, everything else replicated. Random keys depend
    on the state's seed and step and the image's place in the global batch alone. A step whose loss
    or gradient norm is not finite keeps the old state and sets `bad_step`; from then on steps do
    nothing, so that the host may notice late.

    trained: tree of booleans like the parameters; the others get no gradient.
    accumulate: micro-batches, whose gradients are averaged; each has its own loss normalisers.
    """

    def loss(params: Any, stats: Any, batch: Batch, keys: Array) -> tuple[Array, tuple]:
        params = jax.tree.map(lambda p, on: p if on else jax.lax.stop_gradient(p), params, trained)
        variables = {"params": params, "batch_stats": stats}
        terms, metrics, stats = families.forward_train(model, variables, batch, keys, mesh)
        total, named = sum(terms), terms._asdict()
        if not model.settings.keypoints:
            del named["keypoint"]
        return total, (stats, {"loss": total, **named, **metrics})

    gradient = jax.grad(loss, has_aux=True)

    def accumulated(state: TrainState, batch: Batch, keys: Array) -> tuple:
        if accumulate == 1:
            return gradient(state.params, state.batch_stats, batch, keys)

        # Micro-batch i takes every n-th row, so that each device keeps its own rows.
        def split(x: Array) -> Array:
            return jnp.moveaxis(x.reshape(-1, accumulate, *x.shape[1:]), 1, 0)

        def body(carry: tuple, part: tuple) -> tuple:
            total, stats = carry
            grads, (stats, metrics) = gradient(state.params, stats, *part)
            return (jax.tree.map(jnp.add, total, grads), stats), metrics

        zeros = jax.tree.map(jnp.zeros_like, state.params)
        (grads, stats), metrics = jax.lax.scan(
            body, (zeros, state.batch_stats), jax.tree.map(split, (batch, keys))
        )
        grads = jax.tree.map(lambda g: g / accumulate, grads)
        metrics = {k: v.sum() if k in COUNTS else v.mean() for k, v in metrics.items()}
        return grads, (stats, metrics)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        key = jax.random.fold_in(jax.random.key(state.seed), state.step)
        places = jnp.arange(batch.images.shape[0])
        keys = jax.vmap(lambda place: jax.random.fold_in(key, place))(places)
        grads, (stats, metrics) = accumulated(state, batch, keys)
        norm = optax.tree.norm(grads)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema_decay > 0:
            # The average follows fast at first: a decay of .999 would keep random weights for long.
            decay = jnp.minimum(ema_decay, (1.0 + state.step) / (10.0 + state.step))
            fresh, pull = {"params": params, "batch_stats": stats}, 1.0 - decay
            # Written as a difference, which leaves frozen values as they are to the last bit.
            ema = jax.tree.map(lambda a, x: a + pull * (x - a), ema, fresh)
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm)
        good = finite & (state.bad_step < 0)
        new = state._replace(
            step=state.step + 1, params=params, batch_stats=stats, ema=ema, opt_state=opt_state
        )
        state = jax.tree.map(lambda a, b: jax.lax.select(good, a, b), new, state)
        first_bad = jnp.where(finite | (state.bad_step >= 0), state.bad_step, state.step)
        state = state._replace(bad_step=first_bad)
        lr = schedule(new.step - 1)
        return state, {**metrics, "grad_norm": norm, "lr": lr, "bad_step": first_bad}

    everywhere = NamedSharding(mesh, P())
    return jax.jit(step, donate_argnums=0, out_shardings=everywhere)
