"""A small model for small real data on a CPU: photographs of 384 px, ResNet-18, from scratch.

    python main.py --config configs/tiny_real.py --workdir runs/tiny_real \\
        --config.data.train.annotations=train.json --config.data.train.images=train \\
        --config.data.val.annotations=val.json --config.data.val.images=val

Hardware: 2 CPU cores, about an hour. AP: what a hundred photographs teach from scratch; on the
photographs it has seen it is high, on others near 0.
"""

from configs import common, shapes


def get_config():
    """Returns the config."""
    c = common.get_config()
    c.model = shapes.get_config().model
    c.optim = shapes.get_config().optim

    d = c.data
    d.short = (288,)
    d.long = 384
    d.short_test = 288
    d.long_test = 384
    d.max_instances = 64
    d.mask_side = 112

    m = c.model
    m.anchor_sizes = (16.0, 32.0, 64.0, 128.0, 256.0)
    m.rpn_pre_nms_topk_train = 500
    m.rpn_pre_nms_topk_test = 500
    m.rpn_post_nms_topk_train = 300
    m.rpn_post_nms_topk_test = 300
    m.roi_batch_per_image = 96
    m.max_candidates = 1000
    m.max_detections = 100

    c.train.num_steps = 1500
    c.train.batch_size = 8
    c.train.checkpoint_every = 250
    c.eval.every = 500
    return c
