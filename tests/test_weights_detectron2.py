"""Detectron2's models without FPN: their names, there and back; backbones for C4."""

import re
from unittest.mock import Mock

import numpy as np
import peer_model
import pytest

from configs import common
from maskrcnn_jax import initial
from maskrcnn_jax.data.coco import CocoData
from maskrcnn_jax.weights import exporter, importer
from maskrcnn_jax.weights.layout import Spec
from maskrcnn_jax.weights.presets import PRESETS

SMALL = {"width": 8, "rpn_channels": 16, "box_fc_dim": 16, "mask_channels": 8}
CLASSES = {"names": ["a", "b", "c"], "category_ids": [1, 2, 3]}


def detectron2_names(neck):
    """Those of its FPN model, in the words of GeneralizedRCNN without one."""
    names = set()
    for name in peer_model.manifest("d2_r50")["parameters"]:
        name = name.replace("backbone.bottom_up.", "backbone.")
        if neck == "c4":
            name = name.replace("backbone.res5.", "roi_heads.res5.")
        gone = r"backbone\.fpn_" + (r"|.*box_head\.|.*mask_fcn" if neck == "c4" else "")
        if not re.match(gone, name):
            names.add(name)
    return names


def random_variables(model, num_classes=3):
    rng = np.random.default_rng(0)
    shapes = importer.model_shapes(model, num_classes)
    return importer.unflatten(
        {path: rng.uniform(0.5, 2, shape).astype(np.float32) for path, shape in shapes.items()}
    )


@pytest.mark.parametrize("neck", ["c4", "dc5"])
def test_models_without_fpn_there_and_back(neck):
    model = PRESETS[f"detectron2_{neck}"]["model"] | SMALL
    ours = random_variables(model)
    spec = exporter.spec_for("detectron2", model, CLASSES)
    assert not [
        w for w in spec.warnings if not re.match(r"model\.(width|rpn_ch|box_fc|mask_ch)", w)
    ]
    tensors = exporter.export(ours, spec)
    assert set(tensors) == detectron2_names(neck)
    imported = importer.import_weights(peer_model.source(tensors))
    fields = {f: x for f, x in imported.config["model"].items() if x != model[f]}
    assert fields == ({"box_fc_dim": 1024} if neck == "c4" else {})  # it has no dense layer
    found, expected = importer.flatten(imported.variables), importer.flatten(ours)
    assert found.keys() == expected.keys()
    for path, x in found.items():
        np.testing.assert_allclose(x, expected[path], rtol=1e-6, err_msg=path)


def test_keypoint_models_there_and_back():
    """The names of KRCNNConvDeconvUpsampleHead, in a model without masks."""
    fields = {"mask_branch": "none", "keypoints": 17, "keypoint_channels": 8}
    model = PRESETS["detectron2"]["model"] | SMALL | fields
    ours = random_variables(model, 1)
    tensors = exporter.export(ours, Spec("detectron2", "detectron2", 1, None, None, model, "model"))
    names = set(peer_model.manifest("d2_r50")["parameters"])
    names = {n for n in names if ".mask_head." not in n}
    layers = [*(f"conv_fcn{i}" for i in range(1, 9)), "score_lowres"]
    ends = ("weight", "bias")
    names |= {f"roi_heads.keypoint_head.{layer}.{end}" for layer in layers for end in ends}
    assert set(tensors) == names
    assert tensors["roi_heads.keypoint_head.score_lowres.weight"].shape == (8, 17, 4, 4)
    imported = importer.import_weights(peer_model.source(tensors))
    assert imported.classes == {"names": ["person"], "category_ids": [1]}
    assert {f: imported.config["model"][f] for f in fields} == fields
    found, expected = importer.flatten(imported.variables), importer.flatten(ours)
    assert found.keys() == expected.keys()
    for path, x in found.items():
        np.testing.assert_allclose(x, expected[path], rtol=1e-6, err_msg=path)


@pytest.mark.parametrize("neck", ["c4", "fpn"])
def test_a_backbone_brings_res5_to_where_it_is_wanted(neck):
    """A FPN model's backbone for C4, and the other way round."""
    other = {"c4": "fpn", "fpn": "c4"}[neck]
    models = {
        "c4": PRESETS["detectron2_c4"]["model"] | SMALL,
        "fpn": PRESETS["detectron2"]["model"] | SMALL,
    }
    theirs = random_variables(models[other])
    spec = exporter.spec_for("detectron2", models[other], CLASSES)
    imported = importer.import_weights(peer_model.source(exporter.export(theirs, spec)))
    config = common.get_config()
    config.init.checkpoint, config.init.part = "weights.pth", "backbone"
    wanted = random_variables(models[neck])
    wanted = importer.unflatten({k: 0 * x for k, x in importer.flatten(wanted).items()})
    data, say = Mock(spec=CocoData), lambda *_: None  # a backbone does not ask for the classes
    found = initial.load_initial(config, wanted, data, imported, say, say)
    found = importer.flatten(found)
    rooms = {"c4": "shared_head", "fpn": "backbone"}
    for path in (
        "params/{}/res5_block1/conv2/conv/kernel",
        "params/{}/res5_block0/conv1/conv/kernel",
    ):
        expected = importer.flatten(theirs)[path.format(rooms[other])]
        np.testing.assert_allclose(found[path.format(rooms[neck])], expected, rtol=1e-6)
    assert not found["params/rpn_head/conv1/conv/kernel"].any()
