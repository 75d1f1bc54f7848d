"""Matterport's way back to the picture, in whole pixels.

Source: `mrcnn/model.py`, `unmold_detections`; `mrcnn/utils.py`, `unmold_mask`.
"""

import numpy as np
from jaxtyping import Float

from maskrcnn_jax.preprocess_matterport import resize_zero_beyond

HW = tuple[int, int]
_LAST_PIXEL = (0, 0, 1, 1)


def boxes_to_pixels(
    boxes: Float[np.ndarray, "n 4"], window: tuple[float, float, float, float], hw: HW
) -> Float[np.ndarray, "n 4"]:
    """Carries boxes of the canvas to whole pixels of the picture of size `hw`, halves to even ones.

    window: x0, y0, x1, y1 of the picture on the canvas. Far corners are one beyond the last pixel,
    before and after; what lies between is arithmetic on last pixels.
    """
    x0, y0, x1, y1 = window
    sides = np.array([x1 - x0 - 1, y1 - y0 - 1] * 2, np.float32)
    last = boxes - np.array(_LAST_PIXEL, np.float32) - np.array([x0, y0] * 2, np.float32)
    pixels = last / np.maximum(sides, 1) * np.array([hw[1] - 1, hw[0] - 1] * 2, np.float32)
    pixels = np.round(pixels + np.array(_LAST_PIXEL, np.float32))
    return np.clip(pixels, 0, np.array([hw[1], hw[0]] * 2, np.float32)).astype(np.float32)


def paste_mask(
    mask: Float[np.ndarray, "S S"], box: Float[np.ndarray, "4"], hw: HW
) -> tuple[Float[np.ndarray, "h w"], int, int]:
    """Resizes a mask to its box, rounded to whole pixels; what lies in a picture of size `hw`.

    A pixel is set where the value is 0.5 or more. Returns the values and the corner y0, x0. No
    pixels if the box is not finite or empty.
    """
    if not np.isfinite(box).all():
        return np.zeros((0, 0), np.float32), 0, 0
    x0, y0, x1, y1 = (round(float(v)) for v in box)
    top, left = min(max(y0, 0), hw[0]), min(max(x0, 0), hw[1])
    bottom, right = max(min(y1, hw[0]), top), max(min(x1, hw[1]), left)
    if bottom <= top or right <= left:
        return np.zeros((0, 0), np.float32), 0, 0
    pixels = resize_zero_beyond(mask.astype(np.float32), (y1 - y0, x1 - x0))
    return pixels[top - y0 : bottom - y0, left - x0 : right - x0], top, left
