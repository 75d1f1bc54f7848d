"""A picture seen at another size or mirrored, and its boxes on the way there and back.

Pure functions on a batch. A mirrored picture stays in the corner of its canvas: its columns change
places among themselves, not with the padding.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

from maskrcnn_jax.types import Array as AnyArray


class View(NamedTuple):
    """Pictures at one size, on a canvas."""

    images: AnyArray  # uint8 or float32 [B, H, W, 3]
    image_hw: AnyArray  # int32 [B, 2]; what lies beyond it is padding
    window: AnyArray  # float32 [B, 4], the box on the canvas that the picture fills


def mirror(view: View, mirrored: Bool[Array, ""]) -> View:
    """The view as it is, or left and right exchanged where `mirrored`."""
    width = view.image_hw[:, 1:]
    columns = jnp.arange(view.images.shape[2])[None]
    source = jnp.where(mirrored & (columns < width), width - 1 - columns, columns)
    images = jnp.take_along_axis(view.images, source[:, None, :, None], axis=2)
    window = mirror_boxes(view.window[:, None], view.image_hw, mirrored)[:, 0]
    return View(images, view.image_hw, window)


def mirror_boxes(
    boxes: Float[Array, "B D 4"], image_hw: Int[Array, "B 2"], mirrored: Bool[Array, ""]
) -> Float[Array, "B D 4"]:
    """The boxes of a view on the canvas of `mirror`, and back again: it is its own inverse."""
    x0, y0, x1, y1 = jnp.moveaxis(boxes, -1, 0)
    width = image_hw[:, 1:].astype(boxes.dtype)
    return jnp.where(mirrored, jnp.stack([width - x1, y0, width - x0, y1], -1), boxes)


def mirror_masks(masks: Num[Array, "B D S S"], mirrored: Bool[Array, ""]) -> Num[Array, "B D S S"]:
    """Masks in the frames of their boxes, left and right exchanged where `mirrored`."""
    return jnp.where(mirrored, masks[..., ::-1], masks)


def carry(
    boxes: Float[Array, "B D 4"], window: Float[Array, "B 4"], to: Float[Array, "B 4"]
) -> Float[Array, "B D 4"]:
    """Boxes of a canvas that the picture fills `window` of, on one where it fills `to`."""
    corner, target = (jnp.tile(w[:, None, :2], 2) for w in (window, to))
    scale = (to[:, 2:] - to[:, :2]) / (window[:, 2:] - window[:, :2])
    return (boxes - corner) * jnp.tile(scale[:, None], 2) + target
