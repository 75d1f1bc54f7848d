"""Turns the weights of another program into a checkpoint of this one.

SOURCE is a file of Detectron2 (.pkl, .pth), torchvision or MMDetection (.pth), Matterport (.h5), or
.safetensors of one of them, told by its content; or a known name, which is fetched. DEST, a new
folder, serves `maskrcnn predict --weights`, `maskrcnn export` and a config's init.checkpoint.
"""

import argparse

SUMMARY = "turn weights of another program into a checkpoint"
EXAMPLE = "maskrcnn import-weights model_final_f10217.pkl weights/r50"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `maskrcnn import-weights`."""
    parser.add_argument("source", metavar="SOURCE", help="weights file or known name")
    parser.add_argument("dest", metavar="DEST", help="new folder for the checkpoint")


def run(args: argparse.Namespace) -> int:
    """Imports, saves, and prints what became of every tensor."""
    from maskrcnn_jax.errors import UserError
    from maskrcnn_jax.weights import importer, readers

    path = importer.locate(args.source)
    if path.is_dir():
        raise UserError(f"{path}: is a folder; a checkpoint of this program needs no import")
    source = readers.read(path)
    imported = importer.import_weights(source)
    folder = importer.save(imported, args.dest)
    for line in _table(imported, len(source.tensors)):
        print(line)
    print(f"saved: {folder}")
    return 0


def _table(imported, num_tensors: int) -> list[str]:
    """What was recognised, which tensors were used, and what the preset sets."""
    from maskrcnn_jax.weights.presets import PRESETS

    spec, config = imported.spec, imported.config
    names = imported.classes["names"]
    some = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
    lines = [
        f"family   {spec.family}, preset {spec.preset}",
        f"classes  {len(names)}: {some}" if names else "classes  none: a bare backbone",
        f"used     {num_tensors - len(imported.unused)} of {num_tensors} tensors",
        *(f"unused   {name}" for name in imported.unused),
        *(f"missing  {name}" for name in imported.missing),
    ]
    usual = PRESETS["detectron2"]
    for group in ("model", "data", "eval"):
        lines += [
            f"preset   {group}.{field} = {value!r}"
            for field, value in config[group].items()
            if group != "model" or value != usual[group].get(field)
        ]
    return lines + [f"WARNING: {warning}" for warning in spec.warnings]
