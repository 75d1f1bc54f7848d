"""Every field there is, with its default: Detectron2's Mask R-CNN R50-FPN 1x on COCO.

The other configs are short differences from this one. Fields that are `()` or `""` are unset.
Sizes are (height, width) or side lengths in pixels.
"""

import math

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """Returns the complete tree of fields."""
    c = ml_collections.ConfigDict()

    c.model = m = ml_collections.ConfigDict()
    # Backbone and neck.
    # "resnet"; or "vgg16", to which depth, groups, width_per_group, stride_in_1x1 and pool_padding
    # mean nothing.
    m.backbone = "resnet"
    # "fpn": P2..P6; or one level, for which fpn_channels means nothing: "c4": stride 16, with res5
    # as the heads' shared layers; "dc5": res5 dilated, stride 16; "single": C5 at stride 32, of
    # VGG conv5_3 at stride 16.
    m.neck = "fpn"
    m.depth = 50  # 10, 18, 34, 50, 101, 152
    m.width = 64  # channels of the stem; the stages scale with it
    m.groups = 1  # ResNeXt: 32
    m.width_per_group = 64  # ResNeXt 32x8d: 8
    m.stride_in_1x1 = True  # stage stride in the 1x1 conv (Detectron2's R50, R101) or in the 3x3
    m.pool_padding = "symmetric"  # of the stem's max-pool; "same": TensorFlow's (Matterport)
    # "frozen" affine, "batch" (statistics over the whole mesh), "group"; "none": VGG alone.
    m.norm = "frozen"
    # Freezes the stem (1), res2 (2), ... res5 (5); 0 freezes nothing. VGG: conv1 to conv5.
    m.freeze_at = 2
    m.fpn_channels = 256
    m.head_norm = "none"  # "none", "batch", "group": norm of the FPN and of the heads' convolutions
    # Input.
    m.channel_order = "bgr"  # what the weights expect; images are read as RGB
    m.pixel_mean = (103.53, 116.28, 123.675)  # in channel_order, of 0..255
    m.pixel_std = (1.0, 1.0, 1.0)
    m.pad_value = "mean"  # padding is 0 once normalised; "black": 0 before (Matterport)
    # Boxes the heads work on: far corners one beyond the last pixel, or on it ("last_pixel",
    # Matterport). Ground truth and detections are "continuous" everywhere else.
    m.box_convention = "continuous"
    # Anchors: one size per level P2..P6, or all on the only level; ratio = height / width.
    m.anchor_sizes = (32.0, 64.0, 128.0, 256.0, 512.0)
    m.anchor_ratios = (0.5, 1.0, 2.0)
    m.anchor_offset = 0.0  # of the first anchor's centre, in strides
    m.anchor_rounding = False  # corners of a cell's anchors to whole pixels (torchvision)
    m.anchor_strides = "nominal"  # 4 to 64; "fitted": side // grid of the level (torchvision)
    # Region proposal network.
    m.rpn_channels = 256
    m.rpn_convs = 1
    m.rpn_iou_thresholds = (0.3, 0.7)  # below: background; from: foreground; between: ignored
    m.rpn_batch_per_image = 256
    m.rpn_positive_fraction = 0.5
    m.rpn_deltas_weights = (1.0, 1.0, 1.0, 1.0)  # of dx, dy, dw, dh
    m.rpn_smooth_l1_beta = 0.0
    m.rpn_loss_weight = 1.0
    m.rpn_pre_nms_topk_train = 2000  # per level, or of all for proposal_nms "all"
    m.rpn_pre_nms_topk_test = 1000
    m.rpn_post_nms_topk_train = 1000  # over all levels
    m.rpn_post_nms_topk_test = 1000
    m.rpn_nms_thresh = 0.7
    m.proposal_nms = "level"  # top-k and NMS per level, or of "all" levels together (Matterport)
    m.rpn_min_size = 0.0  # least side of a proposal (torchvision: 0.001)
    # Region heads.
    m.roi_batch_per_image = 512
    m.roi_positive_fraction = 0.25
    m.roi_iou_thresh = 0.5
    # "align": ROIAlign, "align_max": the largest of its samples; "crop": single samples on a grid,
    # corners aligned (Matterport); "pool": RoIPool; "warp", "warp_max": RoIWarp, mean or maximum.
    # roi_sampling_ratio and roi_aligned are ROIAlign's, roi_level_eps means nothing to "crop".
    m.roi_pool = "align"
    m.roi_sampling_ratio = 0  # samples per bin and axis; 0: as many as the roi is large
    m.roi_aligned = True  # half-pixel correction; False: the legacy ROIAlign
    m.roi_level_eps = 0.0  # added to a roi's level before it is rounded down (torchvision: 1e-6)
    m.box_pool_size = 7  # "c4": 14, which res5 halves
    m.box_convs = 0  # 3x3 convolutions before the dense layers, of box_channels
    m.box_channels = 256
    m.box_fcs = 2  # "c4": 0, behind the mean of the roi
    m.box_fc_dim = 1024
    m.box_deltas_weights = (10.0, 10.0, 5.0, 5.0)
    m.delta_clamp = math.log(1000 / 16)  # upper bound of dw and dh; 0: none
    m.box_smooth_l1_beta = 0.0
    m.box_loss_weight = 1.0
    m.class_agnostic_boxes = False  # one box for all classes of a roi instead of one for each
    # Cascade R-CNN: least IoU of a foreground roi at each stage, (0.5, 0.6, 0.7); (): one stage.
    # Its boxes are class-agnostic; the deltas of stage k weigh k times box_deltas_weights.
    m.cascade_ious = ()
    # "fcn"; "mlp": dense layers (paper, table 2e); "none": no masks at all, Faster R-CNN.
    m.mask_branch = "fcn"
    m.mask_loss = "sigmoid"  # each class by itself; "softmax": classes compete (paper, table 2b)
    m.class_agnostic_masks = False  # one mask for all classes of a roi
    m.mask_pool_size = 14  # cells a side; a mask has twice as many: 7, 14, 28 give 14, 28, 56
    m.mask_channels = 256
    m.mask_convs = 4
    m.mask_fcs = 2  # of "mlp": dense layers before the one that makes the masks
    m.mask_fc_dim = 1024
    m.mask_loss_weight = 1.0
    # Keypoints of each object; COCO's persons have 17. 0: no keypoint head.
    m.keypoints = 0
    m.keypoint_pool_size = 14  # a quarter of the heatmaps' side
    m.keypoint_channels = 512
    m.keypoint_convs = 8
    m.keypoint_loss_weight = 1.0
    m.keypoint_loss_by_visible = True  # divided by the visible keypoints; False: by the slots
    # Detections.
    m.class_rule = "all"  # classes above score_thresh, or each roi's "best" alone (Matterport)
    m.score_thresh = 0.05
    m.nms_thresh = 0.5
    m.box_min_size = 0.0  # least side of a detection (torchvision: 0.01)
    m.max_candidates = 4000  # (roi, class) pairs that enter the last NMS
    m.max_detections = 100
    # Compute.
    m.dtype = "float32"  # of the convolutions and dense layers: "float32", "bfloat16"
    m.remat = False  # recompute the backbone's blocks in the backward pass: less memory, more time

    c.data = d = ml_collections.ConfigDict()
    # "coco": COCO JSON files; "coco_2017": downloaded; "shapes": generated; or a name that `module`
    # gives by maskrcnn_jax.data.register.
    d.name = "coco"
    d.module = ""  # "package.module" or a .py file, which is imported when the run begins
    for split in ("train", "val"):
        d[split] = s = ml_collections.ConfigDict()
        s.annotations = ""  # COCO JSON file
        s.images = ""  # folder of the pictures; several folders separated by ":" are searched
    d.cache_dir = ""  # of the prepared records; "": ~/.cache/maskrcnn_jax
    d.on_bad_image = "error"  # or "skip": bad files and objects without area are left out, counted
    d.filter_empty = False  # drop training images without objects (Detectron2's recipe does)
    # Of the box-frame bitmaps in the records; measured enough for masks of 56 x 56.
    d.mask_side = 112
    d.max_instances = 100  # G; more than these in one image are dropped at random, and counted
    # Resize: the shorter side to one of `short`, the longer one at most `long`.
    d.short = (640, 672, 704, 736, 768, 800)
    d.long = 1333
    d.short_test = 800
    d.long_test = 1333
    d.resize_rule = "pillow"  # of evaluation and prediction: "pillow" (Detectron2), "torchvision",
    # "matterport" (shorter side to short_test on a square of long_test)
    # Canvases, one compiled program each: () derives landscape, portrait and square from short and
    # long; images go to the smallest that holds them.
    d.canvases = ()
    d.flip = 0.5  # probability
    # Keypoints that change places in a flip, pairs counted from 0; () derives them from the names.
    d.keypoint_flip = ()
    # Drop training images with fewer labelled keypoints (Detectron2: 1); also without a head for
    # them, model.keypoints=0, as where models with and without one shall see the same pictures.
    d.min_keypoints = 0
    d.lsj_scale = ()  # (0.1, 2.0): large-scale jitter, replaces the resize by `short`
    d.lsj_size = 1024  # side of the canvas of large-scale jitter
    d.color_jitter = 0.0  # strength of brightness, contrast and saturation: factors 1 +- strength
    # More augmentation, all off. Fields without comment are probabilities per picture.
    d.flip_vertical = 0.0  # for pictures without an up and down: from above, of a microscope
    d.rotate90 = 0.0  # by 90, 180 or 270 degrees, each alike; a batch stands or lies as one
    d.crop = 0.0  # cut out a window; it keeps at least one object where there is one
    d.crop_range = (0.5, 1.0)  # its shares of height and width, each drawn from smallest to largest
    d.copy_paste = 0.0  # lay some objects of another picture over this one (arXiv 2012.07177)
    d.blur = 0.0
    d.blur_sigma = (0.3, 2.0)  # pixels of the resized picture, smallest and largest
    d.jpeg = 0.0  # write and read as JPEG
    d.jpeg_quality = (40, 95)  # 1 to 100, worst and best
    # Albumentations of your own, before all others: a list such as
    # [("ImageCompression", {"quality_range": (40, 90)}), ("RandomRain", {"p": 0.2})], as it stands
    # or as text, of Python or JSON; or the name of a file of that. In num_workers processes. Needs
    # the extra: pip install 'maskrcnn_jax[albumentations]'
    d.albumentations = ml_collections.FieldReference("", field_type=object)
    d.shapes_train = 512  # images that "shapes" generates
    d.shapes_val = 64
    d.limit = 0  # use the first n training images by id; 0: all
    d.num_workers = 0  # threads (and processes) of the input pipeline; 0: as many as cores
    d.prefetch = 2  # batches prepared ahead

    c.optim = o = ml_collections.ConfigDict()
    o.name = "sgd"  # "sgd", "adamw"
    o.base_lr = 0.02  # for a batch of base_batch images; scales with train.batch_size
    o.base_batch = 16
    o.schedule = "step"  # "step", "cosine", "constant"
    o.milestones = (2 / 3, 8 / 9)  # of "step", as fractions of train.num_steps
    o.gamma = 0.1
    o.warmup_steps = 1000
    o.warmup_factor = 0.001
    o.momentum = 0.9
    o.b2 = 0.999  # of adamw
    o.weight_decay = 1e-4
    # (pattern, factor): the first pattern found in a parameter's path decides.
    o.decay_rules = ((r"norm.*/(scale|bias)$", 0.0), (r".*", 1.0))
    o.lr_rules = ((r".*", 1.0),)  # factor 0 freezes
    # (fraction of the steps, pattern): a parameter is frozen before the first stage whose pattern
    # is found in its path; what no pattern finds stays frozen. The statistics of "batch" norms move
    # on all the same, but for freeze_at's.
    o.stages = ((0.0, r".*"),)
    # Rate factor per block of the backbone, counted from the FPN (1) down to the stem: with 0.9,
    # ResNet-50's last block learns at 0.9 of the rate and its stem at 0.9**17.
    o.layer_decay = 1.0
    o.clip_norm = 0.0  # global norm of the gradient; 0: no clipping
    o.ema_decay = 0.0  # 0: no average of the parameters; evaluation uses the average

    c.train = t = ml_collections.ConfigDict()
    t.num_steps = 90_000
    # Passes over the training images. When the run begins, they set num_steps, and bound
    # optim.warmup_steps, eval.every and checkpoint_every to a tenth of it; 0.0: all as they are.
    t.epochs = 0.0
    t.min_steps = 0  # the least that epochs set num_steps to
    t.batch_size = 16  # global, over all devices and hosts
    t.accumulate = 1  # micro-batches per step
    t.seed = 0
    t.log_every = 20
    t.checkpoint_every = 5_000
    t.keep_last = 2
    t.best_metric = "segm/AP"  # the best checkpoint by it is kept, too
    # Evaluations without a better best_metric before the run ends; 0: never, and training goes on
    # while an evaluation's precision is computed.
    t.early_stop = 0
    t.deterministic = False  # GPU: deterministic kernels, slower
    # Folder of compiled and traced programs; "": ~/.cache/maskrcnn_jax/jax; "none": none are kept.
    t.compile_cache = ""

    c.eval = e = ml_collections.ConfigDict()
    e.every = 0  # steps between evaluations during training; 0: only at the end
    e.at_start = False  # one before the first step, too: what the weights know already
    e.batch_size = 8
    e.mask_thresh = 0.5
    e.paste_rule = "detectron2"  # how masks come into the image: "detectron2", "torchvision",
    # "matterport"
    e.keypoint_sigmas = ()  # of COCO's OKS; (): COCO's for 17 keypoints, else 0.05 each
    # Test-time augmentation: the shorter sides that each picture is seen at, which then replace
    # data.short_test, as in (400,500,600,700,800,900,1000,1100,1200); (): off. What is found at all
    # sizes is merged by NMS, the masks of what stays are the mean over all sizes. Every evaluation
    # takes as many times as long, those during training, too (eval.every).
    e.tta_short = ()
    # The longer side is at most this (Detectron2: 4000). Canvases are derived as data.canvases ()
    # derives them, for each size.
    e.tta_long = 2000
    e.tta_flip = False  # at each of tta_short mirrored, too
    e.num_pictures = 8  # overlays, prediction beside ground truth
    e.picture_thresh = 0.5  # score from which a detection is drawn

    c.init = i = ml_collections.ConfigDict()
    # Folder of a run (its best or last checkpoint) or of one checkpoint; or a file of Detectron2,
    # torchvision, MMDetection or Matterport; or a name such as detectron2/mask_rcnn_R_50_FPN_3x.
    i.checkpoint = ""
    i.part = "model"  # what is taken of it: the whole "model", or its "backbone"
    i.use_preset = (
        True  # foreign weights bring their model fields, each printed; False: the config's
    )
    i.skip_heads = False  # leave class heads random where the weights have other classes
    # "strict": other classes are refused; "match": class heads are taken by the classes' names,
    # case ignored, new classes start at random; a run's model fields count as foreign ones do.
    i.heads = "strict"

    return c
