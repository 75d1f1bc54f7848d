"""Schedule, decay, freezing and clipping against plain NumPy."""

import jax
import numpy as np
import pytest

from configs import common
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.optimizer import make_optimizer, make_schedule, match_rules


def fields(**more):
    optim = common.get_config().optim
    optim.update(more)
    return optim


def tree():
    rng = np.random.default_rng(0)
    leaf = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    return {
        "backbone": {
            "stem": {"conv": {"kernel": leaf(3, 2)}},
            "res2_block0": {"conv1": {"conv": {"kernel": leaf(2, 2)}}},
            "res3_block0": {"conv1": {"norm": {"scale": leaf(4)}}},
        },
        "fpn": {"lateral2": {"conv": {"kernel": leaf(5), "bias": leaf(2)}}},
    }


def test_schedule_is_detectron2s_warmup_multistep():
    optim = fields(base_lr=0.02, warmup_steps=100, warmup_factor=0.001, milestones=(0.5, 0.75))
    schedule = make_schedule(optim, 1000, batch_size=8)
    for step in (0, 1, 50, 99, 100, 499, 500, 749, 750, 999):
        warm = 0.001 * (1 - step / 100) + step / 100 if step < 100 else 1.0
        expected = 0.01 * warm * 0.1 ** sum(step >= m for m in (500, 750))
        assert float(schedule(step)) == pytest.approx(expected, rel=1e-5)


def test_sgd_is_torchs():
    optim = fields(schedule="constant", warmup_steps=0, weight_decay=0.1, base_lr=0.5)
    optim.lr_rules = ((r"^fpn", 0.5), (r".*", 1.0))
    params = tree()
    tx, _, _ = make_optimizer(params, optim, freeze_at=0, num_steps=10, batch_size=16)
    state, ours = tx.init(params), params
    theirs = jax.tree.map(np.copy, params)
    speed = jax.tree.map(np.zeros_like, params)
    for step in range(3):
        grads = jax.tree.map(lambda p, step=step: np.float32(np.sin(p + step)), params)
        updates, state = tx.update(grads, state, ours)
        ours = jax.tree.map(lambda p, u: p + u, ours, updates)

        def advance(path, p, g, v):
            text = jax.tree_util.keystr(path)
            decay = 0.0 if "norm" in text else 0.1
            v[...] = 0.9 * v + g + decay * p
            p -= 0.5 * (0.5 if "fpn" in text else 1.0) * v

        jax.tree_util.tree_map_with_path(advance, theirs, grads, speed)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_frozen_parameters_stay_and_have_no_state(name):
    params = tree()
    optim = fields(name=name, clip_norm=1.0)
    tx, _, trained = make_optimizer(params, optim, freeze_at=2, num_steps=10, batch_size=16)
    assert not trained["backbone"]["stem"]["conv"]["kernel"]
    assert trained["backbone"]["res3_block0"]["conv1"]["norm"]["scale"]
    grads = jax.tree.map(np.ones_like, params)
    updates, state = tx.update(grads, tx.init(params), params)
    assert np.all(updates["backbone"]["stem"]["conv"]["kernel"] == 0)
    assert np.all(updates["backbone"]["res2_block0"]["conv1"]["conv"]["kernel"] == 0)
    assert np.all(updates["fpn"]["lateral2"]["conv"]["bias"] != 0)
    moments = 1 if name == "sgd" else 2
    sizes = [x.size for x in jax.tree.leaves(state) if x.ndim]
    assert sum(sizes) == moments * (4 + 5 + 2)


def test_clipping_bounds_the_norm_of_what_is_trained():
    params = tree()
    optim = fields(schedule="constant", warmup_steps=0, weight_decay=0.0, momentum=0.0)
    optim.base_lr, optim.clip_norm = 1.0, 0.5
    tx, _, _ = make_optimizer(params, optim, freeze_at=2, num_steps=10, batch_size=16)
    grads = jax.tree.map(lambda p: np.full_like(p, 3.0), params)
    updates, _ = tx.update(grads, tx.init(params), params)
    norm = np.sqrt(sum((np.asarray(u) ** 2).sum() for u in jax.tree.leaves(updates)))
    assert norm == pytest.approx(0.5, rel=1e-5)


def test_rules_must_cover_every_parameter():
    with pytest.raises(UserError, match="no pattern covers 'backbone/"):
        match_rules(tree(), ((r"^fpn", 1.0),), "optim.lr_rules")
    with pytest.raises(UserError, match=r"optim\.lr_rules"):
        match_rules(tree(), ((r"(", 1.0),), "optim.lr_rules")
