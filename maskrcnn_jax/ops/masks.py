"""Ground-truth masks as bitmaps in a frame: unpacking, and cutting rois out of them."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from maskrcnn_jax.ops.sampling import axis_weights


def unpack_bits(packed: UInt8[Array, "*n S _"]) -> Float[Array, "*n S S"]:
    """Bit-packed square bitmaps [..., S, S // 8], leftmost cell in the highest bit, to 0 and 1."""
    return jnp.unpackbits(packed, axis=-1).astype(jnp.float32)


def crop_masks(
    bitmaps: Float[Array, "R h w"],
    frames: Float[Array, "R 4"],
    rois: Float[Array, "R 4"],
    size: int,
    aligned: bool = True,
) -> Float[Array, "R {size} {size}"]:
    """Cuts each roi out of its bitmap: ROIAlign with the adaptive number of samples.

    frames: the box in pixels that each bitmap covers; what lies outside is background. A bitmap of
    the whole image has the frame (0, 0, width, height), and the result is then Detectron2's
    `BitMasks.crop_and_resize` before its threshold (>= 0.5).
    aligned: False is torchvision's `project_masks_on_boxes`: rois are shifted by half a pixel and
    at least one pixel large.
    Returns values in 0..1. A roi (if aligned) or frame without area gives zeros.
    """
    h, w = bitmaps.shape[1:]
    sides = frames[:, 2:] - frames[:, :2]
    cells = jnp.array([w, h], jnp.float32) / jnp.where(sides > 0, sides, jnp.inf)
    low = (rois[:, :2] - frames[:, :2]) * cells
    extent = (rois[:, 2:] - frames[:, :2]) * cells - low
    # A margin of half a cell ends the bitmap sharply on its frame; ROIAlign's own margin of one
    # would repeat the border cells for half a cell beyond.
    margin = 0.5
    if not aligned:
        low, extent, margin = low + 0.5 * cells, jnp.maximum(extent, cells), 1.0
    along_y = axis_weights(low[:, 1] - 0.5, extent[:, 1], h, size, margin=margin)
    along_x = axis_weights(low[:, 0] - 0.5, extent[:, 0], w, size, margin=margin)
    highest = jax.lax.Precision.HIGHEST
    rows = jnp.einsum("rsh,rhw->rsw", along_y, bitmaps, precision=highest)
    return jnp.einsum("rsw,rtw->rst", rows, along_x, precision=highest)
