"""Pictures: what is drawn where, and that awkward input does not stop a run."""

import numpy as np
import pytest

from maskrcnn_jax import visualize

IMAGE = np.full((120, 160, 3), 90, np.uint8)
BOXES = np.array([[20, 30, 60, 70], [100, 60, 140, 110]], np.float32)
MASKS = np.zeros((2, 120, 160), bool)
MASKS[0, 35:65, 25:55] = True
MASKS[1, 65:105, 105:135] = True
CLASSES = np.array([1, 0])
NAMES = ("cat", "dog")


def _changed(picture, image=IMAGE):
    return (picture != image).any(-1)


def test_masks_and_boxes_are_drawn_at_their_places():
    before = IMAGE.copy()
    picture = visualize.draw(IMAGE, BOXES, CLASSES, np.array([0.9, 0.8], np.float32), MASKS, NAMES)
    np.testing.assert_array_equal(IMAGE, before)
    changed = _changed(picture)
    assert picture.shape == IMAGE.shape and picture.dtype == np.uint8
    assert changed[MASKS.any(0)].all()
    assert changed[30, 20:60].all() and changed[30:70, 59].all()
    assert not changed[:10].any() and not changed[75:, :90].any()
    first, second = picture[50, 40], picture[85, 120]
    assert np.abs(first.astype(int) - second).max() > 60


def test_labels_differ_by_name_and_score():
    scores = np.array([0.9, 0.8], np.float32)
    pictures = [
        visualize.draw(IMAGE, BOXES, CLASSES, scores, [], NAMES),
        visualize.draw(IMAGE, BOXES, CLASSES, scores - 0.5, [], NAMES),
        visualize.draw(IMAGE, BOXES, CLASSES, None, [], NAMES),
        visualize.draw(IMAGE, BOXES, CLASSES[::-1].copy(), None, [], NAMES),
    ]
    for i, one in enumerate(pictures):
        assert all((one != other).any() for other in pictures[i + 1 :])


def test_a_small_picture_is_enlarged():
    picture = visualize.draw(IMAGE, BOXES, CLASSES, None, list(MASKS), NAMES, min_side=400)
    assert picture.shape == (360, 480, 3)
    changed = _changed(picture, IMAGE.repeat(3, 0).repeat(3, 1))
    assert changed[MASKS.any(0).repeat(3, 0).repeat(3, 1)].all()
    assert visualize.draw(IMAGE, BOXES, CLASSES, None, MASKS, NAMES, 100).shape == IMAGE.shape


@pytest.mark.parametrize(
    "box", [[0, 0, 160, 120], [-20, -20, 5, 5], [150, 110, 300, 300], [10, 10, 10, 10]]
)
def test_boxes_at_the_border(box):
    picture = visualize.draw(
        IMAGE, np.array([box], np.float32), np.array([0]), None, [], ("a rather long name",)
    )
    assert picture.shape == IMAGE.shape
    assert _changed(picture).any()


def test_many_instances_of_many_classes_and_none():
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 100, (150, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(1, 50, (150, 2))], 1).astype(np.float32)
    classes = rng.integers(0, 80, 150)
    visualize.draw(IMAGE, boxes, classes, None, [], [f"class {i}" for i in range(80)])
    empty = visualize.draw(IMAGE, boxes[:0], classes[:0], None, MASKS[:0], NAMES)
    np.testing.assert_array_equal(empty, IMAGE)


def test_side_by_side():
    other = np.full((100, 150, 3), 200, np.uint8)
    picture = visualize.side_by_side(IMAGE, other)
    top = picture.shape[0] - 120
    np.testing.assert_array_equal(picture[top:, :160], IMAGE)
    np.testing.assert_array_equal(picture[top : top + 100, -150:], other)
    assert (picture[:top] < 128).any()
