"""Cascade Mask R-CNN R50-FPN on COCO 2017, Detectron2's 3x recipe (270k steps of 16 images).

    python main.py --config configs/coco_cascade_r50.py --workdir runs/coco_cascade_r50 \
        --config.data.train.annotations=COCO/annotations/instances_train2017.json \
        --config.data.train.images=COCO/train2017 \
        --config.data.val.annotations=COCO/annotations/instances_val2017.json \
        --config.data.val.images=COCO/val2017 \
        --config.init.checkpoint=BACKBONE

The 1x schedule is `--config.train.num_steps=90000 --config.optim.milestones=0.66667,0.88889`.

Hardware: eight GPUs of 16 GB, two images each. Hours, by the peer: 0.328 s a step on 8 V100, that
is 24.6 h. Expected AP, by the peer, from a backbone trained on ImageNet: box 44.3, mask 38.5
(1x: 42.1, 36.4). The peer's figures are those of Detectron2's MODEL_ZOO; ours are not measured yet.
"""

from configs import coco_r50


def get_config():
    """Returns Detectron2's cascade_mask_rcnn_R_50_FPN_3x."""
    c = coco_r50.get_config()
    c.model.cascade_ious = (0.5, 0.6, 0.7)
    c.model.class_agnostic_boxes = True
    c.model.rpn_post_nms_topk_train = 2000
    c.optim.milestones = (210 / 270, 250 / 270)
    c.train.num_steps = 270_000
    return c
