"""Mask R-CNN R50-FPN with keypoints on COCO's persons, after Detectron2's keypoint_rcnn_R_50_FPN.

    python main.py --config configs/keypoints.py --workdir runs/keypoints \
        --config.data.train.annotations=COCO/annotations/person_keypoints_train2017.json \
        --config.data.train.images=COCO/train2017 \
        --config.data.val.annotations=COCO/annotations/person_keypoints_val2017.json \
        --config.data.val.images=COCO/val2017 \
        --config.init.checkpoint=BACKBONE --config.init.part=backbone

`--config.data.name=coco_2017` instead of the four paths downloads COCO. The 3x recipe adds
`--config.train.num_steps=270000 --config.optim.milestones=0.7777778,0.9259260`.

Hardware: eight GPUs of 16 GB, two images each. Hours, by the peer: 0.315 s a step on 8 V100, that
is 7.9 h (1x). Expected AP, by the peer's MODEL_ZOO: box 53.6, keypoints 64.0 (1x); box 55.4,
keypoints 65.5 (3x); ours are not measured yet. As there, the model has no masks;
`--config.model.mask_branch=fcn` adds them.
"""

from configs import common


def get_config():
    """Returns Detectron2's keypoint_rcnn_R_50_FPN_1x; common.py has the rest of it."""
    c = common.get_config()
    c.model.mask_branch = "none"
    c.model.keypoints = 17
    c.model.box_smooth_l1_beta = 0.5  # keypoint AP is lower with plain L1, by the peer
    c.model.rpn_post_nms_topk_train = 1500
    c.data.filter_empty = True
    c.data.min_keypoints = 1
    c.data.on_bad_image = "skip"  # COCO's own files hold a few boxes without area
    c.train.best_metric = "keypoints/AP"
    return c
