"""Times ours beside the peers, in one process and in turns, and writes a table and a JSON.

    python -m benchmarks.run                                   # all, at full size
    python -m benchmarks.run --what nms,roi_align --rounds 9
    python -m benchmarks.run --device gpu --dtype bfloat16
    python -m benchmarks.run --small                           # a minute; says nothing about speed

Peers that are not installed are skipped and named. A ratio below 1 means that ours is faster; only
ratios of one run mean something. Both sides get the same inputs, weights and number of threads.
"""

import argparse
import datetime
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

from benchmarks import torch_peer
from benchmarks.timing import Case, alternate, rows

SUBJECTS = ("inference", "training", "operations")
PACKAGES = ("jax", "jaxlib", "flax", "numpy", "torch", "torchvision", "pycocotools")


def main(argv: list[str] | None = None) -> dict:
    """Parses, measures, prints, writes; returns what was written."""
    args = _parser().parse_args(argv)
    device = "cuda" if args.device == "gpu" else "cpu"
    peers, skipped = _peers(args)
    console = Console(width=140)
    for name, reason in skipped.items():
        console.print(f"{name} is skipped: {reason}")
    results = []
    for case in _cases(args, device, peers):
        results.append(alternate(case, args.rounds))
        for line in rows(results[-1:]):
            console.print("   ".join(line))
    report = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {args.threads} threads",
        "devices": [d.device_kind for d in jax.devices()],
        "versions": _versions(),
        "arguments": {k: str(v) for k, v in vars(args).items()},
        "skipped": skipped,
        "results": results,
    }
    table = Table("case", "ours", "peer", "ours / peer: median (range)")
    for line in rows(results):
        table.add_row(*line)
    console.print(table)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        part = args.json.with_name(f"{args.json.name}.tmp")
        part.write_text(json.dumps(report, indent=1) + "\n")
        os.replace(part, args.json)
    return report


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--what", default="all", help=f"of {', '.join(SUBJECTS)}, or part of a case"
    )
    parser.add_argument("--device", default="cpu", choices=("cpu", "gpu"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of the peers")
    parser.add_argument("--peers", default="torchvision")
    parser.add_argument("--batches", default="1", help="batch sizes of inference, by commas")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--json", type=Path, help="file to write")
    return parser


def _peers(args: argparse.Namespace) -> tuple[set[str], dict[str, str]]:
    """Those that can be imported, and why the others cannot."""
    found, skipped = set(), {}
    for name in filter(None, args.peers.split(",")):
        try:
            torch_peer.require(args.threads)
            found.add(name)
        except ImportError as error:
            skipped[name] = str(error)
    return found, skipped


def _cases(args: argparse.Namespace, device: str, peers: set[str]) -> Iterator[Case]:
    from benchmarks import models, operations

    wanted = SUBJECTS if args.what == "all" else tuple(args.what.split(","))
    big, square = ((64, 96), (64, 64)) if args.small else ((800, 1216), (512, 512))
    common = {"device": device, "dtype": args.dtype, "peers": peers, "small": args.small}
    if "inference" in wanted:
        for batch in map(int, args.batches.split(",")):
            yield models.inference(big, batch, **common)
    if "training" in wanted:
        yield from models.training(square, 2, **common)
    parts = [w for w in wanted if w not in SUBJECTS]
    if "operations" in wanted or parts:
        for case in operations.cases(big, device, peers, args.small):
            if "operations" in wanted or any(p.lower() in case.name.lower() for p in parts):
                yield case


def _commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    main()
