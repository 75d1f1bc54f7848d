"""Targets of one image: which anchors and rois are drawn, and what they should have said."""

import golden_sets
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskrcnn_jax import targets
from maskrcnn_jax.ops import boxes as box_ops
from maskrcnn_jax.types import Proposals, Samples

KEY = jax.random.key(0)
CLASSES = 7
UNIT = (1.0, 1.0, 1.0, 1.0)


def ground_truth(count: int):
    """Boxes, classes and validity of `count` objects in 4 slots; the other slots hold junk."""
    boxes = np.float32([[10, 10, 50, 40], [60, 20, 90, 80], [5, 50, 30, 90], [0, 0, 100, 100]])
    return jnp.asarray(boxes), jnp.array([3, 0, 6, 5]), jnp.arange(4) < count


def proposals(count: int = 60) -> Proposals:
    """Boxes of 20 to 40 px in the right half; the last third is padding."""
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 60, (count, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(20, 40, (count, 2))], -1)
    valid = np.arange(count) < count * 2 // 3
    return Proposals(jnp.asarray(boxes, jnp.float32), jnp.zeros(count), jnp.asarray(valid))


def draw(count: int, num: int = 32, key=KEY) -> Samples:
    boxes, classes, valid = ground_truth(count)
    found = targets.sample_rois(
        proposals(), boxes, classes, valid, key, 0.5, num, 0.25, num_classes=CLASSES
    )
    return jax.tree.map(np.asarray, found)


def test_ground_truth_is_among_the_rois():
    """More slots than boxes: everything usable is drawn, and the objects themselves are found."""
    found = draw(3, num=128)
    boxes, classes, _ = map(np.asarray, ground_truth(3))
    assert found.valid.sum() == 40 + 3
    for box, label in zip(boxes[:3], classes[:3], strict=True):
        row = np.flatnonzero((found.rois == box).all(-1) & found.valid)
        assert len(row) == 1 and found.fg[row[0]] and found.classes[row[0]] == label
    assert not ((found.rois == boxes[3]).all(-1) & found.valid).any()


@pytest.mark.parametrize("count", [1, 3])
def test_rois_keep_their_fractions_and_labels(count):
    boxes, classes, _ = map(np.asarray, ground_truth(count))
    for seed in range(5):
        found = draw(count, key=jax.random.key(seed))
        assert found.fg.sum() <= 8 and found.valid.all()
        assert (np.diff(np.where(found.fg, 0, 1)) >= 0).all()
        iou = np.asarray(box_ops.pairwise_iou(jnp.asarray(boxes[:count]), jnp.asarray(found.rois)))
        np.testing.assert_array_equal(found.fg, iou.max(0) >= 0.5)
        np.testing.assert_array_equal(found.matched_idxs, iou.argmax(0))
        expected = np.where(found.fg, classes[found.matched_idxs], CLASSES)
        np.testing.assert_array_equal(found.classes, expected)


def test_without_objects_all_is_background():
    found = draw(0)
    assert not found.fg.any() and (found.classes == CLASSES).all() and found.valid.all()
    boxes, _, valid = ground_truth(0)
    samples = jax.tree.map(jnp.asarray, found)
    assert (targets.box_targets(samples, boxes, UNIT) == 0).all()
    anchors = jnp.asarray(np.random.default_rng(0).uniform(0, 40, (50, 4)).cumsum(-1), jnp.float32)
    _, fg, valid, deltas = targets.rpn_targets(
        anchors, jnp.ones(50, bool), boxes, valid, KEY, (0.3, 0.7), 32, 0.5
    )
    assert not fg.any() and valid.all() and (deltas == 0).all()


def test_box_targets_lead_to_the_ground_truth():
    boxes, _, _ = ground_truth(3)
    samples = jax.tree.map(jnp.asarray, draw(3))
    weights = (10.0, 10.0, 5.0, 5.0)
    deltas = targets.box_targets(samples, boxes, weights)
    back = box_ops.decode_deltas(deltas, samples.rois, weights)
    rows = np.asarray(samples.fg)
    assert rows.sum() >= 3
    np.testing.assert_allclose(back[rows], boxes[samples.matched_idxs][rows], atol=1e-3)
    assert (np.asarray(deltas)[~rows] == 0).all()


def test_anchors_on_padding_take_no_part():
    """The best anchor lies on padding: the ground truth takes its best one among the others."""
    anchors = jnp.array([[0.0, 0, 40, 40], [8, 8, 48, 48], [60, 60, 90, 90]])
    truth, exists = jnp.array([[1.0, 1, 41, 41]]), jnp.ones(1, bool)
    inside = jnp.array([False, True, True])
    rows, fg, valid, _ = targets.rpn_targets(
        anchors, inside, truth, exists, KEY, (0.3, 0.99), 4, 0.5
    )
    assert rows[fg].tolist() == [1] and sorted(rows[valid].tolist()) == [1, 2]


@pytest.mark.parametrize("size", [14, 28])
def test_mask_targets_are_detectron2s(size):
    """Its masks of the whole image as ours: packed, in a frame of the image's size."""
    golden = golden_sets.load("torch", "mask_targets")
    bitmaps, rois = golden["bitmasks"], golden["boxes"]
    expected = golden[f"detectron2_bitmask_{size}"]
    side = -(-max(bitmaps.shape[1:]) // 8) * 8
    square = np.zeros((len(bitmaps), side, side), np.uint8)
    square[:, : bitmaps.shape[1], : bitmaps.shape[2]] = bitmaps
    frames = np.tile(np.float32([0, 0, side, side]), (len(bitmaps), 1))
    # Bitmaps in another order than the rois, which name theirs by its row.
    order = np.random.default_rng(0).permutation(len(bitmaps))
    found = targets.mask_targets(
        jnp.asarray(rois),
        jnp.asarray(np.argsort(order), jnp.int32),
        jnp.asarray(np.packbits(square, axis=-1)[order]),
        jnp.asarray(frames),
        size,
    )
    np.testing.assert_array_equal(found, expected)
