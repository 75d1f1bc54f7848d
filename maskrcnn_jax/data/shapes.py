"""The embedded data set: the pictures of `scenes`, in COCO format.

A fresh machine without data can run the whole program on it. Annotations are of the visible part,
as in COCO: a polygon where nothing hides the object and it has no hole, else an RLE (compressed and
uncompressed in turn).
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


def generate(
    folder: str | Path, num_train: int, num_val: int, seed: int = 0
) -> dict[str, tuple[str, str]]:
    """Writes the data set below `folder`, or finds it there from an earlier call.

    Returns:
      For each split the paths of its COCO JSON and of its folder of PNGs.

    Raises:
      UserError: a number is not positive, or the folder cannot be written.
    """
    result = {}
    for split, number in zip(SPLITS, (num_train, num_val), strict=True):
        if number < 1:
            raise UserError(f"data.shapes_{split}: must be at least 1, not {number}")
        target = Path(folder) / f"{split}_{number}_seed{seed}_v{_VERSION}"
        try:
            if not _is_complete(target, number):
                _write_split(target, split, number, seed)
        except OSError as error:
            raise UserError(f"{target}: cannot write the shapes data set ({error})") from error
        result[split] = (str(target / "annotations.json"), str(target / "images"))
    return result


def _write_split(target: Path, split: str, number: int, seed: int) -> None:
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
    for index in range(number):
        scene = draw_scene(seed, split, index)
        file_name = f"{index + 1:06d}.png"
        Image.fromarray(scene.image).save(draft / "images" / file_name, compress_level=1)
        height, width = scene.image.shape[:2]
        content["images"].append(
            {"id": index + 1, "file_name": file_name, "height": height, "width": width}
        )
        content["annotations"] += _annotations(scene, index + 1, len(content["annotations"]) + 1)
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
