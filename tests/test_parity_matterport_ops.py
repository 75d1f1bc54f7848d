"""Single operations against the numbers of Matterport's own code, made by TensorFlow 1.14.

Its boxes are (y0, x0, y1, x1), normalised so that 1 is the last pixel, its deltas (dy, dx, dh, dw),
its background is class 0; the helpers below turn them into ours.
"""

import re
from dataclasses import replace

import golden_sets
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from maskrcnn_jax import losses, selection, targets
from maskrcnn_jax.ops import anchors, boxes, crop_resize, matching
from maskrcnn_jax.ops.nms import nms
from maskrcnn_jax.settings import from_config
from maskrcnn_jax.types import Proposals, Samples
from maskrcnn_jax.weights.presets import PRESETS

pytestmark = pytest.mark.optimized

CLOSE = {"rtol": 0, "atol": 1e-5}
STRIDES = (4, 8, 16, 32, 64)
RATIOS = (2.0, 1.0, 0.5)  # height / width in the order of Matterport's width / height
HEAD = (10.0, 10.0, 5.0, 5.0)  # 1 / BBOX_STD_DEV
UNIT = (1.0, 1.0, 1.0, 1.0)


def swap(x):
    """(y, x) pairs to (x, y) pairs and back, of boxes and of deltas."""
    return jnp.asarray(x)[..., jnp.array([1, 0, 3, 2])]


def pixels(normalised, hw):
    """Normalised boxes to our boxes that end on the last pixel."""
    return swap(normalised) * jnp.array([hw[1] - 1, hw[0] - 1] * 2, jnp.float32)


def normalised(ours, hw):
    """The inverse of `pixels`."""
    return swap(jnp.asarray(ours) / jnp.array([hw[1] - 1, hw[0] - 1] * 2, jnp.float32))


def bits(golden, name, shape):
    return np.unpackbits(golden[name])[: np.prod(shape)].reshape(shape).astype(bool)


def settings(**changes):
    model = PRESETS["detectron2"]["model"] | {
        "anchor_ratios": RATIOS,
        "box_convention": "last_pixel",
        "rpn_deltas_weights": HEAD,
        "delta_clamp": 0.0,
        "proposal_nms": "all",
        "class_rule": "best",
        "nms_thresh": 0.3,
    }
    return replace(from_config(model, 4), **changes)


# --- anchors.npz -----------------------------------------------------------------------------


ANCHORS = {  # of a name: canvas, sizes, of which every n-th is stored, every n-th row and column
    "256": ((256, 256), (32, 64, 128, 256, 512), 1, 1),
    "512_every7": ((512, 512), (32, 64, 128, 256, 512), 7, 1),
    "256_stride2_scales8": ((256, 256), (8, 16, 32, 64, 128), 1, 2),
    "192x320_scales8_every5": ((192, 320), (8, 16, 32, 64, 128), 5, 1),
}


@golden_sets.each("matterport", "anchors", inputs="")
def test_anchors(name):
    expected = golden_sets.load("matterport", "anchors")[name]
    kind, px, case = re.fullmatch(r"(anchors|count|sum)(_px)?_(\w+)", name).groups()
    case = next(key for key in ANCHORS if key.startswith(case))
    canvas, sizes, every, stride = ANCHORS[case]
    levels = anchors.grid_anchors(canvas, STRIDES, sizes, RATIOS)
    if stride > 1:  # Matterport's RPN_ANCHOR_STRIDE: a convolution of that stride, half the grid
        levels = [
            level.reshape(canvas[0] // s, canvas[1] // s, 3, 4)[::stride, ::stride].reshape(-1, 4)
            for level, s in zip(levels, STRIDES, strict=True)
        ]
    ours = np.concatenate(levels)
    if kind == "count":
        assert len(ours) == expected
        return
    unit = normalised(ours - np.float32([0, 0, 1, 1]), canvas)
    if kind == "sum":
        np.testing.assert_allclose(np.float64(unit).sum(0), expected, rtol=1e-5, atol=0.05)
    elif px:
        np.testing.assert_allclose(swap(ours)[::every], expected, **CLOSE)
    else:
        np.testing.assert_allclose(unit[::every], expected, **CLOSE)


# --- roialign.npz ----------------------------------------------------------------------------


@golden_sets.each("matterport", "roialign", inputs=r"p\d|boxes|image_hw")
def test_crop_pooling(name):
    g = golden_sets.load("matterport", "roialign")
    hw = tuple(map(int, g["image_hw"]))
    if name == "levels":
        ours = crop_resize.assign_levels(swap(g["boxes"]), hw)
        np.testing.assert_array_equal(ours, g[name])
        return
    size = int(name.removeprefix("pooled_"))
    rois = swap(g["boxes"])[:, :: {7: 1, 14: 3}[size]]
    maps = {k: jnp.asarray(g[k]) for k in ("p2", "p3", "p4", "p5")}
    pool = jax.jit(crop_resize.pool_normalised, static_argnums=2)
    np.testing.assert_allclose(pool(maps, rois, size), g[name], **CLOSE)
    # From pixels and back to normalised boxes: one bit more or less, on maps of slope 3 a cell.
    pool = jax.jit(crop_resize.multilevel_crop_resize, static_argnums=2)
    ours = pool(maps, pixels(g["boxes"], hw)[:, :: {7: 1, 14: 3}[size]], size)
    np.testing.assert_allclose(ours, g[name], rtol=0, atol=1e-4)


def test_one_map_of_the_pyramid():
    g = golden_sets.load("matterport", "roialign")
    rows = np.flatnonzero(g["levels"][0] == 3)
    box = swap(g["boxes"][0, rows])
    ours = crop_resize.crop_and_resize(jnp.asarray(g["p3"][0]), box, 7)
    np.testing.assert_allclose(ours, g["pooled_7"][0, rows], **CLOSE)


# --- boxes.npz -------------------------------------------------------------------------------


@golden_sets.each(
    "matterport",
    "boxes",
    inputs="image_hw|boxes|gt_boxes|deltas|window|nms_boxes|nms_scores|tie_norm",
)
def test_boxes(name):
    g = golden_sets.load("matterport", "boxes")
    expected = g[name]
    hw = tuple(map(int, g["image_hw"]))
    decode = lambda src, weights: boxes.decode_deltas(swap(g["deltas"]), src, weights, np.inf)  # noqa: E731
    if found := re.fullmatch(r"nms(?:_numpy)?_keep_(\d+)", name):
        ours = kept(g["nms_boxes"], g["nms_scores"], int(found[1]) / 100)
        np.testing.assert_array_equal(ours, expected)
        return
    if name == "norm":
        ours = normalised(swap(g["boxes"]) - np.float32([0, 0, 1, 1]), hw)
    elif name.endswith("denorm"):
        ours = pixels(g[name.replace("denorm", "norm")], hw)
        ours = swap(np.round(ours + np.float32([0, 0, 1, 1])))
    elif name.startswith("refinement"):
        weights = HEAD if name.endswith("std") else UNIT
        ours = swap(boxes.encode_deltas(swap(g["boxes"]), swap(g["gt_boxes"]), weights))
    elif name == "applied":
        ours = swap(decode(swap(g["boxes"]), UNIT))
    elif name.startswith("applied"):
        ours = decode(swap(g["norm"]), UNIT)
        if "clipped" in name:
            ours = boxes.clip_to(ours, swap(g["window"]))
        ours = swap(ours)
    else:
        assert name.startswith("overlaps"), f"{name}: no test knows this array"
        ours = boxes.pairwise_iou(swap(g["boxes"]), swap(g["gt_boxes"]))
    # Corners of hundreds of pixels: a bit of float32 is up to 3e-5.
    np.testing.assert_allclose(ours, expected, rtol=2.5e-7, atol=1e-5)


def kept(boxes_yx, scores, thresh):
    keep = nms(swap(boxes_yx), jnp.asarray(scores), jnp.ones(len(scores), bool), thresh)
    order = np.argsort(-scores, kind="stable")
    return order[np.asarray(keep)[order]]


# --- layers.npz ------------------------------------------------------------------------------


def test_proposals():
    g = golden_sets.load("matterport", "layers")
    hw = (128, 128)
    s = settings(anchor_sizes=(8, 16, 32, 64, 128))
    shown = np.concatenate([np.asarray(a) for a in selection.anchors_of(s, hw, jnp.array(hw))])
    np.testing.assert_allclose(
        normalised(shown - np.float32([0, 0, 1, 1]), hw), g["anchors"], **CLOSE
    )
    for logits, deltas, expected in zip(
        g["rpn_logits"], g["rpn_deltas"], g["proposals"], strict=True
    ):
        objectness = jnp.asarray(logits[:, 1] - logits[:, 0])
        found = selection.propose(s, hw, 800, 120, objectness, swap(deltas), jnp.array(hw))
        ours = np.where(found.valid[:, None], normalised(found.boxes, hw), 0.0)
        np.testing.assert_allclose(ours, expected, **CLOSE)


@golden_sets.each(
    "matterport",
    "layers",
    inputs="anchors|rpn_logits|rpn_deltas|proposals|class_logits|class_deltas|windows",
)
def test_detections(name):
    g = golden_sets.load("matterport", "layers")
    hw, thresh = (128, 128), int(name.removeprefix("detections_min")) / 100
    s = settings(score_thresh=thresh, max_detections=20)
    for i, expected in enumerate(g[name]):
        rois = pixels(g["proposals"][i], hw)
        proposals = Proposals(rois, jnp.zeros(len(rois)), jnp.ones(len(rois), bool))
        logits = jnp.roll(jnp.asarray(g["class_logits"][i]), -1, -1)
        window = selection.to_convention(s, swap(g["windows"][i]).astype(jnp.float32))
        found, scores, classes, valid, _ = selection.detect(
            s,
            proposals,
            logits,
            swap(g["class_deltas"][i])[:, 1:],
            window,
        )
        count = int((expected[:, 4] > 0).sum())
        assert int(valid.sum()) == count
        ours = np.concatenate([normalised(found, hw), np.stack([classes + 1, scores], 1)], 1)
        np.testing.assert_allclose(ours[:count], expected[:count], **CLOSE)


# --- losses.npz ------------------------------------------------------------------------------


def test_smooth_l1():
    g = golden_sets.load("matterport", "losses")
    ours = losses.smooth_l1(jnp.asarray(g["smooth_l1_x"]), 1.0)
    np.testing.assert_allclose(ours, g["smooth_l1_y"], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["losses", "losses_without_positives"])
def test_losses(name):
    g = golden_sets.load("matterport", "losses")
    if name not in g:
        pytest.skip(f"no array {name}")
    positives = name == "losses"
    ours = jnp.stack([*rpn_terms(g, positives), *head_terms(g, positives)])
    np.testing.assert_allclose(ours, g[name], rtol=1e-5, atol=1e-7)


def rpn_terms(g, positives):
    """Our sums are over slots; Matterport's means are over the anchors and numbers that count."""
    match = g["rpn_match"][..., 0]
    if not positives:
        match = np.where(match == 1, 0, match)
    fg, valid = jnp.asarray(match == 1), jnp.asarray(match != 0)
    goals = np.zeros((*match.shape, 4), np.float32)
    for image, rows in enumerate(match == 1):
        goals[image, rows] = g["rpn_target_bbox"][image, : rows.sum()]
    goals = jnp.asarray(goals)
    logits = jnp.asarray(g["rpn_class_logits"][..., 1] - g["rpn_class_logits"][..., 0])
    cls, box = losses.rpn_losses(logits, jnp.asarray(g["rpn_bbox"]), goals, fg, valid, beta=1.0)
    slots = match.size
    return cls * slots / valid.sum(), box * slots / jnp.maximum(4 * fg.sum(), 1)


def head_terms(g, positives):
    ids = g["target_class_ids"] if positives else np.zeros_like(g["target_class_ids"])
    fg = jnp.asarray(ids > 0)
    logits = jnp.roll(jnp.asarray(g["class_logits"]), -1, -1)
    classes = jnp.asarray(np.where(ids > 0, ids - 1, 4), jnp.int32)
    # A row whose predicted class does not occur in its image's data set weighs nothing.
    predicted = g["class_logits"].argmax(-1)
    active = jnp.asarray(np.take_along_axis(g["active_class_ids"], predicted, 1) > 0)
    deltas = jnp.asarray(g["pred_bbox"])[:, :, 1:]
    goals = jnp.asarray(g["target_bbox"])
    cls, _ = losses.box_losses(logits, deltas, goals, classes, fg, active)
    everyone = jnp.ones_like(fg)
    _, box = losses.box_losses(logits, deltas, goals, classes, fg, everyone, beta=1.0)
    box = box * fg.size / jnp.maximum(4 * fg.sum(), 1)
    chosen = np.take_along_axis(g["pred_mask"], ids[..., None, None, None], -1)[..., 0]
    chosen = np.clip(chosen, np.float32(1e-7), np.float32(1) - np.float32(1e-7)).astype(np.float64)
    mask_logits = jnp.asarray(np.log(chosen / (1 - chosen)), jnp.float32)
    mask = losses.mask_loss(mask_logits, jnp.asarray(g["target_mask"], jnp.float32), fg)
    return cls, box, mask


# --- targets.npz -----------------------------------------------------------------------------


@pytest.mark.parametrize("crowd", [False, True])
def test_rpn_targets(crowd):
    g = golden_sets.load("matterport", "targets")
    prefix = "crowd_" if crowd else ""
    ids = g["crowd_class_ids"] if crowd else g["gt_class_ids"]
    gt = swap(g["gt_boxes"].astype(np.float32))
    iou = boxes.pairwise_iou(gt, swap(g["anchors_px"]))
    matched, labels = matching.match(
        iou, jnp.asarray(ids > 0), (0.3, 0.7), (0, -1, 1), allow_low_quality=True
    )
    # Background may not touch a crowd; Matterport's own rule, for its own crowds.
    near_crowd = (iou[jnp.asarray(ids < 0)] >= 0.001).any(0)
    labels = np.where((labels == 0) & near_crowd, -1, labels)
    match = g[f"{prefix}rpn_match"]  # 1 object, -1 background, 0 neither
    expected = np.select([match == 1, match == -1], [1, 0], -1)
    # Which of an object's best anchors are the best is decided by the last bit, theirs of float64.
    valid_iou = np.where(ids[:, None] > 0, iou, 0)
    tied = (valid_iou > valid_iou.max(1, keepdims=True) - 1e-6) & (ids[:, None] > 0)
    alike = ~tied.any(0) | (valid_iou.max(0) >= 0.7)
    np.testing.assert_array_equal(labels[alike], expected[alike])
    assert (tied & (labels == 1)).any(1)[ids > 0].all()
    assert (tied & (expected == 1)).any(1)[ids > 0].all()
    rows = np.flatnonzero(match == 1)
    ours = boxes.encode_deltas(swap(g["anchors_px"])[rows], gt[matched[rows]], HEAD)
    stored = g[f"{prefix}rpn_bbox"][: len(rows)]
    np.testing.assert_allclose(swap(ours)[: len(stored)], stored, **CLOSE)


@pytest.mark.parametrize("kind", ["mini", "full"])
def test_head_targets(kind):
    g = golden_sets.load("matterport", "targets")
    hw, count = (128, 128), int(g[f"head_{kind}_positives"])
    gt = swap(g["gt_boxes"].astype(np.float32)) - np.float32([0, 0, 1, 1])
    rois = pixels(g["rois_in"], hw)
    matched, labels = matching.match(
        boxes.pairwise_iou(gt, rois), jnp.ones(len(gt), bool), (0.5,), (0, 1), False
    )
    chosen = by_position(g[f"head_{kind}_rois"][:count], g["rois_in"])
    np.testing.assert_array_equal(np.sort(chosen), np.flatnonzero(labels == 1))
    assert ((g[f"head_{kind}_class_ids"] > 0).sum()) == count
    classes = g["gt_class_ids"][np.asarray(matched)[chosen]]
    np.testing.assert_array_equal(classes, g[f"head_{kind}_class_ids"][:count])
    fg = jnp.ones(count, bool)
    samples = Samples(rois[chosen], jnp.zeros(count, jnp.int32), matched[chosen], fg, fg)
    ours = swap(targets.box_targets(samples, gt, HEAD))
    np.testing.assert_allclose(ours, g[f"head_{kind}_deltas"][:count], **CLOSE)
    assert not g[f"head_{kind}_deltas"][count:].any()

    if kind == "mini":
        bitmaps, frames = bits(g, "mini_masks_bits", (56, 56, 4)), gt
    else:
        bitmaps = bits(g, "gt_masks_bits", (128, 128, 4))
        frames = jnp.tile(jnp.array([0.0, 0.0, 127.0, 127.0]), (4, 1))
    packed = jnp.asarray(np.packbits(bitmaps.transpose(2, 0, 1), axis=-1))
    masks = targets.mask_targets(
        rois[chosen], matched[chosen], packed, frames, 28, targets.cut_crop_resized
    )
    expected = bits(g, f"head_{kind}_masks_bits", (30, 28, 28))
    np.testing.assert_array_equal(np.asarray(masks) == 1, expected[:count])
    assert not expected[count:].any()
    # The others are background, as many as the ratio of the positives allows.
    rest = g[f"head_{kind}_rois"][count:]
    negatives = by_position(rest[np.abs(rest).sum(1) > 0], g["rois_in"])
    background = (np.asarray(labels) == 0) & (np.abs(g["rois_in"]).sum(1) > 0)
    assert len(negatives) == min(int(count / 0.33) - count, background.sum())
    assert (np.asarray(labels)[negatives] == 0).all()


def by_position(rows, among):
    """Where each row stands in another array."""
    distance = np.abs(rows[:, None] - among).max(-1)
    assert (distance.min(1) < 1e-6).all()
    return distance.argmin(1)


# --- metrics.npz -----------------------------------------------------------------------------


def test_masks_overlap_and_match_as_pycocotools_says():
    """Matterport's own metric and ours, COCO's, match predictions with objects alike."""
    g = golden_sets.load("matterport", "metrics")
    hw = tuple(map(int, g["mask_shape"]))
    rle = {
        k: [coco_mask.encode(np.asfortranarray(m)) for m in stack(g, f"{k}_masks_bits", hw)]
        for k in ("gt", "pred")
    }
    order = np.argsort(-g["pred_scores"], kind="stable")
    overlaps = coco_mask.iou([rle["pred"][i] for i in order], rle["gt"], [0] * len(rle["gt"]))
    np.testing.assert_allclose(overlaps, g["overlaps"], rtol=0, atol=1e-6)
    evaluation = evaluate(g, rle, hw)
    for iou in (0.5, 0.75):
        theirs = g[f"pred_match_{iou * 100:.0f}"]
        row = int(np.flatnonzero(np.isclose(evaluation.params.iouThrs, iou))[0])
        ours = np.full(len(theirs), -1)
        for image in evaluation.evalImgs:
            if image is not None and image["aRng"][1] == 1e10:
                for pred, gt in zip(image["dtIds"], image["dtMatches"][row], strict=True):
                    ours[list(order).index(pred - 1)] = gt - 1
        np.testing.assert_array_equal(ours, theirs)


def stack(golden, name, hw):
    count = golden[name].size * 8 // (hw[0] * hw[1])
    return bits(golden, name, (*hw, count)).transpose(2, 0, 1).astype(np.uint8)


def evaluate(g, rle, hw):
    truth, found = COCO(), COCO()
    ids = sorted({*g["gt_class_ids"].tolist(), *g["pred_class_ids"].tolist()})
    common = {
        "images": [{"id": 1, "height": hw[0], "width": hw[1]}],
        "categories": [{"id": i, "name": str(i)} for i in ids],
    }
    truth.dataset = common | {"annotations": entries(g["gt_class_ids"], rle["gt"])}
    found.dataset = common | {"annotations": entries(g["pred_class_ids"], rle["pred"])}
    for entry, score in zip(found.dataset["annotations"], g["pred_scores"], strict=True):
        entry["score"] = float(score)
    truth.createIndex()
    found.createIndex()
    evaluation = COCOeval(truth, found, "segm")
    evaluation.evaluate()
    return evaluation


def entries(classes, masks):
    return [
        {
            "id": n + 1,
            "image_id": 1,
            "category_id": int(c),
            "segmentation": m,
            "area": float(coco_mask.area(m)),
            "iscrowd": 0,
        }
        for n, (c, m) in enumerate(zip(classes, masks, strict=True))
    ]
