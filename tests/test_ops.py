"""The array functions against the peers' numbers."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_model

from maskrcnn_jax.ops import anchors, boxes, masks, matching, roi_align
from maskrcnn_jax.ops.nms import nms

GOLDEN = Path(__file__).parent / "golden"
CLOSE = {"atol": 1e-5, "rtol": 0.0}
UNIT, HEAD = (1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)


def load(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"{name}.npz") as file:
        return dict(file)


def test_anchors_are_exactly_detectron2s():
    golden = load("anchors")
    strides, sizes = (4, 8, 16, 32, 64), (32.0, 64.0, 128.0, 256.0, 512.0)
    ratios = (0.5, 1.0, 2.0)
    found = anchors.grid_anchors((320, 448), strides, sizes, ratios)
    for level, ours in enumerate(found, 2):
        np.testing.assert_array_equal(ours, golden[f"detectron2_P{level}"])
        cell = anchors.cell_anchors(sizes[level - 2], ratios)
        np.testing.assert_array_equal(cell, golden[f"detectron2_cell_P{level}"])
    shifted = anchors.grid_anchors((320, 448), strides, sizes, ratios, offset=0.5)
    np.testing.assert_array_equal(shifted[2], golden["detectron2_offset0.5_P4"])


def test_sizes_of_anchors_may_be_whole_numbers():
    whole = anchors.grid_anchors((64, 64), (32, 64), (32, 128), (1, 2))
    parts = anchors.grid_anchors((64, 64), (32, 64), (32.0, 128.0), (1.0, 2.0))
    for ours, theirs in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    model = tiny_model.model(anchor_sizes=(16, 32, 64, 128, 256), anchor_ratios=(1, 2))
    assert model.settings.anchor_sizes == (16, 32, 64, 128, 256)


def test_anchors_of_a_larger_canvas_do_not_compete():
    strides = (4, 8, 16, 32, 64)
    mask = np.asarray(anchors.in_padded_image((128, 256), strides, 3, jnp.array([70, 129])))
    start = 0
    for stride in strides:
        rows, cols = -(-128 // stride), -(-256 // stride)
        level = mask[start : start + rows * cols * 3].reshape(rows, cols, 3)
        expected = np.zeros_like(level)
        expected[: -(-96 // stride), : -(-160 // stride)] = True  # 70x129 padded to 96x160
        np.testing.assert_array_equal(level, expected)
        start += level.size


@pytest.mark.parametrize("weights", [UNIT, HEAD])
def test_box_coding(weights):
    golden = load("box_coding")
    name = "_".join(f"{w:g}" for w in weights)
    src, dst = jnp.asarray(golden["src_boxes"]), jnp.asarray(golden["dst_boxes"])
    np.testing.assert_allclose(
        boxes.encode_deltas(src, dst, weights), golden[f"detectron2_get_deltas_{name}"], atol=1e-5
    )
    deltas = golden["deltas"].reshape(64, 5, 4)
    ours = boxes.decode_deltas(jnp.asarray(deltas), src[:, None], weights)
    theirs = golden[f"detectron2_apply_deltas_{name}"].reshape(64, 5, 4)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-4)
    back = boxes.decode_deltas(boxes.encode_deltas(src, dst, weights), src, weights)
    np.testing.assert_allclose(back, dst, atol=1e-2)


def test_iou_and_clip():
    golden = load("box_coding")
    ours = boxes.pairwise_iou(*(jnp.asarray(golden[f"iou_boxes_{x}"]) for x in "ab"))
    np.testing.assert_allclose(ours, golden["pairwise_iou"], atol=1e-6)
    raw = golden["detectron2_apply_deltas_1_1_1_1"].reshape(-1, 4)
    clipped = boxes.clip(jnp.asarray(raw), jnp.array([240, 320]))
    theirs = golden["clipped_apply_deltas_1_1_1_1"].reshape(-1, 4)
    np.testing.assert_allclose(clipped, theirs, atol=1e-5)
    keep = golden["nonempty_0"].reshape(-1)
    np.testing.assert_array_equal(boxes.is_nonempty(jnp.asarray(theirs)), keep)


CASES = ("random", "ties", "exact", "zero_row", "empty")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", ["rpn", "rpn_no_low", "head"])
def test_matcher_is_detectron2s(case, kind):
    golden = load("matcher")
    iou = golden[f"{case}/iou"]
    # Padding rows of ground truth, with an IoU that would win, must not matter.
    padded = np.concatenate([iou, np.full((2, iou.shape[1]), 0.99, np.float32)])
    valid = np.arange(len(padded)) < len(iou)
    thresholds = (0.5,) if kind == "head" else (0.3, 0.7)
    labels = (0, 1) if kind == "head" else (0, -1, 1)
    matched, found = matching.match(
        jnp.asarray(padded), jnp.asarray(valid), thresholds, labels, allow_low_quality=kind == "rpn"
    )
    np.testing.assert_array_equal(found, golden[f"{case}/{kind}_labels"])
    np.testing.assert_array_equal(matched, golden[f"{case}/{kind}_matches"])


def test_matching_agrees_with_the_definition():
    rng = np.random.default_rng(0)
    for _ in range(20):
        iou = np.round(rng.uniform(0, 1, (5, 40)), 1).astype(np.float32)
        valid = rng.random(5) < 0.7
        found = matching.match(jnp.asarray(iou), jnp.asarray(valid), (0.3, 0.7), (0, -1, 1), True)
        for n in range(40):
            rows = [g for g in range(5) if valid[g]]
            if not rows:
                assert (found[0][n], found[1][n]) == (0, 0)
                continue
            best = max(rows, key=lambda g: (iou[g, n], -g))
            value = iou[best, n]
            label = 0 if value < np.float32(0.3) else (-1 if value < np.float32(0.7) else 1)
            if any(iou[g, n] == iou[g].max() for g in rows):
                label = 1
            assert (found[0][n], found[1][n]) == (best, label)


def test_sampler_keeps_its_fractions_and_is_uniform():
    draw = jax.jit(jax.vmap(lambda k, labels: matching.sample(labels, k, 32, 0.25), (0, None)))
    keys = jax.random.split(jax.random.key(0), 400)
    cases = {
        (3, 100): (3, 29),
        (50, 100): (8, 24),
        (50, 10): (8, 10),
        (0, 100): (0, 32),
        (0, 0): (0, 0),
    }
    for (positives, negatives), (fg, bg) in cases.items():
        labels = np.full(200, -1, np.int32)
        labels[:positives] = 1
        labels[positives : positives + negatives] = 0
        rows, is_fg, valid = (np.asarray(x) for x in draw(keys, jnp.asarray(labels)))
        assert (is_fg.sum(1) == fg).all() and (valid.sum(1) == fg + bg).all()
        order = np.where(is_fg, 0, np.where(valid, 1, 2))
        assert (np.diff(order, axis=1) >= 0).all()  # foreground, background, padding
        for picked, mask_fg, mask in zip(rows, is_fg, valid, strict=True):
            assert (labels[picked[mask]] == mask_fg[mask]).all()
            assert len(set(picked[mask])) == mask.sum()
        if (positives, negatives) == (50, 100):
            counts = np.bincount(rows[is_fg], minlength=50)[:50]
            # 400 draws of 8 of 50: mean 64, standard deviation about 7.3.
            assert counts.min() > 64 - 5 * 7.3 and counts.max() < 64 + 5 * 7.3


@pytest.mark.parametrize("thresh", [0.3, 0.5, 0.7])
def test_nms_is_torchvisions(thresh):
    golden = load("nms")
    for name, scores in ((f"keep_{thresh}", "scores"), (f"keep_tied_{thresh}", "scores_tied")):
        check_nms(golden["boxes"], golden[scores], None, thresh, golden[name])
    for prefix in ("batched", "batched_many"):
        if f"{prefix}/keep_{thresh}" in golden:
            for tied in ("", "_tied"):
                check_nms(
                    golden[f"{prefix}/boxes"],
                    golden[f"{prefix}/scores{tied}"],
                    golden[f"{prefix}/classes"],
                    thresh,
                    golden[f"{prefix}/keep{tied}_{thresh}"],
                )


def test_nms_on_the_threshold():
    golden = load("nms")
    check_nms(golden["edge/boxes"], golden["edge/scores"], None, 0.5, golden["edge/keep_0.5"])
    equal = golden["edge/keep_equal_0.5"]
    check_nms(golden["edge/boxes"], golden["edge/scores_equal"], None, 0.5, equal)


def check_nms(corners, scores, classes, thresh, expected):
    valid = jnp.ones(len(corners), bool)
    classes = None if classes is None else jnp.asarray(classes, jnp.int32)
    keep = np.asarray(nms(jnp.asarray(corners), jnp.asarray(scores), valid, thresh, classes))
    order = np.argsort(-scores, kind="stable")
    if classes is None:
        np.testing.assert_array_equal(order[keep[order]], expected)
    else:  # the peer joins its classes without keeping the order of equal scores
        np.testing.assert_array_equal(np.flatnonzero(keep), np.sort(expected))


def pooled(golden, prefix, rois, size, ratio, aligned=True, scale=0.125):
    features = jnp.asarray(golden[f"{prefix}/features"][0].transpose(1, 2, 0))
    out = roi_align.roi_align(features, jnp.asarray(rois), size, scale, ratio, aligned)
    return np.asarray(out).transpose(0, 3, 1, 2)


@pytest.mark.parametrize("ratio", [0, 2])
def test_roi_align(ratio):
    golden = load("roi_align")
    rois = golden["one/rois"][:, 1:]
    ours = pooled(golden, "one", rois, 7, ratio)
    theirs = golden[f"one/detectron2_aligned_size7_ratio{ratio}"]
    np.testing.assert_allclose(ours, theirs, **CLOSE)
    legacy = pooled(golden, "one", rois, 7, ratio, aligned=False)
    np.testing.assert_allclose(
        legacy, golden[f"one/torchvision_unaligned_size7_ratio{ratio}"], **CLOSE
    )


def test_roi_align_of_other_sizes():
    golden = load("roi_align")
    ours = pooled(golden, "one", golden["one/rois"][:, 1:], 14, 0)
    np.testing.assert_allclose(ours, golden["one/detectron2_aligned_size14_ratio0"], **CLOSE)
    oblong = pooled(golden, "oblong", golden["oblong/rois"][:, 1:], (3, 5), 0, scale=1.0)
    np.testing.assert_allclose(
        oblong, golden["oblong/detectron2_aligned_size3x5_ratio0"], atol=1e-5
    )


@pytest.mark.parametrize("ratio", [0, 2])
def test_roi_align_gradient(ratio):
    golden = load("roi_align")
    features = jnp.asarray(golden["one/features"][0].transpose(1, 2, 0))
    cotangent = golden["one/cotangent"].transpose(0, 2, 3, 1)
    rois = jnp.asarray(golden["one/rois"][:, 1:])

    def value(features):
        return (roi_align.roi_align(features, rois, 7, 0.125, ratio) * cotangent).sum()

    ours = jax.grad(value)(features).transpose(2, 0, 1)[None]
    theirs = golden[f"one/detectron2_aligned_size7_ratio{ratio}_grad_features"]
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.parametrize("size, ratio", [(7, 0), (7, 2), (14, 0)])
def test_pooling_over_levels(size, ratio):
    golden = load("pooler")
    features = {
        f"p{n}": jnp.asarray(golden[f"features_P{n}"].transpose(0, 2, 3, 1)) for n in (2, 3, 4, 5)
    }
    rois = jnp.stack([golden["boxes_image0"], golden["boxes_image1"]])
    levels = roi_align.assign_levels(rois).reshape(-1)
    np.testing.assert_array_equal(levels, golden["detectron2_levels"])
    ours = roi_align.multilevel_roi_align(features, rois, size, sampling_ratio=ratio)
    ours = np.asarray(ours).reshape(52, size, size, 4).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(ours, golden[f"detectron2_size{size}_ratio{ratio}"], **CLOSE)


@pytest.mark.parametrize("size", [14, 28])
def test_mask_targets(size):
    golden = load("mask_targets")
    bitmaps = golden["bitmasks"].astype(np.float32)
    height, width = golden["image_size"]
    frames = np.tile(np.float32([0, 0, width, height]), (len(bitmaps), 1))
    soft = masks.crop_masks(*(jnp.asarray(x) for x in (bitmaps, frames, golden["boxes"])), size)
    np.testing.assert_array_equal(np.asarray(soft) >= 0.5, golden[f"detectron2_bitmask_{size}"])
    if size == 28:
        theirs = golden["detectron2_bitmask_28_before_threshold"]
        np.testing.assert_allclose(soft, theirs, atol=1e-5)


def test_unpack_bits_is_numpys():
    packed = np.random.default_rng(0).integers(0, 256, (3, 16, 2)).astype(np.uint8)
    np.testing.assert_array_equal(
        masks.unpack_bits(jnp.asarray(packed)), np.unpackbits(packed, axis=-1)
    )
