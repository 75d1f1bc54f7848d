"""The network's parts, and the whole of it on pictures with and without objects."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_model

from configs import coco_r50_lsj, coco_r101, coco_x101, common
from maskrcnn_jax.models import mask_rcnn
from maskrcnn_jax.models.mask_rcnn import forward_predict, forward_train
from maskrcnn_jax.models.norm import GroupedConv
from maskrcnn_jax.models.resnet import ResNet
from maskrcnn_jax.models.roi_heads import Upsample
from maskrcnn_jax.optimizer import make_optimizer
from maskrcnn_jax.runtime import make_mesh, replicate, shard_batch
from maskrcnn_jax.train_step import init_state, init_variables, make_train_step


def shapes(config, num_classes):
    """Parameter and statistics shapes by path, without computing anything."""
    model = mask_rcnn.build(config.model, num_classes)
    images, hw = jnp.zeros((1, 64, 64, 3), jnp.uint8), jnp.full((1, 2), 64)
    tree = jax.eval_shape(model.init, jax.random.key(0), images, hw)
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(k.key for k in path): leaf.shape for path, leaf in leaves}


def count(found, prefix="params/"):
    return sum(int(np.prod(s)) for name, s in found.items() if name.startswith(prefix))


@pytest.mark.parametrize(
    "name, config", [("d2_r50", common), ("d2_r101", coco_r101), ("d2_x101", coco_x101)]
)
def test_as_many_parameters_as_detectron2s(name, config, shared_data):
    """Its frozen norms hold four numbers a channel, ours the two that they amount to."""
    path = shared_data.parent / "golden" / "torch" / "manifests" / f"{name}.json"
    theirs = json.loads(path.read_text())["parameters"]
    expected = sum(int(np.prod(shape)) for n, shape in theirs.items() if "running" not in n)
    found = shapes(config.get_config(), 80)
    assert count(found, "params/") + count(found, "batch_stats/") == expected


def test_paths_of_the_large_configs():
    assert shapes(coco_r101.get_config(), 80)["params/backbone/res4_block22/conv2/conv/kernel"] == (
        3,
        3,
        256,
        256,
    )
    grouped = shapes(coco_x101.get_config(), 80)["params/backbone/res2_block0/conv2/conv/kernel"]
    assert grouped == (3, 3, 8, 256)
    lsj = shapes(coco_r50_lsj.get_config(), 80)
    assert lsj["params/box_head/conv4/norm/scale"] == (256,)


@pytest.mark.parametrize("depth, channels", [(18, 512), (34, 512), (50, 2048), (152, 2048)])
def test_resnet_stages(depth, channels):
    net = ResNet(depth=depth, norm="group")
    out = jax.eval_shape(
        lambda: net.init_with_output(jax.random.key(0), jnp.zeros((1, 64, 96, 3)), True)[0]
    )
    assert [x.shape[1:3] for x in out.values()] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    assert out["c5"].shape[-1] == channels


@pytest.mark.parametrize("stride", [1, 2])
def test_grouped_convolution_by_taps_is_the_native_one(stride):
    conv = GroupedConv(
        12, (3, 3), (stride, stride), ((1, 1), (1, 1)), 4, False, jnp.float32,
        jax.nn.initializers.normal(1.0),
    )  # fmt: skip
    x = jax.random.normal(jax.random.key(0), (2, 9, 8, 8))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 2, 12))
    ours, pull = jax.vjp(conv._taps, x, kernel)
    theirs, pull_native = jax.vjp(conv._native, x, kernel)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    weight = jax.random.normal(jax.random.key(2), ours.shape)
    for a, b in zip(pull(weight), pull_native(weight), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3)


def test_upsampling_is_a_transposed_convolution():
    layer = Upsample(5)
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 6)).astype(np.float32)
    variables = layer.init(jax.random.key(0), jnp.asarray(x))
    kernel = np.asarray(variables["params"]["kernel"])
    expected = np.zeros((2, 6, 8, 5), np.float32)
    for y in range(3):
        for z in range(4):
            expected[:, 2 * y : 2 * y + 2, 2 * z : 2 * z + 2] += np.einsum(
                "rf,yxfo->ryxo", x[:, y, z], kernel
            )
    np.testing.assert_allclose(layer.apply(variables, jnp.asarray(x)), expected, atol=1e-5)


@pytest.fixture(scope="module")
def tiny():
    model = tiny_model.model()
    variables = init_variables(model, 0)
    predict = jax.jit(lambda v, i, h: forward_predict(model, v, i, h))
    return model, variables, predict


def test_pictures_without_objects_train(tiny):
    model, variables, _ = tiny

    def loss(params, batch):
        terms, _, _ = forward_train(
            model, {**variables, "params": params}, batch, tiny_model.keys(2)
        )
        return sum(terms), terms

    run = jax.jit(jax.value_and_grad(loss, has_aux=True))
    for empty in (True, False):
        batch = jax.tree.map(jnp.asarray, tiny_model.batch(2, empty=empty))
        (total, terms), grads = run(variables["params"], batch)
        assert jnp.isfinite(total)
        assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(grads))
        assert (terms.mask == 0) == empty and (terms.rpn_box == 0) == empty
        assert terms.cls > 0 and terms.rpn_cls > 0


def test_detections_are_sorted_clipped_and_told_by_valid(tiny):
    _, variables, predict = tiny
    batch = tiny_model.batch(2)
    found = predict(variables, jnp.asarray(batch.images), jnp.asarray(batch.image_hw))
    scores = np.asarray(found.scores)
    assert (np.diff(scores, axis=1) <= 0).all()
    assert (scores[~np.asarray(found.valid)] == 0).all()
    boxes = np.asarray(found.boxes)[np.asarray(found.valid)]
    height, width = batch.image_hw[0]
    assert len(boxes) and (boxes >= 0).all()
    assert (boxes[:, 2] <= width).all() and (boxes[:, 3] <= height).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    masks = np.asarray(found.masks)
    assert masks.shape[2:] == (28, 28) and (masks >= 0).all() and (masks <= 1).all()


def test_what_lies_in_the_padding_does_not_matter(tiny):
    _, variables, predict = tiny
    batch = tiny_model.batch(1)
    images, hw = batch.images.copy(), jnp.asarray(batch.image_hw)
    first = predict(variables, jnp.asarray(images), hw)
    images[:, :, batch.image_hw[0, 1] :] = 255
    second = predict(variables, jnp.asarray(images), hw)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


def test_remat_and_bfloat16_are_the_same_function():
    batch = jax.tree.map(jnp.asarray, tiny_model.batch(1))
    variables = init_variables(tiny_model.model(), 0)

    def features(**fields):
        model = tiny_model.model(**fields)

        def total(params):
            v = {**variables, "params": params}
            out, _ = model.apply(
                v,
                batch.images,
                batch.image_hw,
                True,
                method=model.features,
                mutable=["batch_stats"],
            )
            return sum((x.astype(jnp.float32) ** 2).mean() for x in out.values())

        return jax.jit(jax.value_and_grad(total))(variables["params"])

    plain, saving, half = features(), features(remat=True), features(dtype="bfloat16")
    np.testing.assert_allclose(saving[0], plain[0], rtol=1e-5)
    for a, b in zip(jax.tree.leaves(saving[1]), jax.tree.leaves(plain[1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(half[0], plain[0], rtol=5e-2)


@pytest.fixture(scope="module")
def training():
    """A jitted step with two micro-batches, an average and a frozen stem, and its first state."""
    config = tiny_model.config()
    config.optim.ema_decay = 0.9
    config.optim.lr_rules = ((r"^backbone/stem", 0.0), (r".*", 1.0))
    size = 2 * jax.device_count()
    model, mesh = tiny_model.model(), make_mesh()
    variables = jax.tree.map(np.asarray, init_variables(model, 0))
    tx, schedule, trained = make_optimizer(variables["params"], config.optim, 0, 10, size)
    step = make_train_step(model, tx, schedule, trained, mesh, accumulate=2, ema_decay=0.9)
    batch = shard_batch(tiny_model.batch(size), mesh)

    def fresh():
        return replicate(init_state(variables, tx, 0.9), mesh)

    return step, fresh, batch, variables


def test_a_step_trains_what_is_not_frozen(training):
    step, fresh, batch, before = training
    state, metrics = step(fresh(), batch)
    state, _ = step(state, batch)
    assert int(state.step) == 2 and metrics["bad_step"] == -1
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(state.params),
        jax.tree.leaves(before["params"]),
        strict=True,
    ):
        frozen = path[0].key == "backbone" and path[1].key == "stem"
        # An object class that the batch lacks leaves its row alone, but no tensor as a whole.
        assert np.array_equal(a, b) == frozen, jax.tree_util.keystr(path)


def test_steps_repeat_bit_by_bit(training):
    step, fresh, batch, _ = training
    first, second = step(fresh(), batch), step(fresh(), batch)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_a_bad_step_changes_nothing_and_stays_told(training):
    step, fresh, batch, _ = training
    poisoned = fresh()
    kernel = poisoned.params["rpn_head"]["deltas"]["kernel"]
    poisoned.params["rpn_head"]["deltas"]["kernel"] = jnp.full_like(kernel, jnp.nan)
    before = jax.device_get(poisoned)
    state, metrics = step(poisoned, batch)
    assert metrics["bad_step"] == 0 and not np.isfinite(metrics["loss"])
    state, metrics = step(state, batch)
    assert metrics["bad_step"] == 0 and int(state.step) == 0
    for a, b in zip(
        jax.tree.leaves(state._replace(bad_step=0)),
        jax.tree.leaves(before._replace(bad_step=0)),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
