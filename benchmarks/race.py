"""A race: Mask R-CNN from random weights to mask AP, ours against torchvision, on one device.

    python -m benchmarks.race --device gpu --dtype bfloat16 --output race      # R50, 512x512
    python -m benchmarks.race --small                                          # a minute on CPUs

Both sides train on the same generated pictures in the same batches and order, from the same
weights, with the same recipe; `race_sides` tells what is the same and what cannot be. They take
turns of `--every` steps, and after each the same code pastes and evaluates what they predict. So
curves over steps should lie upon each other, and those over seconds tell who is faster. Seconds are
of training steps alone: pictures lie on the device, and compiling, the first steps of torch's
warm-up and evaluation do not count.

Written after each turn to the folder `--output`: race.json (curves of loss, box AP and mask AP;
all losses of the first turn), and race.png where matplotlib is there. Needs pycocotools; without
torchvision ours runs alone.
"""

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import peers_torch, run
from benchmarks.timing import Setting

_SMALL = {"depth": 18, "fpn_channels": 32, "side": 64, "steps": 4, "warmup": 2}
# So few proposals that all are sampled on both sides: their losses must agree from the beginning.
_SMALL |= {"pre_nms": 100, "post_nms": 60, "rois": 512}

_LEAST_AP = 0.02  # below it, who was first is chance


def main(argv: list[str] | None = None) -> dict:
    """Parses, races, prints, writes; returns what was written."""
    args = _parser().parse_args(argv)
    started = time.monotonic()
    try:
        from benchmarks import race_data, race_sides
    except ImportError as error:
        raise SystemExit(
            f"the race needs pycocotools, for its AP: pip install pycocotools ({error})"
        ) from error
    run.use_device(args.device)
    setting, skipped = _setting(args)
    recipe = race_sides.Recipe(steps=args.steps, batch=args.batch, side=args.side)
    train, val, every = args.pictures, args.val, args.every
    if args.small:
        recipe = replace(recipe, **_SMALL, batch=max(2, jax.device_count()))
        train, val, every = 2 * recipe.batch, 2, 2
    pictures = race_data.draw("train", train, recipe.side, setting.threads)
    batches = [pictures[i : i + recipe.batch] for i in range(0, train, recipe.batch)]
    batches = [b for b in batches if len(b) == recipe.batch]
    exam = race_data.draw("val", val, recipe.side, setting.threads)
    peer = race_sides.torch_model(setting, recipe) if setting.has("torchvision") else None
    sides = [race_sides.Ours(setting, recipe, batches, peer)]
    if peer is not None:
        sides.append(race_sides.Torchvision(setting, recipe, batches, peer))
    report = run.head(args, skipped) | {"recipe": asdict(recipe), "curves": {}, "first_losses": {}}
    grader = lambda side: grade(side, exam, recipe.batch)  # noqa: E731
    deadline = started + args.seconds if args.seconds else float("inf")
    order = batch_order(len(batches), recipe.steps)
    race(sides, order, every, grader, report, deadline, args.output)
    print(report["result"])
    return report


def batch_order(number: int, steps: int) -> list[int]:
    """Which batch each step takes: all `number` of them in a new order each time, from seed 0."""
    rng = np.random.default_rng(0)
    epochs = [rng.permutation(number) for _ in range(-(-steps // number))]
    return [int(i) for i in np.concatenate(epochs)[:steps]]


def race(
    sides: list[Any],
    order: list[int],
    every: int,
    grader: Callable[[Any], dict[str, float]],
    report: dict,
    deadline: float = float("inf"),
    output: Path | None = None,
) -> None:
    """Fills report["curves"] and the rest, turn by turn.

    order: the batch of each step. grader: of a side, its APs. deadline: on the clock
    time.monotonic(); no turn begins that would pass it. output: folder to write to; None: nowhere.
    """
    curves = report["curves"]
    longest = 0.0
    for first in range(0, len(order), every):
        started = time.monotonic()
        if started + longest > deadline:
            report["ended"] = f"out of time before step {first + 1}"
            break
        for side in sides:
            losses, seconds = _turn(side, order[first : first + every])
            if first == 0:
                report["first_losses"][side.name] = losses
                print(f"{side.name}, first losses: {_told(losses[0])}")
            curve = curves.setdefault(side.name, [])
            point = {
                "step": first + len(losses),
                "seconds": seconds + (curve[-1]["seconds"] if curve else 0.0),
                "loss": float(np.mean([terms["loss"] for terms in losses])),
                **grader(side),
            }
            curve.append(point)
            print(f"{side.name}: {_told(point)}", flush=True)
        longest = max(longest, time.monotonic() - started)
        report["result"] = sentence(curves)
        if output:
            run.write(output / "race.json", report)
    if output:
        _plot(curves, output / "race.png")


def _told(figures: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in figures.items())


def _turn(side: Any, numbers: list[int]) -> tuple[list[dict[str, float]], float]:
    """Losses of the steps and the seconds that they took."""
    started = time.perf_counter()
    losses = side.train(numbers)
    seconds = time.perf_counter() - started
    return [{key: float(x) for key, x in terms.items()} for terms in losses], seconds


def grade(side: Any, pictures: list, batch: int) -> dict[str, float]:
    """Box and mask AP of a side on `pictures`; masks are pasted by torchvision's rule."""
    from benchmarks import race_data
    from maskrcnn_jax import conventions, results

    rows, hw = [], pictures[0].image.shape[:2]
    for first in range(0, len(pictures), batch):
        images = np.stack([p.image for p in pictures[first : first + batch]])
        for i, found in enumerate(side.predict(images), first):
            rles = [
                conventions.mask_to_rle(mask, box, hw, "torchvision", 0.5)
                for mask, box in zip(found.masks, found.boxes, strict=True)
            ]
            fields = (found.boxes, found.scores, found.classes, rles)
            rows += results.to_coco_results(*fields, i, race_data.CATEGORY_IDS)
    metrics = results.evaluate_coco(race_data.annotations(pictures), rows).metrics
    return {"bbox_ap": metrics["bbox/AP"], "segm_ap": metrics["segm/AP"]}


def seconds_to(curve: list[dict], ap: float) -> float | None:
    """Seconds of training until the mask AP, between the points of a curve; None: never."""
    before = {"seconds": 0.0, "segm_ap": 0.0}
    for point in curve:
        if point["segm_ap"] >= ap:
            rise = point["segm_ap"] - before["segm_ap"]
            share = (ap - before["segm_ap"]) / rise if rise > 0 else 1.0
            return before["seconds"] + share * (point["seconds"] - before["seconds"])
        before = point
    return None


def sentence(curves: dict[str, list[dict]]) -> str:
    """AP at the end of each side, seconds to the AP that all of them reach, and the ratio."""
    ends = {name: curve[-1] for name, curve in curves.items()}
    told = ", ".join(
        f"{name} {p['segm_ap']:.3f} in {p['seconds']:.1f} s" for name, p in ends.items()
    )
    text = f"mask AP after {next(iter(ends.values()))['step']} steps: {told}"
    goal = min(max(p["segm_ap"] for p in curve) for curve in curves.values())
    if goal < _LEAST_AP or len(curves) < 2:
        return text
    times = {name: seconds_to(curve, goal) for name, curve in curves.items()}
    (_, ours), (_, peer) = times.items()
    reached = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in times.items())
    return f"{text}; to mask AP {goal:.3f}: {reached}, {peer / ours:.2f} times as fast"


def _setting(args: argparse.Namespace) -> tuple[Setting, dict[str, str]]:
    """The setting, and why torchvision is missing where it is."""
    skipped = {}
    try:
        peers_torch.require("torchvision", args.threads)
    except ImportError as error:
        skipped["torchvision"] = str(error)
        print(f"torchvision is skipped: {error}")
    setting = Setting(
        device="cuda" if args.device == "gpu" else "cpu",
        dtype=args.dtype,
        small=args.small,
        peers=frozenset({"torchvision"} - skipped.keys()),
        threads=args.threads,
    )
    return setting, skipped


def _plot(curves: dict[str, list[dict]], path: Path) -> None:
    """Mask AP over steps and over seconds; nothing without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no race.png: matplotlib is not installed")
        return
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, over in zip(figure.subplots(1, 2, sharey=True), ("step", "seconds"), strict=True):
        for name, curve in curves.items():
            axes.plot([p[over] for p in curve], [p["segm_ap"] for p in curve], ".-", label=name)
        axes.set(xlabel={"step": "steps", "seconds": "seconds of training"}[over], ylabel="mask AP")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=150)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", choices=("cpu", "gpu"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--steps", type=int, default=480)
    parser.add_argument("--every", type=int, default=60, help="steps of a turn")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--side", type=int, default=512, help="of the square pictures, in pixels")
    parser.add_argument("--pictures", type=int, default=1600, help="to train on")
    parser.add_argument("--val", type=int, default=64, help="pictures to evaluate on")
    parser.add_argument("--seconds", type=float, default=0, help="of all; no turn begins that "
                        "would pass them; 0: no limit")  # fmt: skip
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="to draw, and torch's")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--output", type=Path, help="folder to write to")
    return parser


if __name__ == "__main__":
    main()
