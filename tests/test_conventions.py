"""The peers' ways to the canvas and back, against their numbers and a whole-image restatement."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from maskrcnn_jax import conventions, postprocess
from maskrcnn_jax.errors import UserError


def test_torchvision_s_masks_are_true_above_the_threshold():
    mask, box = np.full((28, 28), 0.5, np.float32), np.array([2, 3, 12, 9], np.float32)
    for rule, some in (("detectron2", True), ("torchvision", False)):
        rle = conventions.mask_to_rle(mask, box, (20, 30), rule, 0.5)
        assert postprocess.rle_to_mask(rle).any() == some


@given(
    hnp.arrays(np.float32, (28, 28), elements=st.floats(0, 1, width=32)),
    st.tuples(*[st.floats(-20, 130, width=32)] * 4),
    st.sampled_from(sorted(conventions.PASTE_RULES)),
)
def test_a_pasted_mask_lies_in_the_image_near_its_box(mask, corners, rule):
    (x0, x1), (y0, y1) = sorted(corners[:2]), sorted(corners[2:])
    box = np.array([x0, y0, x1, y1], np.float32)
    pasted = postprocess.rle_to_mask(conventions.mask_to_rle(mask, box, (37, 90), rule, 0.5))
    assert pasted.shape == (37, 90)
    ys, xs = np.nonzero(pasted)
    reach = 3  # pixels that a rule may round by, and half a cell of at most 150 / 28 pixels
    assert (ys >= y0 - reach).all() and (ys <= y1 + reach).all()
    assert (xs >= x0 - reach).all() and (xs <= x1 + reach).all()


@pytest.mark.parametrize("rule", sorted(conventions.PASTE_RULES))
def test_boxes_without_a_pixel_paste_nothing(rule):
    ones = np.ones((28, 28), np.float32)
    for box in ([200, 200, 220, 220], [-30, -30, -20, -20], [np.nan] * 4):
        rle = conventions.mask_to_rle(ones, np.array(box, np.float32), (20, 30), rule, 0.5)
        assert not postprocess.rle_to_mask(rle).any()


@pytest.mark.parametrize("rule", ["pillow", "torchvision"])
def test_the_picture_fills_its_window_of_any_canvas(rule):
    image = np.full((30, 50, 3), 200, np.uint8)
    for canvas in (None, (96, 128)):
        pixels, placement = conventions.prepare_input(image, rule, 60, 120, canvas)
        assert pixels.shape[:2] == (canvas or placement.canvas) and placement.canvas == (64, 128)
        assert pixels.dtype == conventions.RESIZE_RULES[rule].dtype
        x0, y0, x1, y1 = (round(v) for v in placement.window)
        assert (pixels[y0:y1, x0:x1] == 200).all()
        assert pixels.sum() == 200 * 3 * (y1 - y0) * (x1 - x0)
        assert placement == conventions.place((30, 50), rule, 60, 120)


@given(st.integers(1, 3000), st.integers(1, 3000), st.sampled_from([32, 256, 1024]))
def test_a_square_holds_the_picture_in_its_middle(height, width, side):
    placement = conventions.place((height, width), "matterport", side, side)
    x0, y0, x1, y1 = placement.window
    assert placement.canvas == placement.image_hw == (side, side)
    assert 0 <= x0 < x1 <= side and 0 <= y0 < y1 <= side
    assert 0 <= side - x1 - x0 <= 1 and 0 <= side - y1 - y0 <= 1
    whole = np.array([placement.window], np.float32)
    back, _ = conventions.boxes_to_image(whole, placement.window, (height, width), "matterport")
    assert (back >= 0).all() and (back[0, 2:] <= [width, height]).all()
    if min(x1 - x0, y1 - y0) > 1:  # Matterport itself divides one pixel by zero
        np.testing.assert_array_equal(back, [[0, 0, width, height]])


def test_a_square_that_the_model_cannot_take_is_refused():
    with pytest.raises(UserError, match=r"data.long_test=1000: .*set 1024"):
        conventions.place((480, 640), "matterport", 800, 1000)


def test_the_pillow_rule_is_pillow():
    image = np.random.default_rng(0).integers(0, 256, (40, 61, 3)).astype(np.uint8)
    pixels, placement = conventions.prepare_input(image, "pillow", 20, 100)
    resized = Image.fromarray(image).resize((31, 20), Image.Resampling.BILINEAR)
    assert placement.image_hw == (20, 31)  # 30.5 is rounded up
    np.testing.assert_array_equal(pixels[:20, :31], np.asarray(resized))


@pytest.mark.parametrize("rule", ["detectron2", "torchvision"])
def test_boxes_return_through_the_window(rule):
    boxes = np.array([[10, 20, 40, 60], [5, 5, 9, 19], [0, 0, 80, 90]], np.float32)
    back, has_area = conventions.boxes_to_image(boxes, (10.0, 20.0, 50.0, 60.0), (80, 120), rule)
    np.testing.assert_allclose(back, [[0, 0, 90, 80], [0, 0, 0, 0], [0, 0, 120, 80]], atol=1e-5)
    assert has_area.tolist() == [True, False, True]
