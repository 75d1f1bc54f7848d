"""Which boxes stay: from all anchors to proposals, from proposals to detections, of one image.

Pure functions on the arrays of ONE image; the caller maps them over the batch. What the peers do
differently is told by `Settings`.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from maskrcnn_jax.ops import anchors as anchor_ops
from maskrcnn_jax.ops import boxes as box_ops
from maskrcnn_jax.ops.nms import nms
from maskrcnn_jax.settings import Settings, anchors_per_cell, level_anchor_sizes
from maskrcnn_jax.types import Proposals

# Far corners are (x, y) of the last pixel in Matterport's boxes, and one beyond it in all others.
_LAST_PIXEL = (0.0, 0.0, 1.0, 1.0)


def to_convention(s: Settings, boxes: Float[Array, "*n 4"]) -> Float[Array, "*n 4"]:
    """Boxes of the canvas, as everywhere, to those that the model's heads work on."""
    return boxes - jnp.array(_LAST_PIXEL) if s.box_convention == "last_pixel" else boxes


def from_convention(s: Settings, boxes: Float[Array, "*n 4"]) -> Float[Array, "*n 4"]:
    """The inverse of `to_convention`."""
    return boxes + jnp.array(_LAST_PIXEL) if s.box_convention == "last_pixel" else boxes


def anchors_of(
    s: Settings, canvas: tuple[int, int], image_hw: Int[Array, "2"]
) -> list[Float[Array, "_ 4"]]:
    """The anchors of a canvas (height, width) by level, in the canvas' own boxes."""
    levels = anchor_ops.grid_anchors(
        canvas,
        s.strides,
        level_anchor_sizes(s),
        s.anchor_ratios,
        s.anchor_offset,
        rounded=s.anchor_rounding,
        fitted_hw=anchor_ops.padded(image_hw, s.size_divisor)
        if s.anchor_strides == "fitted"
        else None,
    )
    return [jnp.asarray(level) for level in levels]


def propose(
    s: Settings,
    canvas: tuple[int, int],
    pre_topk: int,
    post_topk: int,
    logits: Float[Array, "N"],
    deltas: Float[Array, "N 4"],
    image_hw: Int[Array, "2"],
) -> Proposals:
    """The best boxes: top-k and NMS per level, then the best over all levels.

    Source: Detectron2 `find_top_rpn_proposals`; with `proposal_nms` "all" the levels are one, as in
    Matterport's `ProposalLayer`.
    """
    usable = anchor_ops.in_padded_image(
        canvas, s.strides, anchors_per_cell(s), image_hw, s.size_divisor
    )
    logits = jnp.where(usable & jnp.isfinite(logits), logits, -jnp.inf)
    levels = anchors_of(s, canvas, image_hw)
    if s.proposal_nms == "all":
        levels = [jnp.concatenate(levels)]
    kept_boxes, kept_logits, start = [], [], 0
    for anchors in levels:
        end = start + len(anchors)
        best, rows = jax.lax.top_k(logits[start:end], min(pre_topk, len(anchors)))
        boxes = box_ops.decode_deltas(
            deltas[start:end][rows],
            to_convention(s, anchors[rows]),
            s.rpn_deltas_weights,
            s.delta_clamp or math.inf,
        )
        finite = jnp.isfinite(boxes).all(-1) & jnp.isfinite(best)
        window = picture_window(s, image_hw)
        boxes = box_ops.clip_to(jnp.where(finite[:, None], boxes, 0.0), window)
        valid = finite & _is_as_large(boxes, s.rpn_min_size)
        if s.box_convention == "continuous":  # where the last pixel counts, no box is empty
            valid &= box_ops.is_nonempty(boxes)
        keep = nms(boxes, best, valid, s.rpn_nms_thresh)
        kept_boxes.append(boxes)
        kept_logits.append(jnp.where(keep, best, -jnp.inf))
        start = end
    boxes, logits = jnp.concatenate(kept_boxes), jnp.concatenate(kept_logits)
    logits, rows = jax.lax.top_k(logits, min(post_topk, len(logits)))
    return Proposals(boxes[rows], logits, jnp.isfinite(logits))


def picture_window(s: Settings, image_hw: Int[Array, "2"]) -> Float[Array, "4"]:
    """The box of a picture in the corner of its canvas, in the boxes of the heads."""
    height, width = image_hw
    zero = jnp.zeros_like(width)
    return to_convention(s, jnp.stack([zero, zero, width, height]).astype(jnp.float32))


def detect(
    s: Settings,
    proposals: Proposals,
    class_logits: Float[Array, "K C1"],
    class_deltas: Float[Array, "K C 4"],
    window: Float[Array, "4"],
) -> tuple[
    Float[Array, "D 4"], Float[Array, "D"], Int[Array, "D"], Bool[Array, "D"], Int[Array, ""]
]:
    """Scores, class-wise NMS and the best detections.

    window: where the picture lies, in the boxes of the heads; detections end there.
    Returns boxes, scores, classes, valid, best first, and how many candidates did not fit in.
    Source: Detectron2 `fast_rcnn_inference_single_image`; with `class_rule` "best" a proposal has
    one class, background among them, as in Matterport's `DetectionLayer`.
    """
    sound = proposals.valid & jnp.isfinite(class_logits).all(-1)
    probabilities = jax.nn.softmax(class_logits)
    return detect_scored(
        s, proposals.boxes, sound, probabilities, class_deltas, window, s.box_deltas_weights
    )


def detect_scored(
    s: Settings,
    rois: Float[Array, "K 4"],
    sound: Bool[Array, "K"],
    probabilities: Float[Array, "K C1"],
    class_deltas: Float[Array, "K C 4"],
    window: Float[Array, "4"],
    weights: tuple[float, float, float, float],
) -> tuple[
    Float[Array, "D 4"], Float[Array, "D"], Int[Array, "D"], Bool[Array, "D"], Int[Array, ""]
]:
    """As `detect`, from rois whose classes have a score already.

    sound: the rois that count. A class axis of length 1 in `class_deltas` means class-agnostic
    boxes. weights: of the deltas.
    """
    choose = {"all": _all_classes, "best": _best_class}[s.class_rule]
    best, rows, classes, num_dropped = choose(s, probabilities, sound)
    boxes = box_ops.decode_deltas(
        class_deltas[rows, jnp.minimum(classes, class_deltas.shape[1] - 1)],
        rois[rows],
        weights,
        s.delta_clamp or math.inf,
    )
    valid = (best > 0) & jnp.isfinite(boxes).all(-1)
    boxes = box_ops.clip_to(jnp.where(valid[:, None], boxes, 0.0), window)
    valid &= _is_as_large(boxes, s.box_min_size)
    return *merge(s, boxes, best, classes, valid), num_dropped


def merge(
    s: Settings,
    boxes: Float[Array, "M 4"],
    scores: Float[Array, "M"],
    classes: Int[Array, "M"],
    valid: Bool[Array, "M"],
) -> tuple[Float[Array, "D 4"], Float[Array, "D"], Int[Array, "D"], Bool[Array, "D"]]:
    """Class-wise NMS, and the max_detections best of what it keeps.

    Candidates of one view of a picture or of several, in the same frame, scores above 0 where
    valid. Returns boxes, scores, classes, valid, best first.
    """
    keep = nms(boxes, scores, valid, s.nms_thresh, classes)
    kept = jnp.where(keep, scores, -1.0)
    scores, final = jax.lax.top_k(kept, min(s.max_detections, len(kept)))
    valid = scores > 0
    return boxes[final], jnp.where(valid, scores, 0.0), classes[final], valid


def _all_classes(
    s: Settings, probabilities: Float[Array, "K C1"], sound: Bool[Array, "K"]
) -> tuple[Array, Array, Array, Array]:
    """Every pair of a roi and a class above the threshold, the best max_candidates of them."""
    scores = probabilities[:, :-1]
    candidate = (scores > s.score_thresh) & sound[:, None]
    flat = jnp.where(candidate, scores, -1.0).reshape(-1)
    best, index = jax.lax.top_k(flat, min(s.max_candidates, flat.size))
    rows, classes = index // scores.shape[1], (index % scores.shape[1]).astype(jnp.int32)
    num_dropped = jnp.maximum(candidate.sum() - len(best), 0).astype(jnp.int32)
    return best, rows, classes, num_dropped


def _best_class(
    s: Settings, probabilities: Float[Array, "K C1"], sound: Bool[Array, "K"]
) -> tuple[Array, Array, Array, Array]:
    """Each roi with its best class, unless that is background or below the threshold."""
    num_rois, background = len(probabilities), probabilities.shape[1] - 1
    classes = probabilities.argmax(-1).astype(jnp.int32)
    scores = probabilities.max(-1)
    candidate = (classes != background) & (scores >= s.score_thresh) & sound
    best = jnp.where(candidate, scores, -1.0)
    classes = jnp.where(candidate, classes, 0)
    return best, jnp.arange(num_rois), classes, jnp.zeros((), jnp.int32)


def _is_as_large(boxes: Float[Array, "n 4"], min_size: float) -> Bool[Array, "n"]:
    """Both sides are `min_size` or more. Source: torchvision `remove_small_boxes`."""
    return (boxes[:, 2:] - boxes[:, :2] >= min_size).all(-1)
