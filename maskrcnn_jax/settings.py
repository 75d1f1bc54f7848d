"""The numbers of a detector's recipe, as its functions read them."""

from dataclasses import dataclass

STRIDES = (4, 8, 16, 32, 64)  # of P2..P6, in pixels


@dataclass(frozen=True)
class Settings:
    """The numbers of the recipe; each field is the config's `model` field of the same name."""

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
