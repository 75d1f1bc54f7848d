"""Examples for the tests of augmentation: full-size masks in NumPy, and their bitmaps."""

import numpy as np
import tensorflow as tf

from maskrcnn_jax.data.bitmaps import average_areas
from maskrcnn_jax.preprocess import resize_image

SIDE = 112


def masks_of(hw, seed, count=3):
    """Disjoint full-size masks: discs, a ring, and one of two parts, at random places."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: hw[0], : hw[1]] + 0.5
    masks, taken = [], np.zeros(hw, bool)
    for i in range(count):
        radius = rng.uniform(0.12, 0.3) * min(hw)
        at_y, at_x = rng.uniform(0.15, 0.85, 2) * hw
        distance = np.hypot(y - at_y, (x - at_x) / 1.3)
        mask = distance < radius
        if i % 3 == 1:
            mask &= distance > radius / 2
        elif i % 3 == 2:
            mask &= np.abs(x - at_x) > radius / 5
        mask &= ~taken
        taken |= mask
        if mask.sum() >= 60:
            masks.append(mask)
    return masks


def bounds(mask):
    """Tight box of a mask, xyxy."""
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return np.array([xs[0], ys[0], xs[-1] + 1, ys[-1] + 1], np.float32)


def example_of(masks, hw, seed, first_class=0):
    """The pipeline's example of these masks, on a smooth picture."""
    noise = np.random.default_rng(seed).integers(0, 256, (9, 12, 3)).astype(np.uint8)
    boxes = np.array([bounds(m) for m in masks], np.float32).reshape(-1, 4)
    cuts = [
        m[int(b[1]) : int(b[3]), int(b[0]) : int(b[2])] for m, b in zip(masks, boxes, strict=True)
    ]
    bitmaps = [np.packbits(average_areas(cut, SIDE) >= 0.5, axis=-1) for cut in cuts]
    example = {
        "image": resize_image(noise, hw),
        "boxes": boxes,
        "frames": boxes,
        "masks": np.array(bitmaps, np.uint8).reshape(-1, SIDE, SIDE // 8),
        "classes": np.arange(len(masks), dtype=np.int32) + first_class,
    }
    return {key: tf.constant(value) for key, value in example.items()}


def both_ways(function, example):
    """Runs eagerly and in tf.data, checks that they agree, returns NumPy."""
    eager = function(example)
    (traced,) = tf.data.Dataset.from_tensors(example).map(function).as_numpy_iterator()
    assert eager.keys() == traced.keys() == example.keys()
    for key, value in eager.items():
        np.testing.assert_array_equal(value.numpy(), traced[key], err_msg=key)
        assert value.dtype == example[key].dtype
    return traced


def painted(example):
    """The bitmaps at full size: each pixel has the value of the cell that its centre lies in."""
    h, w = example["image"].shape[:2]
    whole = []
    for frame, bits in zip(example["frames"], example["masks"], strict=True):
        cells = np.unpackbits(bits, axis=-1).astype(bool)
        x = np.floor((np.arange(w) + 0.5 - frame[0]) / (frame[2] - frame[0]) * SIDE).astype(int)
        y = np.floor((np.arange(h) + 0.5 - frame[1]) / (frame[3] - frame[1]) * SIDE).astype(int)
        values = cells[np.ix_(np.clip(y, 0, SIDE - 1), np.clip(x, 0, SIDE - 1))]
        inside = ((y >= 0) & (y < SIDE))[:, None] & ((x >= 0) & (x < SIDE))[None]
        whole.append(values & inside)
    return whole


def assert_same_masks(found, expected, least=0.93):
    """Every pair of masks has at least this IoU."""
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert (a & b).sum() / (a | b).sum() >= least


def assert_near_bounds(boxes, masks, pixels=1.5):
    """Every box is the tight one of its mask, up to a pixel or so."""
    for box, mask in zip(boxes, masks, strict=True):
        np.testing.assert_allclose(box, bounds(mask), atol=pixels)
