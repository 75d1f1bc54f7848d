"""Fine-tuning on your own data: a hundred photographs, from weights that know objects already.

    python main.py --config configs/finetune.py --workdir runs/mine \\
        --config.init.checkpoint=detectron2/mask_rcnn_R_50_FPN_3x \\
        --config.data.train.annotations=mine_train.json --config.data.train.images=photos \\
        --config.data.val.annotations=mine_val.json --config.data.val.images=photos

`maskrcnn convert` makes the two JSON files, docs/your_data.md tells how. The number of classes
comes from the data, the model's conventions from the weights; backbone, FPN and RPN are loaded,
class heads of other classes start at random and are listed. A run of yours may be the checkpoint,
too, if it has the same classes.

Hardware: one GPU of 8 GB, minutes; two CPU cores take some seconds a step: give it
--config.data.short=(320,) --config.data.long=512 --config.data.short_test=320
--config.data.long_test=512. Expected AP: it depends on the data; none is measured yet.
"""

from configs import common


def get_config():
    """Returns the config."""
    c = common.get_config()

    # Weights of any family; heads for other classes than theirs start at random.
    c.init.skip_heads = True

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
    # holds for 2 pictures and scales with train.batch_size; the backbone moves at a tenth of it.
    o = c.optim
    o.base_lr = 0.0025
    o.base_batch = 2
    o.schedule = "cosine"
    o.warmup_steps = 100
    o.lr_rules = ((r"^backbone/", 0.1), (r".*", 1.0))
    o.clip_norm = 10.0  # random heads give large gradients at first

    # A hundred photographs are seen 30 times; the best evaluation is kept.
    t = c.train
    t.num_steps = 1500
    t.batch_size = 2
    t.checkpoint_every = 250
    c.eval.every = 250
    c.eval.batch_size = 2
    return c
