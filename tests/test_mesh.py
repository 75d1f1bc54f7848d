"""The same step on one device and on many, and what the devices say to each other in it."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import one_step
import tiny_model
import tiny_run
from jax.sharding import AxisType, Mesh

from maskrcnn_jax import runtime, selection
from maskrcnn_jax.models.mask_rcnn import forward_predict, forward_train
from maskrcnn_jax.types import Proposals

BATCH = one_step.BATCH
ROOT = Path(__file__).parents[1]
COLLECTIVE = r"= \S.* (all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)[\w-]*\("


def mesh_of(count: int) -> Mesh:
    devices = np.array(jax.devices()[:count])
    return Mesh(devices, ("data",), axis_types=(AxisType.Auto,))


def compiled_step(norm: str) -> str:
    """The compiled training step on eight devices, as HLO text."""
    step, state, batch = one_step.prepare(mesh_of(8), norm)
    return step.lower(state, batch).compile().as_text()


def gradients(count: int):
    """Gradient and metrics of one batch on so many devices, with the same random numbers."""
    model = tiny_model.model(norm="frozen", head_norm="none")
    mesh = mesh_of(count)

    def loss(params, stats, batch, keys):
        both = {"params": params, "batch_stats": stats}
        terms, metrics, _ = forward_train(model, both, batch, keys, mesh)
        return sum(terms), metrics

    placed = runtime.replicate(tiny_model.variables(model), mesh)
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
    monkeypatch.setattr(selection, "propose", lambda *_: fixed)
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


def test_devices_only_add_up():
    """Two all-reduces with frozen norms, none in a loop: XLA joins the loss normalisers and counts
    in one, and the gradients of all tensors with the loss terms in the other."""
    text = compiled_step("frozen")
    entry = re.search(r"^ENTRY (\S+)", text, re.MULTILINE)[1]
    assert collectives(text) == [(entry, "all-reduce")] * 2


def test_global_batch_norm_adds_up_its_moments():
    """36 all-reduces: the two above, and for each of the 20 norms one forward and one backward;
    three shortcuts share theirs with the layer beside them, either way."""
    text = compiled_step("batch")
    entry = re.search(r"^ENTRY (\S+)", text, re.MULTILINE)[1]
    found = collectives(text)
    assert set(found) == {(entry, "all-reduce")}
    assert len(found) <= 2 + 2 * 20
    lines = [line for line in text.splitlines() if re.search(COLLECTIVE, line)]
    others = [line for line in lines if "/norm/reduce_sum" not in line]
    assert len(others) <= 2, others


def test_prediction_needs_no_collective():
    model = tiny_model.model(norm="frozen", head_norm="none")
    mesh = mesh_of(8)
    variables = runtime.replicate(tiny_model.variables(model), mesh)
    batch = tiny_model.batch(BATCH)
    images, hw = runtime.shard_batch((batch.images, batch.image_hw), mesh)
    run = jax.jit(lambda v, i, h: forward_predict(model, v, i, h, mesh=mesh))
    assert collectives(run.lower(variables, images, hw).compile().as_text()) == []


def test_two_hosts_take_the_same_step_as_one(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": f"{tiny_run.QUICK_TO_COMPILE} --xla_force_host_platform_device_count=4",
        "JAX_PLATFORMS": "cpu",
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": "2",
    }
    hosts = [
        subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "one_step.py"), str(tmp_path / "found.npz")],
            env=environment | {"JAX_PROCESS_ID": str(i)},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for i in range(2)
    ]
    one = one_step.result(mesh_of(8))
    output = [host.communicate(timeout=300)[0] for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], "\n".join(output)
    with np.load(tmp_path / "found.npz") as file:
        two = dict(file)
    assert one.keys() == two.keys() and len(one) > 60
    for name in one:
        if name.startswith("metrics/"):
            np.testing.assert_allclose(two[name], one[name], rtol=1e-5, err_msg=name)
    names = [name for name in one if name.startswith("gradient/")]
    worst = differences({n: one[n] for n in names}, {n: two[n] for n in names})
    assert max(worst.values()) <= 1e-4, sorted(worst.items(), key=lambda x: -x[1])[:5]
