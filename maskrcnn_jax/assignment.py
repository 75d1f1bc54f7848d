"""All that training decides without gradient: anchors, proposals, rois and their targets.

Source: Detectron2 `RPN.label_and_sample_anchors`, `ROIHeads.label_and_sample_proposals`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from maskrcnn_jax import selection, targets
from maskrcnn_jax.ops import anchors as anchor_ops
from maskrcnn_jax.settings import Settings, anchors_per_cell, mask_size
from maskrcnn_jax.types import Batch


def assign(
    s: Settings,
    has_masks: bool,
    heatmap_size: int,
    logits: Float[Array, "B N"],
    deltas: Float[Array, "B N 4"],
    batch: Batch,
    keys: Key[Array, "B"],
) -> tuple:
    """Assigns anchors and rois to the ground truth of a batch, one image after another.

    heatmap_size: side of a keypoint's heatmap, in cells. logits, deltas: of all anchors, pixels of
    the canvas. keys: one per image, for the samplers.
    Returns what `targets.rpn_targets` gives, the Samples [B, R], their box deltas [B, R, 4], masks
    of the foreground slots [B, F, T, T], their keypoints' cells and which of them count [B, F, J],
    both None of a model without them, and the number of proposals [B].
    """
    canvas = batch.images.shape[1:3]

    def one_image(args: tuple) -> tuple:
        logits, deltas, image, key = args
        rpn_key, roi_key = jax.random.split(key)
        anchor_valid = anchor_ops.in_padded_image(
            canvas, s.strides, anchors_per_cell(s), image.image_hw, s.size_divisor
        )
        anchors = selection.anchors_of(s, canvas, image.image_hw)
        rpn = targets.rpn_targets(
            jnp.concatenate(anchors),
            anchor_valid,
            image.gt_boxes,
            image.gt_valid,
            rpn_key,
            s.rpn_iou_thresholds,
            s.rpn_batch_per_image,
            s.rpn_positive_fraction,
            s.rpn_deltas_weights,
        )
        topk = (s.rpn_pre_nms_topk_train, s.rpn_post_nms_topk_train)
        proposals = selection.propose(s, canvas, *topk, logits, deltas, image.image_hw)
        gt_boxes = selection.to_convention(s, image.gt_boxes)
        samples = targets.sample_rois(
            proposals,
            gt_boxes,
            image.gt_classes,
            image.gt_valid,
            roi_key,
            s.roi_iou_thresh,
            s.roi_batch_per_image,
            s.roi_positive_fraction,
            s.num_classes,
        )
        roi_deltas = targets.box_targets(samples, gt_boxes, s.box_deltas_weights)
        num_fg = max(1, int(s.roi_batch_per_image * s.roi_positive_fraction))
        masks = keypoints = None
        if has_masks:
            masks = targets.mask_targets(
                samples.rois[:num_fg],
                samples.matched_idxs[:num_fg],
                image.gt_masks,
                selection.to_convention(s, image.gt_frames),
                mask_size(s),
                crop=targets.cut_crop_resized if s.roi_pool == "crop" else targets.cut_aligned,
            )
        if s.keypoints:
            cells, labelled = targets.keypoint_targets(
                selection.from_convention(s, samples.rois[:num_fg]),
                samples.matched_idxs[:num_fg],
                image.gt_keypoints,
                heatmap_size,
            )
            keypoints = (cells, labelled & samples.fg[:num_fg, None])
        return rpn, samples, roi_deltas, masks, keypoints, proposals.valid.sum()

    # One image after another bounds the memory of the IoU matrix and of the unpacked bitmaps.
    slim = batch._replace(images=jnp.zeros((logits.shape[0],), jnp.uint8))
    return jax.lax.map(one_image, (logits, deltas, slim, keys))
