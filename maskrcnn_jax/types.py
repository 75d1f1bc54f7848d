"""The four things that travel through the house, and the shape letters used in every file.

Letters: **B** images, **H W** canvas, **h w** grid of a level, **L** levels, **A** anchors per
cell, **N** all anchors, **K** proposals, **R** sampled rois, **G** padded ground truth,
**C** classes without background, **F** channels, **D** detections, **S** mask side; of a model with
keypoints, **J** keypoints of an object, **T** heatmap side.

Boxes are float32 (x0, y0, x1, y1) in pixels of the canvas, continuous coordinates: the pixel in
column i covers [i, i + 1). Sizes are (height, width). Class 0 is a real class; background is the
last logit. Rows that are padding are told by a `valid` mask, never by their coordinates.
"""

from typing import Any, NamedTuple

import jax

Array = jax.Array | Any  # device arrays inside jit, NumPy arrays on the host


class Batch(NamedTuple):
    """Training examples of one canvas size. On the host NumPy, inside the step traced.

    Masks are bit-packed box-frame bitmaps: row-major, the leftmost cell in the highest bit
    (`numpy.unpackbits(axis=-1)`); the bitmap of an instance covers its `gt_frames` box, which may
    stick out of the canvas after a crop while `gt_boxes` does not.
    """

    images: Array  # uint8 [B, H, W, 3], RGB; what lies beyond image_hw is padding
    image_hw: Array  # int32 [B, 2], true size inside the canvas
    gt_boxes: Array  # float32 [B, G, 4]
    gt_classes: Array  # int32 [B, G], 0..C-1
    gt_valid: Array  # bool [B, G]
    gt_frames: Array  # float32 [B, G, 4], the box that the bitmap covers
    gt_masks: Array  # uint8 [B, G, S, S // 8], bit-packed
    num_dropped: Array  # int32 [B], instances beyond the cap G
    index: Array  # int32 [B], row of the example in the data set, for messages
    # float32 [B, G, J, 3]: x, y, and 0 not labelled, 1 hidden or 2 visible; None of data without
    # keypoints.
    gt_keypoints: Array | None = None


class Proposals(NamedTuple):
    """Boxes that the RPN found, best first. `valid` rows come first."""

    boxes: Array  # float32 [..., K, 4]
    logits: Array  # float32 [..., K]
    valid: Array  # bool [..., K]


class Samples(NamedTuple):
    """Rois that the heads train on; foreground rows come first, padding last."""

    rois: Array  # float32 [..., R, 4]
    classes: Array  # int32 [..., R], C for background
    matched_idxs: Array  # int32 [..., R], row of the ground truth
    fg: Array  # bool [..., R]
    valid: Array  # bool [..., R]


class Detections(NamedTuple):
    """What the model found, best first, padded to a fixed number of rows."""

    boxes: Array  # float32 [B, D, 4]
    scores: Array  # float32 [B, D]
    classes: Array  # int32 [B, D]
    valid: Array  # bool [B, D]
    masks: Array | None  # float32 [B, D, S, S], probabilities in the frame of the box; None of a
    # model without masks
    num_dropped: Array  # int32 [B], candidates beyond the cap before NMS
    keypoints: Array  # float32 [B, D, J, T, T], logits in the frame of the box; J may be 0


class Losses(NamedTuple):
    """Scalar float32 terms, weighted; their sum is what is minimised."""

    rpn_cls: Array
    rpn_box: Array
    cls: Array
    box: Array
    mask: Array  # 0 of a model without masks
    keypoint: Array  # 0 of a model without keypoints
