"""One run in a process of its own: a crash or a lack of memory ends this run and no other.

    python experiments/worker.py FOLDER

reads FOLDER/asked.json, the config, and leaves the run there and, last, its result.json. A second
worker of the same folder waits for the first, and finds its result. The standard input is the life
line to the runner: when it ends, the run saves and stops.
"""

import contextlib
import fcntl
import json
import math
import os
import signal
import statistics
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # in the place of this folder

from configs import common  # noqa: E402
from maskrcnn_jax import config as config_lib  # noqa: E402
from maskrcnn_jax.errors import Interrupted, Stopped, UserError  # noqa: E402
from maskrcnn_jax.logs import write_atomic  # noqa: E402

ASKED, RESULT = "asked.json", "result.json"
INTERRUPTED = 3  # exit status


def work(folder: Path) -> dict[str, Any]:
    """Trains what FOLDER/asked.json says, or goes on with it; returns the result it has written."""
    with _alone(folder):
        if (done := read_result(folder)) and done["status"] == "done":
            return done
        config = config_lib.load(folder / ASKED, schema=common.get_config())
        from maskrcnn_jax import runtime

        runtime.start(config.train.compile_cache, config.train.deterministic)
        from maskrcnn_jax.train import train_and_evaluate

        metrics = train_and_evaluate(config, folder)
        result = {
            "status": "done",
            "metrics": {k: v if math.isfinite(v) and v >= 0 else None for k, v in metrics.items()},
            "seconds_per_step": seconds_per_step(folder),
            **_measure(folder),
        }
        write_atomic(folder / RESULT, json.dumps(result, indent=1))
    return result


def read_result(folder: Path) -> dict[str, Any] | None:
    """The result of a run that ended, well ("done") or not ("failed"); None for any other."""
    path = folder / RESULT
    return json.loads(path.read_text()) if path.is_file() else None


def is_open(folder: Path, retry: bool) -> bool:
    """Whether a run is still to be trained; one that failed is where it shall be tried again."""
    result = read_result(folder)
    return result is None or (retry and result["status"] == "failed")


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, but for one that is only half there."""
    path = folder / "metrics.jsonl"
    lines = []
    for text in path.read_text().splitlines() if path.is_file() else []:
        with contextlib.suppress(ValueError):
            lines.append(json.loads(text))
    return lines


def steps_taken(folder: Path) -> int:
    """The last step that a run's log tells of."""
    return max((line["step"] for line in read_log(folder)), default=0)


def seconds_per_step(folder: Path) -> float | None:
    """The median over the windows of the log; None before the first."""
    times = [line["time/step"] for line in read_log(folder) if "time/step" in line]
    return statistics.median(times) if times else None


def _measure(folder: Path) -> dict[str, Any]:
    """Parameters, GFLOPs of predicting one image of the largest canvas, and the device."""
    import jax

    from maskrcnn_jax import checkpoint, preprocess
    from maskrcnn_jax.models.families import build, variable_shapes

    # Foreign weights may have changed the model's fields: this is the config that was trained.
    config = config_lib.load(folder / "config.json", schema=common.get_config())
    last = checkpoint.complete_steps(folder / "checkpoints")[-1]
    classes = checkpoint.read_meta(folder / "checkpoints" / str(last))["classes"]
    model = build(config.model, len(classes["names"]))
    variables = variable_shapes(model)
    size = (config.data.short_test, config.data.long_test)
    canvas = max(config.data.canvases or preprocess.derive_canvases(*size), key=math.prod)
    return {
        "parameters": sum(x.size for x in jax.tree.leaves(variables["params"])),
        "gflops": gflops(model, variables, canvas),
        "canvas": list(canvas),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }


def gflops(model: Any, variables: Any, canvas: tuple[int, int]) -> float | None:
    """GFLOPs of predicting one image, the same on all devices.

    Those of the program for CPUs, whose pooling has no products with zeros. All slots of the
    detections get a mask, as where a loop leaves the empty ones out its body would be counted once.
    None where JAX_PLATFORMS leaves the CPU out.
    """
    import jax
    import jax.numpy as jnp

    from maskrcnn_jax.models.families import forward_predict

    model = model.clone(every_row=True)
    images = jax.ShapeDtypeStruct((1, *canvas, 3), jnp.uint8)
    hw = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    predict = jax.jit(lambda v, x, hw: forward_predict(model, v, x, hw))
    try:
        cpu = jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None
    with jax.default_device(cpu):
        cost = predict.lower(variables, images, hw).cost_analysis() or {}
    return cost["flops"] / 1e9 if cost.get("flops", 0) > 0 else None


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Holds the folder's lock, which the system releases however this process ends."""
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            print(f"{folder}: another process works on this run; waiting for it", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _follow_the_runner() -> None:
    """Stops this process, as SIGTERM does, once the runner is gone."""

    def wait() -> None:
        # Not through sys.stdin, whose lock would stand in the way of an orderly end.
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def main(argv: list[str]) -> int:
    """Works in the folder argv[0]; exit status 0 done, 1 failed, 2 a user's mistake, 3 interrupted:
    the state is saved."""
    _follow_the_runner()
    try:
        work(Path(argv[0]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Interrupted as reason:
        print(reason, file=sys.stderr)
        return INTERRUPTED
    except Stopped as reason:
        print(reason, file=sys.stderr)
        return 1
    except Exception:
        import traceback

        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    import main as command

    command.leave(main(sys.argv[1:]))
