"""ROIAlign (arXiv 1703.06870, section 3) as two matrix products, and its pooling over a pyramid.

A bilinear sample is a weighted sum over rows times one over columns, and the samples of a bin form
a grid; so the mean over a bin is Wy @ features @ Wx^T with one matrix of weights per axis and roi.
These hold every sample exactly, however many the adaptive rule asks for, in static shapes; and the
gradient is a matrix product, too, without scatter and thus the same in every run.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from maskrcnn_jax.ops import boxes as box_ops

# Of adaptive samples, spaced by more than half a cell, at most 4 lie within a cell of a grid line;
# one more for the rounding of the first.
_NEAR_SAMPLES = 5
# Bound of the rows-pooled intermediate of one image, which the rois are cut into chunks for.
_CHUNK_BYTES = 64 * 2**20


def axis_weights(
    start: Float[Array, "R"],
    extent: Float[Array, "R"],
    length: int,
    size: int,
    sampling_ratio: int = 0,
    margin: float = 1.0,
) -> Float[Array, "R {size} {length}"]:
    """Weights of the grid lines of one axis in each bin of each roi.

    start, extent: of the rois, in cells, where coordinate i is the centre of grid line i.
    length: grid lines. size: bins per roi.
    sampling_ratio: samples per bin; 0: ceil(extent / size), which is none where extent is 0.
    margin: samples up to so many cells outside the outermost lines count as on them; those
      farther out count as 0.
    """
    # Positions are rounded step by step as the peers round them: beyond 64 cells one bit is 8e-6 of
    # a cell, and on the margin it decides whether a sample counts. So the compiler must not
    # multiply with 1 / size (the barrier), nor fuse a product into a sum (the minimum).
    bin_size = (extent / jax.lax.optimization_barrier(jnp.full_like(extent, size)))[:, None, None]
    if sampling_ratio > 0:
        num = jax.lax.optimization_barrier(jnp.full_like(bin_size, sampling_ratio))
        near = sampling_ratio
    else:
        num = _adaptive_samples(extent, size)[:, None, None]
        near = _NEAR_SAMPLES
    spacing = bin_size / jnp.maximum(num, 1.0)
    line = jnp.arange(length, dtype=jnp.float32)
    bin_shift = jnp.arange(size, dtype=jnp.float32)[:, None] * bin_size
    bin_start = start[:, None, None] + jnp.minimum(bin_shift, jnp.finfo(jnp.float32).max)
    # Only samples within a cell of a line give it weight: `near` of them from `first` on. Where a
    # bin has no more than that, all are looked at, whatever the spacing (0 for an empty roi).
    reach = (line - 1.0 - bin_start) / jnp.maximum(spacing, 0.5) - 0.5
    first = jnp.clip(jnp.floor(jax.lax.stop_gradient(reach)), 0.0, jnp.maximum(num - near, 0.0))

    total = jnp.zeros(bin_start.shape[:2] + (length,), jnp.float32)
    for i in range(near):
        index = first + i
        exists = index < num
        # A divisor for each sample: by one for all of a roi, its reciprocal would be multiplied.
        position = bin_start + (index + 0.5) * bin_size / jnp.where(exists, num, 1.0)
        counts = exists & (position >= -margin) & (position <= length - 1 + margin)
        distance = jnp.abs(jnp.clip(position, 0.0, length - 1.0) - line)
        total += jnp.where(counts, jnp.maximum(1.0 - distance, 0.0), 0.0)
    return total / jnp.maximum(num, 1.0)


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
    Sums are float32; the result has the dtype of the features. Rois go in chunks, recomputed in the
    backward pass, which bound the memory.
    Source: arXiv 1612.03144 section 4.2; Detectron2 `ROIPooler` with `ROIAlignV2` (aligned);
    torchvision `MultiScaleRoIAlign` (not aligned, level_eps 1e-6).
    """
    levels = assign_levels(rois, *_level_range(features), eps=level_eps)

    def weigh(boxes: Array, level: int, grid_hw: tuple[int, int]) -> tuple[Array, Array]:
        start, extent = _in_cells(boxes, 0.5**level, aligned)
        return tuple(
            axis_weights(start[:, axis], extent[:, axis], length, output_size, sampling_ratio)
            for axis, length in ((1, grid_hw[0]), (0, grid_hw[1]))
        )

    return pool_levels(features, rois, levels, output_size, weigh)


def pool_levels(
    features: dict[str, Float[Array, "B _h _w F"]],
    rois: Float[Array, "B R 4"],
    levels: Int[Array, "B R"],
    output_size: int,
    weigh: Callable[[Array, int, tuple[int, int]], tuple[Array, Array]],
) -> Float[Array, "B R {output_size} {output_size} F"]:
    """Pools each roi from its level, by weights of rows and columns.

    weigh: (boxes [n, 4], level, grid (h, w)) -> weights [n, output_size, h], [n, output_size, w].
    """
    names = {int(name.removeprefix("p")): name for name in features}
    dtype = next(iter(features.values())).dtype
    batch, num_rois = rois.shape[:2]
    chunk, num_chunks = _chunks(features, num_rois, output_size)
    padding = [(0, 0), (0, chunk * num_chunks - num_rois)]
    rois = jnp.pad(rois, [*padding, (0, 0)])
    levels = jnp.pad(levels, padding, constant_values=-1)
    # The gradients of the chunks add up in float32, whatever the dtype of the features.
    wide = {level: features[name].astype(jnp.float32) for level, name in names.items()}

    def pool_chunk(carry: None, part: tuple[Array, Array]) -> tuple[None, Array]:
        boxes, box_levels = part
        total = jnp.zeros((), jnp.float32)
        for level, grid in wide.items():
            h, w = grid.shape[1:3]
            along_y, along_x = weigh(boxes.reshape(-1, 4), level, (h, w))
            along_y = along_y.reshape(batch, chunk, output_size, h)
            along_y = jnp.where((box_levels == level)[..., None, None], along_y, 0.0)
            along_x = along_x.reshape(batch, chunk, output_size, w)
            total += pool_separably(grid.astype(dtype), along_y, along_x)
        return carry, total.astype(dtype)

    body = jax.checkpoint(pool_chunk, prevent_cse=False)
    parts = (_split(rois, num_chunks), _split(levels, num_chunks))
    _, pooled = jax.lax.scan(body, None, parts)
    pooled = jnp.moveaxis(pooled, 0, 1)
    return pooled.reshape(batch, chunk * num_chunks, *pooled.shape[3:])[:, :num_rois]


def _level_range(features: dict[str, Array]) -> tuple[int, int]:
    levels = [int(name.removeprefix("p")) for name in features]
    return min(levels), max(levels)


def _adaptive_samples(extent: Float[Array, "R"], size: int) -> Float[Array, "R"]:
    """ceil(extent / size) >= 0, exact: a compiler may divide by multiplying with 1 / size."""
    num = jnp.ceil(extent / size)
    num = jnp.where((num - 1.0) * size >= extent, num - 1.0, num)
    num = jnp.where(num * size < extent, num + 1.0, num)
    return jax.lax.stop_gradient(jnp.maximum(num, 0.0))


def _in_cells(boxes: Array, spatial_scale: float, aligned: bool) -> tuple[Array, Array]:
    """Start and extent (x, y) of boxes in cells, where coordinate i is the centre of cell i."""
    shift = 0.5 if aligned else 0.0
    start = boxes[:, :2] * spatial_scale - shift
    extent = boxes[:, 2:] * spatial_scale - shift - start
    return start, extent if aligned else jnp.maximum(extent, 1.0)


def pool_separably(
    features: Float[Array, "B h w F"],
    along_y: Float[Array, "B R y h"],
    along_x: Float[Array, "B R x w"],
) -> Float[Array, "B R y x F"]:
    """Wy @ features @ Wx^T for each roi; the rows first: one large product, nothing transposed."""
    exact = {"precision": jax.lax.Precision.HIGHEST, "preferred_element_type": jnp.float32}
    dtype = features.dtype
    rows = jnp.einsum("bryh,bhwf->brywf", along_y.astype(dtype), features, **exact)
    return jnp.einsum("brywf,brxw->bryxf", rows.astype(dtype), along_x.astype(dtype), **exact)


def _chunks(features: dict[str, Array], num_rois: int, size: int) -> tuple[int, int]:
    """Rois per chunk and number of chunks, as even as can be."""
    row_bytes = max(grid.shape[2] * grid.shape[3] for grid in features.values()) * 4
    most = max(1, _CHUNK_BYTES // (row_bytes * size))
    num_chunks = max(1, -(-num_rois // most))
    return max(1, -(-num_rois // num_chunks)), num_chunks


def _split(x: Array, num_chunks: int) -> Array:
    """[B, chunks * n, ...] to [chunks, B, n, ...]."""
    return jnp.moveaxis(x.reshape(x.shape[0], num_chunks, -1, *x.shape[2:]), 1, 0)
