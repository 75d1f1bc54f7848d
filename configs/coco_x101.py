"""Mask R-CNN ResNeXt-101-32x8d-FPN on COCO 2017, Detectron2's 3x recipe.

    python main.py --config configs/coco_x101.py --workdir runs/coco_x101 \
        --config.data.train.annotations=COCO/annotations/instances_train2017.json \
        --config.data.train.images=COCO/train2017 \
        --config.data.val.annotations=COCO/annotations/instances_val2017.json \
        --config.data.val.images=COCO/val2017 \
        --config.init.checkpoint=BACKBONE

Unlike the R101 its backbone came from another trainer: stride in the 3x3 convolution, and pixels
divided by their standard deviation.

Hardware: eight GPUs of 16 GB, two images each. Hours, by the peer: 0.690 s a step on 8 V100, that
is 51.8 h. Expected AP, by the peer, from a backbone trained on ImageNet: box 44.3, mask 39.5.
The peer's figures are those of Detectron2's MODEL_ZOO; ours are not measured yet.
"""

from configs import coco_r101


def get_config():
    """Returns Detectron2's mask_rcnn_X_101_32x8d_FPN_3x."""
    c = coco_r101.get_config()
    c.model.groups = 32
    c.model.width_per_group = 8
    c.model.stride_in_1x1 = False
    c.model.pixel_std = (57.375, 57.12, 58.395)
    return c
