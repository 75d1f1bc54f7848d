"""Resizing, and pasting masks into the image, against every number of the golden files."""

import re

import golden_sets
import numpy as np
import pytest

from maskrcnn_jax import postprocess, preprocess

pytestmark = pytest.mark.optimized

# Also what lies under post/, which a test of its own looks at.
PASTE_INPUTS = "masks|boxes|image_size|output_size|classes"


@golden_sets.each("torch", "resize", inputs="image|short_long|image_mean|image_std")
def test_resize(name):
    case, _, output = name.rpartition("/")
    golden = golden_sets.section(golden_sets.load("torch", "resize"), case)
    image, (short, long) = golden["image"], map(int, golden["short_long"])
    if output == "detectron2":
        size = preprocess.shortest_edge_size(image.shape[:2], short, long)
        np.testing.assert_array_equal(preprocess.resize_image(image, size), golden[output])
        return
    ours = preprocess.resize_torchvision(image, short, long)
    if output == "torchvision_size":
        np.testing.assert_array_equal(ours.shape[:2], golden[output])
        return
    assert output == "torchvision_normalised_padded" and ours.dtype == np.float32
    # ImageNet's mean and standard deviation of RGB in 0..1.
    mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    height, width = ours.shape[:2]
    canvas = np.zeros((*(-(-n // 32) * 32 for n in (height, width)), 3), np.float32)
    canvas[:height, :width] = (ours / 255 - mean) / std
    np.testing.assert_allclose(canvas.transpose(2, 0, 1)[None], golden[output], atol=1e-5)


def paste_case():
    """The file's arrays, the sizes, and the boxes of the smaller image."""
    golden = golden_sets.load("torch", "mask_paste")
    hw, post_hw = (tuple(map(int, golden[k])) for k in ("image_size", "post/output_size"))
    boxes = golden["boxes"].astype(np.float64)
    scale = np.array([post_hw[1] / hw[1], post_hw[0] / hw[0]] * 2)
    inside = np.clip(boxes, 0, np.array([post_hw[1], post_hw[0]] * 2))
    if np.allclose(inside[golden["post/classes"]], golden["post/boxes"], atol=1e-3):
        # Detectron2's detector_postprocess scales boxes in place, so that the file holds them at
        # the size of post/, while all other masks were pasted before. What lay on whole pixels,
        # where torchvision cuts, gets back there.
        boxes = boxes / scale
        boxes = np.where(np.abs(boxes - np.round(boxes)) < 1e-4, np.round(boxes), boxes)
    return golden, boxes.astype(np.float32), hw, post_hw


def whole(mask, box, hw):
    """Detectron2's paste of one mask as a whole image."""
    crop, top, left = postprocess.paste_mask(mask, box, hw)
    image = np.zeros(hw, np.float32)
    image[top : top + crop.shape[0], left : left + crop.shape[1]] = crop
    return image


def paste_all(paste, golden, boxes, *args):
    return np.stack([paste(m, b, *args) for m, b in zip(golden["masks"], boxes, strict=True)])


@golden_sets.each("torch", "mask_paste", inputs=PASTE_INPUTS)
def test_paste(name):
    golden, boxes, hw, _ = paste_case()
    if name == "torchvision_soft":
        ours = paste_all(postprocess.paste_torchvision, golden, boxes, hw)
        np.testing.assert_allclose(ours, golden[name], atol=1e-4)
    elif name == "detectron2_soft":
        ours = paste_all(whole, golden, boxes, hw)
        np.testing.assert_allclose(ours, golden[name], atol=1e-4)
    else:
        thresh = float(re.fullmatch(r"detectron2_threshold(-?[\d.]+)", name)[1])
        if thresh >= 0:
            ours = paste_all(postprocess.paste_binary, golden, boxes, hw, thresh)
            assert (ours == golden[name]).mean((1, 2)).min() >= 0.999
        else:  # the value * 255, cut down to whole numbers
            ours = (paste_all(whole, golden, boxes, hw) * 255).astype(np.int64)
            assert np.abs(ours - golden[name].astype(np.int64)).max() <= 1


def test_detector_postprocess():
    """Boxes carried to the user's size, clipped, the empty ones dropped, and masks pasted there."""
    golden, boxes, hw, post_hw = paste_case()
    carried = postprocess.rescale_boxes(boxes, hw, post_hw)
    kept = np.flatnonzero((carried[:, 2:] > carried[:, :2]).all(1))
    np.testing.assert_array_equal(kept, golden["post/classes"])  # the class is the row here
    np.testing.assert_allclose(carried[kept], golden["post/boxes"], atol=3e-5)
    for row, expected in zip(kept, golden["post/masks"], strict=True):
        ours = postprocess.paste_binary(golden["masks"][row], carried[row], post_hw)
        assert (ours == expected).mean() >= 0.999
