"""Blur against NumPy, JPEG against Pillow."""

import functools
import io

import augment_cases as cases
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from maskrcnn_jax.data import augment_pixels

HW = (60, 80)
EXAMPLE = cases.example_of(cases.masks_of(HW, seed=3), HW, seed=3)
NOISE = np.random.default_rng(0).integers(0, 256, (*HW, 3)).astype(np.uint8)


@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.7])
@pytest.mark.parametrize("hw", [HW, (3, 50)])
def test_blur_is_a_gaussian(sigma, hw):
    image = NOISE[: hw[0], : hw[1]]
    radius = int(np.ceil(3 * sigma))
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    expected = np.pad(
        image.astype(np.float64), ((radius, radius), (radius, radius), (0, 0)), "edge"
    )
    for axis in (0, 1):
        filtered = functools.partial(np.convolve, v=taps / taps.sum(), mode="valid")
        expected = np.apply_along_axis(filtered, axis, expected)
    found = augment_pixels.blur(tf.constant(image), tf.constant(sigma, tf.float32)).numpy()
    assert found.dtype == np.uint8 and found.shape == image.shape
    assert np.abs(found - expected).max() <= 0.51


@pytest.mark.parametrize("quality", [10, 60, 95])
def test_jpeg_is_pillows(quality):
    image = EXAMPLE["image"].numpy()
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality, subsampling="4:2:0")
    expected = np.asarray(Image.open(file)).astype(int)
    found = augment_pixels.compress(tf.constant(image), tf.constant(quality)).numpy()
    assert np.abs(found - expected).max() <= 1


def _changes(function, times=100):
    draw = tf.function(lambda s: function(s)["image"])
    results = [draw(tf.constant([k, 4])).numpy() for k in range(times)]
    changed = [r.tobytes() for r in results if (r != EXAMPLE["image"].numpy()).any()]
    return len(changed) / times, len(set(changed))


def test_probabilities_and_strengths():
    share, kinds = _changes(lambda s: augment_pixels.random_blur(EXAMPLE, 0.5, (0.5, 3.0), s))
    assert 0.35 <= share <= 0.65 and kinds > 30
    share, kinds = _changes(lambda s: augment_pixels.random_jpeg(EXAMPLE, 0.5, (20, 24), s))
    assert 0.35 <= share <= 0.65 and kinds == 5  # as many as qualities


def test_only_pixels_change():
    seed = tf.constant([5, 6])
    for function in (
        lambda e: augment_pixels.random_blur(e, 1.0, (2.0, 2.0), seed),
        lambda e: augment_pixels.random_jpeg(e, 1.0, (30, 30), seed),
    ):
        after = cases.both_ways(function, EXAMPLE)
        for key in ("boxes", "frames", "masks", "classes"):
            np.testing.assert_array_equal(after[key], EXAMPLE[key])
        assert (after["image"] != EXAMPLE["image"].numpy()).any()
