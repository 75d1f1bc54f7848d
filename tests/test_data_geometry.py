"""Turns, flips upside down and crops, against NumPy on full-size masks."""

import augment_cases as cases
import numpy as np
import pytest
import tensorflow as tf

from maskrcnn_jax.data import augment, augment_geometry

HW = (90, 120)
MASKS = cases.masks_of(HW, seed=1)
EXAMPLE = cases.example_of(MASKS, HW, seed=1)


def _check(after, image, masks, least=0.97):
    np.testing.assert_array_equal(after["image"], image)
    cases.assert_same_masks(cases.painted(after), masks, least)
    np.testing.assert_array_equal(after["boxes"], [cases.bounds(m) for m in masks])
    np.testing.assert_array_equal(after["frames"], after["boxes"])


def test_mirror_vertical_is_exact():
    after = cases.both_ways(augment_geometry.mirror_vertical, EXAMPLE)
    _check(after, EXAMPLE["image"][::-1], [m[::-1] for m in MASKS])
    bits = np.unpackbits(EXAMPLE["masks"].numpy(), axis=-1)
    np.testing.assert_array_equal(np.unpackbits(after["masks"], axis=-1), bits[:, ::-1])


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_rotate_is_numpys(turns):
    after = cases.both_ways(lambda e: augment_geometry.rotate(e, tf.constant(turns)), EXAMPLE)
    image = np.rot90(EXAMPLE["image"].numpy(), turns)
    _check(after, image, [np.rot90(m, turns) for m in MASKS])
    bits = np.unpackbits(EXAMPLE["masks"].numpy(), axis=-1)
    expected = np.rot90(bits, turns, axes=(1, 2))
    np.testing.assert_array_equal(np.unpackbits(after["masks"], axis=-1), expected)


@pytest.mark.parametrize("probability", [0.3, 1.0])
def test_turns_keep_their_probability(probability):
    rng = np.random.default_rng(0)
    draw = tf.function(lambda odd, s: augment_geometry.random_turns(probability, odd, s))
    times = 600
    odd = rng.random(times) < probability * 2 / 3  # as the pipeline draws it for a step
    turns = [int(draw(tf.constant(bool(o)), tf.constant([k, 7]))) for k, o in enumerate(odd)]
    assert all(t % 2 == o for t, o in zip(turns, odd, strict=True))
    shares = np.bincount(turns, minlength=4) / times
    np.testing.assert_allclose(shares, [1 - probability, *[probability / 3] * 3], atol=0.07)


def test_vertical_flips_keep_their_probability():
    flip = tf.function(lambda s: augment_geometry.flip_vertical(EXAMPLE, 0.5, s)["frames"])
    flips = [bool(np.any(flip(tf.constant([k, 1])) != EXAMPLE["frames"])) for k in range(100)]
    assert 35 <= sum(flips) <= 65


def test_pack_is_the_inverse_of_unpack():
    masks = np.random.default_rng(0).integers(0, 256, (3, 16, 2)).astype(np.uint8)
    np.testing.assert_array_equal(augment.pack(augment.unpack(tf.constant(masks))), masks)


@pytest.mark.parametrize("window", [(0, 0, 90, 120), (10, 30, 50, 60), (40, 0, 20, 25)])
def test_crop_agrees_with_full_masks(window):
    y, x, h, w = window
    offset, size = tf.constant([y, x], tf.float32), tf.constant([h, w], tf.float32)
    after = cases.both_ways(lambda e: augment_geometry.crop(e, offset, size), EXAMPLE)
    np.testing.assert_array_equal(after["image"], EXAMPLE["image"][y : y + h, x : x + w])
    cut = [m[y : y + h, x : x + w] for m in MASKS]
    left = [k for k, m in enumerate(cut) if m.any()]
    np.testing.assert_array_equal(after["classes"], left)
    cases.assert_same_masks(cases.painted(after), [cut[k] for k in left])
    cases.assert_near_bounds(after["boxes"], [cut[k] for k in left])


def test_random_crops_keep_an_object_and_their_range():
    draw = tf.function(lambda s: augment_geometry.random_crop(EXAMPLE, 1.0, (0.2, 0.6), s))
    sizes, numbers, corners = [], [], []
    for k in range(80):
        after = {key: value.numpy() for key, value in draw(tf.constant([k, 3])).items()}
        h, w = after["image"].shape[:2]
        boxes = after["boxes"]
        assert len(boxes) and any(mask.any() for mask in cases.painted(after))
        assert (boxes >= 0).all() and (boxes <= [w, h, w, h]).all()
        sizes.append((h / HW[0], w / HW[1]))
        numbers.append(len(boxes))
        offset = EXAMPLE["frames"].numpy()[after["classes"][0]] - after["frames"][0]
        x, y = (round(float(v)) for v in offset[:2])
        # The picture and the objects are cut alike.
        np.testing.assert_array_equal(after["image"], EXAMPLE["image"][y : y + h, x : x + w])
        corners.append((y, x))
    assert 0.19 <= np.min(sizes) < 0.25 and 0.55 < np.max(sizes) <= 0.61
    assert set(numbers) == {1, 2, 3} or {1, 2} <= set(numbers)
    assert len(set(corners)) > 60


def test_crop_of_a_picture_without_objects_and_probability():
    empty = cases.example_of([], HW, seed=2)
    after = augment_geometry.random_crop(empty, 1.0, (0.5, 0.5), tf.constant([1, 2]))
    assert after["image"].shape == (45, 60, 3) and after["boxes"].shape == (0, 4)
    draw = tf.function(lambda s: augment_geometry.random_crop(EXAMPLE, 0.4, (0.5, 0.5), s)["image"])
    cut = sum(draw(tf.constant([k, 0])).shape[0] == 45 for k in range(100))
    assert 25 <= cut <= 55
    for function in (augment_geometry.transpose, augment_geometry.mirror_vertical):
        assert function(empty)["masks"].shape == (0, cases.SIDE, cases.SIDE // 8)


@pytest.mark.parametrize("hw", [(100, 40), (40, 100), (33, 33)])
def test_what_was_cut_still_fits_its_canvas(hw):
    example = cases.example_of([], hw, seed=0)
    after = augment.resize_shortest_edge(
        example, (64,), 96, tf.constant([0, 0]), within=tf.constant([64, 96])
    )
    h, w = after["image"].shape[:2]
    assert h <= 64 and w <= 96 and (h in (64, 63) or w in (96, 95))
    assert abs(h / w - hw[0] / hw[1]) < 0.05
