"""main.py with faults planted: `python tests/faulty.py "kill_at(3)" --config … --workdir …`.

The first argument calls functions of this file, in Python. They are in one file, and not each in a
program of its own, so that runs with other faults take the same traced programs
(`maskrcnn_jax/traces.py`).
"""

import os
import resource
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax  # noqa: E402
import orbax.checkpoint as ocp  # noqa: E402

import main  # noqa: E402
from maskrcnn_jax import results, train  # noqa: E402


def kill_at(step: int, by: str = "SIGKILL") -> None:
    """Sends the process a signal before step n is taken."""
    _before_step(step, lambda run: os.kill(os.getpid(), getattr(signal, by)))


def kill_in_write(step: int) -> None:
    """Kills the process while the checkpoint of step n is being written in the background."""
    save = ocp.CheckpointManager.save

    def begun(self, number, **kwargs):
        save(self, number, **kwargs)
        if number == step:
            os.kill(os.getpid(), signal.SIGKILL)

    ocp.CheckpointManager.save = begun


def overflow_at(step: int) -> None:
    """Before step n all parameters grow out of bounds."""

    def grow(run):
        params = jax.tree.map(lambda x: x * 1e30, run.state.params)
        run.state = run.state._replace(params=params)

    _before_step(step, grow)


def full_disk_at(step: int) -> None:
    """From step n on no file may grow beyond 20 kB, as if the disk were full."""
    save = train._Run._save

    def limited(self, done, *args):
        if done >= step:
            self.store.wait()  # else the checkpoint before it might still be in the making
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
        save(self, done, *args)

    train._Run._save = limited


def unending_precision() -> None:
    """What computes the precision never ends."""
    results.evaluate_coco = lambda *args, **options: threading.Event().wait()


def failing_precision() -> None:
    """What computes the precision fails."""

    def fail(*args, **options):
        raise RuntimeError("an odd annotation")

    results.evaluate_coco = fail


def no_evaluation() -> None:
    """Evaluations find the same at once, without a program to compile."""
    train._Run._evaluate = lambda self, done: {"segm/AP": 0.5}


def _before_step(step: int, does: Callable) -> None:
    advance = train._Run._advance

    def advanced(self, done):
        if done == step:
            does(self)
        advance(self, done)

    train._Run._advance = advanced


if __name__ == "__main__":
    exec(sys.argv.pop(1))
    main.leave(main.main())
