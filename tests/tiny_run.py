"""Runs main.py at the smallest size that still passes through every part, in its own process."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

# Hundreds of kernels that run for microseconds: most of the time made them fast.
QUICK_TO_COMPILE = (
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false "
    "--xla_cpu_parallel_codegen_split_count=1"
)

LAYERS = (
    "model.depth=10",
    "model.width=8",
    "model.fpn_channels=16",
    "model.rpn_channels=16",
    "model.mask_channels=16",
    "model.box_fc_dim=32",
)
MODEL = (
    *LAYERS,
    "model.rpn_pre_nms_topk_train=60",
    "model.rpn_pre_nms_topk_test=60",
    "model.rpn_post_nms_topk_train=40",
    "model.rpn_post_nms_topk_test=40",
    "model.roi_batch_per_image=16",
    "model.max_candidates=60",
    "model.max_detections=20",
)
DATA = (
    "data.short=64",
    "data.long=96",
    "data.short_test=64",
    "data.long_test=96",
    "data.canvases=((96,96),)",
)
SHAPES = (*MODEL, *DATA, "data.shapes_train=16", "data.shapes_val=5")
SCHEDULE = (
    "train.num_steps=12",
    "train.batch_size=2",
    "train.checkpoint_every=4",
    "train.log_every=3",
    "eval.every=6",
    "eval.batch_size=2",
    "eval.num_pictures=2",
    # So that runs of any length are the same program.
    "optim.schedule=constant",
    "optim.warmup_steps=2",
)


def arguments(workdir: Path, *overrides: str, mode: str = "train", config=None) -> list[str]:
    """The command line of main.py for a tiny run; later overrides win."""
    fields = [f"--config.{o}" for o in (*SHAPES, *SCHEDULE, *overrides)]
    path = config or ROOT / "configs" / "shapes.py"
    fields = fields if config is None else [f"--config.{o}" for o in overrides]
    return ["--config", str(path), "--workdir", str(workdir), "--mode", mode, *fields]


def environment(cache: Path, **extra: str) -> dict[str, str]:
    """One CPU device, and the compilation cache of all tests. cache: for prepared data."""
    keep = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    programs = os.environ.get("MASKRCNN_JAX_TEST_CACHE", "~/.cache/maskrcnn_jax/tests")
    return keep | {
        "MASKRCNN_JAX_CACHE": str(cache),
        "JAX_COMPILATION_CACHE_DIR": (
            str(cache / "jax") if programs == "none" else str(Path(programs).expanduser())
        ),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": QUICK_TO_COMPILE,
        **extra,
    }


def run(
    cache: Path, argv: list[str], fault: str = "", **extra: str
) -> subprocess.CompletedProcess[str]:
    """Runs main.py. fault: Python that plants one by the functions of faulty.py."""
    program = ["tests/faulty.py", fault] if fault else ["main.py"]
    return subprocess.run(
        [sys.executable, *program, *argv],
        env=environment(cache, **extra),
        cwd=ROOT,
        text=True,
        capture_output=True,
        timeout=600,
        check=False,
    )


def metrics(workdir: Path) -> list[dict]:
    """The lines of metrics.jsonl without those that tell times."""
    lines = [json.loads(text) for text in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith("time/")} for line in lines]
