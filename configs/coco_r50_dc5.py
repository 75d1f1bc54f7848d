"""Mask R-CNN ResNet-50-DC5 on COCO 2017, Detectron2's 1x recipe: res5
dilated, one level.

    python main.py --config configs/coco_r50_dc5.py --workdir runs/coco_r50_dc5 \
        --config.data.train.annotations=COCO/annotations/instances_train2017.json \
        --config.data.train.images=COCO/train2017 \
        --config.data.val.annotations=COCO/annotations/instances_val2017.json \
        --config.data.val.images=COCO/val2017 \
        --config.init.checkpoint=BACKBONE

Hardware: eight GPUs of 16 GB, two images each. Hours, by the peer: 0.471 s a step on 8 V100, that
is 11.8 h. Expected AP, by the peer, from a backbone trained on ImageNet: box 38.3, mask 34.2.
The peer's figures are those of Detectron2's MODEL_ZOO; ours are not measured yet.
"""

from configs import common


def get_config():
    """Returns Detectron2's mask_rcnn_R_50_DC5_1x."""
    c = common.get_config()
    c.data.filter_empty = True
    c.data.on_bad_image = "skip"  # COCO's own files hold a few boxes without area
    m = c.model
    m.neck = "dc5"
    m.rpn_channels = 2048
    m.rpn_pre_nms_topk_train = 12_000
    m.rpn_pre_nms_topk_test = 6000
    m.rpn_post_nms_topk_train = 2000
    return c
