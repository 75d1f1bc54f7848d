"""The pictures of the race: scenes of the generator at one size, for both sides and the evaluator.

One size, because torchvision pads a batch to its largest picture and lays anchors on the padding;
so a picture is stretched to a square, its masks with it. Nothing here needs TensorFlow.
"""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from maskrcnn_jax.data.bitmaps import frame_bitmap
from maskrcnn_jax.data.scenes import CATEGORIES, NUM_OBJECTS, draw_scene, tight_box
from maskrcnn_jax.types import Batch

CATEGORY_IDS = tuple(CATEGORIES)  # of the contiguous classes 0, 1, ...
_SLOTS = NUM_OBJECTS[1]  # the most objects of a picture, so that none is dropped
_BITMAP = 112  # cells along a side of a mask in the frame of its box


class Picture(NamedTuple):
    """A square picture of side S with n objects."""

    image: np.ndarray  # uint8 [S, S, 3]
    boxes: np.ndarray  # float32 [n, 4], xyxy in pixels: the bounds of the masks
    classes: np.ndarray  # int32 [n], 0 .. 5
    masks: np.ndarray  # bool [n, S, S], the visible part


def draw(split: str, count: int, side: int, workers: int = 1) -> list[Picture]:
    """The first `count` pictures of a split, "train" or "val"; the same in every run."""
    one = partial(_picture, split, side)
    if workers < 2 or count < 64:
        return list(map(one, range(count)))
    # A fork would take the locks of JAX's and torch's threads with it.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context) as pool:
        return list(pool.map(one, range(count), chunksize=8))


def _picture(split: str, side: int, index: int) -> Picture:
    scene = draw_scene(0, split, index)
    stretched = Image.fromarray(scene.image).resize((side, side), Image.Resampling.BILINEAR)
    # The middle of each new pixel, in old ones.
    rows, columns = ((np.arange(side) + 0.5) * n / side for n in scene.visible.shape[1:])
    masks = scene.visible[:, rows.astype(int)][:, :, columns.astype(int)]
    x, y, width, height = np.array([tight_box(mask) for mask in masks], np.float32).T
    classes = [CATEGORY_IDS.index(category) for category in scene.categories]
    boxes = np.stack([x, y, x + width, y + height], 1)
    return Picture(np.asarray(stretched), boxes, np.array(classes, np.int32), masks)


def batch(pictures: list[Picture]) -> Batch:
    """Our training batch of these pictures: masks as bitmaps in their boxes, padded objects."""
    rows = [_padded(picture) for picture in pictures]
    boxes, classes, valid, masks = (np.stack(x) for x in zip(*rows, strict=True))
    images = np.stack([picture.image for picture in pictures])
    return Batch(
        images=images,
        image_hw=np.tile(np.int32(images.shape[1:3]), (len(images), 1)),
        gt_boxes=boxes,
        gt_classes=classes,
        gt_valid=valid,
        gt_frames=boxes,
        gt_masks=masks,
        num_dropped=np.zeros(len(images), np.int32),
        index=np.arange(len(images), dtype=np.int32),
    )


def _padded(picture: Picture) -> tuple[np.ndarray, ...]:
    count = len(picture.boxes)
    bitmaps = [frame_bitmap(mask, _BITMAP)[1] for mask in picture.masks]
    fill = lambda x: np.concatenate([x, np.zeros((_SLOTS - count, *x.shape[1:]), x.dtype)])  # noqa: E731
    masks = np.packbits(bitmaps, axis=-1)
    return fill(picture.boxes), fill(picture.classes), np.arange(_SLOTS) < count, fill(masks)


def annotations(pictures: list[Picture]) -> dict:
    """The objects of these pictures as COCO JSON; image ids count from 0."""
    side = len(pictures[0].image)
    rows = []
    for image_id, picture in enumerate(pictures):
        for box, kind, mask in zip(picture.boxes, picture.classes, picture.masks, strict=True):
            x0, y0, x1, y1 = map(float, box)
            rows.append(
                {
                    "id": len(rows) + 1,
                    "image_id": image_id,
                    "category_id": CATEGORY_IDS[kind],
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": int(mask.sum()),
                    "iscrowd": 0,
                    "segmentation": _rle(mask),
                }
            )
    images = [{"id": i, "height": side, "width": side} for i in range(len(pictures))]
    categories = [{"id": i, "name": name} for i, name in CATEGORIES.items()]
    return {"images": images, "annotations": rows, "categories": categories}


def _rle(mask: np.ndarray) -> dict:
    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(mask.shape), "counts": rle["counts"].decode("ascii")}
