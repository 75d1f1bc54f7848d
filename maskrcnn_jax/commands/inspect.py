"""Looks for everything that is odd in data sets, before hours of training are spent on it.

DATA is COCO JSON, or any format that `maskrcnn convert` reads; several are the splits of one task
and are compared: classes, and pictures that one shares with another. Findings are errors (cannot be
used), warnings (can, but look) and notes. Exit status: 0 no errors, 1 errors, 2 wrong use.

--fix writes a repaired copy: outlines cut off at the border, boxes and areas measured on the masks,
ids made unique; what is of no use is left out and listed. Coordinates that look exchanged, and
masks of another size, are told and not guessed at.
"""

import argparse
import json
from pathlib import Path

SUMMARY = "find what is odd in a data set, and repair it"
EXAMPLE = "maskrcnn inspect train.json --val val.json --images photos/ --html report.html"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `maskrcnn inspect`."""
    parser.add_argument("data", nargs="+", type=Path, metavar="DATA", help="annotations")
    parser.add_argument("--val", type=Path, action="append", default=[], help="one more split")
    parser.add_argument(
        "--images",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="folder of the pictures, once or once per DATA; default: looked for near DATA",
    )
    parser.add_argument("--from", dest="kind", default="", metavar="KIND", help="format of DATA")
    parser.add_argument(
        "--also",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="folder of pictures without annotations (a test set) that must share none with DATA",
    )
    parser.add_argument("--html", type=Path, help="write a page with pictures")
    parser.add_argument("--json", type=Path, help="write all findings and numbers")
    parser.add_argument("--fix", type=Path, metavar="OUT.json", help="write a repaired copy")
    parser.add_argument(
        "--fix-duplicates", action="store_true", help="leave out duplicate objects of the copy"
    )
    parser.add_argument(
        "--max-instances", type=int, default=100, help="as data.max_instances; default 100"
    )
    parser.add_argument(
        "--max-pictures", type=int, default=40, help="most pictures of the page; default 40"
    )
    parser.add_argument(
        "--no-pictures", action="store_true", help="do not open the pictures: no leaks are found"
    )


def run(args: argparse.Namespace) -> int:
    """Inspects, prints and writes; 1 if there are errors."""
    from maskrcnn_jax import report_data
    from maskrcnn_jax.data import doctor_fix, doctor_run
    from maskrcnn_jax.errors import UserError
    from maskrcnn_jax.logs import ProgressBar

    sources = [*args.data, *args.val]
    if args.fix and len(sources) > 1:
        raise UserError("--fix repairs one data set: call it once per DATA")
    if args.max_instances < 1 or args.max_pictures < 0:
        raise UserError("--max-instances must be 1 or more, --max-pictures 0 or more")
    outputs = [p for p in (args.html, args.json, args.fix) if p]
    report_data.check_outputs(outputs, sources)
    with ProgressBar("pictures") as bar:
        report = doctor_run.inspect(
            sources,
            kind=args.kind,
            images=args.images,
            also=args.also,
            open_pictures=not args.no_pictures,
            max_instances=args.max_instances,
            begin=bar.begin,
            advance=bar.advance,
        )
    report_data.print_report(report, args.max_instances)
    if args.json:
        text = json.dumps(report.to_json(), indent=1, allow_nan=False)
        report_data.write_text(args.json, text)
    if args.html:
        page = report_data.html_page(report, args.max_instances, args.max_pictures)
        report_data.write_text(args.html, page)
    if args.fix:
        content, done = doctor_fix.repair(report.examined[0], args.fix_duplicates)
        doctor_fix.write(args.fix, content, [report.examined[0].raw.path])
        report_data.print_repairs(content, done)
    for path in outputs:
        print(f"written: {path}")
    return 1 if any(f.grade == "error" for f in report.findings) else 0
