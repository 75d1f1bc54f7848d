"""What the heads should have said: anchors and rois assigned to ground truth, one image at a time.

Pure functions on the arrays of ONE image; the caller maps them over the batch. Nothing here is
differentiated.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from maskrcnn_jax.ops import boxes as box_ops
from maskrcnn_jax.ops import masks as mask_ops
from maskrcnn_jax.ops import matching
from maskrcnn_jax.ops.crop_resize import crop_and_resize
from maskrcnn_jax.types import Proposals, Samples


def rpn_targets(
    anchors: Float[Array, "N 4"],
    anchor_valid: Bool[Array, "N"],
    gt_boxes: Float[Array, "G 4"],
    gt_valid: Bool[Array, "G"],
    key: Key[Array, ""],
    iou_thresholds: tuple[float, float],
    num: int,
    positive_fraction: float,
    weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0),
) -> tuple[Int[Array, "R"], Bool[Array, "R"], Bool[Array, "R"], Float[Array, "R 4"]]:
    """Samples `num` anchors. Returns their rows, fg, valid, and target deltas times `weights`.

    An anchor is foreground from the upper threshold on, or where it is the best of a ground truth;
    background below the lower one; anchors on padding take no part.
    Source: arXiv 1506.01497 section 3.1.2; Detectron2 `RPN.label_and_sample_anchors`.
    """
    # Below every overlap, so that no ground truth takes an anchor on padding for its best.
    iou = jnp.where(anchor_valid, box_ops.pairwise_iou(gt_boxes, anchors), -1.0)
    matched, labels = matching.match(
        iou, gt_valid, iou_thresholds, (0, -1, 1), allow_low_quality=True
    )
    labels = jnp.where(anchor_valid, labels, -1)
    rows, fg, valid = matching.sample(labels, key, num, positive_fraction)
    deltas = box_ops.encode_deltas(anchors[rows], gt_boxes[matched[rows]], weights)
    return rows, fg, valid, jnp.where(fg[:, None], deltas, 0.0)


def sample_rois(
    proposals: Proposals,
    gt_boxes: Float[Array, "G 4"],
    gt_classes: Int[Array, "G"],
    gt_valid: Bool[Array, "G"],
    key: Key[Array, ""],
    iou_thresh: float,
    num: int,
    positive_fraction: float,
    num_classes: int,
) -> Samples:
    """Samples `num` rois among the proposals and the ground-truth boxes themselves.

    Source: Detectron2 `ROIHeads.label_and_sample_proposals`.
    """
    rois = jnp.concatenate([proposals.boxes, gt_boxes])
    usable = jnp.concatenate([proposals.valid, gt_valid])
    iou = box_ops.pairwise_iou(gt_boxes, rois)
    matched, labels = matching.match(iou, gt_valid, (iou_thresh,), (0, 1), allow_low_quality=False)
    labels = jnp.where(usable, labels, -1)
    rows, fg, valid = matching.sample(labels, key, num, positive_fraction)
    matched = matched[rows]
    classes = jnp.where(fg, gt_classes[matched], num_classes)
    return Samples(rois[rows], classes, matched, fg, valid)


def match_rois(
    rois: Float[Array, "R 4"],
    valid: Bool[Array, "R"],
    gt_boxes: Float[Array, "G 4"],
    gt_classes: Int[Array, "G"],
    gt_valid: Bool[Array, "G"],
    iou_thresh: float,
    num_classes: int,
) -> Samples:
    """All rois with the ground truth that each overlaps most, in their order.

    Foreground need not come first. Source: Detectron2 `CascadeROIHeads._match_and_label_boxes`.
    """
    iou = box_ops.pairwise_iou(gt_boxes, rois)
    matched, labels = matching.match(iou, gt_valid, (iou_thresh,), (0, 1), allow_low_quality=False)
    fg = valid & (labels == 1)
    return Samples(rois, jnp.where(fg, gt_classes[matched], num_classes), matched, fg, valid)


def box_targets(
    samples: Samples, gt_boxes: Float[Array, "G 4"], weights: tuple[float, float, float, float]
) -> Float[Array, "R 4"]:
    """Deltas from each sampled roi to its ground truth; zero on background rows."""
    deltas = box_ops.encode_deltas(samples.rois, gt_boxes[samples.matched_idxs], weights)
    return jnp.where(samples.fg[:, None], deltas, 0.0)


def cut_aligned(
    bitmaps: Float[Array, "R S S"],
    frames: Float[Array, "R 4"],
    rois: Float[Array, "R 4"],
    size: int,
) -> Bool[Array, "R {size} {size}"]:
    """The roi's aligned ROIAlign, at least one half: Detectron2 `BitMasks.crop_and_resize`."""
    return mask_ops.crop_masks(bitmaps, frames, rois, size) >= 0.5


def cut_crop_resized(
    bitmaps: Float[Array, "R S S"],
    frames: Float[Array, "R 4"],
    rois: Float[Array, "R 4"],
    size: int,
) -> Bool[Array, "R {size} {size}"]:
    """Samples on the roi's grid, corners aligned, rounded: Matterport's `detection_targets_graph`.

    frames, rois: boxes of the "last_pixel" convention.
    """
    sides = frames[:, 2:] - frames[:, :2]
    origin, sides = jnp.tile(frames[:, :2], (1, 2)), jnp.tile(sides, (1, 2))
    boxes = (rois - origin) / jnp.where(sides > 0, sides, jnp.inf)
    crop = jax.vmap(lambda bitmap, box: crop_and_resize(bitmap[..., None], box[None], size))
    # Half is rounded to the even 0.
    return crop(bitmaps, boxes)[:, 0, :, :, 0] > 0.5


def mask_targets(
    rois: Float[Array, "R 4"],
    matched_idxs: Int[Array, "R"],
    gt_masks: UInt8[Array, "G S _"],
    gt_frames: Float[Array, "G 4"],
    size: int,
    crop: Callable[[Array, Array, Array, int], Array] = cut_aligned,
) -> Float[Array, "R {size} {size}"]:
    """Cuts each roi out of its ground truth's bit-packed bitmap; 0 or 1, float32.

    gt_frames: the box that each bitmap covers, in the rois' convention. crop: `cut_aligned` or
    `cut_crop_resized`.
    """
    bitmaps = mask_ops.unpack_bits(gt_masks[matched_idxs])
    return crop(bitmaps, gt_frames[matched_idxs], rois, size).astype(jnp.float32)


def keypoint_targets(
    rois: Float[Array, "R 4"],
    matched_idxs: Int[Array, "R"],
    gt_keypoints: Float[Array, "G J 3"],
    size: int,
) -> tuple[Int[Array, "R J"], Bool[Array, "R J"]]:
    """The cell of each keypoint in its roi's heatmap of size x size, row-major, and whether it has
    one: labelled, and inside the roi or on its border.

    rois, gt_keypoints: continuous coordinates. Source: Detectron2 `_keypoints_to_heatmap`.
    """
    keypoints = gt_keypoints[matched_idxs]
    points, corner, far = keypoints[..., :2], rois[:, None, :2], rois[:, None, 2:]
    sides = far - corner
    cells = jnp.floor((points - corner) * (size / jnp.where(sides > 0, sides, 1.0)))
    cells = jnp.where(points == far, size - 1, cells)
    inside = ((cells >= 0) & (cells < size) & (sides > 0)).all(-1)
    valid = inside & (keypoints[..., 2] > 0)
    # Before it becomes an integer, for a far point would not fit into one.
    cells = jnp.where(valid[..., None], cells, 0).astype(jnp.int32)
    return cells[..., 1] * size + cells[..., 0], valid
