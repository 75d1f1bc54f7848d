"""Augmentations, eagerly and inside tf.data, against plain NumPy on full-resolution masks."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from maskrcnn_jax.data import augment
from maskrcnn_jax.data.bitmaps import average_areas
from maskrcnn_jax.postprocess import paste_binary
from maskrcnn_jax.preprocess import resize_image, shortest_edge_size

SIDE = 112
HW = (90, 120)
SEED = tf.constant([3, 14])


def _masks():
    """Three objects at full resolution: an ellipse, two separate parts, a ring."""
    y, x = np.mgrid[: HW[0], : HW[1]] + 0.5
    ellipse = ((x - 30) / 22) ** 2 + ((y - 40) / 30) ** 2 < 1
    parts = ((x > 60) & (x < 75) & (y > 5) & (y < 20)) | (
        (x > 90) & (x < 118) & (y > 30) & (y < 44)
    )
    r = np.hypot(x - 85, y - 65)
    return [ellipse, parts, (r < 22) & (r > 9)]


def _bounds(mask):
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return np.array([xs[0], ys[0], xs[-1] + 1, ys[-1] + 1], np.float32)


def _example():
    boxes, masks = [], []
    for mask in _masks():
        x0, y0, x1, y1 = box = _bounds(mask)
        cut = mask[int(y0) : int(y1), int(x0) : int(x1)]
        boxes.append(box)
        masks.append(np.packbits(average_areas(cut, SIDE) >= 0.5, axis=-1))
    # Smooth, so that two ways of resampling hardly differ.
    noise = np.random.default_rng(0).integers(0, 256, (9, 12, 3)).astype(np.uint8)
    example = {
        "image": resize_image(noise, HW),
        "boxes": np.stack(boxes),
        "frames": np.stack(boxes),
        "masks": np.stack(masks),
        "classes": np.arange(3, dtype=np.int32),
    }
    return {key: tf.constant(value) for key, value in example.items()}


def _both_ways(function):
    """Runs on the example eagerly and in tf.data, checks that they agree, returns NumPy."""
    eager = function(_example())
    dataset = tf.data.Dataset.from_tensors(_example()).map(function)
    (traced,) = dataset.as_numpy_iterator()
    assert eager.keys() == traced.keys() == _example().keys()
    for key, value in eager.items():
        np.testing.assert_array_equal(value.numpy(), traced[key], err_msg=key)
    return traced


def _pasted(example):
    hw = example["image"].shape[:2]
    bitmaps = np.unpackbits(example["masks"], axis=-1).astype(np.float32)
    return [paste_binary(b, f, hw) for b, f in zip(bitmaps, example["frames"], strict=True)]


def _sample(mask, size, offset=(0.0, 0.0), window=None):
    """Resizes a full-resolution mask and cuts a window, by reading it at the pixel centres."""
    window = window or size
    ys = (np.arange(window[0]) + 0.5 + offset[0]) * mask.shape[0] / size[0]
    xs = (np.arange(window[1]) + 0.5 + offset[1]) * mask.shape[1] / size[1]
    return mask[np.ix_(ys.astype(int), xs.astype(int))]


def _assert_overlap(masks, expected, least=0.95):
    assert len(masks) == len(expected)
    for a, b in zip(masks, expected, strict=True):
        assert (a & b).sum() / (a | b).sum() >= least


def test_mirror_is_exact():
    before = _example()
    after = _both_ways(augment.mirror)
    np.testing.assert_array_equal(after["image"], before["image"][:, ::-1])
    bits = np.unpackbits(before["masks"].numpy(), axis=-1)
    np.testing.assert_array_equal(np.unpackbits(after["masks"], axis=-1), bits[..., ::-1])
    flipped = [m[:, ::-1] for m in _masks()]
    np.testing.assert_array_equal(after["boxes"], [_bounds(m) for m in flipped])
    np.testing.assert_array_equal(after["frames"], after["boxes"])
    _assert_overlap(_pasted(after), flipped, 0.97)


@pytest.mark.parametrize("probability", [0.0, 0.5, 1.0])
def test_flip_keeps_its_probability(probability):
    before = _example()
    times = 60
    flips = sum(
        not np.array_equal(
            augment.flip(before, probability, tf.constant([k, 1]))["frames"], before["frames"]
        )
        for k in range(times)
    )
    assert abs(flips / times - probability) <= (0.2 if probability == 0.5 else 0)
    _both_ways(lambda e: augment.flip(e, probability, SEED))


@pytest.mark.parametrize("size", [(45, 60), (180, 240), (64, 200), (31, 77)])
def test_resize(size):
    after = _both_ways(lambda e: augment.resize(e, tf.constant(size)))
    assert after["image"].shape == (*size, 3) and after["image"].dtype == np.uint8
    pillow = np.asarray(
        Image.fromarray(_example()["image"].numpy()).resize(size[::-1], Image.Resampling.BILINEAR)
    )
    assert np.abs(after["image"].astype(int) - pillow).max() <= 2
    _assert_overlap(_pasted(after), [_sample(m, size) for m in _masks()], 0.9)
    scale = np.array([size[1] / HW[1], size[0] / HW[0]] * 2, np.float32)
    np.testing.assert_allclose(after["boxes"], _example()["boxes"] * scale, rtol=1e-6)


@pytest.mark.parametrize("hw", [(480, 640), (427, 640), (640, 333), (100, 900), (7, 500), (33, 33)])
@pytest.mark.parametrize(("short", "long"), [(800, 1333), (256, 384), (640, 640)])
def test_shortest_edge_size_is_the_one_of_prediction(hw, short, long):
    example = {
        "image": tf.zeros((*hw, 3), tf.uint8),
        "boxes": tf.zeros((0, 4)),
        "frames": tf.zeros((0, 4)),
    }
    image = augment.resize_shortest_edge(example, (short,), long, SEED)["image"]
    assert tuple(image.shape[:2]) == shortest_edge_size(hw, short, long)


def test_all_short_sides_are_drawn():
    after = _both_ways(lambda e: augment.resize_shortest_edge(e, (45, 60), 200, SEED))
    assert min(after["image"].shape[:2]) in (45, 60)
    sides = {
        min(
            augment.resize_shortest_edge(_example(), (45, 60, 75), 200, tf.constant([k, 0]))[
                "image"
            ].shape[:2]
        )
        for k in range(20)
    }
    assert sides == {45, 60, 75}


@pytest.mark.parametrize(
    ("size", "offset", "window"),
    [
        ((90, 120), (0, 0), (90, 120)),
        ((180, 240), (70, 50), (96, 96)),
        ((135, 180), (0, 84), (96, 96)),
        ((45, 60), (5, 0), (32, 60)),
    ],
)
def test_crop_agrees_with_full_masks(size, offset, window):
    after = _both_ways(
        lambda e: augment.resize_crop(
            e, tf.constant(size), tf.constant(offset, tf.float32), tf.constant(window)
        )
    )
    whole = augment.resize(_example(), tf.constant(size))["image"].numpy().astype(int)
    cut = whole[offset[0] : offset[0] + window[0], offset[1] : offset[1] + window[1]]
    assert np.abs(after["image"].astype(int) - cut).max() <= 1

    expected = [_sample(m, size, offset, window) for m in _masks()]
    left = [k for k, m in enumerate(expected) if m.any()]
    np.testing.assert_array_equal(after["classes"], left)
    visible = [expected[k] for k in left]
    _assert_overlap(_pasted(after), visible, 0.93)
    for box, mask in zip(after["boxes"], visible, strict=True):
        # One pixel of the original, or one cell of the bitmap.
        np.testing.assert_allclose(box, _bounds(mask), atol=max(1, size[0] / HW[0]))
        assert (box >= 0).all() and (box[[2, 3]] <= window[::-1]).all()


def test_box_is_kept_where_nothing_is_cut():
    loose = _example()
    loose["boxes"] = loose["boxes"] + tf.constant([-1.0, -1.0, 1.0, 1.0])
    after = augment.resize_crop(
        loose, tf.constant(HW), tf.constant([0.0, 0.0]), tf.constant([90, 112])
    )
    np.testing.assert_array_equal(after["boxes"][0], loose["boxes"][0])
    assert after["boxes"][1][2] == 112


def test_an_object_whose_frame_is_cut_but_mask_is_not_seen_is_dropped():
    # The ring's hole fills the window, the frame covers it.
    after = augment.resize_crop(
        _example(), tf.constant(HW), tf.constant([62.0, 82.0]), tf.constant([6, 6])
    )
    assert len(after["classes"]) == 0 and after["masks"].shape == (0, SIDE, SIDE // 8)


def test_large_scale_jitter_stays_inside():
    after = _both_ways(lambda e: augment.large_scale_jitter(e, (0.1, 2.0), 96, SEED))
    scales, lost = [], 0
    for k in range(40):
        e = augment.large_scale_jitter(_example(), (0.1, 2.0), 96, tf.constant([k, 5]))
        h, w = e["image"].shape[:2]
        assert max(h, w) <= 96
        boxes = e["boxes"].numpy()
        assert (boxes[:, 2:] > boxes[:, :2]).all() and (boxes >= 0).all()
        assert (boxes[:, 2] <= w).all() and (boxes[:, 3] <= h).all()
        frames = e["frames"].numpy()
        old = _example()["frames"].numpy()[e["classes"].numpy()]
        scales += list((frames[:, 2] - frames[:, 0]) / (old[:, 2] - old[:, 0]) * HW[1] / 96)
        lost += 3 - len(boxes)
    assert min(scales) < 0.4 and max(scales) > 1.7 and lost > 0
    assert len(after["boxes"]) == len(after["masks"]) == len(after["classes"])


def test_color_jitter():
    image = _example()["image"].numpy()
    after = _both_ways(lambda e: augment.color_jitter(e, 0.4, SEED))
    assert after["image"].dtype == np.uint8 and (after["image"] != image).any()
    np.testing.assert_array_equal(after["frames"], _example()["frames"])
    same = augment.color_jitter(_example(), 0.0, SEED)["image"]
    np.testing.assert_array_equal(same, image)

    b, c, s = tf.random.stateless_uniform(
        [3], tf.random.experimental.stateless_fold_in(SEED, 3), 0.6, 1.4
    ).numpy()
    x = np.clip(image.astype(np.float64) * b, 0, 255)
    x = np.clip(x.mean() * (1 - c) + x * c, 0, 255)
    gray = x @ np.array([0.299, 0.587, 0.114])
    x = np.clip(gray[..., None] * (1 - s) + x * s, 0, 255)
    assert np.abs(after["image"] - x).max() <= 0.51


@pytest.mark.parametrize("cap", [0, 1, 2, 3, 5])
def test_keep_some(cap):
    kept, dropped = augment.keep_some(_example(), cap, SEED)
    assert int(dropped) == max(3 - cap, 0)
    rows = kept["classes"].numpy()
    assert len(rows) == min(cap, 3) and (np.diff(rows) > 0).all()
    for key in augment.OBJECT_KEYS[:4]:
        np.testing.assert_array_equal(kept[key], _example()[key].numpy()[rows])
    if cap == 1:
        chosen = {
            int(augment.keep_some(_example(), 1, tf.constant([k, 0]))[0]["classes"][0])
            for k in range(30)
        }
        assert chosen == {0, 1, 2}


def test_unpack():
    masks = np.random.default_rng(0).integers(0, 256, (3, 16, 2)).astype(np.uint8)
    np.testing.assert_array_equal(
        augment.unpack(tf.constant(masks)), np.unpackbits(masks, axis=-1) > 0
    )


def test_images_without_objects():
    empty = {k: v if k == "image" else v[:0] for k, v in _example().items()}
    for function in (
        augment.mirror,
        lambda e: augment.resize(e, tf.constant([30, 40])),
        lambda e: augment.large_scale_jitter(e, (0.1, 2.0), 96, SEED),
        lambda e: augment.keep_some(e, 4, SEED)[0],
    ):
        assert function(empty)["boxes"].shape == (0, 4)
