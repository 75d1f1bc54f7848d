"""Where a roi is sampled along an axis, and what each grid line weighs in each of its bins.

A bilinear sample is a weighted sum over rows times one over columns, and the samples of a bin form
a grid; so rows and columns are weighed apart. Dense weights name every line of the grid, taps only
those that a bin touches.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

# Of adaptive samples, spaced by more than half a cell, at most 4 lie within a cell of a grid line;
# one more for the rounding of the first.
_NEAR_SAMPLES = 5
_MAX = jnp.finfo(jnp.float32).max


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
    line = jnp.arange(length, dtype=jnp.float32)
    return _weights_at(line, start, extent, length, size, sampling_ratio, margin)


def axis_taps(
    start: Float[Array, "R"],
    extent: Float[Array, "R"],
    length: Int[Array, "R"],
    size: int,
    sampling_ratio: int,
    num_taps: int,
    first_tap: int | Int[Array, ""] = 0,
) -> tuple[Int[Array, "R {size} {num_taps}"], Float[Array, "R {size} {num_taps}"]]:
    """The lines that each bin touches, and their weights: `axis_weights` without its zeros.

    length: of the axis, for each roi its own. num_taps: 2 * sampling_ratio. Adaptive samples have
    as many as `taps_needed` says, of which these are num_taps from `first_tap` on.
    """
    length = length.astype(jnp.float32)[:, None, None]
    bins = _Bins(start, extent, size, sampling_ratio)
    if sampling_ratio == 0:
        first = jnp.clip(bins.position(jnp.zeros(())), 0.0, length - 1.0)
        line = jnp.floor(first) + first_tap + jnp.arange(num_taps, dtype=jnp.float32)
        weights = _weights_at(line, start, extent, length, size, 0, 1.0)
    else:
        line, weights = [], []
        for i in range(sampling_ratio):
            position = bins.position(jnp.full((), i, jnp.float32))
            counts = (position >= -1.0) & (position <= length)
            position = jnp.clip(position, 0.0, length - 1.0)
            low = jnp.floor(position)
            share = position - low
            line += [low, low + 1.0]
            weights += [jnp.where(counts, w, 0.0) for w in (1.0 - share, share)]
        line = jnp.concatenate(line, -1)
        weights = jnp.concatenate(weights, -1) / bins.num
    # Beyond the last line the weight is 0.
    return jnp.clip(line, 0.0, length - 1.0).astype(jnp.int32), weights


def taps_needed(extent: Float[Array, "*n"], size: int) -> Int[Array, "*n"]:
    """Lines that a bin of adaptive samples touches, at most; one more for rounding."""
    num = jnp.maximum(_adaptive_samples(extent, size), 1.0)
    return (jnp.floor(extent / size * (1.0 - 1.0 / num)) + 3.0).astype(jnp.int32)


def point_weights(
    position: Float[Array, "R S"], length: int, margin: float = 0.0
) -> Float[Array, "R S {length}"]:
    """Weights of the grid lines of an axis in single samples at positions in cells.

    margin: as of `axis_weights`.
    """
    inside = (position >= -margin) & (position <= length - 1 + margin)
    line = jnp.arange(length, dtype=jnp.float32)
    distance = jnp.abs(jnp.clip(position, 0.0, length - 1.0)[..., None] - line)
    return jnp.where(inside[..., None], jnp.maximum(1.0 - distance, 0.0), 0.0)


def point_taps(
    position: Float[Array, "R S"], length: Int[Array, "R"], margin: float = 0.0
) -> tuple[Int[Array, "R S 2"], Float[Array, "R S 2"]]:
    """The two lines around each sample, and their weights: `point_weights` without its zeros.

    length: of the axis, for each roi its own.
    """
    last = (length - 1).astype(jnp.float32)[:, None]
    inside = (position >= -margin) & (position <= last + margin)
    position = jnp.clip(position, 0.0, last)
    before = jnp.floor(position)
    share = position - before
    lines = jnp.stack([before, jnp.minimum(before + 1, last)], -1)
    weights = jnp.where(inside[..., None], jnp.stack([1 - share, share], -1), 0.0)
    return lines.astype(jnp.int32), weights


class _Bins:
    """The samples in the bins of rois along an axis; arrays are [R, size, 1].

    Positions are rounded step by step as the peers round them: beyond 64 cells one bit is 8e-6 of a
    cell, and on the margin it decides whether a sample counts. So the compiler must not multiply
    with 1 / size (the barrier), nor fuse a product into a sum (the minimum).
    """

    def __init__(self, start: Array, extent: Array, size: int, sampling_ratio: int):
        divisor = jax.lax.optimization_barrier(jnp.full_like(extent, size))
        self.size = (extent / divisor)[:, None, None]
        if sampling_ratio > 0:
            self.num = jax.lax.optimization_barrier(jnp.full_like(self.size, sampling_ratio))
        else:
            self.num = _adaptive_samples(extent, size)[:, None, None]
        shift = jnp.arange(size, dtype=jnp.float32)[:, None] * self.size
        self.start = start[:, None, None] + jnp.minimum(shift, _MAX)

    def position(self, index: Array) -> Array:
        """Of the sample of this number, in cells; whether it exists is the caller's to know."""
        # A divisor for each sample: by one for all of a roi, its reciprocal would be multiplied.
        return self.start + (index + 0.5) * self.size / jnp.where(index < self.num, self.num, 1.0)


def _weights_at(
    line: Array,
    start: Array,
    extent: Array,
    length: int | Array,
    size: int,
    sampling_ratio: int,
    margin: float,
) -> Array:
    """Weights of some lines, numbers that broadcast to [R, size, lines], in each bin."""
    bins = _Bins(start, extent, size, sampling_ratio)
    near = sampling_ratio or _NEAR_SAMPLES
    # Only samples within a cell of a line give it weight: `near` of them from `first` on. Where a
    # bin has no more than that, all are looked at, whatever the spacing (0 for an empty roi).
    spacing = bins.size / jnp.maximum(bins.num, 1.0)
    reach = (line - 1.0 - bins.start) / jnp.maximum(spacing, 0.5) - 0.5
    latest = jnp.maximum(bins.num - near, 0.0)
    first = jnp.clip(jnp.floor(jax.lax.stop_gradient(reach)), 0.0, latest)
    total = jnp.zeros(jnp.broadcast_shapes(bins.start.shape, line.shape), jnp.float32)
    for i in range(near):
        index = first + i
        position = bins.position(index)
        counts = (index < bins.num) & (position >= -margin) & (position <= length - 1 + margin)
        distance = jnp.abs(jnp.clip(position, 0.0, length - 1.0) - line)
        total += jnp.where(counts, jnp.maximum(1.0 - distance, 0.0), 0.0)
    return total / jnp.maximum(bins.num, 1.0)


def _adaptive_samples(extent: Float[Array, "*n"], size: int) -> Float[Array, "*n"]:
    """ceil(extent / size) >= 0, exact: a compiler may divide by multiplying with 1 / size."""
    num = jnp.ceil(extent / size)
    num = jnp.where((num - 1.0) * size >= extent, num - 1.0, num)
    num = jnp.where(num * size < extent, num + 1.0, num)
    return jax.lax.stop_gradient(jnp.maximum(num, 0.0))
