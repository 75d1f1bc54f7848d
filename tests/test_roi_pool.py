"""RoIPool against torchvision's numbers and its definition; RoIWarp and max-ROIAlign, too."""

import golden_sets
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from maskrcnn_jax.ops import pooling, roi_align, roi_pool, roi_warp

pytestmark = pytest.mark.optimized

PYRAMID = {"p2": (24, 32), "p3": (12, 16), "p4": (6, 8)}


@golden_sets.each("torch", "roi_pool", inputs="features|rois|spatial_scale|cotangent")
def test_roi_pool_is_torchvisions(name):
    """To the last bit: nothing is added, and a gradient goes to the first of equal cells."""
    case, _, output = name.rpartition("/")
    golden = golden_sets.section(golden_sets.load("torch", "roi_pool"), case)
    image, rois = golden["rois"][:, 0].astype(int), jnp.asarray(golden["rois"][:, 1:])
    size, scale = golden["cotangent"].shape[-1], float(golden["spatial_scale"])

    @jax.jit
    def pool(features):
        every = [roi_pool.roi_pool(x, rois, size, scale) for x in features.transpose(0, 2, 3, 1)]
        return jnp.stack(every)[image, np.arange(len(image))].transpose(0, 3, 1, 2)

    features = jnp.asarray(golden["features"])
    if output == "torchvision_grad_features":
        found = jax.grad(lambda x: (pool(x) * golden["cotangent"]).sum())(features)
    else:
        assert output == "torchvision_pooled"
        found = pool(features)
    np.testing.assert_array_equal(found, golden[output])


def pyramid(depth=3):
    rng = np.random.default_rng(0)
    return {k: rng.normal(size=(2, *hw, depth)).astype(np.float32) for k, hw in PYRAMID.items()}


def boxes(count):
    """Rois of all levels, some beyond the canvas of 96 x 128, as two images'."""
    rng = np.random.default_rng(1)
    corner = rng.uniform(-8, 90, (2, count, 2))
    side = np.exp(rng.uniform(1, 6.5, (2, count, 2)))
    return np.concatenate([corner, corner + side], -1).astype(np.float32)


def level_of(box):
    root = np.sqrt(max(0, box[2] - box[0]) * max(0, box[3] - box[1]))
    return int(np.clip(np.floor(4 + np.log2(max(root, 1e-6) / 224)), 2, 4))


def c_round(x):
    return np.sign(x) * np.floor(np.abs(x) + 0.5)


def warp_by_definition(grid, box, size, scale):
    """Sample after sample, as arXiv 1512.04412, equation 5, on a rounded box."""
    x0, y0, x1, y1 = c_round(box.astype(np.float64) * scale)
    out = np.zeros((size, size, grid.shape[-1]))
    for i in range(size):
        for j in range(size):
            y, x = y0 + i * max(y1 - y0, 0) / size, x0 + j * max(x1 - x0, 0) / size
            if not (-0.5 <= y <= len(grid) - 0.5 and -0.5 <= x <= grid.shape[1] - 0.5):
                continue
            y, x = np.clip(y, 0, len(grid) - 1), np.clip(x, 0, grid.shape[1] - 1)
            for row in {int(np.floor(y)), int(np.ceil(y))}:
                for column in {int(np.floor(x)), int(np.ceil(x))}:
                    weight = (1 - abs(y - row)) * (1 - abs(x - column))
                    out[i, j] += weight * grid[row, column]
    return out


def test_roi_warp_is_its_definition():
    grid, rois = pyramid()["p3"][0], boxes(12)[0]
    found = jax.jit(roi_warp.roi_warp, static_argnums=(2, 3))(grid, rois, 5, 0.125)
    expected = [warp_by_definition(grid, box, 5, 0.125) for box in rois]
    np.testing.assert_allclose(found, np.stack(expected), atol=1e-5)
    assert np.abs(expected).max() > 0.5


@pytest.mark.parametrize("reduce", [jnp.mean, pooling.largest])
def test_warping_from_levels_reduces_two_by_two(reduce):
    maps, rois = pyramid(), boxes(12)
    by_numpy = np.max if reduce is pooling.largest else np.mean
    found = jax.jit(lambda *args: roi_warp.multilevel_roi_warp(*args, 3, reduce))(maps, rois)
    seen = set()
    for image, i in np.ndindex(rois.shape[:2]):
        level = level_of(rois[image, i])
        grid = maps[f"p{level}"][image]
        samples = warp_by_definition(grid, rois[image, i], 6, 0.5**level)
        expected = by_numpy(samples.reshape(3, 2, 3, 2, -1), axis=(1, 3))
        np.testing.assert_allclose(found[image, i], expected, atol=1e-5)
        seen.add(level)
    assert seen == {2, 3, 4}


def test_pooling_from_levels_is_pooling_from_the_rois_level():
    maps, rois = pyramid(), boxes(12)
    found = jax.jit(lambda *args: roi_pool.multilevel_roi_pool(*args, 4))(maps, rois)
    for image, i in np.ndindex(rois.shape[:2]):
        level = level_of(rois[image, i])
        grid, box = maps[f"p{level}"][image], rois[image, i]
        x0, y0, x1, y1 = c_round(box * 0.5**level)
        for row, column in np.ndindex(4, 4):
            top, bottom = bin_edges(y0, y1, row, len(grid))
            left, right = bin_edges(x0, x1, column, grid.shape[1])
            cells = grid[top:bottom, left:right].reshape(-1, grid.shape[-1])
            expected = cells.max(0) if len(cells) else np.zeros(grid.shape[-1])
            np.testing.assert_array_equal(found[image, i, row, column], expected)


def bin_edges(start, end, i, length):
    side = max(end - start + 1, 1)
    low, high = np.floor(i * side / 4) + start, np.ceil((i + 1) * side / 4) + start
    return int(np.clip(low, 0, length)), int(np.clip(high, 0, length))


def test_largest_aligned_samples():
    """One sample in each bin: the mean is the maximum; four: the finer grid's, 2 x 2."""
    maps, rois = pyramid(), boxes(6)
    largest = jax.jit(
        lambda *args: roi_align.multilevel_roi_align_max(*args, output_size=3, sampling_ratio=2)
    )(maps, rois)
    samples = jax.jit(lambda *args: roi_align.multilevel_roi_align(*args, 6, 1))(maps, rois)
    expected = np.asarray(samples).reshape(2, 6, 3, 2, 3, 2, 3).max((3, 5))
    np.testing.assert_allclose(largest, expected, atol=1e-6)


@pytest.mark.parametrize(
    "pool",
    [
        lambda *args: roi_pool.multilevel_roi_pool(*args, 3),
        lambda *args: roi_warp.multilevel_roi_warp(*args, 3),
        lambda *args: roi_warp.multilevel_roi_warp(*args, 3, pooling.largest),
        lambda *args: roi_align.multilevel_roi_align_max(*args, 3, 2),
    ],
    ids=["pool", "warp", "warp_max", "align_max"],
)
def test_gradients_are_finite_differences(pool):
    """Of maps without equal cells; rounded boxes have no gradient."""
    rois = jnp.asarray(boxes(3))
    maps = {k: jnp.asarray(v) for k, v in pyramid(2).items()}
    weight = np.random.default_rng(2).normal(size=(2, 3, 3, 3, 2)).astype(np.float32)
    value = jax.jit(lambda maps: (pool(maps, rois) * weight).sum())
    check_grads(value, (maps,), order=1, modes=["rev"], eps=2e-4, atol=2e-2, rtol=2e-2)


def test_a_gradient_goes_to_the_first_of_the_largest_samples():
    samples = np.random.default_rng(0).integers(0, 3, (2, 3, 2, 5)).astype(np.float32)
    weight = np.random.default_rng(1).normal(size=(3, 5)).astype(np.float32)
    value, gradient = jax.value_and_grad(lambda x: (pooling.largest(x, (0, 2)) * weight).sum())(
        samples
    )
    flat = samples.transpose(0, 2, 1, 3).reshape(4, 3, 5)
    assert value == pytest.approx((flat.max(0) * weight).sum(), rel=1e-5)
    first = np.eye(4, dtype=np.float32)[flat.argmax(0)] * weight[..., None]
    np.testing.assert_array_equal(
        gradient.transpose(0, 2, 1, 3).reshape(4, 3, 5), first.transpose(2, 0, 1)
    )


@pytest.mark.parametrize("name", ["align", "warp"])
def test_largest_samples_have_gradients_where_they_are_computed_twice(name):
    """Without optimisation XLA computes the samples anew for each of their uses, and not alike."""
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 48, (2, 8, 2))
    rois = np.concatenate([corner, corner + rng.uniform(4, 16, (2, 8, 2))], -1).astype(np.float32)
    maps = {"p4": rng.normal(size=(2, 4, 4, 32)).astype(np.float32)}
    weight = rng.normal(size=(2, 8, 7, 7, 32)).astype(np.float32)

    def value(maps, rois):
        if name == "align":
            pooled = roi_align.multilevel_roi_align_max(maps, rois, 7, 2)
        else:
            pooled = roi_warp.multilevel_roi_warp(maps, rois, 7, pooling.largest)
        return (jax.nn.relu(pooled) * weight).sum()

    lowered = jax.jit(jax.grad(value)).lower(maps, rois)
    plain = lowered.compile({"xla_backend_optimization_level": 0})(maps, rois)["p4"]
    np.testing.assert_allclose(plain, lowered.compile()(maps, rois)["p4"], atol=1e-4)
    assert np.abs(plain).max() > 1


@pytest.mark.parametrize(
    "pool", [roi_pool.multilevel_roi_pool, roi_warp.multilevel_roi_warp], ids=["pool", "warp"]
)
def test_thousand_rois_in_bounded_memory(pool):
    """Of P2 to P5 of a picture of 800 x 1344: the result is 50 MB; little more is needed."""
    maps = {
        f"p{level}": jax.ShapeDtypeStruct((1, 800 >> level, 1344 >> level, 256), jnp.float32)
        for level in (2, 3, 4, 5)
    }
    rois = jax.ShapeDtypeStruct((1, 1000, 4), jnp.float32)
    compiled = jax.jit(lambda *args: pool(*args, 7)).lower(maps, rois).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 500 * 2**20
