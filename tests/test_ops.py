"""Anchors, matching, sampling and bitmaps against definitions written out."""

import jax
import jax.numpy as jnp
import numpy as np
import tiny_model

from maskrcnn_jax.ops import anchors, masks, matching


def test_sizes_of_anchors_may_be_whole_numbers():
    whole = anchors.grid_anchors((64, 64), (32, 64), (32, 128), (1, 2))
    parts = anchors.grid_anchors((64, 64), (32, 64), (32.0, 128.0), (1.0, 2.0))
    for ours, theirs in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    model = tiny_model.model(anchor_sizes=(16, 32, 64, 128, 256), anchor_ratios=(1, 2))
    assert model.settings.anchor_sizes == (16, 32, 64, 128, 256)


def test_one_level_carries_all_sizes():
    """A cell's anchors: by size, then by ratio, as Detectron2's `generate_cell_anchors`."""
    level = anchors.grid_anchors((32, 48), (16,), ((32, 64),), (0.5, 1.0, 2.0))[0]
    cells = level.reshape(2, 3, 6, 4)
    for i, (size, ratio) in enumerate((s, r) for s in (32, 64) for r in (0.5, 1.0, 2.0)):
        half = size / 2 * np.array([ratio**-0.5, ratio**0.5])
        for row, col in np.ndindex(2, 3):
            centre = 16 * np.array([col, row])
            expected = [*(centre - half), *(centre + half)]
            np.testing.assert_allclose(cells[row, col, i], expected, rtol=1e-6)


def test_anchors_of_a_larger_canvas_do_not_compete():
    strides = (4, 8, 16, 32, 64)
    mask = np.asarray(anchors.in_padded_image((128, 256), strides, 3, jnp.array([70, 129])))
    start = 0
    for stride in strides:
        rows, cols = -(-128 // stride), -(-256 // stride)
        level = mask[start : start + rows * cols * 3].reshape(rows, cols, 3)
        expected = np.zeros_like(level)
        expected[: -(-96 // stride), : -(-160 // stride)] = True  # 70x129 padded to 96x160
        np.testing.assert_array_equal(level, expected)
        start += level.size


def test_matching_agrees_with_the_definition():
    rng = np.random.default_rng(0)
    for _ in range(20):
        iou = np.round(rng.uniform(0, 1, (5, 40)), 1).astype(np.float32)
        valid = rng.random(5) < 0.7
        found = matching.match(jnp.asarray(iou), jnp.asarray(valid), (0.3, 0.7), (0, -1, 1), True)
        for n in range(40):
            rows = [g for g in range(5) if valid[g]]
            if not rows:
                assert (found[0][n], found[1][n]) == (0, 0)
                continue
            best = max(rows, key=lambda g: (iou[g, n], -g))
            value = iou[best, n]
            label = 0 if value < np.float32(0.3) else (-1 if value < np.float32(0.7) else 1)
            if any(iou[g, n] == iou[g].max() for g in rows):
                label = 1
            assert (found[0][n], found[1][n]) == (best, label)


def test_sampler_keeps_its_fractions_and_is_uniform():
    draw = jax.jit(jax.vmap(lambda k, labels: matching.sample(labels, k, 32, 0.25), (0, None)))
    keys = jax.random.split(jax.random.key(0), 400)
    cases = {
        (3, 100): (3, 29),
        (50, 100): (8, 24),
        (50, 10): (8, 10),
        (0, 100): (0, 32),
        (0, 0): (0, 0),
    }
    for (positives, negatives), (fg, bg) in cases.items():
        labels = np.full(200, -1, np.int32)
        labels[:positives] = 1
        labels[positives : positives + negatives] = 0
        rows, is_fg, valid = (np.asarray(x) for x in draw(keys, jnp.asarray(labels)))
        assert (is_fg.sum(1) == fg).all() and (valid.sum(1) == fg + bg).all()
        order = np.where(is_fg, 0, np.where(valid, 1, 2))
        assert (np.diff(order, axis=1) >= 0).all()  # foreground, background, padding
        for picked, mask_fg, mask in zip(rows, is_fg, valid, strict=True):
            assert (labels[picked[mask]] == mask_fg[mask]).all()
            assert len(set(picked[mask])) == mask.sum()
        if (positives, negatives) == (50, 100):
            counts = np.bincount(rows[is_fg], minlength=50)[:50]
            # 400 draws of 8 of 50: mean 64, standard deviation about 7.3.
            assert counts.min() > 64 - 5 * 7.3 and counts.max() < 64 + 5 * 7.3


def test_unpack_bits_is_numpys():
    packed = np.random.default_rng(0).integers(0, 256, (3, 16, 2)).astype(np.uint8)
    np.testing.assert_array_equal(
        masks.unpack_bits(jnp.asarray(packed)), np.unpackbits(packed, axis=-1)
    )


def test_fitted_anchors_do_not_depend_on_the_canvas():
    """torchvision fits P6 to the padded image: 800 pixels are 13 cells of 61 on any canvas."""
    args = ((4, 64), (32.0, 512.0), (1.0,))
    grid = jax.jit(lambda hw: anchors.grid_anchors((1344, 1344), *args, fitted_hw=hw))
    for image_hw in ((800, 1088), (777, 1216), (1344, 800)):
        padded = np.asarray(anchors.padded(np.array(image_hw)))
        size = tuple(map(int, padded))
        exact = anchors.grid_anchors(size, *args, fitted_hw=size)
        for stride, ours, expected in zip((4, 64), grid(jnp.asarray(padded)), exact, strict=True):
            rows, cols = (-(-int(side) // stride) for side in padded)
            ours = np.asarray(ours).reshape(1344 // stride, -1, 4)[:rows, :cols]
            np.testing.assert_array_equal(ours.reshape(-1, 4), expected)
