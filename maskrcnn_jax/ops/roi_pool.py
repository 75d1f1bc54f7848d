"""RoIPool (arXiv 1504.08083, section 2.1), of one map and of the levels of a pyramid.

The largest cell of each bin, of rois and bins that are quantised to whole cells.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from maskrcnn_jax.ops.pooling import flatten_levels, round_half_away
from maskrcnn_jax.ops.roi_align import assign_levels

# Of the result of a chunk of rois; sorted, a chunk's rois have bins of similar size.
_CHUNK_BYTES = 16 * 2**20


def roi_pool(
    features: Float[Array, "h w F"],
    boxes: Float[Array, "R 4"],
    output_size: int,
    spatial_scale: float,
) -> Float[Array, "R {output_size} {output_size} F"]:
    """Pools each box (pixels of the image) of one feature map to a fixed size.

    spatial_scale: cells per pixel. Bins without cells are 0.
    Differentiable in features, where each bin's gradient goes to the first of its largest cells; in
    boxes the gradient is 0. Same as torchvision's `roi_pool`.
    """
    height, width = features.shape[:2]
    whole = jnp.zeros(len(boxes), jnp.int32)
    grids = _Grids(whole, whole + height, whole + width)
    cells = features.reshape(-1, features.shape[-1])
    return _pool_largest(cells, grids, _bins(boxes * spatial_scale, grids, output_size))


def multilevel_roi_pool(
    features: dict[str, Float[Array, "B _h _w F"]],
    rois: Float[Array, "B R 4"],
    output_size: int,
    level_eps: float = 0.0,
) -> Float[Array, "B R {output_size} {output_size} F"]:
    """`roi_pool` of each roi (pixels) from the level that its size assigns it to.

    features: consecutive levels 'p2', 'p3', ...; the stride of level l is 2**l.
    level_eps: see `roi_align.assign_levels`. Same as Detectron2's `ROIPooler` with `ROIPool`.
    """
    numbers = [int(name.removeprefix("p")) for name in features]
    levels = assign_levels(rois, min(numbers), max(numbers), eps=level_eps).reshape(-1)
    image = jnp.repeat(jnp.arange(rois.shape[0]), rois.shape[1])
    cells, sizes, starts = flatten_levels(features)
    height, width = sizes[levels - min(numbers)].T
    grids = _Grids(starts[levels - min(numbers)] + image * height * width, height, width)
    boxes = rois.reshape(-1, 4) * 0.5 ** levels[:, None].astype(jnp.float32)
    pooled = _pool_largest(cells, grids, _bins(boxes, grids, output_size))
    return pooled.reshape(*rois.shape[:2], *pooled.shape[1:])


class _Grids(NamedTuple):
    """Of each roi: its map's first row in the list of all cells, and the map's size."""

    first: Int[Array, "n"]
    height: Int[Array, "n"]
    width: Int[Array, "n"]


class _Bins(NamedTuple):
    """First rows and columns of each roi's bins, and how many; none where a bin is empty."""

    row: Int[Array, "n S"]
    rows: Int[Array, "n S"]
    column: Int[Array, "n S"]
    columns: Int[Array, "n S"]


def _bins(boxes: Float[Array, "n 4"], grids: _Grids, size: int) -> _Bins:
    """boxes: in cells. Source: arXiv 1504.08083; both corners' cells belong to the roi."""
    start, end = round_half_away(boxes[:, :2]), round_half_away(boxes[:, 2:])
    extent = jnp.maximum(end - start + 1.0, 1.0)
    # A true division: times a reciprocal, a border might come to lie beyond its cell.
    side = extent / jax.lax.optimization_barrier(jnp.full_like(extent, size))
    edge = jnp.arange(size + 1, dtype=jnp.float32)[:, None] * side[:, None]
    low = jnp.floor(edge[:, :-1]) + start[:, None]
    high = jnp.ceil(edge[:, 1:]) + start[:, None]
    limit = jnp.stack([grids.width, grids.height], -1)[:, None].astype(jnp.float32)
    low, high = jnp.clip(low, 0.0, limit), jnp.clip(high, 0.0, limit)
    low, count = low.astype(jnp.int32), jnp.maximum(high - low, 0.0).astype(jnp.int32)
    return _Bins(low[..., 1], count[..., 1], low[..., 0], count[..., 0])


@jax.custom_vjp
def _pool_largest(cells: Array, grids: _Grids, bins: _Bins) -> Array:
    """[n, S, S, F] of cells [N, F]; the backward pass scatters to where the largest were."""
    return _forward(cells, grids, bins)[0]


def _forward(cells: Array, grids: _Grids, bins: _Bins) -> tuple[Array, tuple]:
    order = jnp.argsort(bins.rows.max(-1) * bins.columns.max(-1))
    count, size = bins.row.shape
    num_chunks = max(1, -(-count * size**2 * cells.shape[1] * 4 // _CHUNK_BYTES))
    parts = jax.tree.map(lambda x: _in_chunks(x[order], num_chunks), (grids, bins))
    pooled, where = jax.lax.map(lambda part: _largest(cells, *part), parts)
    pooled = pooled.reshape(-1, *pooled.shape[2:])[:count]
    pooled = jnp.zeros_like(pooled).at[order].set(pooled, unique_indices=True)
    return pooled, (cells, where, order)


def _backward(kept: tuple, gradient: Array) -> tuple[Array, None, None]:
    cells, where, order = kept

    def add(total: Array, part: tuple[Array, Array]) -> tuple[Array, None]:
        where, gradient = part
        # Empty bins point behind the last cell, where nothing is added.
        spots = total.at[where, jnp.arange(cells.shape[1])]
        return spots.add(gradient.astype(jnp.float32), mode="drop"), None

    total = jnp.zeros(cells.shape, jnp.float32)
    total, _ = jax.lax.scan(add, total, (where, _in_chunks(gradient[order], len(where))))
    return total.astype(cells.dtype), None, None


_pool_largest.defvjp(_forward, _backward)


def _in_chunks(x: Array, num_chunks: int) -> Array:
    """[n, ...] to [chunks, m, ...]; what is padded is 0: bins without rows."""
    chunk = -(-len(x) // num_chunks)
    x = jnp.pad(x, [(0, chunk * num_chunks - len(x)), *[(0, 0)] * (x.ndim - 1)])
    return x.reshape(num_chunks, chunk, *x.shape[1:])


def _largest(cells: Array, grids: _Grids, bins: _Bins) -> tuple[Array, Array]:
    """The largest cell of each bin, and its place; as many steps as the largest bin has cells."""
    rows, columns = bins.rows[:, :, None], bins.columns[:, None]
    width, first = grids.width[:, None, None], grids.first[:, None, None]
    corner = first + bins.row[:, :, None] * width + bins.column[:, None]
    count = rows * columns

    def step(i: Array, best: tuple[Array, Array]) -> tuple[Array, Array]:
        value, where = best
        # Row by row, so that the first of equal cells is torchvision's.
        index = corner + i // jnp.maximum(columns, 1) * width + i % jnp.maximum(columns, 1)
        inside = i < count
        found = cells[jnp.where(inside, index, 0)]
        better = inside[..., None] & (found > value)
        return jnp.where(better, found, value), jnp.where(better, index[..., None], where)

    shape = (*count.shape, cells.shape[1])
    none = jnp.full(shape, -jnp.inf, cells.dtype), jnp.full(shape, len(cells), jnp.int32)
    value, where = jax.lax.fori_loop(0, count.max(), step, none)
    return jnp.where(count[..., None] > 0, value, 0.0), where
