"""One jitted step: what it trains, averages and refuses. A step of two micro-batches is shared."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_model

from maskrcnn_jax.models.mask_rcnn import forward_train
from maskrcnn_jax.optimizer import make_optimizer
from maskrcnn_jax.runtime import make_mesh, replicate, shard_batch
from maskrcnn_jax.train_step import init_state, init_variables, make_train_step

RATE, EMA, SEED = 0.1, 0.15, 3


@pytest.fixture(scope="module")
def training():
    """A jitted step with two micro-batches, an average and a frozen stem, and its first state."""
    optim = tiny_model.config().optim
    optim.update({"name": "sgd", "base_lr": RATE, "schedule": "constant", "warmup_steps": 0})
    optim.update({"weight_decay": 0.0, "clip_norm": 0.0, "ema_decay": EMA})
    size = optim.base_batch = 2 * jax.device_count()
    model, mesh = tiny_model.model(), make_mesh()
    variables = jax.tree.map(np.asarray, init_variables(model, 0))
    # freeze_at=1 freezes the stem.
    tx, schedule, trained = make_optimizer(variables["params"], optim, 1, 10, size)
    step = make_train_step(model, tx, schedule, trained, mesh, accumulate=2, ema_decay=EMA)
    batch = tiny_model.batch(size)

    def fresh(seed=SEED):
        return replicate(init_state(variables, tx, EMA, seed), mesh)

    return step, fresh, shard_batch(batch, mesh), variables


def same_bits(a, b) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in pairs)


def test_a_step_trains_what_is_not_frozen(training):
    step, fresh, batch, before = training
    state, metrics = step(fresh(), batch)
    state, _ = step(state, batch)
    assert int(state.step) == 2 and metrics["bad_step"] == -1
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(state.params),
        jax.tree.leaves(before["params"]),
        strict=True,
    ):
        frozen = path[0].key == "backbone" and path[1].key == "stem"
        # An object class that the batch lacks leaves its row alone, but no tensor as a whole.
        assert np.array_equal(a, b) == frozen, jax.tree_util.keystr(path)


def test_steps_repeat_bit_by_bit(training):
    step, fresh, batch, _ = training
    assert same_bits(step(fresh(), batch), step(fresh(), batch))


def test_micro_batches_are_averaged(training):
    """The update is the mean gradient of every second image and of those between them."""
    step, fresh, batch, before = training
    after, metrics = step(fresh(), batch)
    model = tiny_model.model()
    key = jax.random.fold_in(jax.random.key(SEED), 0)
    keys = jax.vmap(lambda place: jax.random.fold_in(key, place))(jnp.arange(len(batch.index)))

    def loss(params, batch, keys):
        terms, _, _ = forward_train(model, {**before, "params": params}, batch, keys, make_mesh())
        return sum(terms)

    run = jax.jit(jax.value_and_grad(loss))
    parts = [
        jax.device_get(run(before["params"], *jax.tree.map(lambda x, i=i: x[i::2], (batch, keys))))
        for i in range(2)
    ]
    assert metrics["loss"] == pytest.approx(np.mean([value for value, _ in parts]), rel=1e-4)
    mean = jax.tree.map(lambda a, b: (a + b) / 2, parts[0][1], parts[1][1])
    for (path, g), p0, p1 in zip(
        jax.tree_util.tree_leaves_with_path(mean),
        jax.tree.leaves(before["params"]),
        jax.tree.leaves(after.params),
        strict=True,
    ):
        if path[1].key == "stem":
            continue
        # Half a unit in the last place of each parameter is what the difference cannot show.
        rounding = np.linalg.norm(p0) * 2**-24 / RATE
        error = np.linalg.norm((p0 - np.asarray(p1)) / RATE - g)
        assert error <= 1e-3 * np.linalg.norm(g) + rounding, jax.tree_util.keystr(path)


def test_the_average_follows_its_formula(training):
    """Decay min(d, (1 + n) / (10 + n)): 1/10, then 0.15; over the statistics, too."""
    step, fresh, batch, before = training
    state, expected = fresh(), before
    for n in range(3):
        state, _ = step(state, batch)
        decay = min(EMA, (1 + n) / (10 + n))
        now = {"params": state.params, "batch_stats": state.batch_stats}
        expected = jax.tree.map(
            lambda a, x, d=decay: d * a + (1 - d) * np.asarray(x), expected, jax.device_get(now)
        )
    for a, b in zip(jax.tree.leaves(state.ema), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    stem = [tree["params"]["backbone"]["stem"]["conv"] for tree in (state.ema, before)]
    assert same_bits(*stem)  # what is frozen does not drift


@pytest.mark.parametrize("broken", ["batch", "parameters"])
def test_a_bad_step_changes_nothing_and_stays_told(training, broken):
    step, fresh, good, _ = training
    state, bad = fresh(), good
    if broken == "batch":
        state, _ = step(state, good)
        bad = good._replace(gt_boxes=good.gt_boxes.at[3].set(jnp.nan))
    else:
        kernel = state.params["rpn_head"]["deltas"]["kernel"]
        state.params["rpn_head"]["deltas"]["kernel"] = jnp.full_like(kernel, jnp.nan)
    before = jax.device_get(state)
    state, metrics = step(state, bad)
    assert metrics["bad_step"] == before.step and not np.isfinite(metrics["loss"])
    state, metrics = step(state, good)
    assert metrics["bad_step"] == before.step
    assert same_bits(state, before._replace(bad_step=before.step))


def test_runs_of_all_seeds_are_one_program(training):
    step, fresh, batch, _ = training
    texts = {step.lower(fresh(seed), batch).as_text() for seed in (0, 7)}
    assert len(texts) == 1
    losses = [float(step(fresh(seed), batch)[1]["loss"]) for seed in (0, 7, 0)]
    assert losses[0] == losses[2] != losses[1]


@pytest.mark.parametrize("seed", [0, 5, 2**31 - 1])
def test_a_seed_of_the_state_gives_the_keys_of_the_number(seed):
    ours = jax.random.key(
        init_state({"params": {}, "batch_stats": {}}, optax.sgd(1.0), 0.0, seed).seed
    )
    assert (jax.random.key_data(ours) == jax.random.key_data(jax.random.key(seed))).all()
