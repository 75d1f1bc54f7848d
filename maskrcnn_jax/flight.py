"""The flight record of a run that met a loss which is not finite, and its replay."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from maskrcnn_jax import config as config_lib
from maskrcnn_jax import runtime
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.logs import write_atomic
from maskrcnn_jax.models import families
from maskrcnn_jax.traces import Traces
from maskrcnn_jax.train_step import Initializer, TrainState, init_state, make_programs
from maskrcnn_jax.types import Batch


def save(
    folder: Path, config: ConfigDict, state: TrainState, batch: Batch, report: dict[str, Any]
) -> None:
    """Writes the config, this host's rows of the batch, the state before the step, the report.

    state: as the step left it, that is untouched since the bad step. The seed is in the config and
    the step in the state, so the random keys are given, too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {name: array for name, array in batch._asdict().items() if array is not None}
    np.savez_compressed(folder / f"batch_{jax.process_index()}.npz", **arrays)
    with ocp.StandardCheckpointer() as writer:
        writer.save(folder.absolute() / "state", _without_empty(state), force=True)
    if jax.process_index() == 0:
        config_lib.save(config, folder / "config.json")
        write_atomic(folder / "report.json", json.dumps(report, indent=1))


def read_report(folder: Path) -> dict[str, Any]:
    """The report of a record: classes, step, loss terms, image ids."""
    try:
        return json.loads((folder / "report.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(
            f"{folder / 'report.json'}: no flight record here ({error}); a run leaves one in its "
            "workdir when a loss is not finite"
        ) from error


def load(folder: Path, like: TrainState) -> tuple[TrainState, Batch]:
    """Reads a record back: the state, ready to take the bad step again, and this host's batch."""
    with ocp.StandardCheckpointer() as reader:
        found = reader.restore(folder.absolute() / "state", _without_empty(like))
    state = like._replace(**found)
    state = state._replace(bad_step=jax.numpy.full_like(state.bad_step, -1))
    with np.load(folder / f"batch_{jax.process_index()}.npz") as arrays:
        return state, Batch(**arrays)


def _without_empty(state: TrainState) -> dict[str, Any]:
    return {name: tree for name, tree in state._asdict().items() if jax.tree.leaves(tree)}


def replay(config: ConfigDict, workdir: Path, traces: Traces | None = None) -> dict[str, float]:
    """Takes the step again that a flight record holds, and returns its metrics.

    traces: of earlier processes.
    """
    report = read_report(workdir / "flight")
    mesh = runtime.make_mesh()
    number, seed = len(report["classes"]["names"]), config.train.seed
    model = families.build(config.model, number)
    kept = (traces or Traces()).about_model(config.model, number)
    variables = Initializer(model, seed, kept)()
    programs, tx = make_programs(config, model, variables["params"], mesh, print, kept)
    state = runtime.replicate(init_state(variables, tx, config.optim.ema_decay, seed), mesh)
    state, batch = load(workdir / "flight", state)
    placed = runtime.shard_batch(batch, mesh)
    _, metrics = programs.get(batch.images.shape[1:3], state, placed)(state, placed)
    values = {k: float(v) for k, v in jax.device_get(metrics).items() if k != "bad_step"}
    for name, value in values.items():
        print(f"{name}: {value!r} now, {report['losses'][name]!r} then")
    return values
