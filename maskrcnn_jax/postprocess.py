"""The way back: from box-frame masks and canvas boxes to the pixels of the user's image.

Host side, NumPy. `paste_mask` equals Detectron2's `paste_masks_in_image`, `paste_mask_torchvision`
torchvision's function of the same name; `rescale_boxes` is Detectron2's `detector_postprocess`.
"""

import math

import numpy as np
from jaxtyping import Bool, Float, Int
from pycocotools import mask as coco_mask

from maskrcnn_jax.preprocess import resize_bilinear

HW = tuple[int, int]


def rescale_boxes(
    boxes: Float[np.ndarray, "n 4"], from_hw: tuple[int | float, int | float], to_hw: HW
) -> Float[np.ndarray, "n 4"]:
    """Carries boxes from an image of size `from_hw` to one of `to_hw`, and clips them to it."""
    (from_h, from_w), (to_h, to_w) = from_hw, to_hw
    scale = np.array([to_w / from_w, to_h / from_h] * 2, boxes.dtype)
    return np.clip(boxes * scale, 0, np.array([to_w, to_h] * 2, boxes.dtype))


def paste_mask(
    mask: Float[np.ndarray, "S S"], box: Float[np.ndarray, "4"], hw: HW
) -> tuple[Float[np.ndarray, "h w"], int, int]:
    """Resizes a mask from the frame of its box to pixels: bilinear, zero beyond the mask.

    The value of a pixel is read at its centre. Only the pixels that can be non-zero are computed:
    those of the box and half a mask cell around it, inside the image.

    Args:
      mask: probabilities of the S x S cells of the box.
      box: (x0, y0, x1, y1) in pixels of the image; may stick out of it.
      hw: size of the image.

    Returns:
      The window's values, float32, and its upper left corner y0, x0. A box without area gives a
      window without pixels.
    """
    x0, y0, x1, y1 = (float(v) for v in box)
    height, width = hw
    top, above, *row_weights = _axis_taps(y0, y1, height, mask.shape[0])
    left, before, *column_weights = _axis_taps(x0, x1, width, mask.shape[1])
    # Two cells an axis, not products: these would wait for the threads of BLAS. Each axis in turn
    # is the first, whose lines lie whole in memory; columns last, as RLE goes down the columns.
    cells = np.pad(mask.astype(np.float32), 1)
    rows = _mix(cells, above, *row_weights)
    return _mix(np.ascontiguousarray(rows.T), before, *column_weights).T, top, left


def paste_binary(
    mask: Float[np.ndarray, "S S"], box: Float[np.ndarray, "4"], hw: HW, thresh: float = 0.5
) -> Bool[np.ndarray, "H W"]:
    """Pastes a mask into an image of size `hw`: True where its value is at least `thresh`."""
    crop, top, left = paste_mask(mask, box, hw)
    image = np.zeros(hw, bool)
    image[top : top + crop.shape[0], left : left + crop.shape[1]] = crop >= thresh
    return image


def paste_mask_torchvision(
    mask: Float[np.ndarray, "S S"], box: Float[np.ndarray, "4"], hw: HW
) -> tuple[Float[np.ndarray, "h w"], int, int]:
    """Pastes a mask as torchvision does: into whole pixels, within a margin of one mask cell.

    The mask gets a border of zeros, the box grows with it and is cut down to whole numbers; the
    mask is then stretched over its pixels, the last one included. torchvision calls a pixel set
    where the value is above 0.5. Source: torchvision `paste_masks_in_image` with padding 1.

    Args and result as of `paste_mask`. No pixels if the box is not finite.
    """
    if not np.isfinite(box).all():
        return np.zeros((0, 0), np.float32), 0, 0
    x0, y0, x1, y1 = (int(v) for v in _grown(box, mask.shape[0]))
    width, height = max(x1 - x0 + 1, 1), max(y1 - y0 + 1, 1)
    pixels = resize_bilinear(np.pad(mask.astype(np.float32), 1), (height, width))
    top, left = min(max(y0, 0), hw[0]), min(max(x0, 0), hw[1])
    bottom, right = max(min(y1 + 1, hw[0]), top), max(min(x1 + 1, hw[1]), left)
    return pixels[top - y0 : bottom - y0, left - x0 : right - x0], top, left


def paste_torchvision(
    mask: Float[np.ndarray, "S S"], box: Float[np.ndarray, "4"], hw: HW
) -> Float[np.ndarray, "H W"]:
    """The whole image of `paste_mask_torchvision`, float32, zero beyond the mask."""
    crop, top, left = paste_mask_torchvision(mask, box, hw)
    image = np.zeros(hw, np.float32)
    image[top : top + crop.shape[0], left : left + crop.shape[1]] = crop
    return image


def mask_to_rle(
    mask: Float[np.ndarray, "S S"], box: Float[np.ndarray, "4"], hw: HW, thresh: float = 0.5
) -> dict:
    """Pastes a mask and returns it as COCO's compressed RLE, `{"size": [H, W], "counts": str}`.

    The same as encoding `paste_binary`, but only the window of the box is ever touched.
    """
    crop, top, left = paste_mask(mask, box, hw)
    return crop_to_rle(crop >= thresh, top, left, hw)


def crop_to_rle(crop: Bool[np.ndarray, "h w"], top: int, left: int, hw: HW) -> dict:
    """COCO's compressed RLE of an image of size `hw` that is True only inside a window.

    crop: the window's pixels; top, left: its corner. It lies inside the image; no pixels at all is
    an empty mask.
    """
    height, width = hw
    starts, ends = _column_runs(crop)
    columns, rows = np.divmod(np.stack([starts, ends]), crop.shape[0] + 1)
    starts, ends = (columns + left) * height + rows + top
    # A run down to the last row goes on at the top of the next column.
    border = ends[:-1] != starts[1:]
    starts = np.concatenate([starts[:1], starts[1:][border]])
    ends = np.concatenate([ends[:-1][border], ends[-1:]])
    borders = np.concatenate([[0], np.stack([starts, ends], 1).ravel()])
    if borders[-1] < height * width:
        borders = np.append(borders, height * width)
    runs = {"size": [height, width], "counts": np.diff(borders).tolist()}
    rle = coco_mask.frPyObjects(runs, height, width)
    return {"size": [height, width], "counts": rle["counts"].decode("ascii")}


def rle_to_mask(rle: dict) -> Bool[np.ndarray, "H W"]:
    """Decodes COCO's compressed RLE."""
    return coco_mask.decode(rle).astype(bool)


def _grown(box: Float[np.ndarray, "4"], cells: int) -> Float[np.ndarray, "4"]:
    """The box around a mask that got a border of one cell, in float32 as the peer computes it."""
    box = box.astype(np.float32)
    half = (box[2:] - box[:2]) * np.float32(0.5) * np.float32((cells + 2) / cells)
    center = (box[2:] + box[:2]) * np.float32(0.5)
    return np.concatenate([center - half, center + half])


def _axis_taps(
    start: float, end: float, length: int, cells: int
) -> tuple[int, Int[np.ndarray, " n"], Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """First pixel of the window on an axis; for each pixel the first of the two cells around its
    centre, counted from the border before the mask, and the shares of both."""
    extent = end - start
    # Not `extent <= 0`: NaN must end here, too.
    if not 0 < extent < math.inf:
        return 0, np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros(0, np.float32)
    margin = extent / (2 * cells)
    first = min(max(math.floor(start - margin), 0), length)
    last = min(max(math.ceil(end + margin), first), length)
    position = (np.arange(first, last) + 0.5 - start) / extent * cells - 0.5
    low = np.clip(np.floor(position), -1, cells - 1)
    shares = (np.maximum(1 - np.abs(position - cell), 0) for cell in (low, low + 1))
    return first, low.astype(np.int64) + 1, *(share.astype(np.float32) for share in shares)


def _mix(
    lines: Float[np.ndarray, "S m"],
    first: Int[np.ndarray, " n"],
    share: Float[np.ndarray, " n"],
    next_share: Float[np.ndarray, " n"],
) -> Float[np.ndarray, "n m"]:
    """Weighted sums of the lines `first` and the ones after them."""
    mixed = lines[first] * share[:, None]
    mixed += lines[first + 1] * next_share[:, None]
    return mixed


def _column_runs(
    mask: Bool[np.ndarray, "h w"],
) -> tuple[Int[np.ndarray, " r"], Int[np.ndarray, " r"]]:
    """Where runs of True start and end, going down the columns of height h + 1.

    The additional row of False keeps runs of neighbouring columns apart and lets an end be named
    by the row after its last.
    """
    columns = np.pad(mask.T, ((0, 0), (0, 1))).ravel()
    changes = np.flatnonzero(np.diff(columns, prepend=False))
    return changes[::2], changes[1::2]
