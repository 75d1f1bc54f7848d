"""Times ours beside the peers, in one process and in turns, and writes a table and a JSON.

    python -m benchmarks.run                                   # all, at full size
    python -m benchmarks.run --what nms,roi_align --rounds 9
    python -m benchmarks.run --what input --annotations train.json --images train2017
    python -m benchmarks.run --device gpu --dtype bfloat16 --batches 1,16 --train-batch 16
    python -m benchmarks.run --small                           # a minute; says nothing about speed

Detectron2 0.6 does the same work as torchvision, which it needs, and imports pkg_resources.
Subjects and peers that lack a package are skipped and named. A ratio below 1 means that ours is
faster; only ratios of one run mean something. Both sides get the same inputs, weights and threads.
"""

import argparse
import datetime
import importlib
import json
import os
import platform
import subprocess
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import jax
from rich.console import Console
from rich.table import Table

from benchmarks.timing import Case, Figures, Setting, Skipped, measure, rows

# Subject -> module here and its function of a Setting.
SUBJECTS = {
    "inference": ("inference", "cases"),
    "train_step": ("training", "cases"),
    "roi_align": ("operations", "roi_align"),
    "nms": ("operations", "nms"),
    "matching": ("operations", "matching"),
    "paste": ("operations", "paste"),
    "input": ("inputs", "cases"),
    "coco_eval": ("evaluation", "cases"),
    "compile": ("compiling", "compile_time"),
    "memory": ("compiling", "memory"),
    "flops": ("compiling", "flops"),
}
PACKAGES = (
    "jax", "jaxlib", "flax", "numpy", "torch", "torchvision", "detectron2", "tensorflow-cpu",
    "pycocotools", "faster-coco-eval", "Pillow",
)  # fmt: skip
RESULTS = Path(__file__).parent / "results"


def main(argv: list[str] | None = None) -> dict:
    """Parses, measures, prints, writes; returns what was written."""
    args = _parser().parse_args(argv)
    subjects = _subjects(args.what)
    use_device(args.device)
    console = Console(width=150)
    peers, skipped = _peers(args)
    for name, reason in skipped.items():
        console.print(f"{name} is skipped: {reason}")
    setting = _setting(args, peers)
    results = []
    for item in _items(subjects, setting):
        results.append(measure(item, args.rounds, setting.warm_up))
        for line in rows(results[-1:]):
            console.print("   ".join(line), highlight=False)
    report = head(args, skipped) | {"results": results}
    table = Table("case", "ours", "peer", "ours / peer: median (range)")
    for line in rows(results):
        table.add_row(*line)
    console.print(table)
    path = args.json or (None if args.small else _path(report, args.device))
    if path:
        write(path, report)
        console.print(f"written: {path}")
    return report


def use_device(device: str) -> None:
    """Makes JAX compute on "cpu" or "gpu". Raises SystemExit where it finds no GPU."""
    if device == "cpu":
        jax.config.update("jax_platforms", "cpu")
    elif jax.default_backend() == "cpu":
        raise SystemExit("--device gpu: JAX finds no GPU here; install jax[cuda12]")


def head(args: argparse.Namespace, skipped: dict[str, str]) -> dict:
    """What a report begins with: when, what and where. args: with `threads`; all are named."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {args.threads} threads",
        "devices": [d.device_kind for d in jax.devices()],
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "versions": _versions(),
        "arguments": {k: str(v) for k, v in vars(args).items()},
        "skipped": skipped,
    }


def write(path: Path, report: dict) -> None:
    """Writes JSON, which is there whole or not at all; makes the folders around it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.tmp")
    part.write_text(json.dumps(report, indent=1) + "\n")
    os.replace(part, path)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--what", default="all", help=f"by commas, of {', '.join(SUBJECTS)}; all")
    parser.add_argument("--device", default="cpu", choices=("cpu", "gpu"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of peers and input")
    parser.add_argument("--peers", default="torchvision,detectron2")
    parser.add_argument("--batches", help="batch sizes of inference, by commas; 1,8")
    parser.add_argument("--size", type=size, default=(800, 1216), help="of inference: 800x1216")
    parser.add_argument("--train-batch", type=int, default=2)
    parser.add_argument("--train-size", type=size, default=(512, 512))
    parser.add_argument("--torch-compile", action="store_true", help="a further peer, compiled")
    parser.add_argument("--annotations", default="", help="COCO JSON of the input pipeline")
    parser.add_argument("--images", default="", help="folder of its pictures")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--json", type=Path, help="file to write; by default in results/")
    return parser


def size(text: str) -> tuple[int, int]:
    """(height, width) of a text like 800x1216."""
    height, width = text.split("x")
    return int(height), int(width)


def _setting(args: argparse.Namespace, peers: frozenset[str]) -> Setting:
    batches = args.batches or ("1" if args.small else "1,8")
    return Setting(
        device="cuda" if args.device == "gpu" else "cpu",
        dtype=args.dtype,
        small=args.small,
        peers=peers,
        batches=tuple(int(batch) for batch in batches.split(",")),
        train_batch=args.train_batch,
        hw=(64, 96) if args.small else args.size,
        train_hw=args.train_size,
        torch_compile=args.torch_compile,
        threads=args.threads,
        annotations=args.annotations,
        images=args.images,
    )


def _subjects(what: str) -> list[str]:
    wanted = list(SUBJECTS) if what == "all" else what.split(",")
    if strange := [name for name in wanted if name not in SUBJECTS]:
        raise SystemExit(
            f"--what: no subject {', '.join(strange)}; there are {', '.join(SUBJECTS)}"
        )
    return wanted


def _peers(args: argparse.Namespace) -> tuple[frozenset[str], dict[str, str]]:
    """Those that can be imported, and why the others cannot."""
    from benchmarks import peers_torch

    found, skipped = set(), {}
    for name in filter(None, args.peers.split(",")):
        try:
            peers_torch.require(name, args.threads)
            found.add(name)
        except ImportError as error:
            skipped[name] = str(error)
    return frozenset(found), skipped


def _items(subjects: list[str], setting: Setting) -> Iterator[Case | Figures | Skipped]:
    for subject in subjects:
        module, function = SUBJECTS[subject]
        try:
            module = importlib.import_module(f"benchmarks.{module}")
            yield from getattr(module, function)(setting)
        except ImportError as error:
            yield Skipped(subject, str(error))


def _commit() -> str:
    """Of this checkout; "" where there is none, or no git."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
        )
    except OSError:
        return ""
    return done.stdout.strip()


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _path(report: dict, device: str) -> Path:
    moment = report["date"].replace(":", "").replace("+0000", "")
    return RESULTS / f"{moment}-{device}.json"


if __name__ == "__main__":
    main()
