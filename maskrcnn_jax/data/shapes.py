"""The embedded data set: the pictures of `scenes`, in COCO format.

A fresh machine without data can run the whole program on it. Annotations are of the visible part,
as in COCO: a polygon where nothing hides the object and it has no hole, else an RLE (compressed and
uncompressed in turn). On request the corners of squares, triangles and stars are keypoints.
"""

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool
from PIL import Image
from pycocotools import mask as coco_mask

from maskrcnn_jax.data.scenes import CATEGORIES, SPLITS, Scene, draw_scene, tight_box
from maskrcnn_jax.errors import UserError

# Names the folders: to be raised whenever `scenes` draws, or this file writes, something else.
_VERSION = 1

# Each corner by its place in the upright object; a class has some of them, or none.
KEYPOINTS = ("top", "left_upper", "right_upper", "left_lower", "right_lower")
_SKELETON = [[1, 2], [2, 4], [4, 5], [5, 3], [3, 1]]
# Name of the class -> keypoint -> vertex of its outline.
_CORNERS = {
    "triangle": {"top": 0, "right_lower": 1, "left_lower": 2},
    "square": {"left_upper": 0, "right_upper": 1, "right_lower": 2, "left_lower": 3},
    "star": {"top": 0, "right_upper": 2, "right_lower": 4, "left_lower": 6, "left_upper": 8},
}


def generate(
    folder: str | Path, num_train: int, num_val: int, seed: int = 0, keypoints: bool = False
) -> dict[str, tuple[str, str]]:
    """Writes the data set below `folder`, or finds it there from an earlier call.

    keypoints: annotate KEYPOINTS, too; the pictures and masks are the same.

    Returns:
      For each split the paths of its COCO JSON and of its folder of PNGs.

    Raises:
      UserError: a number is not positive, or the folder cannot be written.
    """
    result = {}
    for split, number in zip(SPLITS, (num_train, num_val), strict=True):
        if number < 1:
            raise UserError(f"data.shapes_{split}: must be at least 1, not {number}")
        kind = "_keypoints" if keypoints else ""
        target = Path(folder) / f"{split}_{number}_seed{seed}_v{_VERSION}{kind}"
        try:
            if not _is_complete(target, number):
                _write_split(target, split, number, seed, keypoints)
        except OSError as error:
            raise UserError(f"{target}: cannot write the shapes data set ({error})") from error
        result[split] = (str(target / "annotations.json"), str(target / "images"))
    return result


def _write_split(target: Path, split: str, number: int, seed: int, keypoints: bool) -> None:
    """Writes beside `target` and renames, so that a half-written split is never used."""
    logging.info("drawing %d pictures of shapes for %s into %s", number, split, target)
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.rmtree(draft, ignore_errors=True)
    (draft / "images").mkdir(parents=True)
    content: dict[str, Any] = {
        "info": {"description": "maskrcnn_jax shapes", "split": split, "seed": seed},
        "images": [],
        "annotations": [],
        "categories": [{"id": i, "name": name} for i, name in CATEGORIES.items()],
    }
    if keypoints:
        for category in content["categories"]:
            category |= {"keypoints": KEYPOINTS, "skeleton": _SKELETON}
    for index in range(number):
        scene = draw_scene(seed, split, index)
        file_name = f"{index + 1:06d}.png"
        Image.fromarray(scene.image).save(draft / "images" / file_name, compress_level=1)
        height, width = scene.image.shape[:2]
        content["images"].append(
            {"id": index + 1, "file_name": file_name, "height": height, "width": width}
        )
        rows = _annotations(scene, index + 1, len(content["annotations"]) + 1)
        if keypoints:
            for i, row in enumerate(rows):
                row |= _keypoints(scene, i)
        content["annotations"] += rows
    (draft / "annotations.json").write_text(json.dumps(content))
    if target.exists():
        shutil.rmtree(target)  # incomplete: someone deleted files of it
    try:
        draft.rename(target)
    except OSError:
        # Another process was faster; what it wrote is the same.
        if not _is_complete(target, number):
            raise
        shutil.rmtree(draft)


def _annotations(scene: Scene, image_id: int, first_id: int) -> list[dict[str, Any]]:
    rows = []
    for i, (category, visible) in enumerate(zip(scene.categories, scene.visible, strict=True)):
        if CATEGORIES[category] != "ring" and np.array_equal(visible, scene.full[i]):
            segmentation: Any = [scene.polygons[i]]
        else:
            segmentation = _rle(visible, compressed=(first_id + i) % 2 == 0)
        rows.append(
            {
                "id": first_id + i,
                "image_id": image_id,
                "category_id": category,
                "iscrowd": 0,
                "area": int(visible.sum()),
                "bbox": list(tight_box(visible)),
                "segmentation": segmentation,
            }
        )
    return rows


def _keypoints(scene: Scene, i: int) -> dict[str, Any]:
    """The keypoints of object i as COCO writes them: indices of pixels, and 1 where hidden."""
    corners = _CORNERS.get(CATEGORIES[scene.categories[i]], {})
    outline = np.reshape(scene.polygons[i], (-1, 2))
    height, width = scene.image.shape[:2]
    values: list[float] = []
    for name in KEYPOINTS:
        if name not in corners:
            values += [0, 0, 0]
            continue
        x, y = outline[corners[name]]
        pixel = min(int(y), height - 1), min(int(x), width - 1)
        hidden = scene.full[i + 1 :, *pixel].any()  # by what was painted later
        values += [round(float(x) - 0.5, 2), round(float(y) - 0.5, 2), 1 if hidden else 2]
    return {"keypoints": values, "num_keypoints": len(corners)}


def _rle(mask: Bool[np.ndarray, "H W"], compressed: bool) -> dict[str, Any]:
    if compressed:
        rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
        return {"size": list(mask.shape), "counts": rle["counts"].decode("ascii")}
    column_major = np.concatenate([[False], mask.ravel(order="F")])
    starts = np.flatnonzero(np.diff(column_major)).tolist()
    runs = np.diff([0, *starts, mask.size]).tolist()
    return {"size": list(mask.shape), "counts": runs}


def _is_complete(target: Path, number: int) -> bool:
    try:
        images = json.loads((target / "annotations.json").read_text())["images"]
        return len(images) == number and all(
            (target / "images" / row["file_name"]).stat().st_size > 0 for row in images
        )
    except (OSError, ValueError, KeyError):
        return False
