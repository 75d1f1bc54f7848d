"""Segments pictures: files, folders (with all below them) and patterns such as 'photos/*.jpg'.

OUTPUT gets overlays/ (the pictures with what was found), results.json (COCO results), images.json
(the pictures, their ids, and what could not be read), and with --masks one PNG per object in
masks/. The same command goes on where it stopped, and takes in pictures that were added.
"""

import argparse
from pathlib import Path

SUMMARY = "find and segment the objects in pictures"
EXAMPLE = "maskrcnn predict --weights runs/shapes photos/ --output found --score-thresh 0.5"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `maskrcnn predict`."""
    parser.add_argument("images", nargs="+", metavar="IMAGES", help="files, folders, patterns")
    parser.add_argument("--weights", required=True, help="weights file, run folder, or known name")
    parser.add_argument("--output", required=True, type=Path, help="folder for the results")
    parser.add_argument(
        "--score-thresh", type=float, help="least score of an object; default: the weights' own"
    )
    parser.add_argument("--masks", action="store_true", help="write one PNG per object, too")
    parser.add_argument("--no-overlays", action="store_true", help="write no pictures")
    parser.add_argument(
        "--annotations", type=Path, help="COCO JSON that gives the image ids, by file name"
    )
    parser.add_argument("--classes", type=Path, help="text file of class names, one per line")
    parser.add_argument(
        "--batch-size", type=int, default=1, help="pictures computed together; default 1"
    )
    parser.add_argument(
        "--max-programs", type=int, default=8, help="most canvas sizes to compile; default 8"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="begin anew in a folder that holds results"
    )


def run(args: argparse.Namespace) -> int:
    """Predicts; 1 if not a single picture could be read."""
    from maskrcnn_jax import files, predict, predict_folder, runtime, traces
    from maskrcnn_jax.logs import ProgressBar

    pictures = files.find_images(args.images, leave_out=args.output)
    names = files.read_lines(args.classes) if args.classes else None
    ids = files.read_image_ids(args.annotations) if args.annotations else None
    runtime.use_compile_cache("")
    with ProgressBar("pictures") as bar:
        predictor = predict.load(
            args.weights,
            score_thresh=args.score_thresh,
            class_names=names,
            batch_size=args.batch_size,
            max_programs=args.max_programs,
            say=bar.say,
            traces=traces.beside_the_cache(),
        )
        report = predict_folder.predict_folder(
            predictor,
            pictures,
            args.output,
            image_ids=ids,
            overlays=not args.no_overlays,
            masks=args.masks,
            overwrite=args.overwrite,
            bar=bar,
        )
    for reason in report.failed.values():
        print(f"skipped {reason}")
    print(
        f"{report.num_images} pictures, {report.num_objects} objects, "
        f"{len(report.failed)} skipped: {args.output}"
    )
    return 1 if report.failed and not report.num_images else 0
