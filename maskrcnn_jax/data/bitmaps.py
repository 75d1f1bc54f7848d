"""Masks as box-frame bitmaps: what the records hold instead of polygons and RLE."""

import numpy as np
from jaxtyping import Bool, Float32, UInt8
from pycocotools import mask as mask_utils

from maskrcnn_jax.data.coco import CocoData, instance_mask
from maskrcnn_jax.errors import UserError

# A cell that is half covered is set; sums of float32 may miss the half by less than this.
_HALF = 0.5 - 1e-4


def instance_bitmap(
    data: CocoData, i: int, side: int
) -> tuple[Float32[np.ndarray, "4"], UInt8[np.ndarray, "S s"]]:
    """Returns the frame (xyxy, the tight pixel bounds of the mask) and the packed bitmap in it.

    A polygon too thin to cover a single pixel centre is drawn at the bitmap's resolution into its
    box, so that small objects are not lost.

    Raises:
      UserError: the mask is empty.
    """
    mask = instance_mask(data, i)
    if mask.any():
        frame, bitmap = frame_bitmap(mask, side)
    else:
        frame, bitmap = data.inst_box[i], _draw_in_box(data, i, side)
    if not bitmap.any():
        raise UserError(
            f"{data.annotations}: annotation {data.inst_id[i]} of image "
            f"{data.image_ids[data.inst_image[i]]}: 'segmentation' covers no pixel; correct or "
            "remove the annotation, or set data.on_bad_image to 'skip'"
        )
    return frame, np.packbits(bitmap, axis=-1)


def frame_bitmap(
    mask: Bool[np.ndarray, "h w"], side: int
) -> tuple[Float32[np.ndarray, "4"], Bool[np.ndarray, "S S"]]:
    """Returns the tight pixel bounds of a mask that is not empty (xyxy), and its cells in them.

    Cells that are covered by half are set. A line that is thinner than they would crumble by that,
    or vanish: where the cells set hold less than half of the object, less covered ones are, too.
    """
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    frame = np.array([xs[0], ys[0], xs[-1] + 1, ys[-1] + 1], np.float32)
    shares = average_areas(mask[ys[0] : ys[-1] + 1, xs[0] : xs[-1] + 1], side)
    cells = shares >= _HALF
    if shares[cells].sum() < shares.sum() / 2:
        cells = shares >= _typical_share(shares) / 2
    return frame, cells


def average_areas(mask: Bool[np.ndarray, "h w"], side: int) -> Float32[np.ndarray, "S S"]:
    """Cuts the mask into side x side equal cells; returns the share of each that is set."""
    return _average_rows(_average_rows(mask.astype(np.float32), side).T, side).T


def _typical_share(shares: Float32[np.ndarray, "S S"]) -> np.float32:
    """Half of the object lies in cells that are covered by this or more."""
    falling = np.sort(shares, axis=None)[::-1]
    total = np.cumsum(falling, dtype=np.float64)
    return falling[np.searchsorted(total, total[-1] / 2)]


def _average_rows(values: np.ndarray, side: int) -> np.ndarray:
    # The integral up to a cell's edge is linear between pixel edges.
    n = len(values)
    integral = np.zeros((n + 1, values.shape[1]), np.float32)
    np.cumsum(values, axis=0, out=integral[1:])
    edges = np.arange(side + 1) * (n / side)
    whole = np.minimum(edges.astype(np.int64), n - 1)
    part = (edges - whole).astype(np.float32)[:, None]
    at_edges = integral[whole] * (1 - part) + integral[whole + 1] * part
    return np.diff(at_edges, axis=0) * np.float32(side / n)


def _draw_in_box(data: CocoData, i: int, side: int) -> np.ndarray:
    segmentation = data.segmentations[i]
    if isinstance(segmentation, dict):
        return np.zeros((side, side), bool)
    x0, y0, x1, y1 = data.inst_box[i].astype(np.float64)
    origin, extent = np.array([x0, y0]), np.array([x1 - x0, y1 - y0])
    scaled = [((p.reshape(-1, 2) - origin) * side / extent).ravel() for p in segmentation]
    return mask_utils.decode(mask_utils.merge(mask_utils.frPyObjects(scaled, side, side))) > 0
