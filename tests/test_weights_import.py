"""Importing: names and algebra of the torch families, presets, what is refused.

Names come from the golden manifests, which list what the peers' own checkpoints hold; the algebra
is compared with the peers' layers written out in NumPy.
"""

import re
from functools import cache
from pathlib import Path

import golden_sets
import hypothesis
import numpy as np
import peer_model
import pytest
import tiny_model
from hypothesis import strategies as st

from configs import common
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.weights import coco_names, exporter, importer, layout, mmdetection, presets

MODELS = [path.stem for path in golden_sets.find("torch", "manifests/*.json")]
# Detectron2's names in MMDetection's words, and torchvision's bottleneck names.
TO_MMDETECTION = (
    (r"backbone\.bottom_up\.stem\.conv1\.norm\.", "backbone.bn1."),
    (r"backbone\.bottom_up\.stem\.", "backbone."),
    (r"shortcut\.norm\.", "downsample.1."),
    (r"shortcut\.weight", "downsample.0.weight"),
    (r"conv(\d)\.norm\.", r"bn\1."),
    (r"backbone\.fpn_lateral(\d)", r"neck.lateral_convs.<\1>.conv"),
    (r"backbone\.fpn_output(\d)", r"neck.fpn_convs.<\1>.conv"),
    (r"proposal_generator\.rpn_head\.conv", "rpn_head.rpn_conv"),
    (r"proposal_generator\.rpn_head\.objectness_logits", "rpn_head.rpn_cls"),
    (r"proposal_generator\.rpn_head\.anchor_deltas", "rpn_head.rpn_reg"),
    (r"roi_heads\.box_head\.fc1", "roi_head.bbox_head.shared_fcs.0"),
    (r"roi_heads\.box_head\.fc2", "roi_head.bbox_head.shared_fcs.1"),
    (r"roi_heads\.box_predictor\.cls_score", "roi_head.bbox_head.fc_cls"),
    (r"roi_heads\.box_predictor\.bbox_pred", "roi_head.bbox_head.fc_reg"),
    (r"roi_heads\.mask_head\.mask_fcn(\d)", r"roi_head.mask_head.convs.[\1].conv"),
    (r"roi_heads\.mask_head\.deconv", "roi_head.mask_head.upsample"),
    (r"roi_heads\.mask_head\.predictor", "roi_head.mask_head.conv_logits"),
    (r"backbone\.bottom_up\.res(\d)", r"backbone.layer[\1]"),
)


@pytest.fixture(scope="module")
def d2():
    return peer_model.tensors("d2_r50")


@pytest.fixture(scope="module")
def tv():
    return peer_model.tensors("tv_v1")


@pytest.fixture(scope="module")
def d2_imported(d2):
    return importer.import_weights(peer_model.source(d2))


def mmdetection_name(name):
    for pattern, text in TO_MMDETECTION:
        name = re.sub(pattern, text, name)
    name = re.sub(r"<(\d)>", lambda m: str(int(m.group(1)) - 2), name)
    return re.sub(r"\[(\d)\]", lambda m: str(int(m.group(1)) - 1), name)


def same(a, b):
    a, b = importer.flatten(a), importer.flatten(b)
    return a.keys() == b.keys() and all(importer.same_bits(a[k], b[k]) for k in a)


@pytest.mark.parametrize("model", MODELS)
def test_every_tensor_is_used_and_every_variable_filled(model):
    tensors = peer_model.tensors(model)
    imported = importer.import_weights(peer_model.source(tensors))
    assert imported.missing == ()
    assert all(name.endswith("num_batches_tracked") for name in imported.unused)
    shapes = importer.model_shapes(imported.config["model"], imported.spec.num_classes)
    found = importer.flatten(imported.variables)
    assert {path: x.shape for path, x in found.items()} == shapes
    assert all(x.dtype == np.float32 and x.flags.c_contiguous for x in found.values())
    others = [m for m in importer.FAMILIES if m.recognises(tensors)]
    assert [m.NAME for m in others] == [imported.spec.family]


def test_old_and_new_names_of_torchvision_are_the_same_weights(tv):
    names = peer_model.manifest("tv_v1")["legacy_names"]
    old = {names.get(name, name): x for name, x in tv.items()}
    assert old.keys() != tv.keys()
    imported = [importer.import_weights(peer_model.source(x)) for x in (tv, old)]
    assert same(*(x.variables for x in imported))
    assert imported[1].unused == ()


def test_torchvision_classes(tv):
    imported = importer.import_weights(peer_model.source(tv))
    head = imported.variables["params"]["box_head"]
    theirs = tv["roi_heads.box_predictor.cls_score.bias"]
    assert head["cls_score"]["bias"][-1] == theirs[0]  # the background
    assert head["cls_score"]["bias"][17] == theirs[18]  # the dog
    np.testing.assert_array_equal(
        head["bbox_pred"]["kernel"][:, 68:72],
        tv["roi_heads.box_predictor.bbox_pred.weight"][72:76].T,
    )
    assert imported.classes["names"][17] == "dog"
    assert imported.classes["category_ids"] == list(range(1, 91))
    assert coco_names.NAMES[16] == "dog" and coco_names.CATEGORY_IDS[16] == 18


def test_the_eps_of_each_family(tv, d2_imported, d2):
    imported = importer.import_weights(peer_model.source(tv))
    for variables, tensors, name, eps in (
        (imported.variables, tv, "backbone.body.bn1", 0.0),
        (d2_imported.variables, d2, "backbone.bottom_up.stem.conv1.norm", 1e-5),
    ):
        weight, var = (
            tensors[f"{name}.{x}"].astype(np.longdouble) for x in ("weight", "running_var")
        )
        expected = (weight / np.sqrt(var + eps)).astype(np.float32)
        scale = variables["batch_stats"]["backbone"]["stem"]["norm"]["scale"]
        np.testing.assert_array_max_ulp(scale, expected, 1)


def test_old_detectron2_files_tell_their_normalisation(d2):
    extras = peer_model.manifest("d2_r50")["zoo_extras"]
    extras = {name: np.asarray(x, np.float32) for name, x in extras.items()}
    imported = importer.import_weights(peer_model.source(d2 | extras))
    assert set(imported.unused) == set(extras)
    assert imported.config["model"] == presets.PRESETS["detectron2"]["model"]
    rgb = {
        "pixel_mean": np.float32([123.675, 116.28, 103.53]),
        "pixel_std": np.float32([58, 57, 57]),
    }
    model = importer.import_weights(peer_model.source(d2 | rgb)).config["model"]
    assert model["channel_order"] == "rgb" and model["pixel_mean"] == (123.675, 116.28, 103.53)
    assert model["pixel_std"] == (58.0, 57.0, 57.0)


@pytest.mark.parametrize(
    ("file", "meta", "preset", "warns"),
    [
        ("mask_rcnn_r50_caffe_fpn_1x_coco.pth", {}, "mmdetection_caffe", False),
        ("mask_rcnn_r50_fpn_2x_coco.pth", {}, "mmdetection_pytorch", False),
        ("epoch_12.pth", {}, "mmdetection_pytorch", True),
        ("epoch_12.pth", {"cfg": "backbone=dict(style='caffe')"}, "mmdetection_caffe", False),
        ("caffe.pth", {"cfg": 'style = "pytorch",'}, "mmdetection_pytorch", False),
    ],
)
def test_mmdetection(d2, d2_imported, file, meta, preset, warns):
    tensors = {mmdetection_name(name): x for name, x in d2.items()}
    assert "roi_head.mask_head.convs.0.conv.weight" in tensors
    assert "backbone.layer4.2.bn3.running_var" in tensors
    imported = importer.import_weights(peer_model.source(tensors, file, meta=meta))
    assert imported.spec.family == "mmdetection" and imported.unused == ()
    assert same(imported.variables, d2_imported.variables)
    assert imported.config["preset"] == preset and bool(imported.spec.warnings) == warns
    changed = {
        k for k, v in imported.config["model"].items() if v != d2_imported.config["model"][k]
    }
    pytorch = {"channel_order", "pixel_mean", "pixel_std", "stride_in_1x1"}
    assert changed - {"roi_level_eps"} == (pytorch if preset == "mmdetection_pytorch" else set())


def test_mmdetection_config_and_classes():
    spec = layout.Spec("mmdetection", "mmdetection_pytorch", 2, model={})
    text = (
        "img_norm_cfg = dict(mean=[103.53, 116.28, 123.675], std=[57.375, 57.12, 58.395], "
        "to_rgb=False)\nbbox_coder=dict(target_means=[0.0, 0.0, 0.0, 0.0], "
        "target_stds=[0.1, 0.1, 0.2, 0.2])\nbackbone=dict(style='pytorch')"
    )
    meta = {"cfg": text, "dataset_meta": {"classes": ("cat", "dog")}}
    spec = mmdetection.refine(spec, Path("x.pth"), {"meta": meta})
    assert spec.model["pixel_std"] == (57.375, 57.12, 58.395)
    assert spec.model["channel_order"] == "bgr" and spec.class_names == ("cat", "dog")
    old = {"bbox_head.fc_cls.weight": np.zeros((81, 4)), "backbone.layer1.0.conv1.weight": 0}
    with pytest.raises(UserError, match="upgrade_model_version"):
        mmdetection.describe(old)


def test_imagenet_backbones(d2, d2_imported, tv):
    wanted = d2_imported.variables
    affine = importer.flatten(wanted["batch_stats"])
    caffe2 = {"conv1_b": np.zeros(64, np.float32), "pred_w": np.zeros((1000, 2048), np.float32)}
    branches = {"conv1": "2a", "conv2": "2b", "conv3": "2c", "shortcut": "1"}
    for name, x in d2.items():
        found = re.fullmatch(r"backbone\.bottom_up\.res(\d)\.(\d+)\.(\w+)\.weight", name)
        if found:
            stage, block, layer = found.groups()
            key = f"res{stage}_{block}_branch{branches[layer]}"
            path = f"backbone/res{stage}_block{block}/{layer}/norm"
            caffe2 |= {f"{key}_w": x, f"{key}_bn_s": affine[f"{path}/scale"]}
            caffe2[f"{key}_bn_b"] = affine[f"{path}/bias"]
    caffe2["conv1_w"] = d2["backbone.bottom_up.stem.conv1.weight"]
    for end, name in (("s", "scale"), ("b", "bias")):
        caffe2[f"res_conv1_bn_{end}"] = affine[f"backbone/stem/norm/{name}"]
    renamed = {
        name.removeprefix("backbone.bottom_up."): x for name, x in d2.items() if "bottom_up" in name
    }
    body = {n.removeprefix("backbone.body."): x for n, x in tv.items() if "body" in n}
    body["fc.weight"] = np.zeros((1000, 2048), np.float32)
    for tensors, preset, unused in (
        (caffe2, "detectron2", {"conv1_b", "pred_w"}),
        (renamed, "resnet_rgb", set()),
        (body, "resnet_rgb", {"fc.weight"}),
    ):
        imported = importer.import_weights(peer_model.source(tensors))
        assert imported.spec.num_classes is None and imported.config["preset"] == preset
        assert set(imported.unused) == unused and imported.classes["names"] == []
        assert all(not path.split("/")[1].startswith("backbone") for path in imported.missing)
        assert list(imported.variables["params"]) == ["backbone"]
        if tensors is not body:
            for group in ("params", "batch_stats"):
                ours, theirs = (v[group]["backbone"] for v in (imported.variables, wanted))
                assert same(ours, theirs)


@pytest.mark.parametrize(
    ("depth", "blocks", "groups", "width"),
    [(10, (1, 1, 1, 1), 1, 64), (18, (2, 2, 2, 2), 1, 64), (34, (3, 4, 6, 3), 1, 64)],
)
def test_basic_blocks(depth, blocks, groups, width):
    tensors = {"conv1.weight": np.ones((64, 3, 7, 7), np.float32)}

    def norm(name, n):
        for part in layout.BN:
            tensors[f"{name}.{part}"] = np.ones(n, np.float32)

    norm("bn1", 64)
    channels = 64
    for stage, count in enumerate(blocks):
        features = 64 * 2**stage
        for block in range(count):
            name = f"layer{stage + 1}.{block}"
            tensors[f"{name}.conv1.weight"] = np.ones((features, channels, 3, 3), np.float32)
            tensors[f"{name}.conv2.weight"] = np.ones((features, features, 3, 3), np.float32)
            norm(f"{name}.bn1", features)
            norm(f"{name}.bn2", features)
            if channels != features:
                shape = (features, channels, 1, 1)
                tensors[f"{name}.downsample.0.weight"] = np.ones(shape, np.float32)
                norm(f"{name}.downsample.1", features)
            channels = features
    imported = importer.import_weights(peer_model.source(tensors))
    assert imported.unused == () and imported.config["model"]["depth"] == depth
    assert (imported.config["model"]["groups"], imported.config["model"]["width"]) == (
        groups,
        width,
    )


def test_what_is_refused(d2):
    conv = "backbone.bottom_up.res3.0.conv2.weight"
    fc = "roi_heads.box_head.fc1.weight"
    anchors = "proposal_generator.rpn_head.anchor_deltas.weight"
    nan = d2["backbone.fpn_output3.bias"].copy()
    nan[7] = np.nan
    without = {name: x for name, x in d2.items() if name != conv}
    cases = [
        (without, [conv, "missing"]),
        (without | {f"{conv}x": d2[conv]}, [conv, f"{conv}x"]),
        (d2 | {conv: d2[conv][:, :, 0]}, [conv, "(128, 128, 3)", "(3, 3, 128, 128)"]),
        (d2 | {fc: d2[fc][:, :-1]}, [fc, "(1024, 12543)", "(12544, 1024)"]),
        (d2 | {anchors: d2[anchors][:8]}, [anchors, "(8, 256, 1, 1)", "(1, 1, 256, 12)"]),
        (d2 | {"backbone.fpn_output3.bias": nan}, ["backbone.fpn_output3.bias", "not finite"]),
        (d2 | {conv: d2[conv].astype("S")}, [conv, "numbers"]),
        ({n: x for n, x in d2.items() if "cls_score" not in n}, ["cls_score"]),
        ({n: x for n, x in d2.items() if "res4.1." not in n}, ["res4.1.conv1.weight", "missing"]),
        ({n: x for n, x in d2.items() if "res4.5." not in n}, ["(3, 4, 5, 3)"]),
        ({n: x for n, x in d2.items() if "mask_fcn2" not in n}, ["mask_fcn2.weight", "missing"]),
        ({"encoder.weight": nan}, ["encoder.weight", "no family"]),
        ({}, ["no family"]),
    ]
    for tensors, words in cases:
        with pytest.raises(UserError) as error:
            importer.import_weights(peer_model.source(tensors, "broken.pth"))
        for word in ("broken.pth", *words):
            assert word in str(error.value), (word, str(error.value))


def test_heads_of_other_classes(d2_imported):
    paths = importer.flatten(d2_imported.variables)
    other = {
        path: np.zeros((*x.shape[:-1], x.shape[-1] // 80 * 3 + x.shape[-1] % 80), np.float32)
        if path.startswith(importer.CLASS_HEADS)
        else np.zeros_like(x)
        for path, x in paths.items()
    }
    variables = importer.unflatten(other)
    with pytest.raises(UserError) as error:
        importer.fill(variables, d2_imported, skip_heads=False)
    for word in ("80 classes", "the data 3", "init.skip_heads=true", "cls_score"):
        assert word in str(error.value)
    filled, lines = importer.fill(variables, d2_imported, skip_heads=True)
    found = importer.flatten(filled)
    heads = [path for path in found if path.startswith(importer.CLASS_HEADS)]
    assert len(heads) == 6 == len(lines)
    for path, x in found.items():
        assert (x is other[path]) if path in heads else (x is paths[path])
    smaller = {**other, "params/rpn_head/conv1/conv/bias": np.zeros(8, np.float32)}
    with pytest.raises(
        UserError, match=r"rpn_head/conv1/conv/bias: weights \(256,\), model \(8,\)"
    ):
        importer.fill(importer.unflatten(smaller), d2_imported, skip_heads=True)


def test_presets_name_every_model_field():
    tree = common.get_config()
    for name, preset in presets.PRESETS.items():
        assert set(preset["model"]) == set(tree.model), name
        for group in ("data", "eval"):
            assert set(preset[group]) <= set(tree[group]), name
        for field, value in preset["model"].items():
            assert type(value) is type(tree.model[field]), (name, field)
    assert {*presets.BACKBONE_FIELDS, *presets.TRAINING_FIELDS} <= set(tree.model)
    assert presets.PRESETS["detectron2"]["model"] == tree.model.to_dict()


sizes = st.integers(1, 5)


@hypothesis.given(st.integers(0, 2**32 - 1), sizes, sizes, sizes)
def test_layers_against_numpy(seed, inputs, outputs, side):
    """The peers' layers on one cell or one roi, written out, and ours on the same input."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    x = draw(inputs, side, side)
    last = np.moveaxis(x, 0, -1)

    weight = draw(outputs, inputs, side, side)
    theirs = [(x.astype(np.float64) * w).sum() for w in weight]
    (kernel,) = layout.conv("w", "k").forward(weight)
    ours = np.einsum("hwi,hwio->o", last, kernel)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)

    norm = (draw(outputs), draw(outputs), draw(outputs), np.abs(draw(outputs)) + 0.1)
    gamma, beta, mean, var = norm
    normed = (theirs - mean) / np.sqrt(var + 1e-5) * gamma + beta
    folded, bias = layout.conv_with_norm("w", layout.bn_names("n"), "t", 1e-5).forward(
        weight, *norm
    )
    np.testing.assert_allclose(
        np.einsum("hwi,hwio->o", last, folded) + bias, normed, rtol=1e-4, atol=1e-3
    )
    scale, shift = layout.frozen_norm(layout.bn_names("n"), "t", 1e-5).forward(*norm)
    np.testing.assert_allclose(ours * scale + shift, normed, rtol=1e-4, atol=1e-3)

    weight = draw(outputs, inputs * side * side)
    (kernel,) = layout.dense_on_pooled("w", "k", side)[0].forward(weight)
    np.testing.assert_allclose(last.ravel() @ kernel, weight @ x.ravel(), atol=1e-4)

    weight = draw(inputs, outputs, 2, 2)
    up = np.zeros((outputs, 2 * side, 2 * side))
    for row in range(side):
        for col in range(side):
            for i in range(inputs):
                up[:, 2 * row : 2 * row + 2, 2 * col : 2 * col + 2] += x[i, row, col] * weight[i]
    (kernel,) = layout.deconv("w", "k")[0].forward(weight)
    ours = np.einsum("hwf,yxfo->ohywx", last, kernel).reshape(up.shape)
    np.testing.assert_allclose(ours, up, atol=1e-4)


@cache
def tiny_tensors(family):
    """A peer's tensors of the smallest model with all parts; some norms are not neutral."""
    heads = {"box_convs": 4, "box_fcs": 1, "rpn_convs": 2} if family == "torchvision" else {}
    config = tiny_model.config(norm="frozen", head_norm="none", mask_convs=2, **heads)
    model = tiny_model.mask_rcnn.build(config.model, 3)
    names = {"names": list("abc"), "category_ids": [1, 2, 3]}
    spec = exporter.spec_for(family, config.model.to_dict(), names)
    return exporter.export(tiny_model.variables(model), spec)


DAMAGE = {
    "dropped": lambda x: None,
    "renamed": lambda x: x,
    "shorter": lambda x: x[:-1],
    "flat": lambda x: x.reshape(-1, 1, 1),
    "empty": lambda x: x[:0],
    "one number": lambda x: np.array(0.5, np.float32),
    "text": lambda x: np.array("weights"),
    "nan": lambda x: np.full_like(x, np.nan),
}


@pytest.mark.parametrize("family", ["detectron2", "torchvision"])
@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_checkpoints_are_refused(family, kind):
    """One tensor in turn, of each shape of name; never half a model."""
    tensors = tiny_tensors(family)
    importer.import_weights(peer_model.source(tensors))
    picked = {re.sub(r"\d+", "#", name): name for name in tensors}
    rng = np.random.default_rng(len(kind))
    for name in rng.permutation(sorted(picked.values()))[:6]:
        broken = {n: x for n, x in tensors.items() if n != name}
        value = DAMAGE[kind](tensors[name])
        if value is not None:
            broken[f"{name}_" if kind == "renamed" else str(name)] = value
        with pytest.raises(UserError):
            importer.import_weights(peer_model.source(broken, f"{kind} {name}"))
