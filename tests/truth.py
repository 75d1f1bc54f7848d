"""Masks by another way than COCO's rasteriser, to check conversions with."""

import numpy as np
from pycocotools import mask as mask_utils


def fill(polygon, hw, scale=1):
    """The even-odd interior of a polygon at `scale` pixel centres per pixel and axis.

    polygon: points x, y in pixels, in or outside the picture of size hw.
    """
    polygon = np.asarray(polygon, np.float64)
    height, width = hw[0] * scale, hw[1] * scale
    y = (np.arange(height) + 0.5) / scale
    x = (np.arange(width) + 0.5) / scale
    mask = np.zeros((height, width), bool)
    for (ax, ay), (bx, by) in zip(polygon, np.roll(polygon, -1, 0), strict=True):
        rows = np.flatnonzero((y >= min(ay, by)) & (y < max(ay, by)))
        if rows.size:
            crossing = ax + (y[rows] - ay) * (bx - ax) / (by - ay)
            mask[rows] ^= x[None, :] < crossing[:, None]
    return mask


def decode(segmentation, hw, scale=1):
    """The mask of a COCO segmentation, by pycocotools, of the picture enlarged `scale` times."""
    if isinstance(segmentation, list):
        scaled = [[v * scale for v in polygon] for polygon in segmentation]
        rles = mask_utils.frPyObjects(scaled, hw[0] * scale, hw[1] * scale)
        segmentation = mask_utils.merge(rles)
    return mask_utils.decode(segmentation).astype(bool)


def iou(a, b):
    """Intersection over union of two masks."""
    union = np.count_nonzero(a | b)
    return np.count_nonzero(a & b) / union if union else 1.0


def outline_iou(segmentation, outline, hw, scale=4):
    """IoU of a COCO segmentation and the fill of an outline, on a grid of `scale` per pixel.

    Computed in the part of the picture around the outline; finer than a pixel, because the
    rasterisers differ by a rim of parts of pixels.
    """
    outline = np.asarray(outline, np.float64)
    low = np.maximum(np.floor(outline.min(0)) - 2, 0).astype(int)
    high = np.minimum(np.ceil(outline.max(0)) + 2, hw[::-1]).astype(int)
    size = tuple((high - low)[::-1].tolist())
    moved = [(np.reshape(p, (-1, 2)) - low).ravel().tolist() for p in segmentation]
    return iou(decode(moved, size, scale), fill(outline - low, size, scale))
