"""Pooling rois from the levels of a pyramid, in the form that suits the device.

On accelerators the mean over a bin is Wy @ features @ Wx^T with one matrix of weights per axis and
roi: in static shapes, and its gradient is a matrix product, too, without scatter and thus the same
in every run. CPUs have no product to spare for weights that are nearly all 0; there the cells that
a roi touches are gathered, and in the backward pass scattered one after another.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from maskrcnn_jax.ops.platform import by_platform

# Bound of the rows-pooled intermediate of one image, which the rois are cut into chunks for.
_CHUNK_BYTES = 64 * 2**20
# Of the result of a chunk, forward; and of the cells that a step of the loop over its taps gathers:
# both are to stay in the processor's cache.
_POOLED_BYTES = 4 * 2**20
_GATHERED_BYTES = 6 * 2**20
# Of the samples of a chunk of rois that are reduced to less.
_SAMPLES_BYTES = 64 * 2**20


class Rule(NamedTuple):
    """How rois are sampled: the weights of rows and columns, in two forms.

    weigh: (boxes [n, 4], level, grid (h, w)) -> weights [n, size, h], [n, size, w].
    taps: (boxes [n, 4], levels [n], heights [n], widths [n], first (row, column)) -> rows
      [n, size, T], their weights, columns [n, size, T], their weights: those of each bin from its
      tap `first` on.
    num_taps: T.
    needed: (boxes [n, 4], levels [n]) -> [n, 2], how many rows and columns the bins of each roi
      have; None: the first T are all.
    """

    weigh: Callable[[Array, int, tuple[int, int]], tuple[Array, Array]]
    taps: Callable[[Array, Array, Array, Array, Array], tuple[Array, Array, Array, Array]]
    num_taps: int
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
    return by_platform(
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

    Where rois need different numbers of them, they go in the order of what they need, each chunk
    through as many steps as its neediest.
    """
    # The transpose of the sum of gathers: one scatter for each block of them.
    pool = jax.custom_vjp(lambda *args: _gather(*args, output_size, rule))
    pool.defvjp(
        lambda *args: (pool(*args), args),
        lambda args, g: (*_scatter(*args, g, rule), None),
    )
    return pool(features, rois, levels)


class _Rois(NamedTuple):
    """Rois of all images in one list, or a chunk of it."""

    boxes: Float[Array, "*n 4"]
    levels: Int[Array, "*n"]
    sizes: Int[Array, "*n 2"]  # height and width of the level
    first: Int[Array, "*n"]  # cell of the level, in the list of all
    needed: Int[Array, "*n 2"]  # rows and columns of a bin


def _gather(features: dict[str, Array], rois: Array, levels: Array, size: int, rule: Rule) -> Array:
    dtype = next(iter(features.values())).dtype
    cells, listed, order = _listed(features, rois, levels, rule)
    roi_bytes = 4 * cells.shape[-1] * size**2
    most = _POOLED_BYTES // roi_bytes if rule.needed is None else _few(roi_bytes, rule)

    def pool_chunk(carry: None, part: _Rois) -> tuple[None, Array]:
        def add_block(first: Array, total: Array) -> Array:
            rows, row_weights, columns, column_weights = _taps(part, part.boxes, first, rule)
            for i in range(rule.num_taps):
                for j in range(rule.num_taps):
                    index = rows[:, :, None, i] + columns[:, None, :, j]
                    weight = row_weights[:, :, None, i] * column_weights[:, None, :, j]
                    # Every index is inside by construction.
                    found = cells.at[index].get(mode="promise_in_bounds")
                    total += weight[..., None] * found.astype(jnp.float32)
            return total

        nothing = jnp.zeros((len(part.levels), size, size, cells.shape[-1]), jnp.float32)
        return carry, _over_blocks(part, rule, add_block, nothing).astype(dtype)

    _, pooled = jax.lax.scan(pool_chunk, None, _in_chunks(listed, most, "edge"))
    pooled = pooled.reshape(-1, *pooled.shape[2:])[: len(listed.levels)]
    if order is not None:
        pooled = jnp.zeros_like(pooled).at[order].set(pooled, unique_indices=True)
    return pooled.reshape(*rois.shape[:2], *pooled.shape[1:])


def _scatter(
    features: dict[str, Array], rois: Array, levels: Array, g: Array, rule: Rule
) -> tuple[dict[str, Array], Array]:
    """The gradients of `_gather` by features and rois, from that by its result."""
    cells, listed, order = _listed(features, rois, levels, rule)
    g = g.reshape(-1, *g.shape[2:])
    most = _few(4 * g[0].size, rule) if g.size else 1
    # Rois that fill the last chunk have no gradient.
    parts = (
        _in_chunks(listed, most, "edge"),
        _in_chunks(g if order is None else g[order], most, "constant"),
    )

    def one_chunk(by_cells: Array, args: tuple[_Rois, Array]) -> tuple[Array, Array]:
        part, g = args[0], args[1].astype(jnp.float32)[:, :, :, None, None]

        def add_block(first: Array, total: tuple[Array, Array]) -> tuple[Array, Array]:
            by_cells, by_boxes = total

            def weights(boxes: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
                rows, row_weights, columns, column_weights = _taps(part, boxes, first, rule)
                return (row_weights, column_weights), (rows, columns)

            (along_y, along_x), by_weights, (rows, columns) = jax.vjp(
                weights, part.boxes, has_aux=True
            )
            along_y, along_x = along_y[:, :, None, :, None], along_x[:, None, :, None, :]
            index = rows[:, :, None, :, None] + columns[:, None, :, None, :]
            found = cells.at[index].get(mode="promise_in_bounds").astype(jnp.float32)
            products = (found * g).sum(-1)
            by_axes = ((products * along_x).sum((2, 4)), (products * along_y).sum((1, 3)))
            own = (along_y * along_x)[..., None] * g
            by_cells = by_cells.at[index].add(own, mode="promise_in_bounds")
            return by_cells, by_boxes + by_weights(by_axes)[0]

        return _over_blocks(part, rule, add_block, (by_cells, jnp.zeros_like(part.boxes)))

    # The gradients of the chunks add up in float32, whatever the dtype of the features.
    nothing = jnp.zeros(cells.shape, jnp.float32)
    by_cells, by_boxes = jax.lax.scan(one_chunk, nothing, parts)
    by_boxes = by_boxes.reshape(-1, 4)[: len(listed.levels)]
    if order is not None:
        by_boxes = jnp.zeros_like(by_boxes).at[order].set(by_boxes, unique_indices=True)
    ends = np.cumsum([grid[..., 0].size for grid in features.values()])
    by_features = {
        name: part.reshape(grid.shape).astype(grid.dtype)
        for (name, grid), part in zip(features.items(), jnp.split(by_cells, ends[:-1]), strict=True)
    }
    return by_features, by_boxes.reshape(rois.shape)


def _listed(
    features: dict[str, Array], rois: Array, levels: Array, rule: Rule
) -> tuple[Array, _Rois, Array | None]:
    """The cells of all levels, the rois of all images, and which of them these are in order."""
    batch, num_rois = rois.shape[:2]
    grids = _by_level(features)
    cells, sizes, starts = flatten_levels(grids)
    boxes, levels = rois.reshape(-1, 4), levels.reshape(-1)
    own = sizes[levels - min(grids)]
    image = jnp.repeat(jnp.arange(batch), num_rois)
    first = starts[levels - min(grids)] + image * own[:, 0] * own[:, 1]
    if rule.needed is None:
        return cells, _Rois(boxes, levels, own, first, jnp.zeros_like(own)), None
    listed = _Rois(boxes, levels, own, first, jnp.clip(rule.needed(boxes, levels), 1, own))
    order = jnp.lexsort(listed.needed.T)
    return cells, jax.tree.map(lambda x: x[order], listed), order


def _taps(part: _Rois, boxes: Array, first: Array, rule: Rule) -> tuple[Array, ...]:
    """`rule.taps` of a chunk, with rows as the cells that they begin at in the list of all."""
    height, width = part.sizes.T
    rows, row_weights, columns, column_weights = rule.taps(boxes, part.levels, height, width, first)
    rows = part.first[:, None, None] + rows * width[:, None, None]
    return rows, row_weights, columns, column_weights


def _over_blocks(part: _Rois, rule: Rule, add_block: Callable, total: Any) -> Any:
    """The sum over all blocks of taps that any roi of a chunk needs."""
    if rule.needed is None:
        return add_block(jnp.zeros(2, jnp.int32), total)
    rows, columns = -(-part.needed.max(0) // rule.num_taps)

    def body(index: Array, total: Any) -> Any:
        block = jnp.stack([index // columns, index % columns])
        return add_block(block * rule.num_taps, total)

    return jax.lax.fori_loop(0, rows * columns, body, total)


def _few(roi_bytes: int, rule: Rule) -> int:
    """So many rois that the cells of one block of taps stay in the cache."""
    return _GATHERED_BYTES // (roi_bytes * rule.num_taps**2)


def _in_chunks(tree: Any, most: int, padding: str) -> Any:
    """[n, ...] to [chunks, at most `most`, ...] for all arrays, as even as can be."""
    num = len(jax.tree.leaves(tree)[0])
    num_chunks = max(1, -(-num // max(1, most)))
    chunk = max(1, -(-num // num_chunks))

    def split(x: Array) -> Array:
        widths = [(0, chunk * num_chunks - num), *[(0, 0)] * (x.ndim - 1)]
        return jnp.pad(x, widths, padding if num else "constant").reshape(
            num_chunks, chunk, *x.shape[1:]
        )

    return jax.tree.map(split, tree)


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

    pool: rois [B, r, 4] -> [B, r, ratio * size, ratio * size, depth]. reduce: `largest`, jnp.mean.
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


def largest(samples: Float[Array, "..."], axis: tuple[int, ...]) -> Float[Array, "..."]:
    """jnp.max over the axes, whose gradient goes to the first of the largest samples.

    samples: any shape; the result is without the axes. The first is so in the order of the axes.
    That of jnp.max goes to all that equal the maximum. A compiler may compute the samples once for
    each side of that comparison; if these differ in the last bit, no sample is equal, and the
    gradient is 0 / 0 (seen with JAX 0.10 on a CPU, without optimisation).
    """
    axis = tuple(a % samples.ndim for a in axis)
    rest = [n for a, n in enumerate(samples.shape) if a not in axis]
    return _largest(jnp.moveaxis(samples, axis, range(len(axis))).reshape(-1, *rest))


@jax.custom_vjp
def _largest(samples: Array) -> Array:
    return samples.max(0)


def _largest_forward(samples: Array) -> tuple[Array, tuple[Array, Array]]:
    value, which = samples[0], jnp.zeros(samples.shape[1:], jnp.int32)
    for i in range(1, len(samples)):
        which = jnp.where(samples[i] > value, i, which)
        value = jnp.maximum(value, samples[i])
    return value, (which, jnp.arange(len(samples)))


def _largest_backward(saved: tuple[Array, Array], g: Array) -> tuple[Array]:
    which, numbers = saved
    return (jnp.where(which == numbers.reshape(-1, *(1,) * which.ndim), g, 0),)


_largest.defvjp(_largest_forward, _largest_backward)


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
