"""Staged unfreezing and layer-wise rates, against NumPy and hand-written numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import common, finetune
from maskrcnn_jax import checkpoint, parameter_table
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.optimizer import first_stages, learning_rate_factors, make_optimizer

STAGES = ((0.0, r"^(?!backbone/)"), (0.3, r"res[45]"), (0.55, r"res3"))
BEGINS = {"fpn": 0, "res4_block0": 3, "res5_block0": 3, "res3_block0": 6}  # of 10 steps (5.5: 6)


def fields(**more):
    optim = common.get_config().optim
    optim.update(more)
    return optim


def tree():
    """A parameter in each stage, one that no stage finds, and one that freeze_at freezes."""
    rng = np.random.default_rng(0)
    leaf = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    names = ("stem", "res2_block0", "res3_block0", "res4_block0", "res5_block0")
    backbone = {name: {"conv": {"kernel": leaf(3, 2)}} for name in names}
    return {"backbone": backbone, "fpn": {"conv": {"kernel": leaf(4), "bias": leaf(2)}}}


def begin_of(path):
    name = "fpn" if path[0].key == "fpn" else path[1].key
    return BEGINS.get(name)


def gradient(params, step):
    return jax.tree.map(lambda p: np.float32(np.cos(3 * p + step)), params)


def by_hand(name, params, steps, clip, decay):
    """The parameters after each step, of a rate of 0.1: each leaf by its own clock."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    p = {path: np.float64(leaf) for path, leaf in leaves}
    m = {path: 0.0 for path in p}
    v = {path: 0.0 for path in p}
    for step in range(steps):
        g = {path: np.cos(3 * np.float32(x) + step) for path, x in p.items()}
        on = [path for path in p if begin_of(path) is not None and step >= begin_of(path)]
        norm = np.sqrt(sum((g[path] ** 2).sum() for path in on))
        for path in on:
            x = g[path] * min(1.0, clip / norm)
            if name == "sgd":
                m[path] = 0.9 * m[path] + x + decay * p[path]
                p[path] = p[path] - 0.1 * m[path]
            else:
                t = step - begin_of(path) + 1
                m[path] = 0.9 * m[path] + 0.1 * x
                v[path] = 0.999 * v[path] + 0.001 * x**2
                update = m[path] / (1 - 0.9**t) / (np.sqrt(v[path] / (1 - 0.999**t)) + 1e-8)
                p[path] = p[path] - 0.1 * (update + decay * p[path])
        yield p


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_each_stage_has_its_own_clock(name):
    optim = fields(name=name, stages=STAGES, schedule="constant", warmup_steps=0, base_lr=0.1)
    optim.update({"weight_decay": 0.05, "clip_norm": 0.7})
    start = params = jax.tree.map(jnp.asarray, tree())
    tx, _, trained = make_optimizer(params, optim, freeze_at=1, num_steps=10, batch_size=16)
    assert not trained["backbone"]["stem"]["conv"]["kernel"]  # by freeze_at
    assert not trained["backbone"]["res2_block0"]["conv"]["kernel"]  # in no stage
    state = tx.init(params)
    moments = 1 if name == "sgd" else 2
    assert sum(x.size for x in jax.tree.leaves(state) if x.ndim) == moments * (3 * 6 + 4 + 2)

    @jax.jit
    def advance(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for step, expected in enumerate(by_hand(name, params, 9, clip=0.7, decay=0.05)):
        params, state = advance(params, state, gradient(params, step))
        for (path, ours), old in zip(
            jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(start), strict=True
        ):
            begin = begin_of(path)
            stands = np.asarray(ours).tobytes() == np.asarray(old).tobytes()
            assert stands == (begin is None or step < begin), (step, path)
            np.testing.assert_allclose(ours, expected[path], rtol=2e-4, atol=2e-5)
    assert advance._cache_size() == 1  # one program for all stages


def test_momentum_of_a_later_stage_is_zero_until_then():
    optim = fields(stages=STAGES, weight_decay=0.05)
    params = tree()
    tx, _, _ = make_optimizer(params, optim, freeze_at=0, num_steps=10, batch_size=16)
    state = tx.init(params)
    for step in range(7):
        _, state = tx.update(gradient(params, step), state, params)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state):
            keys = [getattr(k, "key", "") for k in path]
            begin = next((n for name, n in BEGINS.items() if name in keys), None)
            if np.ndim(leaf) and begin is not None:
                assert np.any(leaf) == (step >= begin), (step, path)


def test_a_checkpoint_keeps_the_clocks(tmp_path):
    optim, params = fields(stages=STAGES, clip_norm=1.0), tree()
    tx, _, _ = make_optimizer(params, optim, freeze_at=1, num_steps=10, batch_size=16)
    state = start = tx.init(params)
    for step in range(4):
        _, state = tx.update(gradient(params, step), state, params)
    store = checkpoint.Checkpoints(tmp_path, 1)
    store.save(4, {"params": params, "opt_state": state}, {"score": None})
    store.wait()
    params = jax.tree.map(jnp.zeros_like, params)
    found = store.restore(4, {"params": params, "opt_state": start})["opt_state"]
    store.close()
    assert jax.tree.structure(found) == jax.tree.structure(state)
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(state), strict=True)
    assert all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)
    assert sum(int(x) == 4 for x in jax.tree.leaves(found) if x.ndim == 0) == 5


def test_one_stage_is_the_optimizer_as_ever():
    """The state of a run without stages has the same tree as before there were any."""
    params = tree()
    tx, _, _ = make_optimizer(params, fields(), freeze_at=2, num_steps=10, batch_size=16)
    state = tx.init(params)
    assert set(state.inner_states) == {"trained", "frozen"}
    factors = learning_rate_factors(params, fields(), 0)
    assert set(jax.tree.leaves(factors)) == {1.0}


def paths(depth):
    shapes = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3), 152: (3, 8, 36, 3)}[depth]
    names = ["stem", *(f"res{s + 2}_block{i}" for s, n in enumerate(shapes) for i in range(n))]
    backbone = {name: {"conv1": {"kernel": np.zeros(1)}} for name in names}
    return {"backbone": backbone, "fpn": {"k": np.zeros(1)}, "box_head": {"k": np.zeros(1)}}


@pytest.mark.parametrize(
    ("depth", "expected"),
    [
        (
            18,
            {"res5_block1": 0.8, "res5_block0": 0.64, "res4_block1": 0.512, "res4_block0": 0.4096}
            | {"res3_block1": 0.32768, "res3_block0": 0.262144, "res2_block1": 0.2097152}
            | {"res2_block0": 0.16777216, "stem": 0.134217728},
        ),
        (
            50,  # 16 blocks
            {"res5_block2": 0.8, "res5_block0": 0.512, "res4_block5": 0.4096}
            | {"res4_block0": 0.134217728, "res3_block3": 0.1073741824}
            | {"res2_block0": 0.028147497671, "stem": 0.022517998137},
        ),
        (152, {"res4_block35": 0.8**4, "res4_block9": 0.8**30, "stem": 0.8**51}),
    ],
)
def test_the_rate_falls_block_by_block_to_the_stem(depth, expected):
    optim = fields(layer_decay=0.8, lr_rules=((r"^fpn", 0.5), (r".*", 1.0)))
    factors = learning_rate_factors(paths(depth), optim, freeze_at=0)
    for name, value in expected.items():
        assert factors["backbone"][name]["conv1"]["kernel"] == pytest.approx(value, rel=1e-9)
    assert factors["fpn"]["k"] == 0.5 and factors["box_head"]["k"] == 1.0
    frozen = learning_rate_factors(paths(depth), optim, freeze_at=2)["backbone"]
    assert frozen["stem"]["conv1"]["kernel"] == frozen["res2_block1"]["conv1"]["kernel"] == 0


def test_the_blocks_of_vgg16_are_its_convolutions():
    counts = (2, 2, 3, 3, 3)
    names = [f"conv{s}_{i}" for s, n in enumerate(counts, 1) for i in range(1, n + 1)]
    params = {"backbone": {name: {"kernel": np.zeros(1)} for name in names}}
    factors = learning_rate_factors(params, fields(layer_decay=0.9), freeze_at=0)["backbone"]
    for name, power in {"conv5_3": 1, "conv5_1": 3, "conv4_3": 4, "conv1_1": 13}.items():
        assert factors[name]["kernel"] == pytest.approx(0.9**power), name
    stages = first_stages(params | {"fpn": np.zeros(1)}, finetune.get_config().optim.stages)
    expected = {name: 1 if name[4] in "45" else 2 for name in names}
    assert {name: block["kernel"] for name, block in stages["backbone"].items()} == expected


def test_the_shared_head_of_c4_is_the_last_stage():
    params, config = paths(50), finetune.get_config()
    c4 = {room: tree for room, tree in params.items() if room != "fpn"}
    last = {name: tree for name, tree in params["backbone"].items() if name.startswith("res5_")}
    rest = {name: tree for name, tree in params["backbone"].items() if name not in last}
    c4 |= {"backbone": rest, "shared_head": last}
    for found in (
        lambda params: learning_rate_factors(params, config.optim, freeze_at=2),
        lambda params: first_stages(params, config.optim.stages),
    ):
        expected, ours = found(params), found(c4)
        assert ours["backbone"] | ours["shared_head"] == expected["backbone"]
        assert ours["box_head"] == expected["box_head"]


def test_layer_decay_scales_the_update():
    params = paths(18)
    optim = fields(layer_decay=0.8, schedule="constant", warmup_steps=0, base_lr=1.0)
    tx, _, _ = make_optimizer(params, optim, freeze_at=0, num_steps=10, batch_size=16)
    updates, _ = tx.update(jax.tree.map(np.ones_like, params), tx.init(params), params)
    assert float(updates["backbone"]["stem"]["conv1"]["kernel"][0]) == pytest.approx(-(0.8**9))
    assert float(updates["fpn"]["k"][0]) == -1.0


def test_a_pattern_that_finds_nothing_is_refused():
    with pytest.raises(UserError, match=r"optim.stages: 'res9' is in no parameter's path.*fpn"):
        first_stages(tree(), ((0.0, ".*"), (0.5, "res9")))


@pytest.mark.parametrize("depth", [18, 50, 152])
def test_the_stages_of_the_finetuning_config(depth):
    """Heads and FPN, then res4 and res5, then res3; the stem and res2 are frozen."""
    config = finetune.get_config()
    params = paths(depth)
    found = first_stages(params, config.optim.stages)
    stages = {name: block["conv1"]["kernel"] for name, block in found["backbone"].items()}
    assert found["fpn"]["k"] == found["box_head"]["k"] == 0
    for name, stage in stages.items():
        assert stage == (1 if name[:4] in ("res4", "res5") else 2), name
    factors = learning_rate_factors(params, config.optim, config.model.freeze_at)["backbone"]
    frozen = {name for name in factors if not factors[name]["conv1"]["kernel"]}
    assert frozen == {name for name in factors if name.startswith(("stem", "res2_"))}


def test_the_table_of_groups():
    optim = fields(stages=STAGES, layer_decay=0.5)
    rows = parameter_table.describe(tree(), optim, freeze_at=1, num_steps=10)
    assert rows == [
        ["backbone/stem", "6", "", "never: frozen"],
        ["backbone/res2", "6", "", "never: frozen"],
        ["backbone/res3", "6", "0.125", "step 7"],
        ["backbone/res4", "6", "0.25", "step 4"],
        ["backbone/res5", "6", "0.5", "step 4"],
        ["fpn", "6", "1", "step 1"],
    ]
    optim = fields(stages=((0.0, "bias"), (0.5, "fpn")))
    rows = parameter_table.describe(paths(18) | tree(), optim, freeze_at=0, num_steps=10)
    assert rows[-2:] == [["fpn", "2", "1", "step 1"], ["fpn", "4", "1", "step 6"]]
    rows = parameter_table.describe(paths(50), fields(layer_decay=0.5), 0, 10)
    assert rows[4] == ["backbone/res5", "3", "0.125 to 0.5", "step 1"]
