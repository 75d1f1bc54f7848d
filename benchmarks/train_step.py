"""Times the training step on synthetic batches: no data, no TensorFlow, no config files.

    python -m benchmarks.train_step --output benchmarks/results/train_step.json
    python -m benchmarks.train_step --depth 18 --width 8 --height 64 --width-px 96 --batch 2

The first line is Detectron2's R50-FPN at full size in bfloat16, 16 images of 800x1344. Printed and
written: images a second (median of blocks of ten steps), the memory that the program needs, the
time to compile, how many programs were compiled (one: no step compiles again), and whether every
loss was finite.
"""

import argparse
import datetime
import json
import statistics
import time
from pathlib import Path
from types import SimpleNamespace

import flax
import jax
import numpy as np
import optax

from maskrcnn_jax import runtime
from maskrcnn_jax.models import mask_rcnn
from maskrcnn_jax.optimizer import make_optimizer
from maskrcnn_jax.train_step import init_state, init_variables, make_train_step
from maskrcnn_jax.types import Batch
from maskrcnn_jax.weights.presets import PRESETS

CLASSES = 80
BLOCK = 10
# Model fields that run through all in seconds, and tell nothing about speed.
SMALL = {
    "depth": 18,
    "width": 8,
    "fpn_channels": 16,
    "rpn_channels": 16,
    "box_fc_dim": 32,
    "mask_channels": 16,
    "roi_batch_per_image": 16,
    "rpn_pre_nms_topk_train": 60,
    "rpn_pre_nms_topk_test": 60,
    "rpn_post_nms_topk_train": 40,
    "rpn_post_nms_topk_test": 40,
}


class Fields(SimpleNamespace):
    """Fields by attribute and by name, as a config has them."""

    def __getitem__(self, name: str):
        return getattr(self, name)


def model_fields(args: argparse.Namespace) -> Fields:
    """Detectron2's Mask R-CNN FPN; GroupNorm, because random weights need a norm."""
    small = args.channels
    changed = {
        "depth": args.depth,
        "width": args.width,
        "norm": "group",
        "freeze_at": 0,
        "fpn_channels": small,
        "pixel_std": (57.375, 57.12, 58.395),
        "rpn_channels": small,
        "roi_batch_per_image": args.rois,
        "box_channels": small,
        "box_fc_dim": 4 * small,
        "mask_channels": small,
        "dtype": args.dtype,
        "remat": args.remat,
    }
    return Fields(**PRESETS["detectron2"]["model"] | changed)


def optim_fields() -> Fields:
    """Detectron2's SGD with its warm-up."""
    return Fields(
        name="sgd",
        base_lr=0.02,
        base_batch=16,
        schedule="constant",
        warmup_steps=1000,
        warmup_factor=0.001,
        momentum=0.9,
        weight_decay=1e-4,
        decay_rules=((r"norm.*/(scale|bias)$", 0.0), (r".*", 1.0)),
        lr_rules=((r".*", 1.0),),
        stages=((0.0, r".*"),),
        layer_decay=1.0,
        clip_norm=0.0,
    )


def synthetic_batch(rng: np.random.Generator, size: int, height: int, width: int) -> Batch:
    """Noise with 8 of at most 100 objects; boxes of COCO-like sizes, elliptic masks."""
    slots, side, objects = 100, 112, 8
    extent = np.exp(rng.uniform(np.log(16), np.log(min(height, width) * 0.8), (size, slots, 2)))
    corner = rng.uniform(0, 1, (size, slots, 2)) * ([width, height] - extent)
    valid = np.arange(slots) < objects
    boxes = np.concatenate([corner, corner + extent], -1) * valid[:, None]
    disk = np.hypot(*(np.indices((side, side)) - (side - 1) / 2)) < side / 2
    return Batch(
        images=rng.integers(0, 256, (size, height, width, 3), np.uint8),
        image_hw=np.tile(np.int32([height, width]), (size, 1)),
        gt_boxes=boxes.astype(np.float32),
        gt_classes=rng.integers(0, CLASSES, (size, slots)).astype(np.int32),
        gt_valid=np.tile(valid, (size, 1)),
        gt_frames=boxes.astype(np.float32),
        gt_masks=np.tile(np.packbits(disk, axis=-1), (size, slots, 1, 1)),
        num_dropped=np.zeros(size, np.int32),
        index=np.arange(size, dtype=np.int32),
    )


def watch_compiling() -> list[float]:
    """A list that gets the seconds of each program that JAX compiles from now on."""
    seconds: list[float] = []

    def note(event: str, duration: float, **_: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            seconds.append(duration)

    jax.monitoring.register_event_duration_secs_listener(note)
    return seconds


def measure(args: argparse.Namespace) -> dict:
    """Trains args.steps steps and returns the figures."""
    model = mask_rcnn.build(model_fields(args), CLASSES)
    mesh = runtime.make_mesh()
    variables = jax.tree.map(np.asarray, init_variables(model, 0))
    tx, schedule, trained = make_optimizer(
        variables["params"], optim_fields(), 0, args.steps, args.batch
    )
    step = make_train_step(model, tx, schedule, trained, mesh)
    state = runtime.replicate(init_state(variables, tx, 0.0), mesh)
    rng = np.random.default_rng(0)
    batches = [
        runtime.shard_batch(synthetic_batch(rng, args.batch, args.height, args.width_px), mesh)
        for _ in range(4)
    ]
    options = runtime.compiler_options()
    compiled = watch_compiling()
    started = time.perf_counter()
    program = step.lower(state, batches[0]).compile(options)
    compile_seconds = time.perf_counter() - started
    memory = program.memory_analysis()
    losses, blocks = [], []
    for first in range(0, args.steps, BLOCK):
        started = time.perf_counter()
        for i in range(first, min(first + BLOCK, args.steps)):
            state, metrics = program(state, batches[i % len(batches)])
            losses.append(metrics["loss"])
        jax.block_until_ready(losses[-1])
        blocks.append((time.perf_counter() - started) / (len(losses) - first))
    programs = len(compiled)
    values = [float(x) for x in losses]
    # The first block holds what happens once.
    seconds = statistics.median(blocks[1:] or blocks)
    stats = jax.local_devices()[0].memory_stats() or {}
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "versions": {m.__name__: m.__version__ for m in (jax, flax, optax, np)},
        "arguments": vars(args),
        "images_per_second": args.batch / seconds,
        "seconds_per_step": seconds,
        "compile_seconds": compile_seconds,
        "compiled_programs": programs,
        "program_bytes": memory.temp_size_in_bytes + memory.argument_size_in_bytes,
        "peak_bytes_in_use": stats.get("peak_bytes_in_use"),
        "steps": len(values),
        "all_finite": bool(np.isfinite(values).all()) and int(state.bad_step) < 0,
        "first_loss": values[0],
        "last_loss": values[-1],
    }


def main(argv: list[str] | None = None) -> dict:
    """Parses, measures, prints, writes; returns the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=16, help="images a step, over all devices")
    parser.add_argument("--height", type=int, default=800)
    parser.add_argument("--width-px", type=int, default=1344)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--depth", type=int, default=50)
    parser.add_argument("--width", type=int, default=64, help="channels of the stem")
    parser.add_argument("--channels", type=int, default=256, help="of pyramid and heads")
    parser.add_argument("--rois", type=int, default=512, help="sampled rois an image")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--remat", action="store_true")
    parser.add_argument("--output", type=Path, help="JSON file")
    args = parser.parse_args(argv)
    output, args.output = args.output, None
    figures = measure(args)
    text = json.dumps(figures, indent=1)
    print(text)
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text + "\n")
    return figures


if __name__ == "__main__":
    main()
