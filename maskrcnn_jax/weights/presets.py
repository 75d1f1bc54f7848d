"""The conventions of each checkpoint family: what its weights expect of the model around them.

PRESETS[name] is {"model": every `model` field of configs/common.py, "data": the test sizes and the
resize rule, "eval": how masks are pasted}. What the tensors themselves tell (depth, width, groups)
stands in `layout.Spec.model` and comes on top.
"""

import math
from typing import Any

# torchvision's and MMDetection's normalisation, of 0..255, RGB.
_RGB = {
    "channel_order": "rgb",
    "pixel_mean": (123.675, 116.28, 103.53),
    "pixel_std": (58.395, 57.12, 57.375),
}

# Detectron2's configs/Base-RCNN-FPN.yaml with masks: COCO-InstanceSegmentation/mask_rcnn_R_50_FPN.
_DETECTRON2 = {
    "backbone": "resnet",
    "neck": "fpn",
    "depth": 50,
    "width": 64,
    "groups": 1,
    "width_per_group": 64,
    "stride_in_1x1": True,
    "pool_padding": "symmetric",
    "norm": "frozen",
    "freeze_at": 2,
    "fpn_channels": 256,
    "head_norm": "none",
    "channel_order": "bgr",
    "pixel_mean": (103.53, 116.28, 123.675),
    "pixel_std": (1.0, 1.0, 1.0),
    "pad_value": "mean",
    "box_convention": "continuous",
    "anchor_sizes": (32.0, 64.0, 128.0, 256.0, 512.0),
    "anchor_ratios": (0.5, 1.0, 2.0),
    "anchor_offset": 0.0,
    "anchor_rounding": False,
    "anchor_strides": "nominal",
    "rpn_channels": 256,
    "rpn_convs": 1,
    "rpn_iou_thresholds": (0.3, 0.7),
    "rpn_batch_per_image": 256,
    "rpn_positive_fraction": 0.5,
    "rpn_deltas_weights": (1.0, 1.0, 1.0, 1.0),
    "rpn_smooth_l1_beta": 0.0,
    "rpn_loss_weight": 1.0,
    "rpn_pre_nms_topk_train": 2000,
    "rpn_pre_nms_topk_test": 1000,
    "rpn_post_nms_topk_train": 1000,
    "rpn_post_nms_topk_test": 1000,
    "rpn_nms_thresh": 0.7,
    "proposal_nms": "level",
    "rpn_min_size": 0.0,
    "roi_batch_per_image": 512,
    "roi_positive_fraction": 0.25,
    "roi_iou_thresh": 0.5,
    "roi_pool": "align",
    "roi_sampling_ratio": 0,
    "roi_aligned": True,
    "roi_level_eps": 0.0,
    "box_pool_size": 7,
    "box_convs": 0,
    "box_channels": 256,
    "box_fcs": 2,
    "box_fc_dim": 1024,
    "box_deltas_weights": (10.0, 10.0, 5.0, 5.0),
    "delta_clamp": math.log(1000 / 16),
    "box_smooth_l1_beta": 0.0,
    "box_loss_weight": 1.0,
    "class_agnostic_boxes": False,
    "cascade_ious": (),
    "mask_branch": "fcn",
    "mask_loss": "sigmoid",
    "class_agnostic_masks": False,
    "mask_pool_size": 14,
    "mask_channels": 256,
    "mask_convs": 4,
    "mask_fcs": 2,
    "mask_fc_dim": 1024,
    "mask_loss_weight": 1.0,
    "keypoints": 0,
    "keypoint_pool_size": 14,
    "keypoint_channels": 512,
    "keypoint_convs": 8,
    "keypoint_loss_weight": 1.0,
    "keypoint_loss_by_visible": True,
    "class_rule": "all",
    "score_thresh": 0.05,
    "nms_thresh": 0.5,
    "box_min_size": 0.0,
    "max_candidates": 4000,
    "max_detections": 100,
    "dtype": "float32",
    "remat": False,
}

# Its ResNeXt came from another trainer than its ResNets.
_DETECTRON2_X101 = _DETECTRON2 | {
    "depth": 101,
    "groups": 32,
    "width_per_group": 8,
    "stride_in_1x1": False,
    "pixel_std": (57.375, 57.12, 58.395),
}

# configs/Base-RCNN-C4.yaml and Base-RCNN-DilatedC5.yaml: one level, and RPN.* as in its defaults.
_ONE_LEVEL = {
    "rpn_pre_nms_topk_train": 12000,
    "rpn_pre_nms_topk_test": 6000,
    "rpn_post_nms_topk_train": 2000,
}
_DETECTRON2_DC5 = _DETECTRON2 | _ONE_LEVEL | {"neck": "dc5", "rpn_channels": 2048}
_DETECTRON2_C4 = (
    _DETECTRON2
    | _ONE_LEVEL
    | {"neck": "c4", "rpn_channels": 1024, "box_pool_size": 14, "box_fcs": 0, "mask_convs": 0}
)

_TORCHVISION_V1 = (
    _DETECTRON2
    | _RGB
    | {
        "stride_in_1x1": False,
        "anchor_rounding": True,
        "anchor_strides": "fitted",
        "rpn_smooth_l1_beta": 1 / 9,
        "rpn_post_nms_topk_train": 2000,
        "rpn_min_size": 1e-3,
        "roi_sampling_ratio": 2,
        "roi_aligned": False,
        "roi_level_eps": 1e-6,
        "box_smooth_l1_beta": 1 / 9,
        "box_min_size": 1e-2,
    }
)
_TORCHVISION_V2 = _TORCHVISION_V1 | {"rpn_convs": 2, "box_convs": 4, "box_fcs": 1}

# mask_rcnn_r50_fpn_*_coco: its caffe style is Detectron2's input and stride.
_MMDETECTION_CAFFE = _DETECTRON2 | {"rpn_post_nms_topk_train": 1000, "roi_level_eps": 1e-6}
_MMDETECTION_PYTORCH = _MMDETECTION_CAFFE | _RGB | {"stride_in_1x1": False}

_DETECTRON2_TEST = {
    "data": {"short_test": 800, "long_test": 1333, "resize_rule": "pillow"},
    "eval": {"paste_rule": "detectron2", "mask_thresh": 0.5},
}
_TORCHVISION_TEST = {
    "data": {"short_test": 800, "long_test": 1333, "resize_rule": "torchvision"},
    "eval": {"paste_rule": "torchvision", "mask_thresh": 0.5},
}

# mrcnn/config.py and mrcnn/model.py as they were at the last public version.
_MATTERPORT = _DETECTRON2 | {
    "pool_padding": "same",
    "channel_order": "rgb",
    "pixel_mean": (123.7, 116.8, 103.9),
    "pad_value": "black",
    "box_convention": "last_pixel",
    "anchor_ratios": (2.0, 1.0, 0.5),
    "rpn_channels": 512,
    "rpn_deltas_weights": (10.0, 10.0, 5.0, 5.0),
    "rpn_smooth_l1_beta": 1.0,
    "rpn_pre_nms_topk_train": 6000,
    "rpn_pre_nms_topk_test": 6000,
    "rpn_post_nms_topk_train": 2000,
    "proposal_nms": "all",
    "roi_batch_per_image": 200,
    "roi_positive_fraction": 0.33,
    "roi_pool": "crop",
    "delta_clamp": 0.0,
    "box_smooth_l1_beta": 1.0,
    "class_rule": "best",
    "score_thresh": 0.7,
    "nms_thresh": 0.3,
}
_MATTERPORT_TEST = {
    "data": {"short_test": 800, "long_test": 1024, "resize_rule": "matterport"},
    "eval": {"paste_rule": "matterport", "mask_thresh": 0.5},
}

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "detectron2": {"model": _DETECTRON2, **_DETECTRON2_TEST},
    "detectron2_x101": {"model": _DETECTRON2_X101, **_DETECTRON2_TEST},
    "detectron2_c4": {"model": _DETECTRON2_C4, **_DETECTRON2_TEST},
    "detectron2_dc5": {"model": _DETECTRON2_DC5, **_DETECTRON2_TEST},
    "torchvision_v1": {"model": _TORCHVISION_V1, **_TORCHVISION_TEST},
    "torchvision_v2": {"model": _TORCHVISION_V2, **_TORCHVISION_TEST},
    # Detectron2's recipes on torchvision's ImageNet ResNets: theirs are the stem's input and the
    # place of the stride, all else is the detector's own.
    "resnet_rgb": {"model": _DETECTRON2 | _RGB | {"stride_in_1x1": False}, **_DETECTRON2_TEST},
    "mmdetection_caffe": {"model": _MMDETECTION_CAFFE, **_DETECTRON2_TEST},
    "mmdetection_pytorch": {"model": _MMDETECTION_PYTORCH, **_DETECTRON2_TEST},
    "matterport": {"model": _MATTERPORT, **_MATTERPORT_TEST},
}

# What a bare backbone brings; the rest of the model is the config's.
BACKBONE_FIELDS = (
    "backbone",
    "depth",
    "width",
    "groups",
    "width_per_group",
    "stride_in_1x1",
    "pool_padding",
    "norm",
    "channel_order",
    "pixel_mean",
    "pixel_std",
)

# What a training run chooses for itself, whatever weights it starts from.
TRAINING_FIELDS = (
    "freeze_at",
    "rpn_iou_thresholds",
    "rpn_batch_per_image",
    "rpn_positive_fraction",
    "rpn_smooth_l1_beta",
    "rpn_loss_weight",
    "rpn_pre_nms_topk_train",
    "rpn_pre_nms_topk_test",
    "rpn_post_nms_topk_train",
    "rpn_post_nms_topk_test",
    "rpn_nms_thresh",
    "proposal_nms",
    "roi_batch_per_image",
    "roi_positive_fraction",
    "roi_iou_thresh",
    "box_smooth_l1_beta",
    "box_loss_weight",
    "mask_loss_weight",
    "keypoints",
    "keypoint_pool_size",
    "keypoint_channels",
    "keypoint_convs",
    "keypoint_loss_weight",
    "keypoint_loss_by_visible",
    "class_rule",
    "score_thresh",
    "nms_thresh",
    "max_candidates",
    "max_detections",
    "dtype",
    "remat",
)
