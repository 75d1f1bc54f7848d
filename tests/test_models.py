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
from maskrcnn_jax.models.norm import ConvNorm, GroupedConv
from maskrcnn_jax.models.resnet import ResNet
from maskrcnn_jax.models.roi_heads import Upsample


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
    r101 = shapes(coco_r101.get_config(), 80)
    blocks = {name.split("/")[2] for name in r101 if name.startswith("params/backbone/res4_")}
    assert blocks == {f"res4_block{i}" for i in range(23)}
    assert r101["params/backbone/res4_block22/conv2/conv/kernel"] == (3, 3, 256, 256)
    x101 = shapes(coco_x101.get_config(), 80)
    # 32 groups of 8, 16, 32 and 64 channels: the kernel holds the inputs of one group.
    for stage, last in ((2, 2), (3, 3), (4, 22), (5, 2)):
        group = 8 * 2 ** (stage - 2)
        for block in (0, last):
            kernel = x101[f"params/backbone/res{stage}_block{block}/conv2/conv/kernel"]
            assert kernel == (3, 3, group, 32 * group)
    lsj = shapes(coco_r50_lsj.get_config(), 80)
    assert lsj["params/box_head/conv4/norm/scale"] == (256,)


@pytest.mark.parametrize(
    "depth, channels", [(10, 512), (18, 512), (34, 512), (50, 2048), (152, 2048)]
)
def test_resnet_stages(depth, channels):
    net = ResNet(depth=depth, norm="group")
    out = jax.eval_shape(
        lambda: net.init_with_output(jax.random.key(0), jnp.zeros((1, 64, 96, 3)), True)[0]
    )
    assert [x.shape[1:3] for x in out.values()] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    assert out["c5"].shape[-1] == channels


@pytest.mark.parametrize("norm", ["none", "frozen", "batch", "group"])
def test_norms_are_their_definitions(norm):
    """A 1x1 convolution with the identity as kernel leaves the norm alone."""
    rng = np.random.default_rng(0)
    x = rng.normal(3.0, 2.0, (2, 4, 5, 64)).astype(np.float32)
    layer = ConvNorm(64, 1, norm=norm, relu=False)
    variables = layer.init(jax.random.key(0), jnp.asarray(x), True)
    scale, bias = rng.uniform(0.5, 2, 64), rng.normal(size=64)
    params = {"conv": {"kernel": np.eye(64, dtype=np.float32)[None, None]}}
    stats = variables.get("batch_stats", {})
    if norm == "none":
        params["conv"]["bias"] = bias
        expected = x + bias
    elif norm == "frozen":
        stats = {"norm": {"scale": scale, "bias": bias}}
        expected = x * scale + bias
    else:
        params["norm"] = {"scale": scale, "bias": bias}
        axes = (0, 1, 2) if norm == "batch" else (1, 2, 4)
        cells = x if norm == "batch" else x.reshape(2, 4, 5, 32, 2)
        mean, var = cells.mean(axes, keepdims=True), cells.var(axes, keepdims=True)
        expected = ((cells - mean) / np.sqrt(var + 1e-5)).reshape(x.shape) * scale + bias
    found, updates = layer.apply(
        {"params": params, "batch_stats": stats}, jnp.asarray(x), True, mutable=["batch_stats"]
    )
    np.testing.assert_allclose(found, expected, atol=2e-5)
    if norm == "batch":
        running = updates["batch_stats"]["norm"]
        np.testing.assert_allclose(running["mean"], 0.1 * mean.reshape(-1), rtol=1e-4)
        np.testing.assert_allclose(running["var"], 0.9 + 0.1 * var.reshape(-1), rtol=1e-4)


def test_batch_norm_of_frozen_stages_keeps_its_statistics():
    net = ResNet(depth=10, width=8, norm="batch", freeze_at=2, remat=True)
    x = jax.random.normal(jax.random.key(0), (2, 64, 64, 3))
    variables = jax.jit(net.init, static_argnums=2)(jax.random.key(1), x, True)
    train = jax.jit(lambda v, x: net.apply(v, x, True, mutable=["batch_stats"]))
    after = train(variables, x)[1]["batch_stats"]
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(variables["batch_stats"]),
        jax.tree.leaves(after),
        strict=True,
    ):
        frozen = path[0].key == "stem" or path[0].key.startswith("res2_")
        assert np.array_equal(a, b) == frozen, jax.tree_util.keystr(path)


@pytest.mark.parametrize("stride", [1, 2])
def test_grouped_convolution_by_taps_is_the_native_one(stride):
    conv = GroupedConv(
        12, (3, 3), (stride, stride), ((1, 1), (1, 1)), 4, False, jnp.float32,
        jax.nn.initializers.normal(1.0),
    )  # fmt: skip
    x = jax.random.normal(jax.random.key(0), (2, 9, 8, 8))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 2, 12))
    # The public call, which takes the taps on the CPU; the native form is the reference.
    layer = jax.jit(lambda x, kernel: conv.apply({"params": {"kernel": kernel}}, x))
    assert "feature_group_count" not in layer.lower(x, kernel).compile().as_text()
    ours, pull = jax.vjp(layer, x, kernel)
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
    variables = tiny_model.variables(model)
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


def test_the_mask_head_on_wanted_rows_alone_changes_nothing(monkeypatch):
    model = tiny_model.model(head_norm="none")
    variables = jax.tree.map(jnp.asarray, tiny_model.variables(model))
    batch = jax.tree.map(jnp.asarray, tiny_model.batch(2))

    def run(params):
        def loss(some):
            tree = {**variables, "params": params | some}
            return sum(forward_train(model, tree, batch, tiny_model.keys(2))[0])

        found = forward_predict(model, variables, batch.images, batch.image_hw)
        masks = jnp.where(found.valid[:, :, None, None], found.masks, 0)
        # The backbone learns of the rows through the FPN.
        some = {part: params[part] for part in ("fpn", "mask_head")}
        return *jax.value_and_grad(loss)(some), masks

    assert mask_rcnn._wanted_rows(model, jnp.ones((2, 3), bool), None) == 3
    some = jax.jit(run)(variables["params"])
    monkeypatch.setattr(mask_rcnn, "_wanted_rows", lambda *_: None)
    every = jax.jit(lambda p: run(p))(variables["params"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), some, every)


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


def test_nothing_is_detected_with_weights_that_are_not_finite(tiny):
    """The loss tells; prediction must neither crash nor report nonsense."""
    _, variables, predict = tiny
    batch = tiny_model.batch(2)
    broken = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), variables)
    found = predict(broken, jnp.asarray(batch.images), jnp.asarray(batch.image_hw))
    assert not np.asarray(found.valid).any() and not np.asarray(found.scores).any()
    assert np.isfinite(found.boxes).all()


def test_remat_and_bfloat16_are_the_same_function():
    batch = jax.tree.map(jnp.asarray, tiny_model.batch(1))
    variables = tiny_model.variables(tiny_model.model())

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
