"""Copy-paste against NumPy on full-size masks."""

import augment_cases as cases
import numpy as np
import pytest
import tensorflow as tf

from maskrcnn_jax.data import augment_geometry, copy_paste

HW = (90, 120)


def _pair(seed, other_hw=HW, count=3):
    ours, theirs = cases.masks_of(HW, seed, count), cases.masks_of(other_hw, seed + 100, count)
    example = cases.example_of(ours, HW, seed)
    return ours, theirs, example, cases.example_of(theirs, other_hw, seed + 100, first_class=10)


def _fit(mask, hw):
    """A mask of another size, cut or filled up to ours."""
    whole = np.zeros(hw, bool)
    h, w = min(hw[0], mask.shape[0]), min(hw[1], mask.shape[1])
    whole[:h, :w] = mask[:h, :w]
    return whole


@pytest.mark.parametrize("other_hw", [HW, (60, 150), (120, 70)])
@pytest.mark.parametrize("seed", [1, 2, 5])
def test_paste_agrees_with_full_masks(seed, other_hw):
    ours, theirs, example, other = _pair(seed, other_hw)
    after = cases.both_ways(lambda e: copy_paste.paste(e, other), example)
    theirs = [_fit(m, HW) for m in theirs]
    covered = np.any(theirs, axis=0)
    expected = {k: m & ~covered for k, m in enumerate(ours)}
    expected |= {10 + k: m for k, m in enumerate(theirs)}
    found = dict(zip(after["classes"].tolist(), cases.painted(after), strict=True))
    # What has a handful of pixels left may fall to either side.
    assert {k for k, m in expected.items() if m.sum() > 20} <= found.keys()
    assert found.keys() <= {k for k, m in expected.items() if m.any()}
    kept = [k for k in found if expected[k].sum() > 60]
    cases.assert_same_masks([found[k] for k in kept], [expected[k] for k in kept], 0.9)
    boxes = dict(zip(after["classes"].tolist(), after["boxes"], strict=True))
    cases.assert_near_bounds([boxes[k] for k in kept], [expected[k] for k in kept], 2)
    # Pixels: the other picture under its masks, ours elsewhere; borders may differ by one.
    pasted = np.zeros((*HW, 3), np.uint8)
    h, w = min(HW[0], other_hw[0]), min(HW[1], other_hw[1])
    pasted[:h, :w] = other["image"].numpy()[:h, :w]
    picture = np.where(covered[..., None], pasted, example["image"].numpy())
    differs = (after["image"] != picture).any(-1)
    near = np.zeros(HW, bool)
    for shift in ((0, 1), (0, -1), (1, 0), (-1, 0)):
        near |= np.roll(covered, shift, (0, 1)) != covered
    assert not (differs & ~near).any() and differs.sum() < 0.1 * covered.sum()


def test_a_fully_covered_object_is_dropped_and_others_stay_exact():
    small = np.zeros(HW, bool)
    small[40:50, 50:62] = True
    apart = np.zeros(HW, bool)
    apart[5:20, 5:30] = True
    large = np.zeros(HW, bool)
    large[30:60, 40:80] = True
    example = cases.example_of([small, apart], HW, 0)
    other = cases.example_of([large], HW, 1, first_class=10)
    loose = example["boxes"] + tf.constant([-2.0, -2.0, 2.0, 2.0])
    after = copy_paste.paste(example | {"boxes": loose}, other)
    np.testing.assert_array_equal(after["classes"], [1, 10])
    np.testing.assert_array_equal(after["boxes"][0], loose[1])
    np.testing.assert_array_equal(after["masks"][0], example["masks"][1])
    np.testing.assert_array_equal(after["boxes"][1], [40, 30, 80, 60])


def test_half_covered_boxes_shrink():
    mask = np.zeros(HW, bool)
    mask[20:60, 20:80] = True
    over = np.zeros(HW, bool)
    over[10:70, 50:100] = True
    after = copy_paste.paste(cases.example_of([mask], HW, 0), cases.example_of([over], HW, 1))
    np.testing.assert_allclose(after["boxes"][0], [20, 20, 50, 60], atol=0.6)


def test_objects_beyond_the_picture_are_cut_or_dropped():
    ours, theirs, example, other = _pair(1)
    window = tf.constant([0.0, 0.0]), tf.constant([90.0, 60.0])
    cut = augment_geometry.crop(example, *window)
    after = copy_paste.paste(cut, other)
    assert after["image"].shape == (90, 60, 3)
    assert (after["boxes"].numpy() <= [60, 90, 60, 90]).all()
    left = [10 + k for k, m in enumerate(theirs) if m[:, :60].any()]
    assert [k for k in after["classes"].numpy() if k >= 10] == left


def test_what_was_cut_off_the_other_picture_is_not_pasted():
    _, theirs, example, other = _pair(1)
    cut = augment_geometry.crop(other, tf.constant([0.0, 0.0]), tf.constant([60.0, 70.0]))
    after = copy_paste.paste(example, cut)
    visible = {10 + k: _fit(m[:60, :70], HW) for k, m in enumerate(theirs)}
    painted = {
        k: m
        for k, m in zip(
            after["classes"].numpy(),
            cases.painted({key: value.numpy() for key, value in after.items()}),
            strict=True,
        )
        if k >= 10
    }
    assert painted.keys() == {k for k, m in visible.items() if m.any()}
    assert any(theirs[k - 10].sum() > visible[k].sum() for k in painted)
    cases.assert_same_masks([painted[k] for k in painted], [visible[k] for k in painted])


def test_nothing_to_paste_changes_nothing():
    _, _, example, _ = _pair(1)
    empty = cases.example_of([], (50, 50), 3)
    after = cases.both_ways(lambda e: copy_paste.paste(e, empty), example)
    for key, value in example.items():
        np.testing.assert_array_equal(after[key], value)
    _, _, _, other = _pair(2)
    after = copy_paste.paste(empty, other)
    assert set(after["classes"].numpy()) <= {10, 11, 12}


def test_random_subsets():
    _, _, example, _ = _pair(5, count=4)
    total = len(example["classes"])
    draw = tf.function(lambda s: copy_paste.random_subset(example, s)["classes"])
    drawn = [tuple(draw(tf.constant([k, 9])).numpy()) for k in range(120)]
    assert {len(d) for d in drawn} == set(range(1, total + 1))
    assert all(list(d) == sorted(set(d)) for d in drawn)
    assert len(set(drawn)) == 2**total - 1
    empty = cases.example_of([], HW, 3)
    assert len(copy_paste.random_subset(empty, tf.constant([0, 0]))["classes"]) == 0
