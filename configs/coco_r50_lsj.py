"""Mask R-CNN R50-FPN on COCO 2017 from random weights: large-scale jitter, 100 epochs.

    python main.py --config configs/coco_r50_lsj.py --workdir runs/coco_r50_lsj \
        --config.data.train.annotations=COCO/annotations/instances_train2017.json \
        --config.data.train.images=COCO/train2017 \
        --config.data.val.annotations=COCO/annotations/instances_val2017.json \
        --config.data.val.images=COCO/val2017

After Detectron2's mask_rcnn_R_50_FPN_100ep_LSJ. Like it: BatchNorm over the global batch in
backbone, FPN, box and mask heads, nothing frozen; two convolutions in the RPN's head, four
convolutions and one dense layer in the box head; jitter 0.1..2.0 onto a 1024 x 1024 crop; 184,375
steps of 64 images, learning rate 0.1, weight decay 4e-5, its milestones and warm-up; its
preprocessing (BGR, mean subtracted, not divided). Unlike it: bfloat16 in place of float16.

Hardware: 64 images of 1024 x 1024 a step, for example 32 GPUs with two each. Hours: the peer lists
0.376 as "train time (s/im)" without hours; ours are not measured yet. Expected AP, by the peer's
MODEL_ZOO: box 44.6, mask 40.3 (100 epochs).
"""

from configs import common


def get_config():
    """Returns the recipe for training from scratch."""
    c = common.get_config()
    c.model.norm = "batch"
    c.model.head_norm = "batch"
    c.model.freeze_at = 0
    c.model.rpn_convs = 2
    c.model.box_convs = 4
    c.model.box_fcs = 1
    c.model.dtype = "bfloat16"
    c.data.filter_empty = True
    c.data.on_bad_image = "skip"  # COCO's own files hold a few boxes without area
    c.data.lsj_scale = (0.1, 2.0)
    c.data.lsj_size = 1024
    c.optim.base_lr = 0.1
    c.optim.base_batch = 64
    c.optim.milestones = (163_889 / 184_375, 177_546 / 184_375)
    c.optim.warmup_steps = 500
    c.optim.warmup_factor = 0.067
    c.optim.weight_decay = 4e-5
    c.train.num_steps = 184_375
    c.train.batch_size = 64
    return c
