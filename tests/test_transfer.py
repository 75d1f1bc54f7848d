"""init.heads="match": class heads by name, against rows picked one by one."""

from dataclasses import replace

import numpy as np
import peer_model
import pytest
import tiny_checkpoint
import tiny_coco
import tiny_model

from maskrcnn_jax import initial, transfer
from maskrcnn_jax.data.coco import load_coco
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.weights import coco_names, exporter, importer
from maskrcnn_jax.weights.layout import Spec

THEIRS = tiny_checkpoint.NAMES  # cat, dog, owl, big fox, a/b
OURS = ["Big_Fox", "ship", "cat"]
SOURCES = [3, None, 0]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's checkpoint of five classes, of another depth than the tiny model's."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    return tiny_checkpoint.make(folder, is_noise=True, depth=34)


@pytest.fixture(scope="module")
def imported(run):
    return importer.import_weights(run)


@pytest.fixture(scope="module")
def fresh():
    """Variables for three classes and for five, in place of random ones: all below -1."""
    rng = np.random.default_rng(1)
    found = {}
    for count in (len(OURS), len(THEIRS)):
        shapes = importer.model_shapes(tiny_model.config(depth=34).model.to_dict(), count)
        flat = {path: np.float32(-1 - rng.random(shape)) for path, shape in shapes.items()}
        found[count] = importer.unflatten(flat)
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A data set with the classes cat, dog and owl."""
    folder = tmp_path_factory.mktemp("data")
    objects = [tiny_coco.annotation(1, 1, 3, [tiny_coco.rectangle(1, 1, 9, 9)])]
    return load_coco(*tiny_coco.write(folder, {1: (16, 16)}, objects))


def same(a, b):
    return a.shape == b.shape and a.tobytes() == b.tobytes()


def test_rows_go_by_the_names_of_the_classes(imported, fresh):
    before = fresh[len(OURS)]
    filled, rows, lines = transfer.take(before, imported, OURS)
    ours, old = filled["params"], before["params"]
    theirs = imported.variables["params"]
    for name in ("kernel", "bias"):
        scores = [tree["box_head"]["cls_score"][name] for tree in (ours, theirs, old)]
        boxes = [tree["box_head"]["bbox_pred"][name] for tree in (ours, theirs, old)]
        masks = [tree["mask_head"][f"predictor_{name}"] for tree in (ours, theirs, old)]
        assert same(scores[0][..., -1], scores[1][..., -1])  # background
        for i, source in enumerate(SOURCES):
            # Of what is random (2) or theirs (1), which row.
            tree, row = (2, i) if source is None else (1, source)
            assert same(scores[0][..., i], scores[tree][..., row])
            assert same(masks[0][..., i], masks[tree][..., row])
            deltas = slice(4 * i, 4 * i + 4), slice(4 * row, 4 * row + 4)
            assert same(boxes[0][..., deltas[0]], boxes[tree][..., deltas[1]])
    heads = ("cls_score", "bbox_pred", "predictor_")
    flat, source = importer.flatten(filled), importer.flatten(imported.variables)
    for path in flat:
        if not any(head in path for head in heads):
            assert same(flat[path], source[path]), path

    found = {kind: (int(number.replace(",", "")), what) for kind, number, what in rows}
    dim, channels = 32, 16  # of the tiny model's last layers
    per_class = (dim + 1) * 5 + channels + 1
    assert found["fresh"] == (per_class, "1 of 3 classes: ship")
    names = "2 of 3 classes: Big_Fox <- big fox, cat"
    assert found["mapped"] == (2 * per_class + dim + 1, names)
    total = sum(x.size for path, x in flat.items() if path.startswith("params/"))
    assert sum(number for number, _ in found.values()) == total
    assert found["loaded"][1] == "backbone, box_head, fpn, mask_head, rpn_head" and not lines


def test_the_same_classes_are_taken_whole(imported, fresh):
    filled, rows, _ = transfer.take(fresh[len(THEIRS)], imported, THEIRS)
    flat, theirs = importer.flatten(filled), importer.flatten(imported.variables)
    assert flat.keys() == theirs.keys() and all(same(flat[path], theirs[path]) for path in flat)
    assert rows[2] == ["fresh", "0", "0 of 5 classes"]


def test_another_number_of_keypoints(fresh, imported):
    """The last layer stays random and is told; the layers before it are taken."""
    fields = {"depth": 34, "keypoint_channels": 8, "keypoint_convs": 1}
    trees = {}
    for number, value in ((4, 1), (5, 2)):
        config = tiny_model.config(keypoints=number, **fields)
        shapes = importer.model_shapes(config.model.to_dict(), len(THEIRS))
        trees[number] = {path: np.full(s, value, np.float32) for path, s in shapes.items()}
    weights = replace(imported, variables=importer.unflatten(trees[4]))
    filled, rows, _ = transfer.take(importer.unflatten(trees[5]), weights, THEIRS)
    kept = {path for path, x in importer.flatten(filled).items() if (x == 2).all()}
    assert kept == {f"params/keypoint_head/deconv/{name}" for name in ("kernel", "bias")}
    last = {k: sum(trees[k][path].size for path in kept) for k in (4, 5)}
    why = "keypoint_head: the model has another number of keypoints"
    assert rows[-2:] == [["left out", f"{last[4]:,}", why], ["fresh", f"{last[5]:,}", why]]
    total = sum(int(row[1].replace(",", "")) for row in rows if row[0] != "left out")
    assert total == sum(x.size for path, x in trees[5].items() if path.startswith("params/"))
    _, lines = importer.fill(importer.unflatten(trees[5]), weights, skip_heads=False)
    assert lines == [
        "left out, as the model has another number of keypoints: 2 arrays",
        "left random, not in the weights: 2 arrays of keypoint_head",
    ]


@pytest.mark.parametrize("theirs", ["keypoints", "none"])
def test_a_keypoint_head_that_only_one_side_has(theirs, imported, fresh):
    config = tiny_model.config(depth=34, keypoints=5, keypoint_channels=8, keypoint_convs=1)
    shapes = importer.model_shapes(config.model.to_dict(), len(THEIRS))
    flat = {path: np.full(shape, -1, np.float32) for path, shape in shapes.items()}
    size = sum(x.size for path, x in flat.items() if path.startswith("params/keypoint_head/"))
    number, with_head = f"{size:,}", importer.unflatten(flat)
    if theirs == "keypoints":
        before, weights = fresh[5], replace(imported, variables=with_head)
        told, line = "the model has no keypoints", "left out, as the model has no keypoints"
    else:
        before, weights = with_head, imported
        told, line = "not in the weights", "left random, not in the weights"
    filled, rows, _ = transfer.take(before, weights, THEIRS)
    kind = "left out" if theirs == "keypoints" else "fresh"
    assert [kind, number, f"keypoint_head: {told}"] in rows
    ours, given = (importer.flatten(tree) for tree in (filled, weights.variables))
    assert ours.keys() == importer.flatten(before).keys()
    assert all(same(ours[path], given[path]) for path in ours.keys() & given.keys())
    _, lines = importer.fill(before, weights, skip_heads=False)
    assert len(lines) == 1 and lines[0].startswith(line)


@pytest.mark.parametrize(
    ("theirs", "ours", "expected"),
    [
        (["traffic light", "car"], ["Traffic-Light", "CAR "], [0, 1]),
        (["a_b", "a b"], ["a b", "A-B"], [1, 0]),  # the same spelling before the first alike
        (["N/A", "x", "N/A"], ["n/a"], [0]),
        (["trafficlight"], ["traffic light"], [None]),
        (["Straße"], ["STRASSE"], [0]),
        ([], ["a"], [None]),
    ],
)
def test_names_that_are_equal(theirs, ours, expected):
    imported = importer.Imported(None, {}, {}, {"names": theirs}, (), (), {})
    assert transfer.match_classes(imported, ours) == (expected, [])


def test_weights_without_names_are_taken_in_order_or_not_at_all():
    spec = Spec("torchvision", "torchvision_v1", 2)
    classes = {"names": ["class 1", "class 2"]}
    imported = importer.Imported(spec, {}, {}, classes, (), (), {})
    sources, lines = transfer.match_classes(imported, ["a", "b"])
    assert sources == [0, 1] and "WARNING" in lines[0]
    sources, lines = transfer.match_classes(imported, ["class 1", "b", "c"])
    assert sources == [None] * 3 and "no names" in lines[0]
    named = replace(imported, spec=replace(spec, class_names=("b", "a")), classes={"names": "ba"})
    assert transfer.match_classes(named, ["a", "b"]) == ([1, 0], [])


def test_classes_of_another_programs_weights():
    """Detectron2's 80 classes of COCO, whose tensors have a class a row."""
    config = tiny_model.config(norm="frozen", head_norm="none").model
    shapes = importer.model_shapes(config.to_dict(), 80)
    rng = np.random.default_rng(2)
    variables = importer.unflatten({path: np.float32(rng.random(s)) for path, s in shapes.items()})
    names = {"names": list(coco_names.NAMES), "category_ids": list(coco_names.CATEGORY_IDS)}
    tensors = exporter.export(variables, exporter.spec_for("detectron2", config.to_dict(), names))
    imported = importer.import_weights(peer_model.source(tensors))

    shapes = importer.model_shapes(imported.config["model"], 2)
    before = importer.unflatten({path: -np.ones(s, np.float32) for path, s in shapes.items()})
    filled, rows, lines = transfer.take(before, imported, ["date", "Traffic-Light"])
    heads = filled["params"]["box_head"], filled["params"]["mask_head"]
    scores = tensors["roi_heads.box_predictor.cls_score.weight"]
    deltas = tensors["roi_heads.box_predictor.bbox_pred.weight"]
    masks = tensors["roi_heads.mask_head.predictor.weight"][:, :, 0, 0]
    light = 9  # person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light
    kernel = heads[0]["cls_score"]["kernel"].T
    np.testing.assert_array_equal(kernel[1:], scores[[light, 80]])
    kernel = heads[0]["bbox_pred"]["kernel"].T
    np.testing.assert_array_equal(kernel[4:], deltas[4 * light : 4 * light + 4])
    assert (kernel[:4] == -1).all()
    np.testing.assert_array_equal(heads[1]["predictor_kernel"].T[1], masks[light])
    assert rows[1][2] == "1 of 2 classes: Traffic-Light <- traffic light" and not lines


@pytest.mark.parametrize(
    "fields",
    [
        {"mask_branch": "mlp", "mask_fc_dim": 8, "mask_pool_size": 2},
        {"class_agnostic_boxes": True, "cascade_ious": (0.5, 0.6), "mask_loss": "softmax"},
        {"class_agnostic_boxes": True, "class_agnostic_masks": True},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_every_array_that_depends_on_the_classes_is_mapped(fields):
    """What has another shape for two classes than for three; each third of three is a class's."""
    config = tiny_model.config(**fields).model.to_dict()
    flat = {}
    for count in (2, 3):
        shapes = importer.model_shapes(config, count)
        flat[count] = {path: np.full(shape, -1, np.float32) for path, shape in shapes.items()}
    names = {"names": ["a", "b", "c"]}
    found = importer.Imported(None, {"model": config}, {}, names, (), (), {})
    theirs = {path: np.zeros_like(x) for path, x in flat[3].items()}
    found = replace(found, variables=importer.unflatten(theirs))
    filled, rows, lines = transfer.take(importer.unflatten(flat[2]), found, ["c", "new"])
    differ = {path for path, x in flat[2].items() if x.shape != flat[3][path].shape}
    assert differ and not lines
    for path, x in importer.flatten(filled).items():
        fresh = (x == -1).sum() / x.size
        per_class = 1 - flat[2][path].size / flat[3][path].size  # of three classes' array
        assert fresh == pytest.approx(per_class / (1 - per_class) if path in differ else 0), path


def test_cells_and_extra_values_of_other_heads():
    """The mask of an MLP has a value per cell and class; competing masks a background, too."""
    rng = np.random.default_rng(0)
    theirs, ours = rng.random((7, 9 * 4)), rng.random((7, 9 * 3))  # 3 + 1 and 2 + 1 values a cell
    out = transfer.map_rows(theirs, ours, [None, 0], transfer.Layout(1, 1), 3)
    for cell in range(9):
        assert same(out[:, 3 * cell], ours[:, 3 * cell])
        assert same(out[:, 3 * cell + 1], theirs[:, 4 * cell])
        assert same(out[:, 3 * cell + 2], theirs[:, 4 * cell + 3])


def settings(path, **fields):
    config = tiny_model.config(**fields)
    config.init.checkpoint, config.init.heads = str(path), "match"
    config.lock()
    return config


def test_a_runs_model_fields_are_adopted_and_kept(run):
    config = settings(run, rpn_nms_thresh=0.5)
    lines = []
    assert initial.read_foreign(config, lines.append) is None
    imported = initial.read_run(config, lines.append)
    assert lines == [f"{run}: a run, 5 classes"]
    initial.adopt_preset(config, imported, lines.append)
    assert config.model.depth == 34
    assert config.model.rpn_nms_thresh == 0.5  # of the training, not of the weights
    assert "config.model.depth: 10 -> 34, as the weights expect" in lines

    again = settings(run)
    initial.keep_preset(again, config.to_dict(), lines.append)
    assert again.model.depth == 34
    config.init.heads = "strict"
    assert initial.read_run(config, lines.append) is None


def test_another_architecture_is_one_clear_error(run, imported, fresh, data):
    config = settings(run)
    flat = importer.flatten(fresh[len(data.names)])
    flat["params/rpn_head/conv1/conv/kernel"] = np.zeros((3, 3, 16, 8), np.float32)
    variables = importer.unflatten(flat)
    with pytest.raises(UserError) as error:
        initial.load_initial(config, variables, data, imported, print, print)
    message = str(error.value)
    assert message.startswith(f"{run}: ") and "init.use_preset=true" in message
    both = "params/rpn_head/conv1/conv/kernel: weights (3, 3, 16, 16), model (3, 3, 16, 8)"
    assert both in message and "cls_score" not in message


def test_a_backbone_alone(run, imported, fresh, data):
    config, tables, before = settings(run), [], fresh[len(data.names)]
    config.init.part = "backbone"
    after = initial.load_initial(
        config, before, data, imported, print, lambda *table: tables.append(table)
    )
    for name in ("fpn", "box_head", "mask_head"):
        heads = [importer.flatten(tree["params"][name]).values() for tree in (after, before)]
        assert all(same(a, b) for a, b in zip(*heads, strict=True))
    flat = importer.flatten(imported.variables)
    for path, x in importer.flatten(after).items():
        assert "backbone" not in path or same(x, flat[path])
    ((title, _, rows),) = tables
    assert str(run) in title and [row[0] for row in rows] == ["loaded", "fresh"]
    assert rows[1][2] == "box_head, fpn, mask_head, rpn_head: not in the weights"
