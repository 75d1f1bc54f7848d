"""Backbones, necks and poolings beside ResNet-FPN-ROIAlign: as large as the peers', trained."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_model
from flax import linen as nn
from jax.sharding import AxisType, Mesh
from test_models import count, shapes

from configs import coco_r50_c4, coco_r50_dc5, common
from maskrcnn_jax import config as config_lib
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.models import vgg
from maskrcnn_jax.models.mask_rcnn import forward_predict
from maskrcnn_jax.models.norm import ConvNorm
from maskrcnn_jax.models.resnet import STAGES, ResNet
from maskrcnn_jax.models.vgg import VGG
from maskrcnn_jax.optimizer import make_optimizer
from maskrcnn_jax.train_step import init_state, make_train_step


def conv(kernel, inputs, outputs):
    """Of a convolution with bias."""
    return kernel**2 * inputs * outputs + outputs


def resnet50():
    """Kernels without bias; two numbers a channel for each norm."""
    total = 49 * 3 * 64 + 2 * 64
    inputs = 64
    for inner, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            layers = [(1, inputs, inner), (3, inner, inner), (1, inner, 4 * inner)]
            layers += [(1, inputs, 4 * inner)] if block == 0 else []
            total += sum(k**2 * i * o + 2 * o for k, i, o in layers)
            inputs = 4 * inner
    return total


def rpn(channels):
    """15 anchors a cell, a hidden layer as wide as the map."""
    return conv(3, channels, channels) + conv(1, channels, 15) + conv(1, channels, 60)


def test_c4_has_as_many_parameters_as_detectron2s():
    """configs/Base-RCNN-C4.yaml of Detectron2: res5 once, predictors on 2048 channels."""
    heads = conv(1, 2048, 81) + conv(1, 2048, 320) + conv(2, 2048, 256) + conv(1, 256, 80)
    expected = resnet50() + rpn(1024) + heads
    assert expected == 35_962_732
    found = shapes(coco_r50_c4.get_config(), 80)
    assert count(found, "params/") + count(found, "batch_stats/") == expected
    assert "params/shared_head/res5_block0/conv1/conv/kernel" in found
    assert not any("backbone/res5" in name for name in found)


def test_dc5_has_as_many_parameters_as_detectron2s():
    """configs/Base-RCNN-DilatedC5.yaml of Detectron2: the FPN model's heads on 2048 channels."""
    box = conv(7, 2048, 1024) + conv(1, 1024, 1024) + conv(1, 1024, 81) + conv(1, 1024, 320)
    mask = conv(3, 2048, 256) + 3 * conv(3, 256, 256) + conv(2, 256, 256) + conv(1, 256, 80)
    expected = resnet50() + rpn(2048) + box + mask
    assert expected == 172_406_636
    found = shapes(coco_r50_dc5.get_config(), 80)
    assert count(found, "params/") + count(found, "batch_stats/") == expected


def test_vgg_is_torchvisions():
    """14714688 is the number of parameters of torchvision's vgg16().features."""
    net, image = VGG(), jnp.zeros((1, 64, 96, 3))
    out, tree = jax.eval_shape(lambda: net.init_with_output(jax.random.key(0), image, True))
    assert sum(x.size for x in jax.tree.leaves(tree["params"])) == 14_714_688
    strides = {name: (64 // x.shape[1], 96 // x.shape[2]) for name, x in out.items()}
    assert strides == {"c2": (4, 4), "c3": (8, 8), "c4": (16, 16), "c5": (32, 32)}
    assert [x.shape[-1] for x in out.values()] == [256, 512, 512, 512]
    last = {"c2": "conv3_3", "c3": "conv4_3", "c4": "conv5_3"}
    assert set(last.values()) < set(tree["params"])


def test_vggs_with_an_fpn_count_their_parts():
    config = common.get_config()
    config.model.update({"backbone": "vgg16", "norm": "none"})
    found = shapes(config, 80)
    laterals = conv(1, 256, 256) + 3 * conv(1, 512, 256) + 4 * conv(3, 256, 256)
    assert count(found, "params/backbone/") == 14_714_688
    assert count(found, "params/fpn/") == laterals


@pytest.mark.parametrize("depth, layer", [(18, "conv1"), (50, "conv2")])
def test_dilation_takes_the_place_of_the_last_stride(depth, layer):
    """As Detectron2's make_stage: one 3x3 of every block of res5, and nothing else."""
    net, seen = ResNet(depth=depth, res5_dilation=2), {}

    def spy(call, args, kwargs, context):
        if isinstance(context.module, nn.Conv):
            seen[context.module.path] = context.module.kernel_dilation
        return call(*args, **kwargs)

    with nn.intercept_methods(spy):
        image = jnp.zeros((1, 64, 96, 3))
        out = jax.eval_shape(lambda: net.init_with_output(jax.random.key(0), image, True)[0])
    assert [x.shape[1:3] for x in out.values()] == [(16, 24), (8, 12), (4, 6), (4, 6)]
    dilated = {path for path, gaps in seen.items() if gaps == (2, 2)}
    assert dilated == {(f"res5_block{i}", layer, "conv") for i in range(STAGES[depth][3])}
    assert {seen[path] for path in seen if path not in dilated} == {(1, 1)}


def test_grouped_convolutions_dilate():
    x = jax.random.normal(jax.random.key(0), (2, 9, 8, 8))
    layer = ConvNorm(12, 3, groups=4, dilation=2, relu=False)
    variables = layer.init(jax.random.key(1), x, False)
    kernel = variables["params"]["conv"]["kernel"]
    expected = jax.lax.conv_general_dilated(
        x, kernel, (1, 1), ((2, 2), (2, 2)), rhs_dilation=(2, 2), feature_group_count=4,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip
    np.testing.assert_allclose(layer.apply(variables, x, False), expected, atol=1e-4)


C4 = {"neck": "c4", "box_pool_size": 4, "mask_pool_size": 4, "box_fcs": 0, "mask_convs": 0}
# Each part once; every backbone and neck with another pooling.
PARTS = {
    "c4-align_max": {**C4, "roi_pool": "align_max"},
    "dc5-warp_max": {"neck": "dc5", "roi_pool": "warp_max"},
    "single-pool": {"neck": "single", "roi_pool": "pool"},
    "vgg16-fpn-warp": {"backbone": "vgg16", "norm": "none", "roi_pool": "warp"},
    "vgg16-single-align": {"backbone": "vgg16", "norm": "none", "neck": "single"},
}


def marked(name):
    """Two of them always; each takes its minute of compiling."""
    always = name in ("c4-align_max", "vgg16-fpn-warp")
    return pytest.param(name, marks=() if always else pytest.mark.slow)


@pytest.mark.parametrize("name", map(marked, PARTS))
def test_parts_train_and_predict(name, monkeypatch):
    """VGG with one convolution a stage, which compiles sooner."""
    monkeypatch.setattr(vgg, "CONVS", (1, 1, 1, 1, 1))
    small = {"box_pool_size": 3, "mask_pool_size": 4, "head_norm": "none"}
    if "fpn" not in name:
        small["anchor_sizes"] = (16.0, 32.0)
    fields = {**small, **PARTS[name]}
    config, model = tiny_model.config(**fields), tiny_model.model(**fields)
    config_lib.validate(config)
    variables = tiny_model.variables(model)
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",), axis_types=(AxisType.Auto,))
    tx, schedule, trained = make_optimizer(variables["params"], config.optim, 0, 10, 2)
    step = make_train_step(model, tx, schedule, trained, mesh)
    state, batch = init_state(variables, tx, 0.0), tiny_model.batch(2)
    seen = []
    for _ in range(3):
        state, metrics = step(state, batch)
        seen.append({k: float(v) for k, v in metrics.items()})
    assert all(np.isfinite(list(m.values())).all() for m in seen)
    assert seen[0]["mask"] > 0 and seen[0]["grad_norm"] > 0
    assert seen[2]["loss"] != seen[0]["loss"]

    variables = {"params": state.params, "batch_stats": state.batch_stats}
    predict = jax.jit(lambda v, *args: forward_predict(model, v, *args))
    found = predict(variables, batch.images, batch.image_hw)
    side = 4 if name.startswith("c4") else 8
    assert found.masks.shape[2:] == (side, side)
    assert np.isfinite(found.scores).all() and np.isfinite(found.boxes).all()


@pytest.mark.parametrize(
    "fields, word",
    [
        (("neck=dc5", "backbone=vgg16", "norm=none"), "set model.backbone=resnet"),
        (("neck=c4", "box_convs=1"), "set model.box_convs=0"),
        (("neck=c4", "mask_pool_size=7"), "must be even"),
        (("neck=c4", "keypoints=17"), "set model.neck=fpn, dc5 or single"),
        (("neck=single", "roi_pool=crop"), "set model.neck=fpn"),
        (("roi_pool=align_max",), "set model.roi_sampling_ratio=2"),
        (("norm=none",), "a ResNet needs"),
    ],
)
def test_parts_that_do_not_fit_are_told(fields, word):
    overrides = ["data.name=shapes", "model.freeze_at=0", *(f"model.{f}" for f in fields)]
    config = config_lib.load(common.__file__, overrides, schema=common.get_config())
    with pytest.raises(UserError, match=word):
        config_lib.validate(config)
