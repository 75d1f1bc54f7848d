"""How the cost grows: with the area of a picture, its objects, the classes, the batch, the devices.

    python -m benchmarks.scaling --output benchmarks/results/cpu-scaling
    python -m benchmarks.scaling --device gpu --dtype bfloat16 --depth 50

Every point is the compiled training step, and the prediction, of Mask R-CNN FPN on synthetic
batches; one quantity changes, the others keep their middle value. Medians of --rounds calls, points
in turns, so that a machine that slows down does not bend a curve. Told beside them: how many rois
of an image are objects, as the step's mask branch computes no others. The prediction keeps all of
its detections, however low their scores. The devices are virtual ones of a CPU: there the
collectives of the compiled step are counted, which must not grow with them, and none may be in a
loop. Writes OUTPUT.json, and OUTPUT.png where matplotlib is installed.
"""

import argparse
import datetime
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from benchmarks.train_step import Fields, optim_fields, synthetic_batch
from maskrcnn_jax import runtime
from maskrcnn_jax.models import mask_rcnn
from maskrcnn_jax.optimizer import make_optimizer
from maskrcnn_jax.train_step import init_state, init_variables, make_train_step
from maskrcnn_jax.weights.presets import PRESETS

# Quantity -> its values; the middle one is what the other curves keep.
SWEEPS = {
    "side, pixels": (128, 192, 256, 384, 512),
    "objects": (1, 4, 16, 48, 100),
    "classes": (1, 20, 80, 365, 1203),
    "batch": (1, 2, 4),
}
MIDDLE = {"side, pixels": 256, "objects": 16, "classes": 80, "batch": 2}
_COLLECTIVE = r"= \S.* (all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)[\w-]*\("


def main(argv: list[str] | None = None) -> dict:
    """Parses, measures, writes; returns what was written."""
    args = _parser().parse_args(argv)
    if args.device == "cpu":
        jax.config.update("jax_platforms", "cpu")
    if args.count_collectives:
        print(json.dumps(collectives(args)))
        return {}
    curves = {name: _curve(args, name, values) for name, values in SWEEPS.items()}
    report = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "devices": [d.device_kind for d in jax.devices()],
        "jax": jax.__version__,
        "arguments": {k: str(v) for k, v in vars(args).items()},
        "curves": curves,
        "collectives": {n: _on_virtual_devices(args, n) for n in (1, 2, 4, 8)},
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    part = args.output.with_suffix(".json.tmp")
    part.write_text(json.dumps(report, indent=1) + "\n")
    os.replace(part, args.output.with_suffix(".json"))
    for name, points in curves.items():
        for point in points:
            print(f"{name} {point['value']}: step {point['step_s']:.3f} s, predict ", end="")
            print(f"{point['predict_s']:.3f} s, {point['fg_rois']:.0f} rois on objects")
    print("collectives by devices:", report["collectives"])
    _draw(report, args.output.with_suffix(".png"))
    return report


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", choices=("cpu", "gpu"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--depth", type=int, default=18)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/cpu-scaling"))
    parser.add_argument("--count-collectives", action="store_true", help=argparse.SUPPRESS)
    return parser


def _curve(args: argparse.Namespace, name: str, values: tuple[int, ...]) -> list[dict]:
    works = [works_at(args, MIDDLE | {name: value}) for value in values]
    seconds: list[tuple[list, list]] = [([], []) for _ in values]
    for round_ in range(args.rounds + 1):
        for pair, lists in zip(works, seconds, strict=True):
            for work, own in zip(pair, lists, strict=True):
                started = time.perf_counter()
                jax.block_until_ready(work())
                if round_:  # the first call warms up
                    own.append(time.perf_counter() - started)
    return [
        {
            "value": value,
            "step_s": statistics.median(step),
            "predict_s": statistics.median(predict),
            "fg_rois": float(take_step()["fg_rois_per_image"]),
        }
        for value, (step, predict), (take_step, _) in zip(values, seconds, works, strict=True)
    ]


def works_at(args: argparse.Namespace, point: dict[str, int]) -> tuple[Callable, Callable]:
    """The training step and the prediction at a point, compiled, to be called again and again.

    The step returns its metrics, the prediction its detections.
    """
    program, (state, batch), model = training(args, point)
    variables = jax.tree.map(np.asarray, {"params": state.params, "batch_stats": state.batch_stats})

    def step() -> dict:
        nonlocal state
        state, metrics = program(state, batch)
        return metrics

    predict = jax.jit(lambda v, x, hw: mask_rcnn.forward_predict(model, v, x, hw))
    inputs = jax.device_put((variables, batch.images, batch.image_hw))
    compiled = predict.lower(*inputs).compile(runtime.compiler_options())
    return step, lambda: compiled(*inputs)


def training(args: argparse.Namespace, point: dict[str, int]) -> tuple:
    """The compiled step over all devices, its arguments, and the model."""
    changed = {"depth": args.depth, "dtype": args.dtype, "norm": "group", "freeze_at": 0}
    changed["score_thresh"] = 0.0
    fields = PRESETS["detectron2"]["model"] | changed
    model = mask_rcnn.build(Fields(**fields), point["classes"])
    variables = jax.tree.map(np.asarray, init_variables(model, 0))
    optim = optim_fields()
    optim.base_lr = 1e-6  # random weights are to stay as they are
    tx, schedule, trained = make_optimizer(variables["params"], optim, 0, 1000, point["batch"])
    mesh = runtime.make_mesh()
    step = make_train_step(model, tx, schedule, trained, mesh)
    batch = synthetic_batch(np.random.default_rng(0), point["batch"], *(point["side, pixels"],) * 2)
    valid = np.arange(batch.gt_valid.shape[1]) < point["objects"]
    corners = np.random.default_rng(1).uniform(0, 0.6, (*batch.gt_valid.shape, 2))
    sides = np.random.default_rng(2).uniform(0.1, 0.4, (*batch.gt_valid.shape, 2))
    boxes = np.concatenate([corners, corners + sides], -1) * point["side, pixels"]
    batch = batch._replace(
        gt_valid=np.broadcast_to(valid, batch.gt_valid.shape).copy(),
        gt_boxes=boxes.astype(np.float32),
        gt_frames=boxes.astype(np.float32),
        gt_classes=batch.gt_classes % point["classes"],
    )
    placed = (
        runtime.replicate(init_state(variables, tx, 0.0), mesh),
        runtime.shard_batch(batch, mesh),
    )
    return step.lower(*placed).compile(runtime.compiler_options()), placed, model


def collectives(args: argparse.Namespace) -> dict[str, int]:
    """How many collectives the step has over all devices here, two images each, and in loops."""
    count = jax.device_count()
    point = MIDDLE | {"side, pixels": 64, "batch": 2 * count}
    text = training(args, point)[0].as_text()
    entry = text[text.index("\nENTRY") :]
    found, outside = (len(re.findall(_COLLECTIVE, part)) for part in (text, entry))
    return {"collectives": found, "in loops": found - outside}


def _on_virtual_devices(args: argparse.Namespace, count: int) -> dict[str, int]:
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"
    command = [sys.executable, "-m", "benchmarks.scaling", "--count-collectives"]
    command += ["--depth", str(args.depth)]
    environment = os.environ | {"XLA_FLAGS": flags.strip(), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _draw(report: dict, path: Path) -> None:
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        print("no plot: pip install matplotlib")
        return
    figure, axes = plt.subplots(1, len(report["curves"]), figsize=(4 * len(report["curves"]), 3.2))
    for ax, (name, points) in zip(axes, report["curves"].items(), strict=True):
        area = name.startswith("side")
        x = [p["value"] ** 2 / 1e6 if area else p["value"] for p in points]
        for key, label in (("step_s", "training step"), ("predict_s", "prediction")):
            ax.plot(x, [p[key] for p in points], "o-", label=label)
        ax.set_xlabel("area, megapixels" if area else name)
        ax.set_ylabel("seconds")
        ax.set_ylim(0)
    axes[0].legend()
    figure.tight_layout()
    part = path.with_suffix(".part.png")
    figure.savefig(part, dpi=100)
    plt.close(figure)
    os.replace(part, path)


if __name__ == "__main__":
    main()
