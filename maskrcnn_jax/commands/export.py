"""Writes weights as a file that another program loads: train here, deploy there.

SOURCE is a run's folder, what `maskrcnn import-weights` made, a weights file or a known name. What
was imported and did not change comes back bit for bit.
"""

import argparse
from pathlib import Path

SUMMARY = "write weights for another program"
EXAMPLE = "maskrcnn export runs/r50 r50.pth --to detectron2"

_TORCH = ("pth", "pkl", "safetensors")
FORMATS = {"torchvision": _TORCH, "detectron2": _TORCH, "matterport": ("h5",)}
ENDINGS = (*_TORCH, "h5")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `maskrcnn export`."""
    parser.add_argument("source", metavar="SOURCE", help="run folder, weights file or known name")
    parser.add_argument("dest", metavar="DEST", type=Path, help="file to write")
    parser.add_argument("--to", required=True, choices=tuple(FORMATS))
    parser.add_argument(
        "--format", choices=ENDINGS, help="default: by the ending of DEST, or pth; Matterport: h5"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace DEST if it exists")


def run(args: argparse.Namespace) -> int:
    """Exports; prints where the other program's own model differs."""
    from maskrcnn_jax import predict
    from maskrcnn_jax.errors import UserError
    from maskrcnn_jax.weights import exporter, importer

    formats = FORMATS[args.to]
    dest = _with_ending(args.dest, args.format, formats[0])
    if dest.suffix.removeprefix(".") not in formats:
        raise UserError(f"{dest}: not a file for {args.to}; let it end with .{', .'.join(formats)}")
    if dest.exists() and not args.overwrite:
        raise UserError(f"{dest}: exists already; give another name, or --overwrite")
    imported = importer.import_weights(args.source)
    spec, originals = imported.spec, imported.originals
    if spec is None or spec.family != args.to:
        model = predict.complete_config(imported.config).model.to_dict()
        spec, originals = exporter.spec_for(args.to, model, imported.classes), None
    tensors = exporter.export(imported.variables, spec, originals)
    exporter.save(tensors, dest)
    for warning in spec.warnings:
        print(f"WARNING: {warning}")
    print(f"saved: {dest}, {len(tensors)} tensors for {spec.family}")
    return 0


def _with_ending(dest: Path, kind: str | None, default: str) -> Path:
    ending = f".{kind or default}"
    if dest.suffix == ending or (kind is None and dest.suffix.removeprefix(".") in ENDINGS):
        return dest
    return dest.with_name(dest.name + ending)
