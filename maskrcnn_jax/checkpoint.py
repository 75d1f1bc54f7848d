"""Checkpoints: the only file that knows orbax.

A run's folder holds `checkpoints/<step>/{params,batch_stats,ema,opt_state,meta}`. Each item can be
read alone, so prediction and initialisation need no optimizer. A checkpoint appears by a rename
when it is complete; a half-written one is never read.
"""

import json
import logging
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from maskrcnn_jax.errors import UserError
from maskrcnn_jax.logs import write_atomic
from maskrcnn_jax.optimizer import parameter_path

# orbax tells of each save in several lines, and of a failed one in many; it also raises the error.
logging.getLogger("absl").setLevel(logging.CRITICAL)

_META = Path("meta", "metadata")
ARRAYS = ("params", "batch_stats", "ema", "opt_state")


class Checkpoints:
    """The checkpoints of one run, written in the background; keeps the last n and the best."""

    def __init__(self, workdir: Path, keep_last: int):
        """workdir: of the run. Half-written checkpoints of a killed run are removed."""
        self.folder = Path(workdir).absolute() / "checkpoints"
        self._keep_last = keep_last
        self._manager = ocp.CheckpointManager(
            self.folder, options=ocp.CheckpointManagerOptions(cleanup_tmp_directories=True)
        )
        sys.unraisablehook = _without_echoes(sys.unraisablehook)

    @property
    def latest_step(self) -> int | None:
        """The newest complete checkpoint's step, or None."""
        return self._manager.latest_step()

    def save(self, step: int, items: dict[str, Any], meta: dict[str, Any]) -> None:
        """Begins to write a checkpoint and returns; the arrays are copied before it returns.

        items: trees under the names of ARRAYS, empty ones left out. meta: what JSON can hold; its
        "score" is None or what the best checkpoint is chosen by, higher is better. A step that is
        saved already is left as it is.
        Raises UserError when this or the previous write failed (a full disk, say).
        """
        self.wait()
        if step in complete_steps(self.folder):
            return
        args = {name: ocp.args.StandardSave(tree) for name, tree in items.items() if _leaves(tree)}
        args["meta"] = ocp.args.JsonSave(meta)
        with _WriteErrors(self.folder):
            self._manager.save(step, args=ocp.args.Composite(**args))

    def rate(self, step: int, score: float) -> None:
        """Gives a checkpoint that was saved without a score its own, on all hosts at once.

        Raises UserError if writing the checkpoint failed.
        """
        self.wait()
        folder = self.folder / str(step)
        if jax.process_index() == 0:
            text = json.dumps({**read_meta(folder), "score": score})
            write_atomic(folder / _META, text)
        # All hosts delete the same checkpoints only if they read the same scores.
        multihost_utils.sync_global_devices(f"score of step {step}")

    def restore(self, step: int, like: dict[str, Any]) -> dict[str, Any]:
        """Reads the arrays of a step into the shapes and shardings of `like`.

        Raises UserError naming the first parameters that differ in path or shape.
        """
        folder = self.folder / str(step)
        check_same(read_shapes(folder, "params"), shapes_of(like["params"]), str(folder))
        args = {name: ocp.args.StandardRestore(t) for name, t in like.items() if _leaves(t)}
        restored = self._manager.restore(step, args=ocp.args.Composite(**args))
        return {name: restored[name] if name in args else tree for name, tree in like.items()}

    def wait(self) -> None:
        """Returns when the last checkpoint is complete and the superfluous ones are deleted.

        Raises UserError if writing failed.
        """
        with _WriteErrors(self.folder):
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        steps = complete_steps(self.folder)
        kept = {*steps[-self._keep_last :], best_step(self.folder)}
        for step in steps:
            if step not in kept:
                self._manager.delete(step)

    def close(self) -> None:
        """Waits and lets go of the background threads."""
        self.wait()
        self._manager.close()


def _without_echoes(hook: Any) -> Any:
    """A sys.unraisablehook that leaves out the echoes of a failed write.

    After it, each array still on its way reports to an event loop that orbax has closed, in a
    trace of its own; the failure itself is raised by save or wait.
    """

    def quiet(event: Any) -> None:
        if not (event.exc_type is RuntimeError and str(event.exc_value) == "Event loop is closed"):
            hook(event)

    return quiet


class _WriteErrors:
    """Turns a failed write into an error that says what is still safe."""

    def __init__(self, folder: Path):
        self._folder = folder

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if error is None or not isinstance(error, Exception):
            return
        steps = complete_steps(self._folder)
        good = f"the last good one is step {steps[-1]}" if steps else "there is none yet"
        reason = str(error).strip().splitlines()[0][:300] if str(error).strip() else kind.__name__
        raise UserError(
            f"{self._folder}: a checkpoint could not be written ({reason}); {good}. "
            "Free disk space or check the folder's permissions, and run the same command again."
        ) from error


def complete_steps(folder: Path) -> list[int]:
    """Steps of the complete checkpoints in a `checkpoints` folder, rising."""
    if not folder.is_dir():
        return []
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit() and p.is_dir())


def read_meta(folder: Path) -> dict[str, Any]:
    """The meta data of one checkpoint, `checkpoints/<step>`."""
    path = folder / _META
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: not a checkpoint of this program ({error})") from error


def best_step(folder: Path) -> int | None:
    """The step with the highest score in a `checkpoints` folder; None if none has a score."""
    scores = {step: read_meta(folder / str(step))["score"] for step in complete_steps(folder)}
    scores = {step: score for step, score in scores.items() if score is not None}
    return max(scores, key=lambda step: (scores[step], step)) if scores else None


def find(path: str | Path) -> Path:
    """The checkpoint meant by a run's folder (its best, else its last), or by a step's folder."""
    path = Path(path).expanduser().absolute()
    if (path / "params").is_dir():
        return path
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    steps = complete_steps(folder)
    if not steps:
        raise UserError(
            f"{path}: no checkpoint here; give the folder of a run or of one step "
            "(.../checkpoints/<step>)"
        )
    best = best_step(folder)
    return folder / str(steps[-1] if best is None else best)


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
    return variables, read_meta(folder)


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
