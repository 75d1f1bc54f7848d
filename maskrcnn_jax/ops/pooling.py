"""Pooling rois from the levels of a pyramid, in the form that suits the device.

On accelerators the mean over a bin is Wy @ features @ Wx^T with one matrix of weights per axis and
roi: in static shapes, and its gradient is a matrix product, too, without scatter and thus the same
in every run. CPUs have no product to spare for weights that are nearly all 0; there the cells that
a roi touches are gathered, and in the backward pass scattered one after another.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

# Bound of the rows-pooled intermediate of one image, which the rois are cut into chunks for.
_CHUNK_BYTES = 64 * 2**20
# Of the result of a chunk, forward; and of its gathered cells, backward: both are to stay in the
# processor's cache.
_POOLED_BYTES = 4 * 2**20
_GATHERED_BYTES = 6 * 2**20
# Of the samples of a chunk of rois that are reduced to less.
_SAMPLES_BYTES = 64 * 2**20
# Cells along an axis up to which a sum of gathers is compiled: it has the square of it as terms.
_MOST_SUMMED = 6


class Rule(NamedTuple):
    """How rois are sampled: the weights of rows and columns, in two forms.

    weigh: (boxes [n, 4], level, grid (h, w)) -> weights [n, size, h], [n, size, w].
    taps: (boxes [n, 4], levels [n], heights [n], widths [n], T) -> rows [n, size, T], their
      weights, columns [n, size, T], their weights.
    num_taps: the T that programs are compiled for, ascending.
    needed: (boxes [n, 4], levels [n]) -> T that each roi needs; None: the first will always do.
    """

    weigh: Callable[[Array, int, tuple[int, int]], tuple[Array, Array]]
    taps: Callable[[Array, Array, Array, Array, int], tuple[Array, Array, Array, Array]]
    num_taps: tuple[int, ...]
    needed: Callable[[Array, Array], Array] | None = None


def pool_levels(
    features: dict[str, Float[Array, "B _h _w F"]],
    rois: Float[Array, "B R 4"],
    levels: Int[Array, "B R"],
    output_size: int,
    rule: Rule,
) -> Float[Array, "B R {output_size} {output_size} F"]:
    """Pools each roi from its level.

    features: 'p2', 'p3', ... Sums are float32; the result has the dtype of the features. Rois go in
    chunks, recomputed in the backward pass, which bound the memory.
    """
    return jax.lax.platform_dependent(
        features,
        rois,
        levels,
        cpu=lambda *args: pool_gathered(*args, output_size, rule),
        default=lambda *args: pool_dense(*args, output_size, rule),
    )


def pool_dense(
    features: dict[str, Float[Array, "B _h _w F"]],
    rois: Float[Array, "B R 4"],
    levels: Int[Array, "B R"],
    output_size: int,
    rule: Rule,
) -> Float[Array, "B R {output_size} {output_size} F"]:
    """`pool_levels` by two matrix products per level."""
    dtype = next(iter(features.values())).dtype
    batch, num_rois = rois.shape[:2]
    chunk, num_chunks = _chunks(features, num_rois, output_size)
    padding = [(0, 0), (0, chunk * num_chunks - num_rois)]
    rois = jnp.pad(rois, [*padding, (0, 0)])
    levels = jnp.pad(levels, padding, constant_values=-1)
    # The gradients of the chunks add up in float32, whatever the dtype of the features.
    wide = {level: grid.astype(jnp.float32) for level, grid in _by_level(features).items()}

    def pool_chunk(carry: None, part: tuple[Array, Array]) -> tuple[None, Array]:
        boxes, box_levels = part
        total = jnp.zeros((), jnp.float32)
        for level, grid in wide.items():
            h, w = grid.shape[1:3]
            along_y, along_x = rule.weigh(boxes.reshape(-1, 4), level, (h, w))
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


def pool_gathered(
    features: dict[str, Float[Array, "B _h _w F"]],
    rois: Float[Array, "B R 4"],
    levels: Int[Array, "B R"],
    output_size: int,
    rule: Rule,
) -> Float[Array, "B R {output_size} {output_size} F"]:
    """`pool_levels` by gathering the cells that each roi touches.

    Where rois need different numbers of them, they go in the order of what they need; those that
    need more than the largest of rule.num_taps are pooled by products.
    """
    # Forward, a sum of gathers makes nothing but the result. Its transpose would scatter as often;
    # so the gradient is that of the same sum as a product behind one gather.
    pool = jax.custom_vjp(lambda *args: _pool_gathered(*args, output_size, rule, _sum_of_gathers))
    transpose = lambda *args: _pool_gathered(*args, output_size, rule, _product)  # noqa: E731
    pool.defvjp(lambda *args: (pool(*args), args), lambda args, g: jax.vjp(transpose, *args)[1](g))
    return pool(features, rois, levels)


def _sum_of_gathers(
    cells: Array, rows: Array, row_weights: Array, columns: Array, column_weights: Array
) -> Array:
    """[n, size, size, F] of cells [N, F], rows and columns [n, size, T] and their weights."""
    total = jnp.zeros((), jnp.float32)
    for i in range(rows.shape[-1]):
        for j in range(columns.shape[-1]):
            index = rows[:, :, None, i] + columns[:, None, :, j]
            weight = row_weights[:, :, None, i] * column_weights[:, None, :, j]
            # Every index is inside by construction.
            found = cells.at[index].get(mode="promise_in_bounds")
            total += weight[..., None] * found.astype(jnp.float32)
    return total


def _product(
    cells: Array, rows: Array, row_weights: Array, columns: Array, column_weights: Array
) -> Array:
    """The same as `_sum_of_gathers`."""
    index = rows[:, :, :, None, None] + columns[:, None, None]
    found = cells.at[index].get(mode="promise_in_bounds")
    exact = {"precision": jax.lax.Precision.HIGHEST, "preferred_element_type": jnp.float32}
    return jnp.einsum("nyaxbf,nya,nxb->nyxf", found, row_weights, column_weights, **exact)


def _pool_gathered(
    features: dict[str, Array],
    rois: Array,
    levels: Array,
    output_size: int,
    rule: Rule,
    combine: Callable,
) -> Array:
    dtype = next(iter(features.values())).dtype
    batch, num_rois = rois.shape[:2]
    # The gradients of the chunks add up in float32, whatever the dtype of the features.
    grids = {level: grid.astype(jnp.float32) for level, grid in _by_level(features).items()}
    roi_bytes = 4 * next(iter(grids.values())).shape[-1] * output_size**2
    num_chunks = max(1, -(-batch * num_rois // max(1, _POOLED_BYTES // roi_bytes)))
    chunk = max(1, -(-batch * num_rois // num_chunks))
    lowest = min(grids)
    image = jnp.repeat(jnp.arange(batch), num_rois)
    boxes, box_levels = rois.reshape(-1, 4), levels.reshape(-1)
    needed, order = jnp.zeros(box_levels.shape, jnp.int32), None
    if rule.needed is not None:
        needed = rule.needed(boxes, box_levels)
        order = jnp.argsort(needed)
        image, boxes, box_levels, needed = (x[order] for x in (image, boxes, box_levels, needed))
    cells, sizes, starts = flatten_levels(grids)

    def gather(num_taps: int, part: tuple) -> Array:
        image, boxes, box_levels, _ = part
        height, width = sizes[box_levels - lowest].T
        rows, row_weights, columns, column_weights = rule.taps(
            boxes, box_levels, height, width, num_taps
        )
        first = starts[box_levels - lowest] + image * height * width
        rows = first[:, None, None] + rows * width[:, None, None]
        taps = (rows, row_weights, columns, column_weights)
        if combine is _sum_of_gathers and num_taps <= _MOST_SUMMED:
            return combine(cells, *taps).astype(dtype)
        # No more rois at once than the cache has room for.
        few = max(1, _GATHERED_BYTES // (roi_bytes * num_taps**2))
        few = max(n for n in range(1, chunk + 1) if chunk % n == 0 and n <= few)
        taps = tuple(x.reshape(-1, few, *x.shape[1:]) for x in taps)
        pooled = jax.lax.map(lambda taps: _product(cells, *taps).astype(dtype), taps)
        return pooled.reshape(chunk, *pooled.shape[2:])

    def dense(part: tuple) -> Array:
        def one_roi(args: tuple[Array, Array, Array]) -> Array:
            image, box, level = args
            return jax.lax.switch(level - lowest, products, image, box)

        return jax.lax.map(one_roi, part[:3])

    def product(level: int, image: Array, box: Array) -> Array:
        grid = grids[level][image][None]
        along_y, along_x = rule.weigh(box[None], level, grid.shape[1:3])
        return pool_separably(grid, along_y[None], along_x[None])[0, 0].astype(dtype)

    products = [partial(product, level) for level in grids]

    def pool_chunk(carry: None, part: tuple) -> tuple[None, Array]:
        branches = [partial(gather, num_taps) for num_taps in rule.num_taps]
        if rule.needed is None:
            return carry, branches[0](part)
        branch = (part[3].max() > jnp.array(rule.num_taps)).sum()
        return carry, jax.lax.switch(branch, [*branches, dense], part)

    # Padding repeats the last roi, whose needs are the largest already.
    padding = chunk * num_chunks - len(boxes)
    parts = tuple(
        jnp.pad(
            x, [(0, padding), *[(0, 0)] * (x.ndim - 1)], "edge" if len(boxes) else "constant"
        ).reshape(num_chunks, chunk, *x.shape[1:])
        for x in (image, boxes, box_levels, needed)
    )
    body = jax.checkpoint(pool_chunk, prevent_cse=False)
    _, pooled = jax.lax.scan(body, None, parts)
    pooled = pooled.reshape(-1, *pooled.shape[2:])[: len(boxes)]
    if order is not None:
        pooled = jnp.zeros_like(pooled).at[order].set(pooled, unique_indices=True)
    return pooled.reshape(batch, num_rois, *pooled.shape[1:])


def _by_level(features: dict[str, Array]) -> dict[int, Array]:
    return {int(name.removeprefix("p")): grid for name, grid in features.items()}


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


def flatten_levels(
    features: dict[Any, Float[Array, "B _h _w F"]],
) -> tuple[Float[Array, "N F"], Int[Array, "L 2"], Int[Array, "L"]]:
    """All cells of all maps in one list, the (height, width) and the first row of each level."""
    grids = list(features.values())
    cells = jnp.concatenate([grid.reshape(-1, grid.shape[-1]) for grid in grids])
    sizes = jnp.array([grid.shape[1:3] for grid in grids])
    ends = jnp.cumsum(grids[0].shape[0] * sizes[:, 0] * sizes[:, 1])
    return cells, sizes, jnp.concatenate([jnp.zeros(1, ends.dtype), ends[:-1]])


def reduce_samples(
    pool: Callable[[Array], Array],
    rois: Float[Array, "B R 4"],
    size: int,
    ratio: int,
    depth: int,
    reduce: Callable[..., Array],
) -> Float[Array, "B R {size} {size} {depth}"]:
    """Pools rois to `ratio` times `size`, and reduces each ratio x ratio cells to one.

    pool: rois [B, r, 4] -> [B, r, ratio * size, ratio * size, depth]. reduce: jnp.max, jnp.mean.
    Rois go in chunks, recomputed in the backward pass, which bound the memory.
    """
    batch, num_rois = rois.shape[:2]
    most = max(1, _SAMPLES_BYTES // (4 * depth * batch * (ratio * size) ** 2))
    num_chunks = max(1, -(-num_rois // most))
    chunk = max(1, -(-num_rois // num_chunks))
    rois = jnp.pad(rois, [(0, 0), (0, chunk * num_chunks - num_rois), (0, 0)])

    def one_chunk(carry: None, rois: Array) -> tuple[None, Array]:
        samples = pool(rois).reshape(batch, chunk, size, ratio, size, ratio, depth)
        return carry, reduce(samples, axis=(3, 5))

    body = jax.checkpoint(one_chunk, prevent_cse=False)
    _, pooled = jax.lax.scan(body, None, _split(rois, num_chunks))
    pooled = jnp.moveaxis(pooled, 0, 1).reshape(batch, -1, size, size, depth)
    return pooled[:, :num_rois]


def round_half_away(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """To whole numbers, halves away from 0, as C's `round`; the gradient is 0."""
    whole = jnp.trunc(x)
    return jax.lax.stop_gradient(whole + jnp.sign(x) * (jnp.abs(x - whole) >= 0.5))


def _chunks(features: dict[str, Array], num_rois: int, size: int) -> tuple[int, int]:
    """Rois per chunk and number of chunks, as even as can be."""
    row_bytes = max(grid.shape[2] * grid.shape[3] for grid in features.values()) * 4
    most = max(1, _CHUNK_BYTES // (row_bytes * size))
    num_chunks = max(1, -(-num_rois // most))
    return max(1, -(-num_rois // num_chunks)), num_chunks


def _split(x: Array, num_chunks: int) -> Array:
    """[B, chunks * n, ...] to [chunks, B, n, ...]."""
    return jnp.moveaxis(x.reshape(x.shape[0], num_chunks, -1, *x.shape[2:]), 1, 0)
