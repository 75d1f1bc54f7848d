"""ROIAlign, its pooling in chunks, and masks cut out of frames, against other computations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskrcnn_jax.ops import masks, pooling, roi_align, sampling


def test_roi_align_gradient_by_finite_differences():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(9, 11, 2)).astype(np.float32)
    rois = np.float32([[3, 5, 41, 60], [10, 1, 80, 30], [-9, -3, 20, 20]])
    weight = rng.normal(size=(3, 3, 3, 2)).astype(np.float32)

    def value(features, rois):
        return (roi_align.roi_align(features, rois, 3, 0.125, 2) * weight).sum()

    for argument, step in ((0, 1e-1), (1, 1e-2)):
        point = [jnp.asarray(features), jnp.asarray(rois)]
        gradient = jax.grad(value, argument)(*point)
        for _ in range(10):
            index = tuple(rng.integers(0, n) for n in point[argument].shape)
            up, down = list(point), list(point)
            up[argument] = point[argument].at[index].add(step)
            down[argument] = point[argument].at[index].add(-step)
            slope = (value(*up) - value(*down)) / (2 * step)
            np.testing.assert_allclose(gradient[index], slope, atol=2e-3)


def pyramid(dtype="float32"):
    rng = np.random.default_rng(0)
    return {
        f"p{level}": jnp.asarray(rng.normal(size=(2, 256 >> level, 384 >> level, 3)), dtype)
        for level in (2, 3)
    }


def pooled_by(form, monkeypatch, features, rois, sampling_ratio=0, aligned=True):
    """Pooled features by one form, and the gradients of a weighted sum by features and rois."""
    monkeypatch.setattr(roi_align, "pool_levels", form)
    weight = np.random.default_rng(1).normal(size=(*rois.shape[:2], 5, 5, 3)).astype(np.float32)

    def value(features, rois):
        pooled = roi_align.multilevel_roi_align(features, rois, 5, sampling_ratio, aligned)
        return (pooled * weight).sum(), pooled

    # A function of its own each time, so that nothing traced before is used again.
    grads, pooled = jax.jit(jax.grad(lambda *x: value(*x), (0, 1), has_aux=True))(features, rois)
    return [np.asarray(x, np.float32) for x in jax.tree.leaves((pooled, grads))]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_pooling_in_chunks_is_pooling_at_once(monkeypatch, dtype):
    """Seven rois in chunks of one, of three (the last padded) and of all, with their gradient."""
    features, rng = pyramid(dtype), np.random.default_rng(0)
    corner = rng.uniform(-8, 200, (2, 7, 2))
    rois = np.concatenate([corner, corner + np.exp(rng.uniform(2, 5, (2, 7, 2)))], -1)
    rois = jnp.asarray(rois, jnp.float32)
    assert pooling._chunks(features, 7, 5) == (7, 1)
    whole = pooled_by(pooling.pool_dense, monkeypatch, features, rois)
    row_bytes = 5 * 96 * 3 * 4
    for chunk, num_chunks in ((3, 3), (1, 7)):
        monkeypatch.setattr(pooling, "_CHUNK_BYTES", chunk * row_bytes)
        assert pooling._chunks(features, 7, 5) == (chunk, num_chunks)
        found = pooled_by(pooling.pool_dense, monkeypatch, features, rois)
        for ours, theirs in zip(found, whole, strict=True):
            # Sums in another order; bfloat16 is what the float32 sums are rounded to.
            bound = 1e-5 if dtype == "float32" else 2**-7
            np.testing.assert_allclose(ours, theirs, rtol=bound, atol=bound)


@pytest.mark.parametrize(("sampling_ratio", "aligned"), [(0, True), (2, False)])
def test_gathering_is_multiplying(monkeypatch, sampling_ratio, aligned):
    """Both forms, on rois of all sizes: outside, empty, turned over, or larger than the map."""
    rng = np.random.default_rng(0)
    corner = rng.uniform(-30, 250, (2, 9, 2))
    rois = np.concatenate([corner, corner + np.exp(rng.uniform(0, 5.5, (2, 9, 2)))], -1)
    odd = [[10, 10, 10, 40], [50, 60, 20, 30], [-90, -80, -20, -10], [500, 400, 900, 800]]
    odd += [[0, 0, 384, 256], [3, 100, 380, 104], [100, 2, 103, 250], [0, 0, 384, 8]]
    odd += [[-2000, -900, 3000, 1000]]
    # Off the grid lines, where a bilinear sample has two slopes.
    rois = np.concatenate([rois, np.tile(np.float64(odd) + 0.37, (2, 1, 1))], 1)
    rois = jnp.asarray(rois, jnp.float32)
    for chunk_bytes in (2**20, 1):  # all at once, one by one
        monkeypatch.setattr(pooling, "_GATHERED_BYTES", chunk_bytes)
        monkeypatch.setattr(pooling, "_POOLED_BYTES", chunk_bytes)
        args = (monkeypatch, pyramid(), rois, sampling_ratio, aligned)
        found = pooled_by(pooling.pool_gathered, *args)
        for ours, theirs in zip(found, pooled_by(pooling.pool_dense, *args), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    assert np.isfinite(found[0]).all()


def test_adaptive_taps_suffice():
    """Every line that has weight is among the taps, whatever the roi: by the dense weights."""
    rng = np.random.default_rng(0)
    start = jnp.asarray(rng.uniform(-20, 70, 4000), jnp.float32)
    extent = jnp.asarray(np.exp(rng.uniform(-3, 4, 4000)), jnp.float32)
    dense = np.asarray(sampling.axis_weights(start, extent, 64, 7))
    touched = dense > 0
    span = np.where(touched.any(-1), 64 - touched[..., ::-1].argmax(-1) - touched.argmax(-1), 0)
    needed = np.asarray(sampling.taps_needed(extent, 7))
    assert (span.max(-1) <= needed).all()
    for taps in (4, 8):
        own = np.flatnonzero(needed <= taps)
        found = np.zeros_like(dense[own])
        for first in range(0, taps, 2):  # two at a time
            lines, weights = sampling.axis_taps(
                start[own], extent[own], jnp.full(len(own), 64), 7, 0, 2, first
            )
            rows, bins, _ = np.indices(lines.shape)
            np.add.at(found, (rows, bins, np.asarray(lines)), np.asarray(weights))
        np.testing.assert_allclose(found, dense[own], rtol=0, atol=1e-6)


def crop_by_sampling(bitmap, frame, roi, size):
    """Reads the bitmap, stretched over its frame, at every sample; 0 outside of the frame."""
    height, width = bitmap.shape
    cells = np.array([width, height]) / (frame[2:] - frame[:2])
    low, high = (roi[:2] - frame[:2]) * cells, (roi[2:] - frame[:2]) * cells
    num = np.ceil((high - low) / size).astype(int)
    result = np.zeros((size, size))
    for row in range(size):
        for col in range(size):
            samples = []
            for i in range(num[1]):
                for j in range(num[0]):
                    step = np.array([col + (j + 0.5) / num[0], row + (i + 0.5) / num[1]])
                    x, y = low + step * (high - low) / size
                    inside = 0 <= x <= width and 0 <= y <= height
                    samples.append(bilinear(bitmap, y - 0.5, x - 0.5) if inside else 0.0)
            result[row, col] = np.mean(samples)
    return result


def bilinear(bitmap, y, x):
    """The value between the centres of four cells; beyond the outermost centres the border's."""
    y, x = (np.clip(v, 0, n - 1) for v, n in zip((y, x), bitmap.shape, strict=True))
    top, left = int(y), int(x)
    bottom, right = (min(v + 1, n - 1) for v, n in zip((top, left), bitmap.shape, strict=True))
    upper = bitmap[top, left] * (left + 1 - x) + bitmap[top, right] * (x - left)
    lower = bitmap[bottom, left] * (left + 1 - x) + bitmap[bottom, right] * (x - left)
    return upper * (top + 1 - y) + lower * (y - top)


def test_masks_are_cut_out_of_frames_smaller_than_the_image():
    """Rois inside, across, around and beside the frame that their bitmap covers."""
    rng = np.random.default_rng(0)
    frame = np.float64([20.3, 11.7, 52.9, 36.2])
    rois = np.float64(
        [[25.1, 15.2, 40.7, 30.9], [10.4, 5.3, 35.6, 28.1], [3.2, 1.1, 70.8, 60.3],
         [40.5, 30.1, 80.2, 50.7], [60.1, 40.2, 70.3, 50.4], [20.3, 11.7, 52.9, 36.2]]
    )  # fmt: skip
    bitmaps = (rng.random((len(rois), 16, 16)) < 0.5).astype(np.float64)
    frames = np.tile(frame, (len(rois), 1))
    arguments = (jnp.asarray(x, jnp.float32) for x in (bitmaps, frames, rois))
    found = np.asarray(masks.crop_masks(*arguments, 7))
    for ours, bitmap, roi in zip(found, bitmaps, rois, strict=True):
        np.testing.assert_allclose(ours, crop_by_sampling(bitmap, frame, roi, 7), atol=1e-5)
    assert (found[4] == 0).all() and found[2].any()


@pytest.mark.parametrize("roi", [[5, 5, 5, 9], [9, 9, 5, 12], [5, 9, 9, 9]])
def test_rois_and_frames_without_area_give_no_mask(roi):
    ones, box = jnp.ones((1, 8, 8)), jnp.array([[2.0, 2, 20, 20]])
    empty = jnp.asarray([roi], jnp.float32)
    assert (masks.crop_masks(ones, box, empty, 7) == 0).all()
    assert (masks.crop_masks(ones, empty, box, 7) == 0).all()
