"""Pasting against encoding whole images with pycocotools, and what holds for every box."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco_mask

from maskrcnn_jax import postprocess


def test_rescale_clips():
    boxes = np.array([[-5, -5, 30, 25], [10, 5, 20, 10]], np.float32)
    scaled = postprocess.rescale_boxes(boxes, (20, 25), (40, 75))
    np.testing.assert_array_equal(scaled, [[0, 0, 75, 40], [30, 10, 60, 20]])
    assert scaled.dtype == np.float32


coordinate = st.floats(-40, 80, width=32)


@given(
    hnp.arrays(np.float32, (5, 5), elements=st.floats(0, 1, width=32)),
    st.tuples(coordinate, coordinate, coordinate, coordinate),
    st.sampled_from([0.0, 0.3, 0.5, 1.0]),
)
def test_rle_equals_the_encoded_paste(mask, box, thresh):
    box, hw = np.array(box, np.float32), (37, 41)
    pasted = postprocess.paste_binary(mask, box, hw, thresh)
    rle = postprocess.mask_to_rle(mask, box, hw, thresh)
    assert rle["size"] == [37, 41] and isinstance(rle["counts"], str)
    np.testing.assert_array_equal(postprocess.rle_to_mask(rle), pasted)
    whole = coco_mask.encode(np.asfortranarray(pasted.astype(np.uint8)))
    assert rle["counts"].encode() == whole["counts"]


def test_a_full_mask_covers_its_box_and_runs_join_over_columns():
    ones = np.ones((28, 28), np.float32)
    rle = postprocess.mask_to_rle(ones, np.array([0, 0, 30, 20], np.float32), (20, 30))
    assert postprocess.rle_to_mask(rle).all()
    rle = postprocess.mask_to_rle(ones, np.array([3, 4, 11, 9], np.float32), (20, 30))
    expected = np.zeros((20, 30), bool)
    expected[4:9, 3:11] = True
    np.testing.assert_array_equal(postprocess.rle_to_mask(rle), expected)


@pytest.mark.parametrize(
    "box", [[5, 5, 5, 9], [9, 5, 5, 9], [100, 100, 120, 120], [-30, -30, -2, -2], [np.nan] * 4]
)
def test_boxes_that_hold_no_pixel(box):
    box, ones = np.array(box, np.float32), np.ones((14, 14), np.float32)
    assert not postprocess.paste_binary(ones, box, (20, 30)).any()
    assert not postprocess.rle_to_mask(postprocess.mask_to_rle(ones, box, (20, 30))).any()


def test_torchvisions_paste_of_boxes_beyond_the_image():
    """A box wholly outside or not a number leaves nothing; one around the image fills it."""
    ones = np.ones((14, 14), np.float32)
    for box in ([100, 100, 120, 120], [-30, -30, -4, -4], [np.nan, 0, 5, 5], [0, 0, np.inf, 9]):
        pasted = postprocess.paste_torchvision(ones, np.array(box, np.float32), (20, 30))
        assert pasted.shape == (20, 30) and not pasted.any()
    around = np.array([-10, -10, 45, 35], np.float32)
    np.testing.assert_array_equal(postprocess.paste_torchvision(ones, around, (20, 30)), 1)
