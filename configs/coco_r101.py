"""Mask R-CNN R101-FPN on COCO 2017, Detectron2's 3x recipe (270k steps of 16 images).

    python main.py --config configs/coco_r101.py --workdir runs/coco_r101 \
        --config.data.train.annotations=COCO/annotations/instances_train2017.json \
        --config.data.train.images=COCO/train2017 \
        --config.data.val.annotations=COCO/annotations/instances_val2017.json \
        --config.data.val.images=COCO/val2017 \
        --config.init.checkpoint=BACKBONE

The 1x schedule is `--config.train.num_steps=90000 --config.optim.milestones=0.66667,0.88889`.

Hardware: eight GPUs of 16 GB, two images each. Hours, by the peer: 0.340 s a step on 8 V100, that
is 25.5 h. Expected AP, by the peer, from a backbone trained on ImageNet: box 42.9, mask 38.6.
The peer's figures are those of Detectron2's MODEL_ZOO; ours are not measured yet.
"""

from configs import coco_r50


def get_config():
    """Returns Detectron2's mask_rcnn_R_101_FPN_3x."""
    c = coco_r50.get_config()
    c.model.depth = 101
    c.optim.milestones = (210 / 270, 250 / 270)
    c.train.num_steps = 270_000
    return c
