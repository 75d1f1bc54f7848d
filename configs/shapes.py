"""The embedded data set of generated shapes: a small model from scratch, on any machine.

    python main.py --config configs/shapes.py

Hardware: 2 CPU cores, 12 to 23 minutes with the installation. AP (of boxes and of masks) on
generated images that it has not seen: at least 0.60.
"""

from configs import common


def get_config():
    """Returns the config."""
    c = common.get_config()
    c.data.name = "shapes"
    c.data.shapes_train = 1600
    c.data.shapes_val = 100
    c.data.short = (160,)
    c.data.long = 192
    c.data.short_test = 160
    c.data.long_test = 192
    c.data.canvases = ((192, 192),)
    c.data.max_instances = 16
    c.data.mask_side = 56

    m = c.model
    m.depth = 18
    m.width = 32
    m.stride_in_1x1 = False
    m.norm = "batch"
    m.head_norm = "batch"
    m.freeze_at = 0
    m.fpn_channels = 64
    m.channel_order = "rgb"
    m.pixel_mean = (127.5, 127.5, 127.5)
    m.pixel_std = (64.0, 64.0, 64.0)
    m.anchor_sizes = (16.0, 32.0, 64.0, 96.0, 128.0)
    m.rpn_channels = 64
    m.rpn_batch_per_image = 128
    m.rpn_pre_nms_topk_train = 300
    m.rpn_pre_nms_topk_test = 300
    m.rpn_post_nms_topk_train = 200
    m.rpn_post_nms_topk_test = 100
    m.roi_batch_per_image = 48
    m.roi_positive_fraction = 0.34
    m.roi_sampling_ratio = 2
    m.box_fc_dim = 256
    m.mask_channels = 32
    m.max_candidates = 600
    m.max_detections = 50

    c.optim.name = "adamw"
    c.optim.base_lr = 3e-3
    c.optim.schedule = "cosine"
    c.optim.warmup_steps = 100
    c.optim.weight_decay = 1e-2
    c.optim.clip_norm = 10.0
    c.optim.ema_decay = 0.995

    c.train.num_steps = 1150
    c.train.batch_size = 8
    c.train.log_every = 20
    c.train.checkpoint_every = 115
    c.eval.every = 150
    c.eval.batch_size = 16
    return c
