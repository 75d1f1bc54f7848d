"""The parts that stand in for the paper's mask branch and boxes, each against NumPy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_model
from scipy.special import log_softmax

from configs import common
from maskrcnn_jax import losses, selection
from maskrcnn_jax.config_rules import check
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.models import families
from maskrcnn_jax.models.mask_rules import SIGMOID, SOFTMAX
from maskrcnn_jax.models.roi_heads import BoxHead, MaskHead, MaskMLP
from maskrcnn_jax.types import Proposals
from maskrcnn_jax.weights import exporter


def shapes(**fields):
    """Parameter shapes by path, of the common config's heads with these model fields."""
    config = common.get_config()
    config.model.update({"depth": 18} | fields)
    model = families.build(config.model, 80)
    images, hw = jnp.zeros((1, 64, 64, 3), jnp.uint8), jnp.full((1, 2), 64)
    tree = jax.eval_shape(model.init, jax.random.key(0), images, hw)
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(k.key for k in path): leaf.shape for path, leaf in leaves}


def size(found, prefix=""):
    return sum(int(np.prod(s)) for name, s in found.items() if name.startswith(prefix))


# Parameters of the paper's mask branch.
FCN = 4 * (9 * 256 + 1) * 256 + (4 * 256 + 1) * 256 + 257 * 80


def test_parameters_of_each_arm():
    plain = shapes()
    assert size(plain, "params/mask_head") == FCN
    faster = shapes(mask_branch="none")
    assert faster == {k: v for k, v in plain.items() if not k.startswith("params/mask_head")}
    # Two hidden layers of 1024 between the pooled features and 80 masks of 28 x 28.
    mlp = (14 * 14 * 256 + 1) * 1024 + 1025 * 1024 + 1025 * 80 * 28 * 28
    assert size(shapes(mask_branch="mlp"), "params/mask_head") == mlp
    assert size(shapes(mask_loss="softmax")) == size(plain) + 257
    agnostic = shapes(class_agnostic_masks=True, class_agnostic_boxes=True)
    assert size(agnostic) == size(plain) - 79 * 257 - 79 * 4 * 1025
    # Of a fully convolutional branch, the resolution changes nothing.
    assert shapes(mask_pool_size=28) == plain


@pytest.mark.parametrize("num_classes", [5, 1])
def test_multinomial_masks(num_classes):
    """One class beside the background is the class-agnostic form."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (2, 3, 4, 4, num_classes + 1)).astype(np.float32)
    targets = rng.integers(0, 2, (2, 3, 4, 4)).astype(np.float32)
    classes = rng.integers(0, 5, (2, 3))
    fg = np.array([[True, True, False], [True, False, False]])
    logits[0, 2] = np.nan  # a row of padding
    total, shares = 0.0, np.zeros_like(targets)
    for b, r in np.ndindex(2, 3):
        own = classes[b, r] if num_classes > 1 else 0
        table = log_softmax(logits[b, r].astype(np.float64), -1)
        shares[b, r] = np.exp(table[..., own])
        if fg[b, r]:
            inside = targets[b, r] == 1
            total -= (table[inside, own].sum() + table[~inside, -1].sum()) / 16
    logits, targets, classes, fg = (jnp.asarray(x) for x in (logits, targets, classes, fg))
    loss = SOFTMAX.loss(logits, targets, classes, fg)
    np.testing.assert_allclose(loss, total / 3, rtol=1e-5)
    np.testing.assert_allclose(SOFTMAX.probabilities(logits, classes), shares, rtol=1e-4)
    grad = jax.grad(lambda x: SOFTMAX.loss(x, targets, classes, fg))(jnp.nan_to_num(logits))
    assert grad[fg].all() and not grad[~fg].any()
    assert SOFTMAX.loss(logits, targets, classes, jnp.zeros_like(fg)) == 0


def test_independent_masks_are_the_plain_loss():
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(1, 3, 4, 4)))
    targets, fg = (logits > 0.3).astype(jnp.float32), jnp.array([[True, True, False]])
    classes = jnp.zeros((1, 3), jnp.int32)
    assert SIGMOID.loss(logits, targets, classes, fg) == losses.mask_loss(logits, targets, fg)
    expected = 1 / (1 + np.exp(-np.asarray(logits)))
    np.testing.assert_allclose(SIGMOID.probabilities(logits, classes), expected, rtol=1e-5)


@pytest.mark.parametrize("head", [MaskHead(7, 8, 1), MaskMLP(7, 16, 2)])
def test_the_mask_of_a_class_is_its_row_of_all_masks(head):
    pooled = jax.random.normal(jax.random.key(0), (4, 5, 5, 3))
    variables = tiny_variables(head, pooled)
    every = head.apply(variables, pooled, None, True)
    assert every.shape == (4, 10, 10, 7)
    classes = jnp.array([3, 0, 6, 3])
    own = head.apply(variables, pooled, classes, True)
    expected = np.stack([every[i, ..., c] for i, c in enumerate(classes)])
    np.testing.assert_allclose(own, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("head", [MaskHead(1, 8, 1), MaskMLP(1, 16, 2)])
def test_the_only_mask_serves_every_class(head):
    pooled = jax.random.normal(jax.random.key(0), (3, 5, 5, 3))
    variables = tiny_variables(head, pooled)
    first = head.apply(variables, pooled, jnp.zeros(3, jnp.int32), True)
    other = head.apply(variables, pooled, jnp.array([4, 0, 79]), True)
    np.testing.assert_array_equal(first, other)


def tiny_variables(head, pooled):
    """A head's variables, drawn large enough to tell classes apart."""
    shapes = jax.eval_shape(lambda: head.init(jax.random.key(0), pooled, None, True))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), shapes)


def test_the_mlp_is_two_dense_layers_and_one_to_the_cells():
    pooled = jax.random.normal(jax.random.key(0), (2, 3, 3, 4))
    head = MaskMLP(5, 16, 2)
    variables = tiny_variables(head, pooled)
    p = variables["params"]
    x = pooled.reshape(2, -1)
    for name in ("fc1", "fc2"):
        x = np.maximum(x @ p[name]["kernel"] + p[name]["bias"], 0)
    masks = (x @ p["predictor"]["kernel"] + p["predictor"]["bias"]).reshape(2, 6, 6, 5)
    np.testing.assert_allclose(head.apply(variables, pooled, None, True), masks, rtol=1e-4)


def test_class_agnostic_boxes_are_those_of_every_class():
    """Detections from one box a roi are those of a head that repeats it for each class."""
    head = BoxHead(6, 8, 1, class_agnostic=True)
    pooled = jax.random.normal(jax.random.key(0), (12, 2, 2, 3))
    logits, deltas = head.apply(head.init(jax.random.key(1), pooled, True), pooled, True)
    assert logits.shape == (12, 7) and deltas.shape == (12, 1, 4)
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 50, (12, 2))
    rois = jnp.asarray(np.concatenate([corner, corner + rng.uniform(5, 40, (12, 2))], 1))
    proposals = Proposals(rois.astype(jnp.float32), jnp.zeros(12), jnp.arange(12) < 10)
    logits, deltas = (jnp.asarray(rng.normal(size=x.shape)) for x in (logits, deltas))
    s = tiny_model.model().settings
    window = jnp.array([0.0, 0.0, 90.0, 60.0])
    one = selection.detect(s, proposals, logits, deltas, window)
    each = selection.detect(s, proposals, logits, jnp.tile(deltas, (1, 6, 1)), window)
    assert int(one[3].sum()) > 3 and len(set(np.asarray(one[2])[np.asarray(one[3])])) > 1
    for a, b in zip(one, each, strict=True):
        np.testing.assert_array_equal(a, b)


ARMS = {
    "mlp, multinomial": {"mask_branch": "mlp", "mask_fc_dim": 16, "mask_loss": "softmax"},
    "multinomial, one mask": {"mask_loss": "softmax", "class_agnostic_masks": True},
    "one mask, one box": {"class_agnostic_masks": True, "class_agnostic_boxes": True},
    "fine": {"mask_pool_size": 28},
}


@pytest.mark.parametrize("fields", ARMS.values(), ids=ARMS)
def test_arms_are_wired(fields):
    """Their programs are traced, not compiled: test_arms.py runs some of them."""
    model = tiny_model.model(**fields)
    variables = tiny_model.variables(model)
    batch = jax.tree.map(jnp.asarray, tiny_model.batch(2))

    def loss(params):
        both = {**variables, "params": params}
        terms, _, _ = families.forward_train(model, both, batch, tiny_model.keys(2))
        return sum(terms)

    assert jax.eval_shape(loss, variables["params"]).shape == ()
    predict = partial(families.forward_predict, model)
    found = jax.eval_shape(predict, variables, batch.images, batch.image_hw)
    side = 2 * model.settings.mask_pool_size
    assert found.masks.shape == (2, 20, side, side)


def problems(**changes):
    """Errors and warnings of a config that trains, by field."""
    from maskrcnn_jax import config as config_lib

    fields = config_lib.flatten(common.get_config()) | {"data.name": "shapes"}
    return check(fields | {name.replace("__", "."): x for name, x in changes.items()}, "train")


def test_what_does_not_go_together_is_told():
    assert problems() == ([], problems()[1])
    errors, _ = problems(model__mask_branch="none")
    assert len(errors) == 1 and "train.best_metric='bbox/AP'" in errors[0]
    assert not problems(model__mask_branch="none", train__best_metric="bbox/AP50")[0]
    cascade = {"model__cascade_ious": (0.5, 0.6, 0.7), "model__class_agnostic_boxes": True}
    assert not problems(**cascade)[0]
    (error,), _ = problems(**cascade | {"model__class_agnostic_boxes": False})
    assert "class_agnostic_boxes=true" in error
    (error,), _ = problems(**cascade, model__roi_iou_thresh=0.6)
    assert "roi_iou_thresh" in error
    (error,), _ = problems(**cascade | {"model__cascade_ious": (0.5, 1.6)})
    assert "fraction" in error
    fine = {"model__mask_pool_size": 28}
    assert not [w for w in problems(**fine)[1] if "mask_side" in w]
    (warning,) = (w for w in problems(**fine, data__mask_side=56)[1] if "mask_side" in w)
    assert "data.mask_side=112" in warning


@pytest.mark.parametrize("family", ["detectron2", "torchvision", "matterport"])
@pytest.mark.parametrize(
    "fields",
    [
        {"keypoints": 17},
        {"mask_branch": "mlp"},
        {"mask_branch": "none"},
        {"mask_loss": "softmax"},
        {"class_agnostic_masks": True},
        {"class_agnostic_boxes": True, "cascade_ious": (0.5, 0.6, 0.7)},
    ],
)
def test_peers_have_no_such_models(family, fields):
    model = common.get_config().model.to_dict() | fields
    with pytest.raises(UserError, match=f"export to {family}.*model.{next(iter(fields))}="):
        exporter.spec_for(family, model, {"names": ["a"], "category_ids": [1]})


@pytest.mark.parametrize("family", ["torchvision", "matterport"])
def test_other_trunks_are_detectron2s_alone(family):
    model = common.get_config().model.to_dict() | {"neck": "dc5"}
    with pytest.raises(UserError, match=f"export to {family}.*neck=fpn.*'neck': 'dc5'"):
        exporter.spec_for(family, model, {"names": ["a"], "category_ids": [1]})
