"""The same step on one device and on many, and what the devices say to each other in it."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_model
from jax.sharding import AxisType, Mesh

from maskrcnn_jax import runtime
from maskrcnn_jax.models import mask_rcnn
from maskrcnn_jax.models.mask_rcnn import forward_predict, forward_train
from maskrcnn_jax.optimizer import make_optimizer
from maskrcnn_jax.train_step import init_state, init_variables, make_train_step
from maskrcnn_jax.types import Proposals

BATCH = 8
COLLECTIVE = r"= \S.* (all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)[\w-]*\("


def mesh_of(count: int) -> Mesh:
    devices = np.array(jax.devices()[:count])
    return Mesh(devices, ("data",), axis_types=(AxisType.Auto,))


def step_on(count: int, norm: str):
    """The compiled training step, its state and its batch on so many devices."""
    model = tiny_model.model(norm=norm, head_norm="none")
    config = tiny_model.config()
    mesh = mesh_of(count)
    variables = jax.tree.map(np.asarray, init_variables(model, 0))
    tx, schedule, trained = make_optimizer(variables["params"], config.optim, 0, 10, BATCH)
    step = make_train_step(model, tx, schedule, trained, mesh)
    state = runtime.replicate(init_state(variables, tx, 0.0), mesh)
    batch = runtime.shard_batch(tiny_model.batch(BATCH), mesh)
    return step.lower(state, batch).compile(), state, batch


@pytest.fixture(scope="module")
def eight():
    return step_on(8, "frozen")


def gradients(count: int):
    """Gradient and metrics of one batch on so many devices, with the same random numbers."""
    model = tiny_model.model(norm="frozen", head_norm="none")
    mesh = mesh_of(count)

    def loss(params, stats, batch, keys):
        both = {"params": params, "batch_stats": stats}
        terms, metrics, _ = forward_train(model, both, batch, keys, mesh)
        return sum(terms), metrics

    placed = runtime.replicate(jax.tree.map(np.asarray, init_variables(model, 0)), mesh)
    batch = (tiny_model.batch(BATCH), tiny_model.keys(BATCH))
    batch, keys = runtime.shard_batch(batch, mesh)
    run = jax.jit(jax.grad(loss, has_aux=True))
    return jax.device_get(run(placed["params"], placed["batch_stats"], batch, keys))


def differences(a, b) -> dict[str, float]:
    """||a - b|| / ||a|| of every tensor, by path."""
    found = {}
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True
    ):
        assert np.linalg.norm(x) > 0, path
        found[jax.tree_util.keystr(path)] = float(np.linalg.norm(x - y) / np.linalg.norm(x))
    return found


def test_gradients_agree_with_fixed_proposals(monkeypatch):
    corner = np.random.default_rng(1).uniform(0, 50, (40, 2)).astype(np.float32)
    boxes = jnp.asarray(np.concatenate([corner, corner + 13], -1))
    fixed = Proposals(boxes, jnp.zeros(40), jnp.ones(40, bool))
    monkeypatch.setattr(mask_rcnn, "_proposals", lambda *_: fixed)
    (g1, _), (g8, _) = gradients(1), gradients(8)
    worst = differences(g1, g8)
    assert max(worst.values()) <= 1e-5, sorted(worst.items(), key=lambda x: -x[1])[:5]


def test_gradients_agree_with_the_same_rois():
    (g1, m1), (g8, m8) = gradients(1), gradients(8)
    assert m1["fg_rois_per_image"] == m8["fg_rois_per_image"]
    worst = differences(g1, g8)
    assert max(worst.values()) <= 1e-4, sorted(worst.items(), key=lambda x: -x[1])[:5]


def collectives(text: str) -> list[tuple[str, str]]:
    """(computation, kind) of every collective in an HLO text."""
    found, computation = [], ""
    for line in text.splitlines():
        if line and not line[0].isspace() and line.rstrip().endswith("{"):
            computation = line.split()[1 if line.startswith("ENTRY") else 0]
        match = re.search(COLLECTIVE, line)
        if match:
            found.append((computation, match[1]))
    return found


def test_devices_only_add_up(eight):
    """All-reduces of gradients, loss normalisers and metrics; nothing else, and none in a loop."""
    text = eight[0].as_text()
    found = collectives(text)
    assert found and {kind for _, kind in found} == {"all-reduce"}
    entry = re.search(r"^ENTRY (\S+)", text, re.MULTILINE)[1]
    assert {computation for computation, _ in found} == {entry}
    # XLA joins the gradients of all tensors in a few; the losses wait for their normalisers.
    assert len(found) <= 12, len(found)


def test_prediction_needs_no_collective():
    model = tiny_model.model(norm="frozen", head_norm="none")
    mesh = mesh_of(8)
    variables = runtime.replicate(init_variables(model, 0), mesh)
    batch = tiny_model.batch(BATCH)
    images, hw = runtime.shard_batch((batch.images, batch.image_hw), mesh)
    run = jax.jit(lambda v, i, h: forward_predict(model, v, i, h, mesh))
    assert collectives(run.lower(variables, images, hw).compile().as_text()) == []
