"""Matterport's checkpoints: the algebra of single layers, other classes, and back again."""

from pathlib import Path

import golden_sets
import h5py
import jax
import ml_dtypes
import numpy as np
import peer_model
import pytest
import tiny_checkpoint
import tiny_model
from ml_collections import ConfigDict

from maskrcnn_jax.errors import UserError
from maskrcnn_jax.models import mask_rcnn
from maskrcnn_jax.weights import exporter, importer, matterport, readers
from maskrcnn_jax.weights.readers import Source

MODELS = [
    path.stem.removeprefix("manifest_")
    for path in golden_sets.find("matterport", "manifest_*.json")
]
ONE = [name for name in MODELS if name == "resnet50_coco81"]


@pytest.fixture(
    scope="module",
    params=ONE or [pytest.param("", marks=pytest.mark.skip("no R50 manifest"))],
)
def tensors(request):
    return peer_model.keras_tensors(request.param, num_classes=4)


def source(tensors):
    return Source(Path("weights.h5"), "h5", dict(tensors), {})


def normed(x, tensors, norm):
    """Keras' batch norm in float64, as it stands in its documentation."""
    gamma, beta, mean, var = (
        np.float64(tensors[f"{norm}/{end}"])
        for end in ("gamma", "beta", "moving_mean", "moving_variance")
    )
    return gamma * (x - mean) / np.sqrt(var + 1e-3) + beta


@pytest.mark.parametrize(
    "name", MODELS or [pytest.param("", marks=pytest.mark.skip("no manifests"))]
)
def test_everything_is_used_and_comes_back(name):
    tensors = peer_model.keras_tensors(name)
    imported = importer.import_weights(source(tensors))
    assert imported.unused == () and imported.missing == ()
    assert imported.spec.preset == "matterport"
    back = exporter.export(imported.variables, imported.spec, imported.originals)
    assert back.keys() == tensors.keys()
    for key, x in tensors.items():
        np.testing.assert_array_equal(back[key].view(np.uint32), x.view(np.uint32), err_msg=key)


def test_a_file_as_keras_writes_it(tmp_path):
    make = peer_model.script("matterport", "make_weights")
    manifest = peer_model.manifest("resnet50_coco81", "matterport")
    expected = peer_model.keras_tensors("resnet50_coco81", 3)
    for nested in (False, True):
        make.write(manifest, tmp_path / "weights.h5", 3, nested)
        found = readers.read(tmp_path / "weights.h5").tensors
        assert found.keys() == expected.keys()
        assert all(np.array_equal(found[k], expected[k]) for k in expected)
    imported = importer.import_weights(tmp_path / "weights.h5")
    assert imported.spec.num_classes == 2 and imported.spec.class_names is None
    assert imported.spec.model["depth"] == 50


@pytest.mark.parametrize(
    "name", MODELS or [pytest.param("", marks=pytest.mark.skip("no manifests"))]
)
def test_a_file_comes_back_as_keras_writes_it(name, tmp_path):
    """From and to .h5: names, order and attributes are those of Matterport's own file."""
    manifest = peer_model.manifest(name, "matterport")
    manifest["layers"] = [layer for layer in manifest["layers"] if layer["weights"]]
    make = peer_model.script("matterport", "make_weights")
    make.write(manifest, tmp_path / "theirs.h5", 4)
    imported = importer.import_weights(tmp_path / "theirs.h5")
    exporter.save(
        exporter.export(imported.variables, imported.spec, imported.originals),
        tmp_path / "ours.h5",
    )
    with h5py.File(tmp_path / "theirs.h5") as theirs, h5py.File(tmp_path / "ours.h5") as ours:
        # Bytes of fixed length, which Keras 2 decodes whatever h5py it has.
        assert ours.attrs["layer_names"].dtype.kind == "S"
        groups = [group.decode() for group in ours.attrs["layer_names"]]
        expected = [layer["name"] for layer in manifest["layers"]]
        # A training model has the heads in another order; it reads files of models by name.
        if manifest["mode"] == "inference":
            assert groups == expected
        assert sorted(groups) == sorted(expected) == sorted(ours)
        assert ours.attrs["backend"].decode() == manifest["backend"]
        assert ours.attrs["keras_version"].decode() == manifest["keras_version"]
        for layer in manifest["layers"]:
            group = ours[layer["name"]]
            weights = [w.get("canonical", w["name"]) for w in layer["weights"]]
            assert [weight.decode() for weight in group.attrs["weight_names"]] == weights
            for weight, own in zip(weights, layer["weights"], strict=True):
                x = theirs[layer["name"]][own["name"]][()]
                assert importer.same_bits(group[weight][()], x), weight


@pytest.mark.parametrize("by_name", [False, True])
def test_keras_itself_loads_an_exported_file(tensors, tmp_path, monkeypatch, by_name):
    """Its layers get their weights, those of the nested model too, and compute what ours do."""
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    keras = pytest.importorskip("keras")
    imported = importer.import_weights(source(tensors))
    exported = exporter.export(imported.variables, imported.spec)  # no originals: neutral norms
    parts = ("conv1/", "bn_conv1/", "rpn_")
    exported = {name: x for name, x in exported.items() if name.startswith(parts)}
    exporter.save(exported, tmp_path / "part.h5")

    conv = keras.layers.Conv2D
    image, features = keras.Input((16, 16, 3)), keras.Input((4, 4, 256))
    normed = keras.layers.BatchNormalization(epsilon=1e-3, name="bn_conv1")(
        conv(64, 7, strides=2, name="conv1")(image)
    )
    inner = keras.Input((4, 4, 256))
    shared = conv(512, 3, padding="same", activation="relu", name="rpn_conv_shared")(inner)
    pairs, deltas = conv(6, 1, name="rpn_class_raw"), conv(12, 1, name="rpn_bbox_pred")
    rpn = keras.Model(inner, [pairs(shared), deltas(shared)], name="rpn_model")
    model = keras.Model([image, features], [normed, *rpn(features)])
    model.load_weights(tmp_path / "part.h5", by_name=by_name)

    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 16, 16, 3)).astype(np.float32)
    y = rng.standard_normal((1, 4, 4, 256)).astype(np.float32)
    theirs, pairs, deltas = (np.asarray(out) for out in model.predict([x, y], verbose=0))
    variables = imported.variables
    kernel = variables["params"]["backbone"]["stem"]["conv"]["kernel"]
    norm = variables["batch_stats"]["backbone"]["stem"]["norm"]
    ours = convolve(x, kernel, 2, "VALID") * norm["scale"] + norm["bias"]
    np.testing.assert_allclose(theirs, ours, rtol=1e-4, atol=1e-4)
    head = variables["params"]["rpn_head"]
    shared = np.maximum(with_bias(y, head["conv1"]["conv"]), 0)
    objectness = with_bias(shared, head["objectness"])
    np.testing.assert_allclose(pairs[..., 1::2] - pairs[..., ::2], objectness, atol=1e-4)
    dx, dy, dw, dh = np.moveaxis(with_bias(shared, head["deltas"]).reshape(4, 4, 3, 4), -1, 0)
    ours = np.stack([dy, dx, dh, dw], -1).reshape(1, 4, 4, 12)
    np.testing.assert_allclose(deltas, ours, atol=1e-4)


def convolve(x, kernel, stride=1, padding="SAME"):
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=layout
    )


def with_bias(x, layer):
    return np.asarray(convolve(x, layer["kernel"]) + layer["bias"])


def test_models_of_our_own():
    """Without an import behind it: other pooled sides, ratios and conventions; what is refused."""
    changes = {"rpn_convs": 1, "norm": "frozen", "head_norm": "none", "freeze_at": 2}
    changes |= {"depth": 50, "box_pool_size": 5, "anchor_ratios": (0.5, 1.0)}
    model = tiny_model.config(**changes).model
    flat = importer.flatten(tiny_checkpoint.noise(model))
    names = {"names": list("abcde"), "category_ids": [1, 2, 3, 4, 5]}
    spec = exporter.spec_for("matterport", model.to_dict(), names)
    assert any(line.startswith("model.anchor_ratios:") for line in spec.warnings)
    out = exporter.export(importer.unflatten(flat), spec)
    assert out["mrcnn_class_conv1/kernel"].shape == (5, 5, 16, 32)
    assert out["rpn_class_raw/kernel"].shape == (1, 1, 16, 4)
    assert matterport.describe(out).model["box_pool_size"] == 5
    for rule in matterport.rules(spec):
        again = rule.forward(*(out[name] for name in rule.sources))
        for path, x in zip(rule.targets, again, strict=True):
            np.testing.assert_allclose(x, flat[path], rtol=3e-6, atol=1e-6, err_msg=path)
    for change in ({"depth": 18}, {"box_fcs": 1}, {"rpn_convs": 2}):
        with pytest.raises(UserError, match=f"{next(iter(change))}="):
            exporter.spec_for("matterport", model.to_dict() | change, names)


def test_what_is_no_keras_file(tmp_path):
    for tensors, message in (
        ({"backbone.fpn_lateral2.weight": np.zeros(3, np.float32)}, "layer/weight"),
        ({"a/b/c": np.zeros(3, np.float32)}, "layer/weight"),
        ({"conv1/kernel": np.zeros(3, ml_dtypes.bfloat16)}, "bfloat16"),
    ):
        with pytest.raises(UserError, match=message):
            exporter.save(tensors, tmp_path / "x.h5")
    assert not list(tmp_path.iterdir())


def test_frozen_norms_and_biases(tensors):
    variables = importer.import_weights(source(tensors)).variables
    x = np.linspace(-3, 3, 256)
    for conv, norm, path in (
        ("res2a_branch1", "bn2a_branch1", ("res2_block0", "shortcut")),
        ("res2c_branch2c", "bn2c_branch2c", ("res2_block2", "conv3")),
    ):
        layer = variables["batch_stats"]["backbone"][path[0]][path[1]]["norm"]
        ours = x * layer["scale"] + layer["bias"]
        theirs = normed(x + tensors[f"{conv}/bias"], tensors, norm)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


def test_heads_in_numpy(tensors):
    """The dense layers, classes, deltas and masks of one roi, computed as Keras would."""
    params = importer.import_weights(source(tensors)).variables["params"]
    rng = np.random.default_rng(0)
    pooled = rng.standard_normal((7, 7, 256))
    x = np.einsum("yxf,yxfo->o", pooled, np.float64(tensors["mrcnn_class_conv1/kernel"]))
    x = np.maximum(normed(x + tensors["mrcnn_class_conv1/bias"], tensors, "mrcnn_class_bn1"), 0)
    dense = lambda x, layer: x @ np.float64(layer["kernel"]) + layer["bias"]  # noqa: E731
    box = params["box_head"]
    ours = np.maximum(dense(pooled.reshape(-1), box["fc1"]), 0)
    np.testing.assert_allclose(ours, x, rtol=1e-5, atol=1e-4)
    logits = x @ tensors["mrcnn_class_logits/kernel"] + tensors["mrcnn_class_logits/bias"]
    np.testing.assert_allclose(dense(x, box["cls_score"]), [*logits[1:], logits[0]], rtol=1e-5)
    deltas = (x @ tensors["mrcnn_bbox_fc/kernel"] + tensors["mrcnn_bbox_fc/bias"]).reshape(4, 4)
    dy, dx, dh, dw = deltas[1:].T
    ours = dense(x, box["bbox_pred"]).reshape(3, 4)
    np.testing.assert_allclose(ours, np.stack([dx, dy, dw, dh], 1), rtol=1e-5, atol=1e-5)

    cell = rng.standard_normal(256)
    kernel = np.float64(tensors["mrcnn_mask_deconv/kernel"])
    children = np.einsum("yxoi,i->yxo", kernel, cell) + tensors["mrcnn_mask_deconv/bias"]
    mask = params["mask_head"]
    ours = np.einsum("yxio,i->yxo", mask["deconv"]["kernel"], cell) + mask["deconv"]["bias"]
    np.testing.assert_allclose(ours, children, rtol=1e-5, atol=1e-5)
    logits = children @ tensors["mrcnn_mask/kernel"][0, 0] + tensors["mrcnn_mask/bias"]
    ours = children @ mask["predictor_kernel"] + mask["predictor_bias"]
    np.testing.assert_allclose(ours, logits[..., 1:], rtol=1e-5, atol=1e-5)


def test_objectness_is_the_difference_of_two_logits(tensors):
    params = importer.import_weights(source(tensors)).variables["params"]["rpn_head"]
    x = np.random.default_rng(1).standard_normal(512)
    pairs = x @ tensors["rpn_class_raw/kernel"][0, 0] + tensors["rpn_class_raw/bias"]
    probabilities = np.exp(pairs[1::2]) / (np.exp(pairs[::2]) + np.exp(pairs[1::2]))
    logits = x @ params["objectness"]["kernel"][0, 0] + params["objectness"]["bias"]
    np.testing.assert_allclose(1 / (1 + np.exp(-logits)), probabilities, rtol=1e-5)


def test_trained_weights_go_back(tensors):
    """Changed weights keep the bias and statistics that Keras has besides, and mean the same."""
    imported = importer.import_weights(source(tensors))
    flat = importer.flatten(imported.variables)
    changed = {name: np.float32(x * 1.25 + 0.01) for name, x in flat.items()}
    back = exporter.export(importer.unflatten(changed), imported.spec, imported.originals)
    again = importer.flatten(importer.import_weights(source(back)).variables)
    for name, x in changed.items():
        np.testing.assert_allclose(again[name], x, rtol=2e-5, atol=1e-5, err_msg=name)
    np.testing.assert_array_equal(
        back["bn_conv1/moving_variance"], tensors["bn_conv1/moving_variance"]
    )
    without = exporter.export(importer.unflatten(changed), imported.spec, None)
    again = importer.flatten(importer.import_weights(source(without)).variables)
    for name, x in changed.items():
        np.testing.assert_allclose(again[name], x, rtol=2e-5, atol=1e-5, err_msg=name)


def test_missing_renamed_and_misshapen_tensors_are_named(tensors):
    for change, message in (
        ({"mrcnn_mask_conv2/kernel": None}, "mrcnn_mask_conv2/kernel"),
        ({"bn4f_branch2b/gamma": None}, "bn4f_branch2b/gamma"),
        ({"mrcnn_class_logits/kernel": None, "mrcnn_class_logits/bias": None}, "class_logits"),
        ({"res3a_branch2a/kernel": np.zeros((1, 1, 256, 7), np.float32)}, "res3a_branch2a/kernel"),
        ({"bn_conv1/beta": np.zeros(1, np.float32)}, "bn_conv1"),
        ({"rpn_class_raw/bias": np.zeros(5, np.float32)}, "rpn_class_raw"),
        ({"mrcnn_bbox_fc/bias": np.zeros(7, np.float32)}, "mrcnn_bbox_fc"),
        ({"mrcnn_mask/kernel": np.zeros((3,), np.float32)}, "mrcnn_mask"),
    ):
        bad = {k: v for k, v in {**tensors, **change}.items() if v is not None}
        with pytest.raises(UserError, match=message):
            importer.import_weights(source(bad))


def test_heads_of_other_classes_only_on_request(tensors):
    imported = importer.import_weights(source(tensors))
    model = mask_rcnn.build(ConfigDict(dict(imported.config["model"])), 7)
    fresh = tiny_model.variables(model)
    with pytest.raises(UserError, match="3 classes, the data 7.*init.skip_heads"):
        importer.fill(fresh, imported, skip_heads=False)
    filled, lines = importer.fill(fresh, imported, skip_heads=True)
    assert sum("of other classes" in line for line in lines) == 6
    stem = filled["params"]["backbone"]["stem"]["conv"]["kernel"]
    np.testing.assert_array_equal(stem, tensors["conv1/kernel"])


def test_is_told_from_the_other_families(tensors):
    assert importer.recognise(tensors) is matterport
    others = [m for m in importer.FAMILIES if m is not matterport]
    assert not any(m.recognises(tensors) for m in others)
