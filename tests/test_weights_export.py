"""Exporting: import -> export is the same to the last bit; trained weights go back exactly."""

import io
import json
import pickle
import sys
import zipfile

import golden_sets
import ml_dtypes
import numpy as np
import peer_model
import pytest
import tiny_model

from maskrcnn_jax.errors import UserError
from maskrcnn_jax.weights import exporter, importer, layout, readers

MODELS = [path.stem for path in golden_sets.find("torch", "manifests/*.json")]
NAMES = {"names": list("abcde"), "category_ids": [1, 2, 3, 4, 5]}


def check_same(found, expected):
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        assert importer.same_bits(found[name], x), name


@pytest.mark.parametrize("model", MODELS)
def test_import_and_export_give_the_same_tensors(model):
    manifest = peer_model.manifest(model)
    tensors = peer_model.tensors(model)
    for name, x in manifest.get("zoo_extras", {}).items():
        tensors[name] = np.asarray(x, np.float32)
    old = manifest.get("legacy_names", {})
    for names in ({}, old) if old else ({},):
        given = {names.get(name, name): x for name, x in tensors.items()}
        imported = importer.import_weights(peer_model.source(given))
        out = exporter.export(imported.variables, imported.spec, imported.originals)
        check_same(out, given)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_goes_back_as_it_came(dtype, tmp_path):
    tensors = peer_model.tensors("d2_r50")
    half = {name: x.astype(dtype) for name, x in tensors.items()}
    imported = importer.import_weights(peer_model.source(half))
    for name, x in importer.flatten(imported.variables).items():
        assert x.dtype == np.float32, name
    kernel = imported.variables["params"]["fpn"]["output3"]["conv"]["kernel"]
    wide = half["backbone.fpn_output3.weight"].astype(np.float64).transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(kernel, wide)
    importer.save(imported, tmp_path / "run")
    stored = importer.import_weights(tmp_path / "run")
    for kept in (imported, stored):
        check_same(exporter.export(kept.variables, kept.spec, kept.originals), half)
    for name in ("x.pth", "x.safetensors"):
        exporter.save(half, tmp_path / name)
        check_same(readers.read(tmp_path / name).tensors, half)


def test_trained_weights_change_what_was_trained():
    """Folded tensors are solved for; a second import gives the trained variables back."""
    tensors = peer_model.tensors("tv_v1")
    imported = importer.import_weights(peer_model.source(tensors))
    flat = importer.flatten(imported.variables)
    rng = np.random.default_rng(0)
    trained = {
        path: (x * 1.1 + rng.standard_normal(x.shape).astype(np.float32) * 0.01).astype(np.float32)
        for path, x in flat.items()
        if path.startswith(("params/box_head/", "batch_stats/backbone/res5"))
    }
    variables = importer.unflatten(flat | trained)
    out = exporter.export(variables, imported.spec, imported.originals)
    again = importer.flatten(importer.import_weights(peer_model.source(out)).variables)
    for path, x in (flat | trained).items():
        if path.startswith("params/") or path not in trained:
            assert importer.same_bits(again[path], x), path
        else:  # through weight * sqrt(var) and back
            np.testing.assert_allclose(again[path], x, rtol=1e-6, atol=1e-6)
    key = "roi_heads.box_predictor.bbox_pred.weight"
    np.testing.assert_array_equal(out[key][:4], tensors[key][:4])  # the background's, untouched
    assert not (out[key][4:] == tensors[key][4:]).all()
    changed = [name for name in out if not importer.same_bits(out[name], tensors[name])]
    assert all("box_" in name or "layer4" in name for name in changed)
    assert not any("running" in name for name in changed)


def test_a_folded_norm_is_solved_for():
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    rule = layout.conv_with_norm("w", layout.bn_names("n"), "t", 1e-5)
    like = (draw(6, 3, 3, 3), draw(6), draw(6), draw(6), np.abs(draw(6)) + 0.1)
    like[1][2] = 0  # a channel that the norm switched off
    kernel, bias = draw(3, 3, 3, 6), draw(6)
    for known in (like, None):
        back = rule.backward(kernel, bias, like=known)
        assert [x.shape for x in back] == [x.shape for x in like]
        again = rule.forward(*back)
        np.testing.assert_allclose(again[0], kernel, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(again[1], bias, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["detectron2", "torchvision", "v2"])
@pytest.mark.parametrize("norm", ["frozen", "batch"])
def test_models_of_our_own(family, norm):
    """Without originals, batch norms folded: what comes back computes the same."""
    heads = (
        {"box_convs": 4, "box_fcs": 1, "rpn_convs": 2, "head_norm": norm} if family == "v2" else {}
    )
    heads["head_norm"] = "none" if norm == "frozen" else heads.get("head_norm", "none")
    config = tiny_model.config(norm=norm, depth=50, mask_convs=2, **heads)
    model = tiny_model.mask_rcnn.build(config.model, tiny_model.CLASSES)
    rng = np.random.default_rng(0)
    flat = importer.flatten(tiny_model.variables(model))
    flat = {
        path: np.abs(np.asarray(x) + 0.1 * rng.standard_normal(x.shape).astype(np.float32))
        for path, x in flat.items()
    }
    name = "torchvision" if family == "v2" else family
    spec = exporter.spec_for(name, config.model.to_dict(), NAMES)
    assert spec.variant == {"detectron2": "model", "torchvision": "v1_trained", "v2": "v2"}[family]
    out = exporter.export(importer.unflatten(flat), spec)
    module = importer.family(spec.family)
    told = module.describe(out)
    for field in ("depth", "width", "fpn_channels", "box_fcs", "mask_convs", "box_fc_dim"):
        assert told.model[field] == config.model[field], field
    for rule in module.rules(spec):
        again = rule.forward(*(out[source] for source in rule.sources))
        for path, x in zip(rule.targets, again, strict=True):
            np.testing.assert_allclose(x, expected(flat, path), rtol=3e-6, atol=1e-6, err_msg=path)


def expected(flat, path):
    """A variable as it is, or a batch norm's scale and bias on what comes before it."""
    prefix = path.split("/", 1)[1].rsplit("/", 2)[0]
    if f"batch_stats/{prefix}/norm/mean" not in flat:
        return flat[path]
    mean, var = (flat[f"batch_stats/{prefix}/norm/{x}"] for x in ("mean", "var"))
    scale = flat[f"params/{prefix}/norm/scale"] / np.sqrt(var + 1e-5)
    if path.endswith("kernel"):
        return flat[path] if prefix.startswith("backbone") else flat[path] * scale
    if path.endswith("scale"):
        return scale
    return flat[f"params/{prefix}/norm/bias"] - mean * scale


def test_what_cannot_be_exported():
    config = tiny_model.config(depth=50, rpn_convs=2).model.to_dict()
    with pytest.raises(UserError, match="rpn_convs=1"):
        exporter.spec_for("detectron2", config, NAMES)
    with pytest.raises(UserError, match="detectron2"):
        exporter.spec_for("caffe", config, NAMES)
    spec = exporter.spec_for("torchvision", config, NAMES)
    assert any("roi_aligned" in line for line in spec.warnings)
    model = tiny_model.model(norm="group", depth=50)
    with pytest.raises(UserError, match="norm/scale"):
        exporter.export(
            tiny_model.variables(model),
            exporter.spec_for("detectron2", config | {"rpn_convs": 1}, NAMES),
        )


TENSORS = {
    "a.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "b": np.float16([1, 2]),
    "turned": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "steps": np.array(70000, np.int64),
    "empty": np.zeros((0, 3), np.float32),
}


def test_torch_files(tmp_path):
    """Read with the standard library, as torch's own unpickler goes about it."""
    exporter.save(TENSORS, tmp_path / "x.pth")
    kinds = {"FloatStorage": "f4", "HalfStorage": "f2", "LongStorage": "i8"}
    with zipfile.ZipFile(tmp_path / "x.pth") as archive:
        assert archive.testzip() is None
        assert archive.read("archive/version") == b"3\n"
        assert archive.read("archive/byteorder") == b"little"
        assert all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())

        def rebuild(storage, offset, size, stride, needs_grad, hooks):
            kind, key, place, count = storage[1:]
            data = np.frombuffer(archive.read(f"archive/data/{key}"), kinds[kind])
            assert len(data) == count and place == "cpu" and not needs_grad and hooks == {}
            return np.lib.stride_tricks.as_strided(
                data[offset:], size, [s * data.itemsize for s in stride]
            )

        class Unpickler(pickle.Unpickler):
            def find_class(self, module, name):
                if module == "torch" and name in kinds:
                    return name
                return {
                    ("torch._utils", "_rebuild_tensor_v2"): rebuild,
                    ("collections", "OrderedDict"): dict,
                }[module, name]

            def persistent_load(self, saved):
                assert saved[0] == "storage"
                return saved

        found = Unpickler(io.BytesIO(archive.read("archive/data.pkl"))).load()
    check_same(found, TENSORS)


def test_detectron2_files(tmp_path, monkeypatch):
    exporter.save(TENSORS, tmp_path / "x.pkl")
    content = (tmp_path / "x.pkl").read_bytes()
    assert b"numpy._core" not in content  # NumPy before 2 has no such module
    monkeypatch.setitem(sys.modules, "numpy.core.multiarray", np._core.multiarray)
    found = pickle.loads(content)
    assert found["__author__"] == "maskrcnn_jax"
    check_same(found["model"], TENSORS)
    assert found["model"]["a.weight"].flags.owndata


def test_safetensors_files(tmp_path):
    pytest.importorskip("safetensors")
    exporter.save(TENSORS, tmp_path / "x.safetensors")
    content = (tmp_path / "x.safetensors").read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    found = {}
    for name, entry in header.items():
        start, end = (8 + size + offset for offset in entry["data_offsets"])
        kind = {"F32": "f4", "F16": "f2", "I64": "i8"}[entry["dtype"]]
        found[name] = np.frombuffer(content[start:end], kind).reshape(entry["shape"])
    check_same(found, TENSORS)


def test_files_are_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "x.pth"
    exporter.save({"a": np.zeros(3, np.float32)}, path)
    before = path.read_bytes()
    with pytest.raises(UserError, match="complex"):
        exporter.save({"a": np.zeros(3, np.complex64)}, path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["x.pth"]
    with pytest.raises(UserError, match=".safetensors"):
        exporter.save({}, tmp_path / "x.onnx")
