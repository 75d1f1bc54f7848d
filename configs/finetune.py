"""Fine-tuning on your own data: a hundred photographs, from weights that know objects already.

    python main.py --config configs/finetune.py --workdir runs/mine \\
        --config.init.checkpoint=detectron2/mask_rcnn_R_50_FPN_3x \\
        --config.data.train.annotations=mine_train.json --config.data.train.images=photos \\
        --config.data.val.annotations=mine_val.json --config.data.val.images=photos

`maskrcnn convert` makes the two JSON files, docs/your_data.md tells how. These fields are all that
it needs; the rest is derived, and printed when the run begins: the number of classes and of steps
from the data, the model's fields from the weights. The weights are another program's file, a name
as above, or a run of yours, of whatever classes.

Hardware: one GPU of 8 GB, minutes; two CPU cores take some seconds a step: give it
--config.data.short=(320,) --config.data.long=512 --config.data.short_test=320
--config.data.long_test=512. Expected AP: it depends on the data; none is measured yet.
"""

from configs import common


def get_config():
    """Returns the config."""
    c = common.get_config()

    # Backbone, FPN, RPN and the heads' inner layers are loaded. The last layers know classes: a
    # class of yours that the weights have by name ("Traffic light" is traffic_light) starts from
    # its rows, others at random, and what is background stays learnt. A table tells which.
    c.init.heads = "match"

    # The stem and res2 know edges and colours, which a hundred photographs can only spoil; the
    # norms stay as the backbone learnt them.
    c.model.freeze_at = 2
    c.model.norm = "frozen"

    # Sizes at which objects of a fifth of the picture are well seen, with some jitter of scale.
    d = c.data
    d.short = (480, 544, 608, 640)
    d.long = 1024
    d.short_test = 640
    d.long_test = 1024
    d.color_jitter = 0.2  # other light, other camera
    d.flip = 0.5  # 0 where left and right mean something, as in writing

    # Small steps: what was learnt from 118,000 pictures is to be bent, not forgotten. The rate
    # holds for 2 pictures and scales with train.batch_size.
    o = c.optim
    o.base_lr = 0.0025
    o.base_batch = 2
    o.schedule = "cosine"
    o.warmup_steps = 100
    o.clip_norm = 10.0  # random heads give large gradients at first

    # Random heads would pull the backbone to and fro before they know what they want: at first
    # everything but the backbone learns, then its last two stages, too, then all above freeze_at
    # (of C4, shared_head is the last stage). And the nearer a block is to the image, the more
    # general is what it knows and the slower it learns: ResNet-50's last block at 0.85 of the rate,
    # res4's first at 0.85**9 = 0.23.
    o.stages = (
        (0.0, r"^(?!backbone/|shared_head/)"),
        (0.15, r"^(backbone|shared_head)/(res|conv)[45]"),
        (0.4, r".*"),
    )
    o.layer_decay = 0.85

    # Each picture is seen 30 times, and a small set more often: 500 steps at least. By that come
    # warmup_steps, eval.every and checkpoint_every: as here, but never more than a tenth of the
    # run, so that a short one is evaluated ten times, too. The best evaluation is kept. To choose
    # the steps by number: --config.train.epochs=0 --config.train.num_steps=2000
    t = c.train
    t.epochs = 30.0
    t.min_steps = 500
    t.batch_size = 2
    t.checkpoint_every = 1000
    c.eval.every = 2000
    c.eval.batch_size = 2
    return c
