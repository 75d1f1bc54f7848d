"""Box arithmetic. Boxes are (x0, y0, x1, y1), float32 pixels, continuous coordinates (no +1)."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# Largest log of a scale change that a delta may ask for: 16 px grow to at most 1000 px.
SCALE_CLAMP = math.log(1000.0 / 16)


def area(boxes: Float[Array, "*n 4"]) -> Float[Array, "*n"]:
    """Area in square pixels."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def is_nonempty(boxes: Float[Array, "*n 4"], min_size: float = 0.0) -> Bool[Array, "*n"]:
    """Whether both sides are longer than `min_size` pixels."""
    sides = boxes[..., 2:] - boxes[..., :2]
    return (sides > min_size).all(-1)


def clip(
    boxes: Float[Array, "*n 4"],
    hw: Int[Array, "2"] | Float[Array, "2"] | tuple[float, float],
) -> Float[Array, "*n 4"]:
    """Moves the corners into the image of size (height, width) `hw`."""
    height, width = hw
    high = jnp.stack([width, height, width, height]).astype(boxes.dtype)
    return jnp.clip(boxes, 0.0, high)


def clip_to(boxes: Float[Array, "*n 4"], window: Float[Array, "4"]) -> Float[Array, "*n 4"]:
    """Moves the corners into the box `window`."""
    return jnp.clip(boxes, jnp.tile(window[:2], 2), jnp.tile(window[2:], 2))


def pairwise_iou(a: Float[Array, "*b N 4"], b: Float[Array, "*b M 4"]) -> Float[Array, "*b N M"]:
    """Intersection over union of every pair.

    0 where the boxes do not overlap, empty and non-finite ones included: the result is finite for
    every input.
    """
    # Each axis by itself: pairs of numbers would keep a CPU from computing several boxes at once.
    width, height = (
        jnp.minimum(a[..., :, None, axis + 2], b[..., None, :, axis + 2])
        - jnp.maximum(a[..., :, None, axis], b[..., None, :, axis])
        for axis in (0, 1)
    )
    inter = jnp.maximum(width, 0.0) * jnp.maximum(height, 0.0)
    union = area(a)[..., :, None] + area(b)[..., None, :] - inter
    overlap = (inter > 0) & (union < jnp.inf)
    return jnp.where(overlap, inter / jnp.where(overlap, union, 1.0), 0.0)


def encode_deltas(
    src: Float[Array, "*n 4"],
    dst: Float[Array, "*n 4"],
    weights: tuple[float, float, float, float],
) -> Float[Array, "*n 4"]:
    """Deltas (dx, dy, dw, dh) that turn `src` into `dst`, times `weights`.

    Not finite where a box is empty: such rows are the caller's to mask.
    Source: arXiv 1311.2524, appendix C; Detectron2 `Box2BoxTransform.get_deltas`.
    """
    src_center, src_size = _center_size(src)
    dst_center, dst_size = _center_size(dst)
    shift = (dst_center - src_center) / src_size
    scale = jnp.log(dst_size / src_size)
    return jnp.concatenate([shift, scale], -1) * jnp.asarray(weights, src.dtype)


def decode_deltas(
    deltas: Float[Array, "*#n 4"],
    boxes: Float[Array, "*#n 4"],
    weights: tuple[float, float, float, float],
    clamp: float = SCALE_CLAMP,
) -> Float[Array, "*#n 4"]:
    """Applies deltas to boxes; the inverse of `encode_deltas`. Leading axes broadcast.

    clamp: upper bound of dw and dh, after the division by the weights; there is no lower one.
    Source: Detectron2 `Box2BoxTransform.apply_deltas`.
    """
    center, size = _center_size(boxes)
    deltas = deltas / jnp.asarray(weights, deltas.dtype)
    center = deltas[..., :2] * size + center
    half = 0.5 * jnp.exp(jnp.minimum(deltas[..., 2:], clamp)) * size
    return jnp.concatenate([center - half, center + half], -1)


def _center_size(boxes: Array) -> tuple[Array, Array]:
    size = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + 0.5 * size, size
