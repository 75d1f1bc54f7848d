"""TensorFlow's crop_and_resize, which Matterport pools rois with, and its pooling over a pyramid.

A roi is sampled once per cell of the output, on a grid whose corners are the roi's corners; a
sample outside the map is 0. Boxes are "normalised": 0 is the centre of the first row or column of
the map, 1 the centre of the last.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from maskrcnn_jax.ops import boxes as box_ops
from maskrcnn_jax.ops.pooling import Rule, pool_levels, pool_separably
from maskrcnn_jax.ops.sampling import point_taps, point_weights


def crop_and_resize(
    features: Float[Array, "h w F"], boxes: Float[Array, "R 4"], size: int
) -> Float[Array, "R {size} {size} F"]:
    """Samples each normalised box of one map on a grid of `size` rows and columns, 2 at least.

    Same as TensorFlow's `tf.image.crop_and_resize`, whose boxes are (y0, x0, y1, x1).
    """
    height, width = features.shape[:2]
    along_y, along_x = grid_weights(boxes, (height, width), size)
    return pool_separably(features[None], along_y[None], along_x[None])[0].astype(features.dtype)


def grid_weights(
    boxes: Float[Array, "R 4"], grid_hw: tuple[int, int], size: int
) -> tuple[Float[Array, "R {size} h"], Float[Array, "R {size} w"]]:
    """Weights of the rows and of the columns of a map in each sample of each normalised box."""
    (h, w), (x0, y0, x1, y1) = grid_hw, boxes.T
    return (
        point_weights(_positions(y0, y1, h, size), h),
        point_weights(_positions(x0, x1, w, size), w),
    )


def multilevel_crop_resize(
    features: dict[str, Float[Array, "B _h _w F"]], rois: Float[Array, "B R 4"], size: int
) -> Float[Array, "B R {size} {size} F"]:
    """Pools each roi from the level that its size assigns it to.

    features: 'p2' to 'p5', of a canvas with sides that are multiples of their strides.
    rois: pixels of the canvas, far corners ON the last pixel (the "last_pixel" convention).
    Source: Matterport `PyramidROIAlign`.
    """
    height, width = (4 * side for side in features["p2"].shape[1:3])
    last = jax.lax.optimization_barrier(jnp.array([width - 1, height - 1] * 2, jnp.float32))
    return pool_normalised(features, rois / last, size)


def pool_normalised(
    features: dict[str, Float[Array, "B _h _w F"]], boxes: Float[Array, "B R 4"], size: int
) -> Float[Array, "B R {size} {size} F"]:
    """`multilevel_crop_resize` of normalised boxes."""
    canvas_hw = tuple(4 * side for side in features["p2"].shape[1:3])

    def weigh(boxes: Array, level: int, grid_hw: tuple[int, int]) -> tuple[Array, Array]:
        return grid_weights(boxes, grid_hw, size)

    def taps(
        boxes: Array, levels: Array, h: Array, w: Array, first: Array
    ) -> tuple[Array, Array, Array, Array]:
        x0, y0, x1, y1 = boxes.T
        rows, columns = _positions(y0, y1, h, size), _positions(x0, x1, w, size)
        return (*point_taps(rows, h), *point_taps(columns, w))

    rule = Rule(weigh, taps, 2)
    return pool_levels(features, boxes, assign_levels(boxes, canvas_hw), size, rule)


def assign_levels(boxes: Float[Array, "*n 4"], canvas_hw: tuple[int, int]) -> Int[Array, "*n"]:
    """4 + log2(root of the area / (224 / root of the canvas' area)), rounded, limited to 2..5.

    boxes: normalised. Boxes without area go to level 2.
    """
    root = jnp.sqrt(box_ops.area(boxes)) * jnp.sqrt(float(canvas_hw[0] * canvas_hw[1])) / 224.0
    level = jnp.full(root.shape, 2, jnp.int32)
    for upper in (3, 4, 5):
        # Rounding reaches a level half a step below it; comparisons, as no log2 is exact.
        level += root >= 2.0 ** (upper - 4.5)
    return level


def _positions(
    low: Float[Array, "R"], high: Float[Array, "R"], length: int | Int[Array, "R"], size: int
) -> Float[Array, "R {size}"]:
    """Of the samples along an axis, in cells."""
    # Whether the last sample lies on the border or just beyond it, where it is 0, is decided by the
    # last bit: so step by step as TensorFlow's kernel, with no multiplication by a reciprocal (the
    # barrier) and no product fused into the sum (the minimum).
    gaps = jax.lax.optimization_barrier(jnp.full_like(low, size - 1))
    step = (high - low) * (length - 1) / gaps
    shift = jnp.arange(size, dtype=jnp.float32) * step[:, None]
    first = jnp.minimum(low * (length - 1), jnp.finfo(jnp.float32).max)
    return first[:, None] + jnp.minimum(shift, jnp.finfo(jnp.float32).max)
