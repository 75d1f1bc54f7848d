"""Config fields that go together: trunks with one level of features, backbones, keypoints."""

# Stride 16, res5 as the heads' shared layers, masks of 14 x 14; the numbers are Detectron2's.
C4 = {
    "model.neck": "c4",
    "model.rpn_channels": 1024,
    "model.rpn_pre_nms_topk_train": 12_000,
    "model.rpn_pre_nms_topk_test": 6000,
    "model.rpn_post_nms_topk_train": 2000,
    "model.box_pool_size": 14,
    "model.box_fcs": 0,
    "model.mask_convs": 0,
}

# Stride 32, heads as behind the FPN.
C5 = {"model.neck": "single"}

# ImageNet's ResNets; the weights are Detectron2's.
R101 = {"model.depth": 101, "init.checkpoint": "detectron2/R-101"}
X101 = {
    "model.depth": 101,
    "model.groups": 32,
    "model.width_per_group": 8,
    "model.stride_in_1x1": False,
    "model.pixel_std": (57.375, 57.12, 58.395),
    "init.checkpoint": "detectron2/X-101-32x8d",
}

# The keypoint head of COCO's persons; Detectron2's recipe.
KEYPOINTS = {
    "model.keypoints": 17,
    "model.keypoint_channels": 512,
    "model.keypoint_convs": 8,
    "model.box_smooth_l1_beta": 0.5,
    "model.rpn_post_nms_topk_train": 1500,
    "data.min_keypoints": 1,
}
