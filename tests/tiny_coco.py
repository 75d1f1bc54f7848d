"""Small COCO data sets for the tests of data/: rectangles of one colour per class."""

import json
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as mask_utils

CATEGORIES = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}, {"id": 90, "name": "owl"}]
CLASS_OF_ID = {3: 0, 7: 1, 90: 2}
COLORS = {3: (250, 20, 20), 7: (20, 250, 20), 90: (20, 20, 250)}


def rectangle(x0, y0, x1, y1):
    """A polygon around whole pixels."""
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def annotation(i, image_id, category_id, polygons, **more):
    """One annotation with the bounds of its polygons as box."""
    points = np.concatenate([np.reshape(p, (-1, 2)) for p in polygons])
    (x0, y0), (x1, y1) = points.min(0), points.max(0)
    return {
        "id": i,
        "image_id": image_id,
        "category_id": category_id,
        "segmentation": polygons,
        "bbox": [float(x0), float(y0), float(x1 - x0), float(y1 - y0)],
        "area": float((x1 - x0) * (y1 - y0)),
        "iscrowd": 0,
    } | more


def rle_annotation(i, image_id, category_id, mask, compressed, **more):
    """One annotation of a mask, as either kind of RLE."""
    rle = mask_utils.encode(np.asfortranarray(mask.astype(np.uint8)))
    if compressed:
        rle = rle | {"counts": rle["counts"].decode()}
    else:
        flat = np.concatenate([[0], mask.ravel(order="F").astype(int), [2]])
        ends = np.flatnonzero(np.diff(flat))  # a run of zeros comes first, maybe of length 0
        starts = [0, *ends] if flat[1] == 0 else [0, 0, *ends[1:]]
        counts = np.diff(starts).tolist()
        rle = {"size": list(mask.shape), "counts": counts}
    ys, xs = np.nonzero(mask)
    box = [int(xs.min()), int(ys.min()), int(np.ptp(xs)) + 1, int(np.ptp(ys)) + 1]
    return annotation(i, image_id, category_id, [rectangle(0, 0, 1, 1)]) | (
        {"segmentation": rle, "bbox": box, "area": float(mask.sum())} | more
    )


def write(folder: Path, sizes: dict, annotations: list, categories=None):
    """Writes PNGs and the JSON; returns (annotations, images) as `load_coco` takes them.

    sizes: image id -> (height, width).
    """
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    entries = []
    for i, (h, w) in sizes.items():
        pixels = np.full((h, w, 3), 128, np.uint8)
        for a in annotations:
            if a["image_id"] == i and not a["iscrowd"] and isinstance(a["segmentation"], list):
                x, y, bw, bh = (round(v) for v in a["bbox"])
                pixels[y : y + bh, x : x + bw] = COLORS[a["category_id"]]
        Image.fromarray(pixels).save(images / f"{i}.png")
        entries.append({"id": i, "file_name": f"{i}.png", "height": h, "width": w})
    path = folder / "instances.json"
    content = {"images": entries, "annotations": annotations}
    path.write_text(json.dumps(content | {"categories": categories or CATEGORIES}))
    return path, str(images)


def boxes_set(folder: Path, num_images: int = 9, seed: int = 0):
    """Pictures of three shapes, with 0 to 4 disjoint rectangles each."""
    rng = np.random.default_rng(seed)
    shapes = [(60, 80), (80, 60), (50, 110)]
    sizes = {10 + 3 * i: shapes[i % 3] for i in range(num_images)}
    annotations = []
    for n, (image_id, (h, w)) in enumerate(sizes.items()):
        for k in range(n % 5):
            x0, y0 = w // 4 * k + 2, int(rng.integers(0, h - 30))
            x1, y1 = x0 + w // 4 - 4, y0 + int(rng.integers(12, 30))
            category = int(rng.choice(list(COLORS)))
            shape = [rectangle(x0, y0, x1, y1)]
            annotations.append(annotation(len(annotations) + 1, image_id, category, shape))
    return write(folder, sizes, annotations)
