"""Checkpoints: the only file that knows orbax.

A run's folder holds `checkpoints/<step>/{params,batch_stats,ema,opt_state,meta}`. Each item can be
read alone, so prediction and initialisation need no optimizer. A checkpoint appears by a rename
when it is complete; a half-written one is never read.
"""

import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from maskrcnn_jax.errors import UserError
from maskrcnn_jax.optimizer import parameter_path

# orbax reports each save in several lines; the run's own log says it in one.
logging.getLogger("absl").setLevel(logging.ERROR)

ARRAYS = ("params", "batch_stats", "ema", "opt_state")


class Checkpoints:
    """The checkpoints of one run, written in the background; keeps the last n and the best."""

    def __init__(self, workdir: Path, keep_last: int, best_metric: str):
        """workdir: of the run. best_metric: key of the metrics given to `save`, higher is better."""
        self.folder = Path(workdir).absolute() / "checkpoints"
        best = policies.BestN(
            get_metric_fn=lambda metrics: metrics[best_metric],
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        latest = policies.LatestN(keep_last)
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy([latest, best]),
                cleanup_tmp_directories=True,
            ),
        )

    @property
    def latest_step(self) -> int | None:
        """The newest complete checkpoint's step, or None."""
        return self._manager.latest_step()

    @property
    def best_step(self) -> int | None:
        """The step whose metric was best, or None when nothing was evaluated."""
        return self._manager.best_step()

    def save(
        self,
        step: int,
        items: dict[str, Any],
        meta: dict[str, Any],
        metrics: dict[str, float] | None = None,
    ) -> None:
        """Begins to write a checkpoint and returns; the arrays are copied before it returns.

        items: trees under the names of ARRAYS, empty ones left out. meta: what JSON can hold.
        Raises UserError when this or the previous write failed (a full disk, say).
        """
        args = {name: ocp.args.StandardSave(tree) for name, tree in items.items() if _leaves(tree)}
        args["meta"] = ocp.args.JsonSave(meta)
        with _WriteErrors(self):
            self._manager.save(step, args=ocp.args.Composite(**args), metrics=metrics)

    def restore(self, step: int, like: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Reads a step into the shapes and shardings of `like`. Returns the items and meta.

        Raises UserError naming the first parameters that differ in path or shape.
        """
        folder = self.folder / str(step)
        check_same(read_shapes(folder, "params"), shapes_of(like["params"]), str(folder))
        args = {name: ocp.args.StandardRestore(tree) for name, tree in like.items() if _leaves(tree)}
        restored = self._manager.restore(
            step, args=ocp.args.Composite(meta=ocp.args.JsonRestore(), **args)
        )
        items = {name: restored[name] if name in args else tree for name, tree in like.items()}
        return items, restored["meta"]

    def read_meta(self, step: int) -> dict[str, Any]:
        """The meta data of a step."""
        restored = self._manager.restore(
            step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())
        )
        return restored["meta"]

    def wait(self) -> None:
        """Returns when the last checkpoint is complete; raises UserError if writing failed."""
        with _WriteErrors(self):
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

    def close(self) -> None:
        """Waits and lets go of the background threads."""
        self.wait()
        self._manager.close()


class _WriteErrors:
    """Turns a failed write into an error that says what is still safe."""

    def __init__(self, checkpoints: Checkpoints):
        self._checkpoints = checkpoints

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if error is None or not isinstance(error, Exception):
            return
        folder = self._checkpoints.folder
        steps = complete_steps(folder)
        good = f"the last good one is step {steps[-1]}" if steps else "there is none yet"
        reason = str(error).strip().splitlines()[0][:300] if str(error).strip() else kind.__name__
        raise UserError(
            f"{folder}: a checkpoint could not be written ({reason}); {good}. "
            "Free disk space or check the folder's permissions, and run the same command again."
        ) from error


def complete_steps(folder: Path) -> list[int]:
    """Steps of the complete checkpoints in a `checkpoints` folder, rising."""
    if not folder.is_dir():
        return []
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit() and p.is_dir())


def find(path: str | Path) -> Path:
    """The checkpoint meant by a run's folder (its best, else its last), or by a step's folder."""
    path = Path(path).absolute()
    if (path / "params").is_dir():
        return path
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    steps = complete_steps(folder)
    if not steps:
        raise UserError(
            f"{path}: no checkpoint here; give the folder of a run or of one step "
            "(.../checkpoints/<step>)"
        )
    return folder / str(steps[-1])


def load_variables(path: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads the weights of a checkpoint as NumPy: the average (EMA) where it was kept.

    Returns {"params": ..., "batch_stats": ...} and the meta data. No device, no optimizer needed.
    """
    folder = find(path)
    reader = ocp.PyTreeCheckpointer()

    def read(item: str) -> dict[str, Any]:
        if not (folder / item).is_dir():
            return {}
        args = jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray),
            read_shapes(folder, item),
            is_leaf=_is_shape,
        )
        return reader.restore(folder / item, args=ocp.args.PyTreeRestore(restore_args=args))

    ema = read("ema")
    variables = {"params": read("params"), "batch_stats": read("batch_stats"), **ema}
    meta = ocp.Checkpointer(ocp.JsonCheckpointHandler()).restore(folder / "meta")
    return variables, meta


def read_shapes(folder: Path, item: str) -> Any:
    """The tree of shapes of one item, without reading its arrays."""
    try:
        metadata = ocp.PyTreeCheckpointer().metadata(folder / item)
        return jax.tree.map(lambda m: tuple(m.shape), metadata.item_metadata.tree)
    except (ValueError, OSError, KeyError, AttributeError) as error:
        raise UserError(f"{folder / item}: not a readable checkpoint ({error})") from error


def shapes_of(tree: Any) -> Any:
    """A tree like `tree` of shapes."""
    return jax.tree.map(lambda x: tuple(x.shape), tree)


def check_same(source: Any, target: Any, where: str) -> None:
    """Raises UserError with the first five parameters that differ between two trees of shapes."""

    def flatten(tree: Any) -> dict[str, tuple]:
        leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_shape)
        return {parameter_path(path): shape for path, shape in leaves}

    a, b = flatten(source), flatten(target)
    lines = [
        f"  {name}: checkpoint {a.get(name, 'absent')}, model {b.get(name, 'absent')}"
        for name in [*b, *(n for n in a if n not in b)]
        if a.get(name) != b.get(name)
    ]
    if lines:
        more = f"\n  ... and {len(lines) - 5} more" if len(lines) > 5 else ""
        raise UserError(
            f"{where}: the checkpoint is of another architecture; it and the config's model differ "
            "in\n" + "\n".join(lines[:5]) + more + "\nUse the config it was trained with, "
            "another workdir, or init.part='backbone' to take only the backbone."
        )


def _is_shape(x: Any) -> bool:
    return isinstance(x, tuple)


def _leaves(tree: Any) -> list:
    return jax.tree.leaves(tree)
