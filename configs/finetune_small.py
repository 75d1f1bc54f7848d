"""Fine-tuning on your own data on two CPU cores, without downloads: from a run on shapes.

    python main.py --config configs/shapes.py --workdir runs/shapes
    python main.py --config configs/finetune_small.py --workdir runs/mine \\
        --config.init.checkpoint=runs/shapes \\
        --config.data.train.annotations=mine_train.json --config.data.train.images=photos \\
        --config.data.val.annotations=mine_val.json --config.data.val.images=photos

The recipe of configs/finetune.py for the small model of configs/shapes.py and pictures of 256 px.
With a GPU and a download, weights that learnt from photographs are better: configs/finetune.py.

Hardware: 2 CPU cores, 13 minutes beside other work. Expected AP: it depends on the data. Measured:
12 photographs of fruit give mask AP 0.599 (AP50 0.800) on 6 others; 49 of damaged cars 0.006 on 13
others: dents need a backbone that has seen photographs.
"""

from configs import finetune, shapes


def get_config():
    """Returns the config."""
    c = finetune.get_config()
    c.model = m = shapes.get_config().model

    # Photographs have more objects than the pictures of shapes.
    m.roi_batch_per_image = 96
    m.rpn_post_nms_topk_train = 300
    m.rpn_post_nms_topk_test = 200
    m.max_candidates = 1000
    m.max_detections = 100

    # One canvas, one program.
    d = c.data
    d.short = (224, 256)
    d.long = 256
    d.short_test = 256
    d.long_test = 256
    d.canvases = ((256, 256),)

    # The shapes' recipe at a third of its rate. Their edges and colours are not those of
    # photographs: nothing is frozen for long, and all layers learn nearly alike.
    m.freeze_at = 0
    o = c.optim
    o.name = "adamw"
    o.base_lr = 1e-3
    o.base_batch = 4
    o.weight_decay = 1e-2
    o.stages = ((0.0, r"^(?!backbone/|shared_head/)"), (0.1, r".*"))
    o.layer_decay = 0.95

    c.train.batch_size = 4
    c.eval.batch_size = 4
    return c
