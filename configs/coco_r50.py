"""Mask R-CNN R50-FPN on COCO 2017, Detectron2's 1x recipe (90k steps of 16 images).

    python main.py --config configs/coco_r50.py --workdir runs/coco_r50 \
        --config.data.train.annotations=COCO/annotations/instances_train2017.json \
        --config.data.train.images=COCO/train2017 \
        --config.data.val.annotations=COCO/annotations/instances_val2017.json \
        --config.data.val.images=COCO/val2017 \
        --config.init.checkpoint=BACKBONE

`--config.data.name=coco_2017` instead of the four paths downloads COCO. The 3x recipe adds
`--config.train.num_steps=270000 --config.optim.milestones=0.7777778,0.9259260` (steps 210k, 250k).

Hardware: eight GPUs of 16 GB, two images each. Hours, by the peer: 0.261 s a step on 8 V100, that
is 6.5 h (1x) and 19.6 h (3x). Expected AP, by the peer, from a backbone trained on ImageNet:
box 38.6, mask 35.2 (1x); box 41.0, mask 37.2 (3x). The peer's figures are those of Detectron2's
MODEL_ZOO; ours are not measured yet. From random weights the frozen norm of this recipe does not
train well: see coco_r50_lsj.py for training from scratch.
"""

from configs import common


def get_config():
    """Returns Detectron2's mask_rcnn_R_50_FPN_1x; common.py has the rest of it."""
    c = common.get_config()
    c.data.filter_empty = True
    c.data.on_bad_image = "skip"  # COCO's own files hold a few boxes without area
    return c
