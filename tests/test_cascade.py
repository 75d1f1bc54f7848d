"""The stages of the cascade, each against NumPy: its rois, losses, gradients and mean scores."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_model
from scipy.special import log_softmax, softmax

from configs import coco_cascade_r50
from maskrcnn_jax.models import cascade, families, mask_rcnn
from maskrcnn_jax.targets import box_targets
from maskrcnn_jax.types import Proposals, Samples

HEIGHT, WIDTH = tiny_model.CANVAS
IOUS = (0.5, 0.6, 0.7)
WEIGHTS = [np.array([w, w, w / 2, w / 2]) for w in (10.0, 20.0, 30.0)]
CLASSES = tiny_model.CLASSES


def pool(levels, rois, size):
    """In place of ROIAlign, as it takes long to compile: waves over the roi, of the level's mean.

    Differentiable in features and rois, so that a gradient that passes the boxes would show.
    """
    steps = jnp.linspace(0.0, 1.0, size)
    x, y = (
        rois[..., i, None] + steps * (rois[..., i + 2] - rois[..., i])[..., None] for i in (0, 1)
    )
    waves = jnp.sin(x / 5)[:, :, None] + jnp.cos(y / 7)[..., None]
    return waves[..., None] * levels["p3"].mean((1, 2))[:, None, None, None] * 5


@pytest.fixture(scope="module")
def parts():
    """A cascade that keeps all that it finds, its variables, and a pyramid of noise."""
    everything = {"score_thresh": 0.0, "nms_thresh": 1.0, "max_detections": 60}
    fields = {"cascade_ious": IOUS, "class_agnostic_boxes": True, **everything}
    model = tiny_model.model(**fields).clone(pool=pool)
    variables = tiny_model.variables(model)
    rng = np.random.default_rng(0)
    pyramid = {
        f"p{level}": jnp.asarray(
            rng.normal(size=(2, HEIGHT >> level, WIDTH >> level, 16)), jnp.float32
        )
        for level in (2, 3, 4, 5)
    }
    return model, variables, pyramid


@pytest.fixture(scope="module")
def heads(parts):
    """The heads alone: (stage, rois) -> logits, deltas, in float64."""
    model, variables, pyramid = parts

    @jax.jit
    def run(rois):
        return [
            model.apply(variables, pyramid, r, False, method=lambda m, *a, k=k: m.stage(k, *a))
            for k, r in enumerate(rois)
        ]

    def head(stage, rois):
        rois = jnp.broadcast_to(jnp.asarray(rois, jnp.float32), (3, *rois.shape))
        return (np.asarray(x, np.float64) for x in run(rois)[stage])

    return head


def moved(rois, deltas, weights):
    """Boxes by the definition of the deltas, inside a picture of the canvas less 8 columns."""
    x0, y0, x1, y1 = np.moveaxis(rois.astype(np.float64), -1, 0)
    dx, dy, dw, dh = np.moveaxis(deltas / weights, -1, 0)
    width, height = x1 - x0, y1 - y0
    x, y = (x0 + x1) / 2 + dx * width, (y0 + y1) / 2 + dy * height
    width, height = width * np.exp(dw), height * np.exp(dh)
    x0, x1 = (np.clip(v, 0, WIDTH - 8) for v in (x - width / 2, x + width / 2))
    y0, y1 = (np.clip(v, 0, HEIGHT) for v in (y - height / 2, y + height / 2))
    return np.stack([x0, y0, x1, y1], -1)


def iou(a, b):
    sides = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None)
    areas = [(x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)]
    return sides.prod() / (sum(areas) - sides.prod())


def test_parameters_are_detectron2s():
    """cascade_mask_rcnn_R_50_FPN: the trunk and the masks of its mask_rcnn_R_50_FPN (44 396 336
    numbers without running statistics), whose box head (14 306 705) is replaced by three of
    class-agnostic boxes: 12544 x 1024, 1024 x 1024, 1024 x 81, 1024 x 4, each with its biases."""
    stage = 12545 * 1024 + 1025 * 1024 + 1025 * 81 + 1025 * 4
    total = 44_396_336 - (stage + 1025 * 4 * 79) + 3 * stage
    assert total == 72_038_046
    model = families.build(coco_cascade_r50.get_config().model, 80)
    images, hw = jnp.zeros((1, 64, 64, 3), jnp.uint8), jnp.full((1, 2), 64)
    tree = jax.eval_shape(model.init, jax.random.key(0), images, hw)
    assert sum(leaf.size for leaf in jax.tree.leaves(tree)) == total
    assert {"box_head_0", "box_head_1", "box_head_2"} <= set(tree["params"])


def test_prediction_takes_the_last_boxes_and_the_mean_scores(parts, heads):
    model, variables, pyramid = parts
    rng = np.random.default_rng(1)
    corner = rng.uniform(0, [WIDTH - 50, HEIGHT - 40], (2, 8, 2))
    rois = np.concatenate([corner, corner + rng.uniform(8, 40, (2, 8, 2))], -1)
    proposals = Proposals(
        jnp.asarray(rois, jnp.float32), jnp.zeros((2, 8)), jnp.arange(8)[None].repeat(2, 0) < 7
    )
    window = jnp.broadcast_to(jnp.array([0.0, 0, WIDTH - 8, HEIGHT]), (2, 4))
    predict = jax.jit(lambda v, p: cascade.predict_boxes(model, v, p, proposals, window, None))
    boxes, scores, classes, valid, dropped = (np.asarray(x) for x in predict(variables, pyramid))

    shares = []
    for stage, weights in enumerate(WEIGHTS):
        logits, deltas = heads(stage, rois)
        shares.append(softmax(logits, -1)[..., :CLASSES])
        rois = moved(rois, deltas, weights)
    expected = np.mean(shares, 0)
    assert valid.sum() == 2 * 7 * CLASSES and not dropped.any()
    for b in range(2):
        order = np.argsort(-expected[b, :7].ravel())
        np.testing.assert_allclose(scores[b][valid[b]], expected[b].ravel()[order], rtol=1e-4)
        np.testing.assert_array_equal(classes[b][valid[b]], order % CLASSES)
        np.testing.assert_allclose(boxes[b][valid[b]], rois[b][order // CLASSES], atol=1e-3)


@pytest.fixture(scope="module")
def sampled():
    """Rois around the ground truth, some near, some far; two are padding."""
    batch = jax.tree.map(jnp.asarray, tiny_model.batch(2))
    rng = np.random.default_rng(2)
    matched = rng.integers(0, 4, (2, 12))
    near = np.take_along_axis(np.asarray(batch.gt_boxes), matched[..., None], 1)
    shift = rng.uniform(-1, 1, near.shape) * np.linspace(0, 9, 12)[:, None]
    rois = jnp.asarray(near + shift, jnp.float32)
    valid = jnp.arange(12)[None].repeat(2, 0) < 10
    overlap = [[iou(a, b) for a, b in zip(*pair, strict=True)] for pair in zip(rois, near)]  # noqa: B905
    fg = jnp.asarray(np.array(overlap) >= 0.5) & valid
    own = jnp.take_along_axis(batch.gt_classes, jnp.asarray(matched), 1)
    samples = Samples(rois, jnp.where(fg, own, CLASSES), jnp.asarray(matched), fg, valid)
    return batch, samples


def train(parts, samples, batch):
    """(params, pyramid) -> terms, notes of the training branch."""
    model, variables, _ = parts
    goals = jax.vmap(lambda s, gt: box_targets(s, gt, tuple(WEIGHTS[0].tolist())))
    roi_deltas = goals(samples, batch.gt_boxes)

    def run(params, pyramid):
        def call(method, *args):
            return model.apply({**variables, "params": params}, *args, True, method=method)

        return cascade.train_boxes(model, call, pyramid, samples, roi_deltas, batch, None)

    return run


def test_losses_of_each_stage(parts, heads, sampled):
    batch, samples = sampled
    _, variables, pyramid = parts
    cls, box, notes = jax.jit(train(parts, samples, batch))(variables["params"], pyramid)
    gt_boxes, gt_classes = np.asarray(batch.gt_boxes, np.float64), np.asarray(batch.gt_classes)
    rois, valid = np.asarray(samples.rois), np.array(samples.valid)
    fg_counts = []
    for stage, (weights, thresh) in enumerate(zip(WEIGHTS, IOUS, strict=True)):
        logits, deltas = heads(stage, rois)
        table, cls_sum, box_sum, fg_count = log_softmax(logits, -1), 0.0, 0.0, 0
        for b, r in zip(*np.nonzero(valid), strict=True):
            overlaps = [iou(rois[b, r], gt) for gt in gt_boxes[b, :4]]
            best = int(np.argmax(overlaps))
            if stage == 0:  # as they were sampled
                best = int(samples.matched_idxs[b, r])
            is_fg = overlaps[best] >= thresh
            cls_sum -= table[b, r, gt_classes[b, best] if is_fg else CLASSES]
            if is_fg:
                goal, roi = gt_boxes[b, best], rois[b, r]
                size, goal_size = roi[2:] - roi[:2], goal[2:] - goal[:2]
                shift = (goal[:2] + goal_size / 2 - roi[:2] - size / 2) / size
                wanted = np.concatenate([shift, np.log(goal_size / size)]) * weights
                box_sum += np.abs(deltas[b, r] - wanted).sum()
                fg_count += 1
        fg_counts.append(fg_count)
        found = [notes[f"{name}_stage{stage + 1}"] for name in ("cls", "box", "fg_rois")]
        expected = [cls_sum / valid.sum(), box_sum / valid.sum(), fg_count / 2]
        np.testing.assert_allclose(found, expected, rtol=1e-3, err_msg=f"stage {stage}")
        rois = moved(rois, deltas, weights)
        valid &= (rois[..., 2:] > rois[..., :2]).all(-1)
    assert min(fg_counts) > 0 and len(set(fg_counts)) > 1
    np.testing.assert_allclose(cls, sum(notes[f"cls_stage{k}"] for k in (1, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(box, sum(notes[f"box_stage{k}"] for k in (1, 2, 3)), rtol=1e-6)


def test_no_gradient_passes_the_boxes_and_a_third_reaches_the_features(parts, sampled):
    batch, samples = sampled
    _, variables, pyramid = parts
    run = train(parts, samples, batch)

    def term(params, pyramid, later):
        notes = run(params, pyramid)[2]
        stages = (2, 3) if later else (1,)
        return sum(notes[f"{name}_stage{k}"] for name in ("cls", "box") for k in stages)

    grad = jax.jit(jax.grad(term, argnums=(0, 1)), static_argnums=2)
    later, _ = grad(variables["params"], pyramid, True)
    norms = {name: sum(jnp.abs(x).sum() for x in jax.tree.leaves(later[name])) for name in later}
    assert norms["box_head_0"] == 0 and norms["box_head_1"] > 0 and norms["box_head_2"] > 0

    first, features = grad(variables["params"], pyramid, False)
    plain = tiny_model.model(class_agnostic_boxes=True).clone(pool=pool)

    def plain_term(head, pyramid):
        both = {**variables, "params": {"box_head": head}}

        def call(method, *args):
            return plain.apply(both, *args, True, method=method)

        goals = jax.vmap(lambda s, gt: box_targets(s, gt, plain.settings.box_deltas_weights))
        deltas = goals(samples, batch.gt_boxes)
        cls, box, _ = mask_rcnn.train_boxes(plain, call, pyramid, samples, deltas, batch, None)
        return cls + box

    head = variables["params"]["box_head_0"]
    expected, whole = jax.jit(jax.grad(plain_term, argnums=(0, 1)))(head, pyramid)
    for a, b in zip(jax.tree.leaves(first["box_head_0"]), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    for a, b in zip(jax.tree.leaves(features), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(3 * a, b, rtol=1e-4, atol=1e-6)


def test_a_cascade_with_weights_that_are_not_finite_finds_nothing(parts):
    model, variables, pyramid = parts
    broken = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), variables)
    rois = jnp.broadcast_to(jnp.array([4.0, 4.0, 30.0, 30.0]), (2, 3, 4))
    proposals = Proposals(rois, jnp.zeros((2, 3)), jnp.ones((2, 3), bool))
    window = jnp.broadcast_to(jnp.array([0.0, 0, WIDTH, HEIGHT]), (2, 4))
    predict = jax.jit(lambda v: cascade.predict_boxes(model, v, pyramid, proposals, window, None))
    boxes, scores, _, valid, _ = predict(broken)
    assert not valid.any() and not scores.any() and jnp.isfinite(boxes).all()
