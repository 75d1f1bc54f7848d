"""How the peers bring a picture onto the model's canvas and the detections back to the picture.

A rule is named in the config: `data.resize_rule` and `eval.paste_rule`. Prediction and evaluation
go this way, so that both see what the peer that trained the weights saw. Host side, NumPy.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Num, UInt8

from maskrcnn_jax import (
    postprocess,
    postprocess_matterport,
    preprocess,
    preprocess_matterport,
)
from maskrcnn_jax.errors import UserError

HW = tuple[int, int]
Window = tuple[float, float, float, float]
DIVISOR = 32  # of the canvas sides: the coarsest level that the FPN adds up


class Placement(NamedTuple):
    """Where a picture comes to lie."""

    canvas: HW  # the peer's own: the least that holds the picture
    image_hw: HW  # what lies beyond it on the canvas is padding to the model
    window: Window  # x0, y0, x1, y1 on the canvas: the picture itself
    fixed: bool = False  # no larger canvas will do


class ResizeRule(NamedTuple):
    """A peer's way from a picture to the canvas."""

    place: Callable[[HW, int, int], Placement]  # of (size, shorter side, longest side)
    put: Callable[[np.ndarray, Placement, HW], np.ndarray]  # (picture, its place, canvas) -> canvas
    dtype: type  # of the canvas


class PasteRule(NamedTuple):
    """A peer's way from the canvas back to the pixels of the picture."""

    boxes: Callable[[np.ndarray, Window, HW], np.ndarray]  # (boxes, window, size of the picture)
    paste: Callable[[np.ndarray, np.ndarray, HW], tuple[np.ndarray, int, int]]
    is_inside: Callable[[np.ndarray, float], np.ndarray]  # (values, threshold) -> bool


def _upper_left(size: Callable[[HW, int, int], HW]) -> Callable[[HW, int, int], Placement]:
    """The picture, resized to `size`, in the corner of a canvas of the next multiples of 32."""

    def place(hw: HW, short: int, long: int) -> Placement:
        height, width = resized = size(hw, short, long)
        canvas = (-(-height // DIVISOR) * DIVISOR, -(-width // DIVISOR) * DIVISOR)
        return Placement(canvas, resized, (0.0, 0.0, float(width), float(height)))

    return place


def _resize_and_pad(resize: Callable[[np.ndarray, HW], np.ndarray]) -> Callable:
    def put(image: np.ndarray, placement: Placement, canvas: HW) -> np.ndarray:
        return preprocess.pad_image(resize(image, placement.image_hw), canvas)

    return put


def _centre(hw: HW, short: int, long: int) -> Placement:
    """The picture in the middle of a square, the whole of which is picture to the model."""
    if long % DIVISOR:
        below = long - long % DIVISOR
        raise UserError(
            f"data.long_test={long}: data.resize_rule='matterport' makes it the side of the "
            f"canvas, which must be a multiple of {DIVISOR}; set {below + DIVISOR}"
        )
    size = preprocess_matterport.square_size(hw, short, long)
    window = preprocess_matterport.square_window(size, long)
    return Placement((long, long), (long, long), tuple(map(float, window)), fixed=True)


def _put_into_window(image: np.ndarray, placement: Placement, canvas: HW) -> np.ndarray:
    x0, y0, x1, y1 = map(int, placement.window)
    square = np.zeros((*canvas, 3), image.dtype)
    square[y0:y1, x0:x1] = preprocess_matterport.resize_truncating(image, (y1 - y0, x1 - x0))
    return square


def _scale_boxes(boxes: np.ndarray, window: Window, hw: HW) -> np.ndarray:
    x0, y0, x1, y1 = window
    shifted = boxes - np.array([x0, y0, x0, y0], boxes.dtype)
    return postprocess.rescale_boxes(shifted, (y1 - y0, x1 - x0), hw)


RESIZE_RULES = {
    "pillow": ResizeRule(
        _upper_left(preprocess.shortest_edge_size),
        _resize_and_pad(preprocess.resize_image),
        np.uint8,
    ),
    "torchvision": ResizeRule(
        _upper_left(preprocess.torchvision_size),
        _resize_and_pad(lambda image, hw: preprocess.resize_bilinear(image.astype(np.float32), hw)),
        np.float32,
    ),
    "matterport": ResizeRule(_centre, _put_into_window, np.uint8),
}
PASTE_RULES = {
    "detectron2": PasteRule(_scale_boxes, postprocess.paste_mask, np.greater_equal),
    "torchvision": PasteRule(_scale_boxes, postprocess.paste_mask_torchvision, np.greater),
    "matterport": PasteRule(
        postprocess_matterport.boxes_to_pixels, postprocess_matterport.paste_mask, np.greater_equal
    ),
}


def place(hw: HW, rule: str, short: int, long: int) -> Placement:
    """Where a picture of size `hw` comes to lie.

    rule: of RESIZE_RULES. short, long: the shorter side is to become `short`, or less if the longer
    one would exceed `long`. Raises UserError where `long` is a canvas that the FPN cannot add up.
    """
    return RESIZE_RULES[rule].place(hw, short, long)


def prepare_input(
    image: UInt8[np.ndarray, "H W 3"], rule: str, short: int, long: int, canvas: HW | None = None
) -> tuple[Num[np.ndarray, "h w 3"], Placement]:
    """Brings an RGB picture onto a canvas by a peer's rule.

    canvas: at least as large as the peer's own, which is the default.
    Returns the canvas, uint8 or float32, and where the picture lies on it.
    """
    placement = place(image.shape[:2], rule, short, long)
    return RESIZE_RULES[rule].put(image, placement, canvas or placement.canvas), placement


def boxes_to_image(
    boxes: Float[np.ndarray, "n 4"], window: Window, hw: HW, rule: str
) -> tuple[Float[np.ndarray, "n 4"], Bool[np.ndarray, " n"]]:
    """Carries boxes from the canvas to the picture of size `hw` that fills `window` of it.

    rule: of PASTE_RULES. Returns the boxes, and which of them have an area in the picture: the
    others are no detections.
    """
    boxes = PASTE_RULES[rule].boxes(boxes, window, hw)
    return boxes, (boxes[:, 2:] > boxes[:, :2]).all(1)


def mask_to_rle(
    mask: Float[np.ndarray, "S S"], box: Float[np.ndarray, "4"], hw: HW, rule: str, thresh: float
) -> dict:
    """Pastes a mask by a peer's rule; returns COCO's compressed RLE, {"size", "counts": str}.

    mask: probabilities in the frame of the box. box: in pixels of the picture, of size `hw`.
    rule: of PASTE_RULES.
    """
    crop, top, left = PASTE_RULES[rule].paste(mask, box, hw)
    return postprocess.crop_to_rle(PASTE_RULES[rule].is_inside(crop, thresh), top, left, hw)
