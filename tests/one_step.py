"""One training step on all devices of all hosts. Run as a program it is one of these hosts.

python tests/one_step.py FILE.npz, with the variables that `runtime.start` reads.
"""

import sys

import jax
import numpy as np
import tiny_model
from jax.sharding import Mesh

from maskrcnn_jax import runtime
from maskrcnn_jax.optimizer import make_optimizer
from maskrcnn_jax.train_step import init_state, make_train_step

BATCH = 8


def prepare(mesh: Mesh, norm: str = "frozen"):
    """The jitted step, its state, and this host's part of a batch of BATCH images, placed."""
    model = tiny_model.model(norm=norm, head_norm="none")
    optim = tiny_model.config().optim
    # The momentum after one step is then the gradient itself.
    optim.update({"name": "sgd", "weight_decay": 0.0, "clip_norm": 0.0, "ema_decay": 0.0})
    variables = tiny_model.variables(model)
    tx, schedule, trained = make_optimizer(variables["params"], optim, 0, 10, BATCH)
    step = make_train_step(model, tx, schedule, trained, mesh)
    state = runtime.replicate(init_state(variables, tx, 0.0), mesh)
    count = len({d.process_index for d in mesh.devices.flat})
    start = jax.process_index() * BATCH // count
    mine = slice(start, start + BATCH // count)
    batch = jax.tree.map(lambda x: x[mine], tiny_model.batch(BATCH))
    return step, state, runtime.shard_batch(batch, mesh)


def result(mesh: Mesh) -> dict[str, np.ndarray]:
    """Metrics of one step, and the gradient of each parameter, by path."""
    step, state, batch = prepare(mesh)
    state, metrics = step(state, batch)
    found = {"metrics/" + name: np.asarray(value) for name, value in metrics.items()}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state):
        if leaf.ndim:
            found["gradient/" + jax.tree_util.keystr(path)] = np.asarray(leaf)
    return found


if __name__ == "__main__":
    runtime.start("none", deterministic=False)
    found = result(runtime.make_mesh())
    if jax.process_index() == 0:
        np.savez(sys.argv[1], **found)
