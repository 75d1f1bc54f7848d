"""COCO evaluation, boxes and masks: ours against pycocotools as its users call it."""

import contextlib
import io
from collections.abc import Iterator

import numpy as np

from benchmarks.timing import Case, Setting

_CLASSES = 80
_SIDE = 28  # of the masks in the frames of their boxes


def cases(setting: Setting) -> Iterator[Case]:
    """One case for each way that ours can go."""
    from maskrcnn_jax import results

    images = 10 if setting.small else 500
    truth, found = scenes(images)
    name = f"COCO evaluation of {len(found)} detections in {images} pictures"
    peers = {"pycocotools": lambda: _pycocotools(truth, found)}
    for engine in results.engines():
        ours = lambda engine=engine: results.evaluate_coco(truth, found, engine=engine)  # noqa: E731
        yield Case(f"{name}, {engine}", ours, peers)


def scenes(images: int, seed: int = 0) -> tuple[dict, list[dict]]:
    """Annotations of about 7 objects a picture, and detections around them and elsewhere."""
    from maskrcnn_jax import postprocess

    rng = np.random.default_rng(seed)
    hw = (480, 640)
    y, x = np.mgrid[-1 : 1 : 1j * _SIDE, -1 : 1 : 1j * _SIDE]
    disk = (1 / (1 + np.exp(8 * (x**2 + y**2 - 0.8)))).astype(np.float32)

    def row(box: np.ndarray, image_id: int, category: int) -> dict:
        x0, y0, x1, y1 = (float(v) for v in box)
        rle = postprocess.mask_to_rle(disk, box, hw)
        bbox = [x0, y0, x1 - x0, y1 - y0]
        return {"image_id": image_id, "category_id": category, "bbox": bbox, "segmentation": rle}

    annotations, detections = [], []
    for image_id in range(1, images + 1):
        count = int(rng.integers(1, 14))
        extent = np.exp(rng.uniform(np.log(12), np.log(400), (count, 2)))
        corner = rng.uniform(0, 1, (count, 2)) * np.maximum([hw[1], hw[0]] - extent, 1)
        boxes = np.concatenate([corner, corner + extent], 1).clip(0, [hw[1], hw[0]] * 2)
        classes = rng.integers(1, _CLASSES + 1, count)
        for box, category in zip(boxes, classes, strict=True):
            entry = row(box.astype(np.float32), image_id, int(category))
            area = entry["bbox"][2] * entry["bbox"][3] * 0.6
            annotations.append(entry | {"id": len(annotations) + 1, "area": area, "iscrowd": 0})
        for _ in range(int(rng.integers(20, 80))):
            chosen = int(rng.integers(count))
            sides = np.tile(extent[chosen], 2)
            moved = (boxes[chosen] + rng.normal(0, 0.08, 4) * sides).astype(np.float32)
            known = rng.random() < 0.5
            category = int(classes[chosen] if known else rng.integers(1, _CLASSES + 1))
            score = round(float(rng.random()), 6)
            detections.append(row(moved, image_id, category) | {"score": score})
    truth = {
        "images": [{"id": i, "height": hw[0], "width": hw[1]} for i in range(1, images + 1)],
        "categories": [{"id": i, "name": str(i)} for i in range(1, _CLASSES + 1)],
        "annotations": annotations,
    }
    return truth, detections


def _pycocotools(truth: dict, found: list[dict]) -> list:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    stats = []
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth | {"annotations": [dict(a) for a in truth["annotations"]]}
        coco.createIndex()
        for iou_type, other in (("bbox", "segmentation"), ("segm", "bbox")):
            rows = [{k: v for k, v in row.items() if k != other} for row in found]
            evaluator = COCOeval(coco, coco.loadRes(rows), iou_type)
            evaluator.evaluate()
            evaluator.accumulate()
            evaluator.summarize()
            stats.append(evaluator.stats)
    return stats
