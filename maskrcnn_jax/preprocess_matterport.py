"""Matterport's way onto the canvas: a square, the picture in its middle, its own bilinear rule.

Source: `mrcnn/utils.py`, `resize_image` in mode "square", on scikit-image 0.16 without antialias.
"""

import numpy as np
from jaxtyping import Float, Int, UInt8

HW = tuple[int, int]


def square_size(hw: HW, min_dim: int, max_dim: int, min_scale: float = 0.0) -> HW:
    """The size of a picture on its square of side `max_dim`: the shorter side `min_dim`, or more.

    Pictures are never made smaller than the square asks for; rounded half to even.
    min_scale: Matterport's IMAGE_MIN_SCALE.
    """
    height, width = hw
    scale = max(1.0, min_dim / min(hw), min_scale)
    if round(max(hw) * scale) > max_dim:
        scale = max_dim / max(hw)
    return max(round(height * scale), 1), max(round(width * scale), 1)


def square_window(size: HW, side: int) -> tuple[int, int, int, int]:
    """(x0, y0, x1, y1) of a picture of size `size` in the middle of a square of side `side`."""
    top, left = (side - size[0]) // 2, (side - size[1]) // 2
    return left, top, left + size[1], top + size[0]


def resize_truncating(image: UInt8[np.ndarray, "H W 3"], hw: HW) -> UInt8[np.ndarray, "h w 3"]:
    """`resize_zero_beyond` of a picture, its values cut down to whole grey levels."""
    if image.shape[:2] == hw:
        return image
    return resize_zero_beyond(image.astype(np.float32), hw).astype(np.uint8)


def resize_zero_beyond(image: Float[np.ndarray, "H W *c"], hw: HW) -> Float[np.ndarray, "h w *c"]:
    """Reads bilinearly at the centres of a grid of size `hw`; zero beyond the outermost centres.

    Without antialias; limited to the image's own range. In float64, as scikit-image's `warp`.
    """
    values = image.astype(np.float64)
    for axis, length in enumerate(hw):
        low, share = _lines(image.shape[axis], length)
        # A line of zeros on either side.
        widths = [(1, 1) if i == axis else (0, 0) for i in range(values.ndim)]
        padded = np.pad(values, widths)
        share = share.reshape([-1 if i == axis else 1 for i in range(values.ndim)])
        values = (
            np.take(padded, low + 1, axis) * (1 - share) + np.take(padded, low + 2, axis) * share
        )
    return np.clip(values, image.min(), image.max()).astype(image.dtype)


def _lines(length: int, target: int) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """For each of `target` lines the one of `length` before it, and the next one's share."""
    position = (np.arange(target) + 0.5) * (length / target) - 0.5
    low = np.floor(position).astype(np.int64)
    return low, position - low
