"""RoIWarp (arXiv 1512.04412, section 3.2), of one map and of the levels of a pyramid.

Bilinear samples, like ROIAlign's, but of a roi that is rounded to whole cells, and without the
shift of half a sample: what Mask R-CNN's table 2c compares ROIAlign with.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from maskrcnn_jax.ops.pooling import (
    Rule,
    pool_levels,
    pool_separably,
    reduce_samples,
    round_half_away,
)
from maskrcnn_jax.ops.roi_align import assign_levels
from maskrcnn_jax.ops.sampling import point_taps, point_weights

# Samples per bin and axis: MNC warps to 28 x 28, then pools 2 x 2.
RATIO = 2
# Samples up to half a cell outside the outermost cells count as on them.
_MARGIN = 0.5


def roi_warp(
    features: Float[Array, "h w F"], boxes: Float[Array, "R 4"], size: int, spatial_scale: float
) -> Float[Array, "R {size} {size} F"]:
    """Warps each box (pixels of the image) of one feature map to a grid of single samples.

    spatial_scale: cells per pixel. The corners of a box are rounded to whole cells; sample i lies
    i / size of the way from the first to the last. Samples outside the map are 0.
    Differentiable in features; in boxes the gradient is 0. Source: MNC's `ROIWarpingLayer`.
    """
    (x, y), (w, h) = _corner_and_extent(boxes, spatial_scale)
    along_y = point_weights(_positions(y, h, size), features.shape[0], _MARGIN)
    along_x = point_weights(_positions(x, w, size), features.shape[1], _MARGIN)
    return pool_separably(features[None], along_y[None], along_x[None])[0].astype(features.dtype)


def multilevel_roi_warp(
    features: dict[str, Float[Array, "B _h _w F"]],
    rois: Float[Array, "B R 4"],
    output_size: int,
    reduce: Callable[..., Array] = jnp.mean,
    level_eps: float = 0.0,
) -> Float[Array, "B R {output_size} {output_size} F"]:
    """`roi_warp` of each roi from the level of its size, to twice output_size, reduced 2 x 2.

    features: consecutive levels 'p2', 'p3', ...; the stride of level l is 2**l.
    reduce: jnp.mean, or `pooling.largest` as in MNC. level_eps: see `roi_align.assign_levels`.
    """
    numbers = [int(name.removeprefix("p")) for name in features]

    def weigh(boxes: Array, level: int, grid_hw: tuple[int, int]) -> tuple[Array, Array]:
        (x, y), (w, h) = _corner_and_extent(boxes, 0.5**level)
        return (
            point_weights(_positions(y, h, size), grid_hw[0], _MARGIN),
            point_weights(_positions(x, w, size), grid_hw[1], _MARGIN),
        )

    def taps(
        boxes: Array, levels: Array, height: Array, width: Array, first: Array
    ) -> tuple[Array, Array, Array, Array]:
        (x, y), (w, h) = _corner_and_extent(boxes, 0.5 ** levels.astype(jnp.float32))
        return (
            *point_taps(_positions(y, h, size), height, _MARGIN),
            *point_taps(_positions(x, w, size), width, _MARGIN),
        )

    size, rule = RATIO * output_size, Rule(weigh, taps, 2)

    def pool(rois: Array) -> Array:
        levels = assign_levels(rois, min(numbers), max(numbers), eps=level_eps)
        return pool_levels(features, rois, levels, size, rule)

    depth = next(iter(features.values())).shape[-1]
    return reduce_samples(pool, rois, output_size, RATIO, depth, reduce)


def _corner_and_extent(boxes: Array, spatial_scale: float | Array) -> tuple[Array, Array]:
    """(x, y) and (width, height) of the rounded boxes, in cells."""
    x0, y0, x1, y1 = round_half_away(boxes.T * spatial_scale)
    extent = jnp.maximum(jnp.stack([x1 - x0, y1 - y0]), 0.0)
    return jnp.stack([x0, y0]), extent


def _positions(
    start: Float[Array, "R"], extent: Float[Array, "R"], size: int
) -> Float[Array, "R {size}"]:
    # A true division, and no product fused into the sum: on the margin the last bit decides.
    step = extent / jax.lax.optimization_barrier(jnp.full_like(extent, size))
    shift = jnp.arange(size, dtype=jnp.float32) * step[:, None]
    return start[:, None] + jnp.minimum(shift, jnp.finfo(jnp.float32).max)
