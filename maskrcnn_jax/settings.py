"""The numbers of a detector's recipe, as its functions read them."""

from dataclasses import MISSING, dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Settings:
    """The numbers of the recipe; each field is the config's `model` field of the same name.

    Those at the end, which have a default, follow from the parts of the model instead.
    """

    num_classes: int
    channel_order: str
    pixel_mean: tuple[float, ...]
    pixel_std: tuple[float, ...]
    anchor_sizes: tuple[float | int, ...]
    anchor_ratios: tuple[float | int, ...]
    anchor_offset: float
    anchor_rounding: bool
    anchor_strides: str
    pad_value: str
    box_convention: str
    rpn_iou_thresholds: tuple[float, float]
    rpn_batch_per_image: int
    rpn_positive_fraction: float
    rpn_deltas_weights: tuple[float, float, float, float]
    rpn_smooth_l1_beta: float
    rpn_loss_weight: float
    rpn_pre_nms_topk_train: int
    rpn_pre_nms_topk_test: int
    rpn_post_nms_topk_train: int
    rpn_post_nms_topk_test: int
    rpn_nms_thresh: float
    proposal_nms: str
    rpn_min_size: float
    roi_batch_per_image: int
    roi_positive_fraction: float
    roi_iou_thresh: float
    roi_pool: str
    roi_sampling_ratio: int
    roi_aligned: bool
    roi_level_eps: float
    box_pool_size: int
    box_deltas_weights: tuple[float, float, float, float]
    delta_clamp: float
    box_smooth_l1_beta: float
    box_loss_weight: float
    cascade_ious: tuple[float, ...]
    mask_pool_size: int
    mask_loss_weight: float
    keypoints: int
    keypoint_pool_size: int
    keypoint_loss_weight: float
    keypoint_loss_by_visible: bool
    class_rule: str
    score_thresh: float
    nms_thresh: float
    box_min_size: float
    max_candidates: int
    max_detections: int
    # Of the pyramid. Level p<l> has stride 2**l; one level alone carries every anchor size.
    strides: tuple[int, ...] = (4, 8, 16, 32, 64)  # of the levels with anchors, in pixels
    roi_levels: tuple[str, ...] = ("p2", "p3", "p4", "p5")  # that rois are pooled from
    size_divisor: int = 32  # the peers pad pictures to multiples of it
    roi_stride: int = 1  # of what pooled rois pass through in front of the heads


def level_anchor_sizes(s: Settings) -> tuple[tuple[float | int, ...], ...]:
    """The sizes of the anchors of each level."""
    if len(s.strides) == 1:
        return (s.anchor_sizes,)
    return tuple((size,) for size in s.anchor_sizes)


def anchors_per_cell(s: Settings) -> int:
    """Anchors at each cell of a level."""
    return len(level_anchor_sizes(s)[0]) * len(s.anchor_ratios)


def mask_size(s: Settings) -> int:
    """The side of predicted masks: twice what the mask head gets."""
    return 2 * s.mask_pool_size // s.roi_stride


def from_config(config: Any, num_classes: int, **structure: Any) -> Settings:
    """Settings of a config's `model` group; structure: the fields that follow from the parts."""
    names = [f.name for f in fields(Settings) if f.default is MISSING and f.name != "num_classes"]
    return Settings(num_classes, **{name: config[name] for name in names}, **structure)
