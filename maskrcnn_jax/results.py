"""COCO results and COCO average precision, by pycocotools or faster-coco-eval.

Both find the same matches and give the same numbers up to the last bit (1e-15); the second, an
extra (`pip install maskrcnn_jax[fast-eval]`), is several times faster.
The annotations are the original ones of the data set, never what went through the records.
"""

import contextlib
import contextvars
import importlib.util
import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from pycocotools import coco as _coco
from pycocotools import cocoeval as _cocoeval
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval, Params

from maskrcnn_jax.errors import UserError

IOU_TYPES = ("bbox", "segm")
PIXEL_CENTER = 0.5  # from the index of a pixel, as COCO writes keypoints, to its middle
_COCO_SIGMAS = Params("keypoints").kpt_oks_sigmas
_SIGMA = 0.05  # of keypoints whose spread nobody has measured
_ENGINES = {"faster-coco-eval": "faster_coco_eval", "pycocotools": "pycocotools"}
# In the order of COCOeval.stats, with what the reason for a missing figure says.
_METRICS = {
    "AP": ("", ""),
    "AP50": ("", " >= 0.50"),
    "AP75": ("", " >= 0.75"),
    "APs": ("small ", ""),
    "APm": ("medium ", ""),
    "APl": ("large ", ""),
}


_silent = contextvars.ContextVar("_silent", default=False)


def _print(*args: Any, **options: Any) -> None:
    if not _silent.get():
        print(*args, **options)


# To redirect sys.stdout would silence all threads, for as long as one of them evaluates.
_coco.print = _cocoeval.print = _print


class ClassRow(NamedTuple):
    """One line of the per-class table. An AP is -1 without ground truth, None if not asked for."""

    name: str
    bbox_ap: float | None
    segm_ap: float | None
    num_objects: int  # in the annotations, crowd regions aside
    num_detections: int
    keypoints_ap: float | None = None


class Evaluation(NamedTuple):
    """What `evaluate_coco` found."""

    metrics: dict[str, float]  # "bbox/AP" ... "segm/APl"; -1 where there is nothing to find
    per_class: list[ClassRow]
    reasons: dict[str, str]  # for each metric that is 0 or -1: why


def to_coco_results(
    boxes: Float[np.ndarray, "n 4"],
    scores: Float[np.ndarray, " n"],
    classes: Int[np.ndarray, " n"],
    rles: Sequence[dict] | None,
    image_id: Any,
    category_ids: Sequence[int],
    keypoints: Float[np.ndarray, "n J 3"] | None = None,
) -> list[dict]:
    """Returns the detections of one image as rows of COCO's results JSON.

    Args:
      boxes: (x0, y0, x1, y1) in pixels of the original image; written as (x, y, width, height) to
        a thousandth of a pixel.
      scores: written with the nine digits that tell float32 numbers apart, so no ties arise.
      classes: contiguous, 0 .. C-1.
      rles: compressed masks with `counts` as str, or None for boxes alone.
      image_id: of the annotations.
      category_ids: the annotations' id of each class.
      keypoints: x, y (continuous; written as indices of pixels) and score of each, or None.
    """
    rows = []
    for i, (x0, y0, x1, y1) in enumerate(boxes.astype(np.float64)):
        row = {
            "image_id": int(image_id) if isinstance(image_id, np.integer) else image_id,
            "category_id": int(category_ids[int(classes[i])]),
            "bbox": [round(float(v), 3) for v in (x0, y0, x1 - x0, y1 - y0)],
            "score": float(f"{scores[i]:.9g}"),
        }
        if rles is not None:
            row["segmentation"] = rles[i]
        if keypoints is not None and keypoints.shape[1]:
            places = keypoints[i].astype(np.float64) - [PIXEL_CENTER, PIXEL_CENTER, 0.0]
            row["keypoints"] = [round(float(v), 3) for v in places.ravel()]
        rows.append(row)
    return rows


def engines() -> list[str]:
    """What can compute the precision here, the fastest first."""
    return [name for name, module in _ENGINES.items() if importlib.util.find_spec(module)]


def evaluate_coco(
    annotations: str | Path | dict,
    results: Sequence[dict],
    iou_types: Sequence[str] = IOU_TYPES,
    image_ids: Iterable[Any] | None = None,
    engine: str = "",
    keypoint_sigmas: Sequence[float] = (),
) -> Evaluation:
    """Computes COCO's average precision.

    The area of a predicted mask is that of the mask, as in COCO's own mask results, which hold no
    box; with the box in the same row pycocotools would take the area of the box (it decides which
    predictions count for small, medium and large objects). That of predicted keypoints is the area
    of the box, as in Detectron2. Keypoints are always left to pycocotools.

    Args:
      annotations: COCO JSON, or its path; not changed.
      results: rows of COCO's results format; those with an unknown image or category are left out,
        with a warning.
      iou_types: of "bbox", "segm" and "keypoints" (object keypoint similarity).
      image_ids: evaluate on these images only; all by default.
      engine: of `engines()`; the first of them by default.
      keypoint_sigmas: of each keypoint's annotation, as a share of the object's size; by default
        COCO's for 17 keypoints and 0.05 for all of another number.

    Raises:
      UserError: the file is missing or not COCO JSON, or has no masks for "segm", or keypoints of
        different numbers.
    """
    coco, evaluator_of = _load_engine(engine or engines()[0])
    content = _clean(annotations, "segm" in iou_types)
    if "keypoints" in iou_types:
        sigmas = _complete_keypoints(content["annotations"], results, keypoint_sigmas)
    truth = _index(coco, content)
    wanted = list(truth.imgs) if image_ids is None else sorted(set(image_ids) & set(truth.imgs))
    known, foreign = _sort_out(results, truth, set(wanted))
    objects = [
        a for i in wanted for a in truth.imgToAnns.get(i, []) if not a["iscrowd"]
    ]  # fmt: skip

    metrics: dict[str, float] = {}
    reasons: dict[str, str] = {}
    class_ap: dict[str, dict[int, float]] = {}
    for iou_type in iou_types:
        if iou_type == "keypoints":
            index, rows = _index(COCO, content), [row for row in known if row.get("keypoints")]
            evaluator = _run_evaluator(COCOeval, index, rows, iou_type, wanted, sigmas)
        else:
            evaluator = _run_evaluator(evaluator_of, truth, known, iou_type, wanted)
        class_ap[iou_type] = _per_class(evaluator)
        # COCO counts no keypoints of small objects.
        names = [n for n in _METRICS if iou_type != "keypoints" or n != "APs"]
        for name, value in zip(names, evaluator.stats, strict=False):
            key = f"{iou_type}/{name}"
            metrics[key] = float(value) if math.isfinite(value) else -1.0
            if metrics[key] <= 0:
                counts = len(known), len(objects)
                reasons[key] = _reason(iou_type, name, metrics[key], foreign, *counts)

    objects_of = Counter(a["category_id"] for a in objects)
    found_of = Counter(row["category_id"] for row in known)
    per_class = [
        ClassRow(
            name=str(category.get("name", category_id)),
            bbox_ap=class_ap.get("bbox", {}).get(category_id),
            segm_ap=class_ap.get("segm", {}).get(category_id),
            num_objects=objects_of[category_id],
            num_detections=found_of[category_id],
            keypoints_ap=class_ap.get("keypoints", {}).get(category_id),
        )
        for category_id, category in sorted(truth.cats.items())
    ]
    return Evaluation(metrics, per_class, reasons)


def _clean(annotations: str | Path | dict, need_masks: bool) -> dict:
    """A copy that pycocotools can work on, with what it takes for granted filled in."""
    name = "the annotations"
    if not isinstance(annotations, dict):
        name = str(annotations)
        try:
            annotations = json.loads(Path(annotations).read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"{name}: cannot read the annotations ({error.strerror})") from error
        except ValueError as error:
            raise UserError(f"{name}: not valid JSON ({error}); is the file complete?") from error
    try:
        rows = []
        # pycocotools takes an object of id 0 for unmatched: so ids of our own, from 1.
        for number, row in enumerate(annotations["annotations"], start=1):
            if need_masks and not row.get("segmentation"):
                raise UserError(
                    f"{name}: annotation {row['id']} has no 'segmentation'; "
                    "mask AP needs masks for all objects"
                )
            width, height = row["bbox"][2:]
            rows.append({"iscrowd": 0, "area": width * height, **row, "id": number})
        parts = {key: [dict(r) for r in annotations[key]] for key in ("images", "categories")}
    except (KeyError, TypeError) as error:
        raise UserError(f"{name}: not COCO annotations, {error!r} is missing or odd") from error
    return {**parts, "annotations": rows}


def _complete_keypoints(
    objects: list[dict], results: Sequence[dict], sigmas: Sequence[float]
) -> Float[np.ndarray, " J"]:
    """Gives objects without keypoints empty ones, in place; returns the sigma of each keypoint."""
    rows = [*objects, *results]
    lengths = {len(row["keypoints"]) for row in rows if row.get("keypoints")}
    if len(lengths) > 1:
        counts = sorted(length / 3 for length in lengths)
        raise UserError(f"keypoint AP needs the same number of keypoints everywhere, not {counts}")
    number = lengths.pop() // 3 if lengths else len(_COCO_SIGMAS)
    for row in objects:
        row["keypoints"] = row.get("keypoints") or [0] * 3 * number
        row["num_keypoints"] = sum(v > 0 for v in row["keypoints"][2::3])
    if not len(sigmas):
        sigmas = _COCO_SIGMAS if number == len(_COCO_SIGMAS) else [_SIGMA] * number
    if len(sigmas) != number:
        raise UserError(f"eval.keypoint_sigmas has {len(sigmas)} values; give {number}")
    return np.array(sigmas, np.float64)


def _load_engine(name: str) -> tuple[type, Callable]:
    """The engine's COCO and COCOeval."""
    if name == "pycocotools":
        return COCO, COCOeval
    import faster_coco_eval

    return faster_coco_eval.COCO, faster_coco_eval.COCOeval_faster


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Leaves out what pycocotools prints in this thread."""
    token = _silent.set(True)
    try:
        yield
    finally:
        _silent.reset(token)


def _index(kind: type, content: dict) -> Any:
    coco = kind()
    coco.dataset = content
    with _silence():
        coco.createIndex()
    return coco


def _sort_out(results: Sequence[dict], truth: Any, wanted: set) -> tuple[list[dict], str]:
    """The rows to evaluate, and a sentence about those with ids the annotations do not have."""
    strange_images = {r["image_id"] for r in results} - set(truth.imgs)
    strange_categories = {r["category_id"] for r in results} - set(truth.cats)
    known = [
        row
        for row in results
        if row["image_id"] in wanted and row["category_id"] not in strange_categories
    ]
    for what, strange in (("image", strange_images), ("category", strange_categories)):
        if strange:
            logging.warning(
                "predictions with %d unknown %s ids are not evaluated, e.g. %s",
                len(strange),
                what,
                sorted(strange, key=str)[:5],
            )
    if known or not (strange_images or strange_categories):
        return known, ""
    what, strange, there = (
        ("category", strange_categories, truth.cats)
        if strange_categories
        else ("image", strange_images, truth.imgs)
    )
    return known, (
        f"no predicted id is in the annotations: {what} ids {sorted(strange, key=str)[:5]} were "
        f"predicted, the annotations have {sorted(there, key=str)[:5]}"
    )


def _run_evaluator(
    evaluator_of: Callable,
    truth: Any,
    results: list[dict],
    iou_type: str,
    image_ids: list,
    sigmas: Float[np.ndarray, " J"] | None = None,
) -> Any:
    left_out = "bbox" if iou_type == "segm" else "segmentation"
    rows = [{k: v for k, v in row.items() if k != left_out} for row in results]
    with _silence():
        # loadRes refuses an empty list.
        found = (
            truth.loadRes(rows)
            if rows
            else _index(type(truth), {**truth.dataset, "annotations": []})
        )
        evaluator = evaluator_of(truth, found, iou_type)
        evaluator.params.imgIds = image_ids
        if sigmas is not None:
            evaluator.params.kpt_oks_sigmas = sigmas
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator


def _per_class(evaluator: Any) -> dict[int, float]:
    """AP over all thresholds and sizes of each category id, at the most detections an image."""
    precision = evaluator.eval["precision"][:, :, :, 0, -1]
    table = {}
    for k, category_id in enumerate(evaluator.params.catIds):
        values = precision[:, :, k]
        values = values[values > -1]
        table[int(category_id)] = float(values.mean()) if values.size else -1.0
    return table


def _reason(
    iou_type: str, name: str, value: float, foreign: str, num_found: int, num_objects: int
) -> str:
    (size, iou), labelled = _METRICS[name], iou_type == "keypoints"
    if not num_objects:
        return "no objects in the annotations (crowd regions aside)"
    if value < 0:
        return f"no {size}objects {'with keypoints ' if labelled else ''}in the annotations"
    if foreign:
        return foreign
    if not num_found:
        return "no predictions"
    iou = f"{'OKS' if labelled else 'IoU'}{iou or ' >= 0.50'}"
    return f"no prediction overlaps a {size}object of its class by {iou}"
