"""Turns annotations of any common labelling tool into COCO JSON, checked.

SOURCE is what the tool exported, a file or a folder; the kind is found out. Several sources are
put together. Nothing is approximated: objects in parts, holes and bitmaps stay what they are.
What is odd in the data is counted and told; what cannot be used is left out. Boxes and areas are
measured on the masks. The same command writes the same files.

--split keeps every class in proportion and every class in train, and never parts near-duplicates:
pictures that show the same (saved anew, scaled, mirrored, turned, noisy, frames of one scene),
Roboflow's copies of one photograph, and what --group says.
"""

import argparse
import collections
import shlex
from pathlib import Path
from typing import Any

SUMMARY = "turn annotations of any labelling tool into COCO JSON"
EXAMPLE = "maskrcnn convert photos/via_region_data.json --output photos/coco.json --split 0.8/0.2"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `maskrcnn convert`."""
    from maskrcnn_jax.data.formats import registry

    kinds = "; ".join(f"{module.NAME} ({module.SUMMARY})" for module in registry.FORMATS)
    parser.add_argument("sources", nargs="+", type=Path, metavar="SOURCE", help="files or folders")
    parser.add_argument(
        "--from",
        dest="kind",
        choices=registry.names(),
        default="",
        metavar="KIND",
        help=f"the format, if it is not to be found out: {kinds}",
    )
    parser.add_argument("--output", required=True, type=Path, help="the JSON to write")
    parser.add_argument(
        "--split",
        metavar="0.8/0.2",
        help="write OUTPUT_train.json and OUTPUT_val.json; with three shares _test, too",
    )
    parser.add_argument(
        "--images", type=Path, help="folder of the pictures; default: where the format has them"
    )
    parser.add_argument(
        "--classes",
        help="classes in the order of their ids, others are left out: a,b,c, a text file with one "
        "per line, a COCO JSON that has the same names and ids, or 'coco': the 80 classes of COCO "
        "with their ids",
    )
    parser.add_argument(
        "--class-map",
        metavar="MAP",
        help="rename (old=new), merge (a=c,b=c) or drop (old=) classes; or a JSON file, null drops",
    )
    parser.add_argument("--class-key", default="", help="VIA: the attribute that is the class")
    parser.add_argument(
        "--default-class", default="object", help="of objects without a class; default: object"
    )
    parser.add_argument(
        "--line-width", type=float, default=3.0, help="of lines, in pixels; default 3"
    )
    parser.add_argument(
        "--group",
        default="",
        metavar="REGEX",
        help="pictures whose names have the same match (its first group) stay in one part, such as "
        "'(.*)_frame' for the frames of a film",
    )
    parser.add_argument(
        "--no-twins",
        action="store_true",
        help="do not open the pictures to keep near-duplicates in one part of the split; files "
        "with the same content are kept together in any case",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the split; default 0")
    parser.add_argument(
        "--keep-category-ids",
        action="store_true",
        help="the source's own category ids, instead of 1, 2, ...",
    )
    parser.add_argument(
        "--extract-images",
        action="store_true",
        help="labelme: write the pictures, also those inside the JSON, to 'images' beside OUTPUT",
    )
    parser.add_argument("--all-findings", action="store_true", help="print each, not one of a kind")


def run(args: argparse.Namespace) -> int:
    """Converts and prints what was found."""
    from maskrcnn_jax.data.formats import conversion
    from maskrcnn_jax.data.formats.draft import Options
    from maskrcnn_jax.errors import UserError
    from maskrcnn_jax.logs import ProgressBar

    if not 0 < args.line_width < 1000:
        raise UserError(f"--line-width {args.line_width}: give a width in pixels, such as 3")
    classes, category_ids = _classes(args.classes)
    options = Options(
        images=args.images,
        classes=classes,
        class_key=args.class_key,
        line_width=args.line_width,
        default_class=args.default_class,
    )
    with ProgressBar("pictures") as bar:
        converted = conversion.convert(
            args.sources,
            args.output,
            kind=args.kind,
            options=options,
            class_map=conversion.parse_class_map(args.class_map) if args.class_map else None,
            classes=classes,
            category_ids=category_ids,
            fractions=conversion.parse_fractions(args.split) if args.split else (),
            group=args.group,
            twins=not args.no_twins,
            seed=args.seed,
            keep_category_ids=args.keep_category_ids,
            extract_images=args.extract_images,
            begin=bar.begin,
            advance=bar.advance,
        )
    print(f"read as {converted.draft.kind}\n")
    _print_counts(converted.files)
    _print_findings(converted.draft.findings, args.all_findings)
    _print_training(list(converted.files), converted.images)
    return 0


def _classes(text: str | None) -> tuple[tuple[str, ...], dict[str, int]]:
    """The names that --classes gives, and their ids where it gives them."""
    from maskrcnn_jax.data.formats import conversion
    from maskrcnn_jax.weights import coco_names

    if not text:
        return (), {}
    if text == "coco":
        return coco_names.NAMES, {name: id for id, name in coco_names.NAMES_BY_ID.items()}
    return conversion.parse_classes(text)


def _print_counts(files: dict[Path, dict[str, Any]]) -> None:
    """A table: per file pictures and objects, per class objects."""
    rows = [["", *(path.name for path in files)]]
    contents = list(files.values())
    rows.append(["pictures", *(str(len(coco["images"])) for coco in contents)])
    rows.append(["objects", *(str(len(coco["annotations"])) for coco in contents)])
    counts = [collections.Counter(a["category_id"] for a in c["annotations"]) for c in contents]
    for category in contents[0]["categories"]:
        id = category["id"]
        rows.append([f"{id:>4} {category['name']}", *(str(count[id]) for count in counts)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *cells in rows:
        numbers = "  ".join(c.rjust(w) for c, w in zip(cells, widths[1:], strict=True))
        print(_printable(f"{name.ljust(widths[0])}  {numbers}".rstrip()))


def _printable(text: str) -> str:
    """The text without what would steer a terminal: names come from files of others."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _print_findings(findings: list[Any], each: bool) -> None:
    """Findings by grade and code, the gravest first."""
    groups = collections.defaultdict(list)
    for finding in findings:
        groups["error warning note".index(finding.grade), finding.code].append(finding)
    print(f"\n{len(findings)} findings" if findings else "\nno findings")
    for (_, code), group in sorted(groups.items()):
        for number, finding in enumerate(group if each else group[:1]):
            title = f"{finding.grade} {code}: {len(group)}" if number == 0 else ""
            print(f"  {title}\n" if title else "", end="")
            place = f"{finding.where}: " if finding.where else ""
            example = "" if each or len(group) == 1 else "for example "
            print(f"      {example}{_printable(place + finding.message)}")


def _print_training(paths: list[Path], images: Path) -> None:
    """The lines to look at the data and to train on them."""
    train, val = paths[0], paths[1] if len(paths) > 1 else paths[0]
    fields = ["--config.init.checkpoint=detectron2/mask_rcnn_R_50_FPN_3x"]
    for name, path in (("train", train), ("val", val)):
        fields.append(f"--config.data.{name}.annotations={shlex.quote(str(path))}")
        fields.append(f"--config.data.{name}.images={shlex.quote(str(images))}")
    data = " ".join(shlex.quote(str(path)) for path in paths)
    print(f"\nlook:   maskrcnn inspect {data} --images {shlex.quote(str(images))}")
    print("train:  " + " \\\n    ".join(["python main.py --config configs/finetune.py", *fields]))
