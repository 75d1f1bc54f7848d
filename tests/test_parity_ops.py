"""Anchors, box coding, matching and NMS against every number of the golden op files."""

import re

import golden_sets
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from maskrcnn_jax.ops import anchors, boxes, matching
from maskrcnn_jax.ops.nms import nms

pytestmark = pytest.mark.optimized

RATIOS = (0.5, 1.0, 2.0)
BOX_INPUTS = "src_boxes|dst_boxes|deltas|iou_boxes_[ab]|clip_image_size"
CLOSE = {"atol": 1e-5, "rtol": 0.0}


def test_a_set_is_there():
    """Else all that follows would be skipped without a word."""
    assert golden_sets.find("torch", "*.npz") or golden_sets.find("matterport", "*.npz")


def nominal_stride(canvas, grid):
    """A stride that gives a canvas this grid."""
    for stride in (2**n for n in range(1, 10)):
        if tuple(-(-c // stride) for c in canvas) == grid:
            return stride
    raise AssertionError(f"no stride gives a canvas {canvas} the grid {grid}")


@golden_sets.each("torch", "anchors", inputs="image_size")
def test_anchors(name):
    golden = golden_sets.load("torch", "anchors")
    peer = name.partition("_")[0]

    def variant(canvas):
        return {"rounded": True, "fitted_hw": tuple(canvas)} if peer == "torchvision" else {}

    expected = golden[name]
    if found := re.fullmatch(r"torchvision_odd_(\d+)x(\d+)_image_(\d+)x(\d+)", name):
        h, w, *canvas = map(int, found.groups())
        square = expected[RATIOS.index(1.0)]
        stride, size = nominal_stride(tuple(canvas), (h, w)), float(square[2] - square[0])
        ours = anchors.grid_anchors(tuple(canvas), (stride,), (size,), RATIOS, **variant(canvas))[0]
    else:
        offset, cell, level = re.fullmatch(
            rf"{peer}_(?:offset([\d.]+)_|(cell)_)?P(\d)", name
        ).groups()
        stride = 2 ** int(level)
        size = 8.0 * stride
        if cell:
            ours = anchors.cell_anchors(size, RATIOS, rounded=peer == "torchvision")
        else:
            canvas = tuple(map(int, golden["image_size"]))
            ours = anchors.grid_anchors(
                canvas, (stride,), (size,), RATIOS, float(offset or 0), **variant(canvas)
            )[0]
    np.testing.assert_array_equal(ours, expected)


@golden_sets.each("torch", "box_coding", inputs=BOX_INPUTS)
def test_box_coding(name):
    golden = {k: jnp.asarray(v) for k, v in golden_sets.load("torch", "box_coding").items()}
    expected = golden[name]
    found = re.fullmatch(r"(\w+)_([\d.]+)_([\d.]+)_([\d.]+)_([\d.]+)", name)
    call, weights = (found[1], tuple(map(float, found.groups()[1:]))) if found else (name, None)
    many = lambda x: x.reshape(len(x), -1, 4)  # noqa: E731  (one box per class)
    if call in ("detectron2_get_deltas", "torchvision_encode"):
        ours = boxes.encode_deltas(golden["src_boxes"], golden["dst_boxes"], weights)
    elif call in ("detectron2_apply_deltas", "torchvision_decode"):
        src = golden["src_boxes"][:, None]
        ours, expected = boxes.decode_deltas(many(golden["deltas"]), src, weights), many(expected)
        # A corner is centre +- half a side, each rounded at its own size, up to thousands of
        # pixels, where a bit of float32 is more than 1e-5: two bits of the largest.
        reach = jnp.abs(expected).max(-1, keepdims=True)
        assert (jnp.abs(ours - expected) <= 1e-5 + 2.5e-7 * reach).all()
        return
    elif call == "clipped_apply_deltas":
        raw = golden[name.replace("clipped", "detectron2")]
        ours, expected = boxes.clip(many(raw), golden["clip_image_size"]), many(expected)
    elif name == "nonempty_0":
        clipped = golden["clipped_apply_deltas_1_1_1_1"]
        ours = boxes.is_nonempty(many(clipped)).reshape(expected.shape)
        np.testing.assert_array_equal(ours, expected)
    elif name == "scale_clamp":
        ours = boxes.SCALE_CLAMP
    elif name == "pairwise_iou":
        ours = boxes.pairwise_iou(golden["iou_boxes_a"], golden["iou_boxes_b"])
    else:
        assert name == "pairwise_ioa"
        ours, expected = intersection_over_area(golden), np.asarray(expected)
    np.testing.assert_allclose(ours, expected, **CLOSE)
    if call.endswith("get_deltas"):
        back = boxes.decode_deltas(ours, golden["src_boxes"], weights)
        np.testing.assert_allclose(back, golden["dst_boxes"], rtol=1e-5, atol=1e-3)


def intersection_over_area(golden):
    """The crowd rule of the evaluation, which is pycocotools': the part of b that a covers."""
    a, b = (np.float64(golden[f"iou_boxes_{x}"]) for x in "ab")
    corner_and_size = lambda x: np.concatenate([x[:, :2], x[:, 2:] - x[:, :2]], 1)  # noqa: E731
    part = coco_mask.iou(corner_and_size(b), corner_and_size(a), [1] * len(a)).T
    return np.where(np.asarray(boxes.is_nonempty(golden["iou_boxes_b"])), part, 0.0)


MATCHERS = {
    "rpn": ((0.3, 0.7), (0, -1, 1), True),
    "rpn_no_low": ((0.3, 0.7), (0, -1, 1), False),
    "head": ((0.5,), (0, 1), False),
}


@golden_sets.each("torch", "matcher", inputs="iou")
def test_matcher(name):
    golden = golden_sets.load("torch", "matcher")
    case, _, output = name.rpartition("/")
    kind, what = re.fullmatch(
        r"(?:torchvision_(?=rpn|head))?(\w+?)(?:_(matches|labels))?", output
    ).groups()
    iou = golden[f"{case}/iou"]
    # Padding rows of ground truth, with an IoU that would win, must not matter.
    padded = np.concatenate([iou, np.full((2, iou.shape[1]), 0.99, np.float32)])
    valid = np.arange(len(padded)) < len(iou)
    matches, labels = matching.match(jnp.asarray(padded), jnp.asarray(valid), *MATCHERS[kind])
    if what:
        ours = {"matches": matches, "labels": labels}[what]
    else:  # torchvision: one array, -1 is background, -2 lies between the thresholds
        ours = np.select([labels == 1, labels == 0], [matches, -1], -2)
    np.testing.assert_array_equal(ours, golden[name])


run_nms = jax.jit(nms)


@golden_sets.each("torch", "nms", inputs=r"boxes|scores\w*|classes")
def test_nms(name):
    case, _, output = name.rpartition("/")
    golden = golden_sets.section(golden_sets.load("torch", "nms"), case)
    variant, thresh = re.fullmatch(r"keep(_\w+)?_([\d.]+)", output).groups()
    scores = golden[f"scores{variant or ''}"]
    classes = golden.get("classes")
    keep = run_nms(
        jnp.asarray(golden["boxes"]),
        jnp.asarray(scores),
        jnp.ones(len(scores), bool),
        float(thresh),
        None if classes is None else jnp.asarray(classes, jnp.int32),
    )
    order = np.argsort(-scores, kind="stable")
    ours, expected = order[np.asarray(keep)[order]], golden[output]
    if classes is not None and len(np.unique(scores)) < len(scores):
        # The peer joins its classes without keeping the order of equal scores.
        ours, expected = np.sort(ours), np.sort(expected)
    np.testing.assert_array_equal(ours, expected)
