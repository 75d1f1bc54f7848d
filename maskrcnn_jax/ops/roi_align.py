"""ROIAlign (arXiv 1703.06870, section 3), of one map and of the levels of a pyramid."""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from maskrcnn_jax.ops import boxes as box_ops
from maskrcnn_jax.ops.pooling import Rule, largest, pool_levels, pool_separably, reduce_samples
from maskrcnn_jax.ops.sampling import axis_taps, axis_weights, taps_needed

# Of adaptive samples, rows and columns that one step of the loop over them takes.
_ADAPTIVE_TAPS = 2


def roi_align(
    features: Float[Array, "h w F"],
    boxes: Float[Array, "R 4"],
    output_size: int | tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int = 0,
    aligned: bool = True,
) -> Float[Array, "R y x F"]:
    """Pools each box (pixels of the image) of one feature map to a fixed size (height, width).

    spatial_scale: cells per pixel. sampling_ratio: samples per bin and axis; 0: ceil(roi side /
    output side), for each roi. aligned: half-pixel correction; False: the legacy operator, whose
    rois are shifted by half a cell and at least one cell large.
    Differentiable in features and boxes. Products of float32 are float32 (no TF32).
    Same as Detectron2's `ROIAlign` and torchvision's `roi_align`.
    """
    height, width = (output_size, output_size) if isinstance(output_size, int) else output_size
    start, extent = _in_cells(boxes, spatial_scale, aligned)
    along_y = axis_weights(start[:, 1], extent[:, 1], features.shape[0], height, sampling_ratio)
    along_x = axis_weights(start[:, 0], extent[:, 0], features.shape[1], width, sampling_ratio)
    return pool_separably(features[None], along_y[None], along_x[None])[0].astype(features.dtype)


def assign_levels(
    boxes: Float[Array, "*n 4"],
    min_level: int = 2,
    max_level: int = 5,
    canonical_size: float = 224.0,
    canonical_level: int = 4,
    eps: float = 0.0,
) -> Int[Array, "*n"]:
    """The pyramid level that a box is pooled from, by the root of its area in pixels.

    floor(canonical_level + log2(root / canonical_size) + eps), limited to min_level..max_level.
    eps: 0 is Detectron2's `assign_boxes_to_levels` (its 1e-8 goes under in float32), 1e-6
    torchvision's `LevelMapper`.
    Source: arXiv 1612.03144, equation 1.
    """
    root = jnp.sqrt(box_ops.area(boxes))
    level = jnp.full(root.shape, min_level, jnp.int32)
    for upper in range(min_level + 1, max_level + 1):
        # Comparisons, as no backend's log2 is exact; the peers add up the level in float32, so what
        # their rounding, by half a unit in each sum, lifts onto a border counts as on it.
        unit = upper - float(np.nextafter(np.float32(upper), np.float32(0)))
        slack = (math.floor(eps / unit + 0.5) + 0.5) * unit
        border = canonical_size * 2.0 ** (upper - canonical_level) * (1 - slack * math.log(2))
        level += root >= border
    return level


def multilevel_roi_align(
    features: dict[str, Float[Array, "B _h _w F"]],
    rois: Float[Array, "B R 4"],
    output_size: int,
    sampling_ratio: int = 0,
    aligned: bool = True,
    level_eps: float = 0.0,
) -> Float[Array, "B R {output_size} {output_size} F"]:
    """Pools each roi (pixels) from the level that its size assigns it to.

    features: consecutive levels 'p2', 'p3', ...; the stride of level l is 2**l.
    level_eps: see `assign_levels`.
    Sums are float32; the result has the dtype of the features.
    Source: arXiv 1612.03144 section 4.2; Detectron2 `ROIPooler` with `ROIAlignV2` (aligned);
    torchvision `MultiScaleRoIAlign` (not aligned, level_eps 1e-6).
    """
    numbers = [int(name.removeprefix("p")) for name in features]
    levels = assign_levels(rois, min(numbers), max(numbers), eps=level_eps)

    def weigh(boxes: Array, level: int, grid_hw: tuple[int, int]) -> tuple[Array, Array]:
        start, extent = _in_cells(boxes, 0.5**level, aligned)
        (y, x), (height, width), (h, w) = start.T[::-1], extent.T[::-1], grid_hw
        return (
            axis_weights(y, height, h, output_size, sampling_ratio),
            axis_weights(x, width, w, output_size, sampling_ratio),
        )

    def taps(
        boxes: Array, levels: Array, h: Array, w: Array, first: Array
    ) -> tuple[Array, Array, Array, Array]:
        start, extent = _in_cells(boxes, 0.5 ** levels[:, None].astype(jnp.float32), aligned)
        (y, x), (height, width) = start.T[::-1], extent.T[::-1]
        return (
            *axis_taps(y, height, h, output_size, sampling_ratio, num_taps, first[0]),
            *axis_taps(x, width, w, output_size, sampling_ratio, num_taps, first[1]),
        )

    def needed(boxes: Array, levels: Array) -> Array:
        _, extent = _in_cells(boxes, 0.5 ** levels[:, None].astype(jnp.float32), aligned)
        return taps_needed(extent[:, ::-1], output_size)

    num_taps = 2 * sampling_ratio or _ADAPTIVE_TAPS
    rule = Rule(weigh, taps, num_taps, None if sampling_ratio > 0 else needed)
    return pool_levels(features, rois, levels, output_size, rule)


def multilevel_roi_align_max(
    features: dict[str, Float[Array, "B _h _w F"]],
    rois: Float[Array, "B R 4"],
    output_size: int,
    sampling_ratio: int,
    aligned: bool = True,
    level_eps: float = 0.0,
) -> Float[Array, "B R {output_size} {output_size} F"]:
    """`multilevel_roi_align` with the largest sample of a bin instead of their mean.

    sampling_ratio: greater than 0. Source: arXiv 1703.06870, table 2c.
    """

    def pool(rois: Array) -> Array:
        return multilevel_roi_align(
            features, rois, sampling_ratio * output_size, 1, aligned, level_eps
        )

    depth = next(iter(features.values())).shape[-1]
    return reduce_samples(pool, rois, output_size, sampling_ratio, depth, largest)


def _in_cells(boxes: Array, spatial_scale: float | Array, aligned: bool) -> tuple[Array, Array]:
    """Start and extent (x, y) of boxes in cells, where coordinate i is the centre of cell i."""
    shift = 0.5 if aligned else 0.0
    start = boxes[:, :2] * spatial_scale - shift
    extent = boxes[:, 2:] * spatial_scale - shift - start
    return start, extent if aligned else jnp.maximum(extent, 1.0)
