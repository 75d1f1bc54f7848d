"""VIA: the golden fixture, the real sets, every shape and what can be wrong with a file."""

import csv
import json

import format_samples as samples
import golden_sets
import numpy as np
import pytest
import truth

from maskrcnn_jax.data.formats import registry, to_coco
from maskrcnn_jax.data.formats.draft import Options
from maskrcnn_jax.errors import UserError


def codes(draft):
    return [finding.code for finding in draft.findings]


@pytest.mark.parametrize("style", ["dict_style", "list_style"])
def test_the_golden_fixture(style):
    folder = golden_sets.FOLDER / "matterport" / "via"
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}")
    expected = json.loads((folder / "expected.json").read_text())[style]["images"]
    draft = registry.read(folder / style / "train", "", Options(default_class="balloon"))
    coco = to_coco.finish(draft)
    assert draft.kind == "via" and [c["name"] for c in coco["categories"]] == ["balloon"]
    for image in coco["images"]:
        found = [a for a in coco["annotations"] if a["image_id"] == image["id"]]
        # The balloon sample skips pictures without regions; here they are negatives.
        told = expected.get(image["file_name"], {"areas": []})
        assert len(found) == len(told["areas"])
        for i, a in enumerate(found):
            hw = (image["height"], image["width"])
            assert list(hw) == [told["height"], told["width"]]
            assert a["area"] == told["areas_coco_rasteriser"][i]
            y0, x0, y1, x1 = told["boxes_y1x1y2x2"][i]
            box = np.array(a["bbox"])
            np.testing.assert_allclose(box[:2], [x0, y0], atol=1)
            np.testing.assert_allclose(box[:2] + box[2:], [x1, y1], atol=1)
            # Its pixel centres are half a pixel off ours: a rim of at most half a pixel.
            rle = {"size": list(hw), "counts": told["rle"][i]}
            rim = 2 * (box[2] + box[3])
            differing = truth.decode(a["segmentation"], hw) ^ truth.decode(rle, hw)
            assert np.count_nonzero(differing) <= rim
    assert len(coco["images"]) == 3


def test_the_golden_project_has_every_shape():
    folder = golden_sets.FOLDER / "matterport" / "via" / "project_style"
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}")
    draft = registry.read(folder)
    coco = to_coco.finish(draft)
    assert [c["name"] for c in coco["categories"]] == ["balloon", "thing"]
    assert len(coco["annotations"]) == 5  # rect, circle, ellipse, polygon, polyline
    assert codes(draft).count("point") == 1
    areas = [a["area"] for a in coco["annotations"]]
    np.testing.assert_allclose(areas[:3], [1200, np.pi * 225, np.pi * 200], rtol=0.01)


REAL = [
    ("train/via_region_data.json", 62, 152, 1, 1),
    ("train/car-damage-train.json", 62, 152, 1, 1),
    ("train/via_region_data.csv", 62, 152, 1, 1),
    ("train/train_multiclass.json", 62, 191, 5, 11),
    ("val/val_multiclass.json", 8, 24, 5, 0),
    ("val/via_region_data.json", 8, 12, 1, 0),
    ("val/car-damage-val.json", 8, 12, 1, 0),
]


@pytest.mark.parametrize(("name", "pictures", "objects", "classes", "outside"), REAL)
def test_the_cars(shared_data, name, pictures, objects, classes, outside):
    draft = registry.read(shared_data / "car_damage_via" / name)
    coco = to_coco.finish(draft)
    assert len(coco["images"]) == pictures
    assert len(coco["annotations"]) == objects
    assert len(coco["categories"]) == classes
    # The folder's README: 12 outlines leave the 1024 pixels, 11 in the five classes.
    assert codes(draft).count("outside") == outside
    assert {f.grade for f in draft.findings} <= {"note", "warning"}


def test_the_cars_masks_equal_another_rasteriser(shared_data):
    source = shared_data / "car_damage_via" / "train" / "train_multiclass.json"
    coco = to_coco.finish(registry.read(source))
    outlines = {}
    for entry in json.loads(source.read_text()).values():
        shapes = [region["shape_attributes"] for region in entry["regions"]]
        outlines[entry["filename"]] = [
            np.stack([s["all_points_x"], s["all_points_y"]], 1) for s in shapes
        ]
    for image in coco["images"]:
        hw = (image["height"], image["width"])
        found = [a for a in coco["annotations"] if a["image_id"] == image["id"]]
        for a, outline in zip(found, outlines[image["file_name"]], strict=True):
            assert truth.outline_iou(a["segmentation"], outline, hw) >= 0.995


def test_the_cars_csv_equals_the_json(shared_data):
    folder = shared_data / "car_damage_via" / "train"
    a, b = (registry.read(folder / f"via_region_data.{kind}") for kind in ("csv", "json"))
    assert a.items == b.items and a.pictures == b.pictures and a.classes == b.classes


@pytest.mark.parametrize("part", ["train", "val"])
def test_definitions_are_refused(shared_data, part):
    name = f"car_damage_via/{part}/car-damage-{part}_attributes.json"
    with pytest.raises(UserError, match="definitions of attributes only"):
        registry.read(shared_data / name)


@pytest.fixture
def folder(tmp_path):
    for i, name in enumerate(("a.jpg", "b.jpg", "c.png")):
        samples.photo(tmp_path / name, seed=i)
    return tmp_path


def test_shapes_against_their_equations(folder):
    draft = registry.read(samples.write(folder / "v.json", samples.via_content()))
    masks = {}
    for item in draft.items:
        masks.setdefault(item.picture, []).append(truth.decode(item.segmentation, samples.HW, 8))
    y, x = (np.mgrid[: samples.HW[0] * 8, : samples.HW[1] * 8] + 0.5) / 8
    rect = (x >= 5) & (x <= 35) & (y >= 6) & (y <= 26)
    circle = np.hypot(x - 50, y - 30) <= 12.5
    cos, sin = np.cos(0.6), np.sin(0.6)
    u, v = (x - 40) * cos + (y - 30) * sin, (y - 30) * cos - (x - 40) * sin
    ellipse = (u / 20) ** 2 + (v / 9) ** 2 <= 1
    line = np.zeros_like(circle)
    for a, b in zip(samples.TRIANGLE[:-1], samples.TRIANGLE[1:], strict=True):
        a, d = np.array(a), np.subtract(b, a)
        t = np.clip(((x - a[0]) * d[0] + (y - a[1]) * d[1]) / (d @ d), 0, 1)
        line |= np.hypot(x - a[0] - t * d[0], y - a[1] - t * d[1]) <= 1.5
    assert truth.iou(masks["a.jpg"][2], rect) >= 0.995
    assert truth.iou(masks["b.jpg"][0], circle) >= 0.995
    assert truth.iou(masks["b.jpg"][1], ellipse) >= 0.995
    assert truth.iou(masks["b.jpg"][2], line) >= 0.97  # 3 px wide: all rim
    assert codes(draft).count("point") == 2


def test_dict_list_project_and_csv_are_equal(folder):
    content = samples.via_content()
    forms = {"list.json": content, "project.json": {"_via_img_metadata": content}}
    forms["table.csv"] = samples.via_csv(content)
    old = json.loads(json.dumps(content))
    for entry in old.values():
        entry["regions"] = {str(i): region for i, region in enumerate(entry["regions"])}
    forms["dict.json"] = old
    items = [registry.read(samples.write(folder / n, form)).items for n, form in forms.items()]
    assert all(found == items[0] for found in items) and len(items[0]) == 6


def test_via_3(folder):
    draft = registry.read(samples.write(folder / "p.json", samples.via3_content()))
    found = [(i.picture, i.label) for i in draft.items]
    assert found == [("a.jpg", "cat"), ("a.jpg", "dog"), ("b.jpg", "dog")]
    assert draft.items[0].segmentation == [np.ravel(samples.TRIANGLE).tolist()]
    area = truth.decode(draft.items[2].segmentation, samples.HW, 8).sum() / 64
    assert area == pytest.approx(np.pi * 20 * 9, rel=0.005)


def _with_attributes(attributes):
    regions = [
        {"shape_attributes": samples._polygon(samples.TRIANGLE), "region_attributes": a}
        for a in attributes
    ]
    return {"a1": {"filename": "a.jpg", "size": 1, "regions": regions}}


CLASSES = [
    ([{}, {}], "", ["object", "object"], []),
    ([{"name": "x"}, {"name": "y"}], "", ["x", "y"], []),
    ([{"id": "1", "class": "x"}, {"id": "2", "class": "y"}], "", ["x", "y"], []),
    # `name` is in too few regions to be the class.
    (
        [{"part": "x", "name": "n"}, {"part": "y"}, {"part": "y"}, {"part": "z"}],
        "",
        ["x", "y", "y", "z"],
        [],
    ),
    ([{"id": "1", "class": "x"}, {"id": "2", "class": "y"}], "id", ["1", "2"], []),
    ([{"kind": {"x": True, "y": False}}, {"kind": {"y": True}}], "", ["x", "y"], []),
    ([{"name": "x"}, {"name": ""}, {"name": "x"}], "", ["x", "object", "x"], ["no-class"]),
    ([{"name": "undefined", "Type": "y"}], "Type", ["y"], []),
]


@pytest.mark.parametrize(("attributes", "key", "labels", "told"), CLASSES)
def test_the_class(folder, attributes, key, labels, told):
    source = samples.write(folder / "v.json", _with_attributes(attributes))
    draft = registry.read(source, "via", Options(class_key=key))
    assert [item.label for item in draft.items] == labels
    assert [c for c in codes(draft) if c not in ("class-key",)] == told
    assert ("class-key" in codes(draft)) == (not key)  # a guess is told


def test_long_outlines_in_a_csv(folder):
    angles = np.linspace(0, 2 * np.pi, 9000, endpoint=False)
    x, y = 40 + 20 * np.cos(angles), 30 + 20 * np.sin(angles)
    content = samples.via_content(("a.jpg",))
    shape = {"name": "polygon", "all_points_x": x.tolist(), "all_points_y": y.tolist()}
    content["a.jpg123"]["regions"][0]["shape_attributes"] = shape
    limit = csv.field_size_limit()
    draft = registry.read(samples.write(folder / "v.csv", samples.via_csv(content)))
    assert len(draft.items[0].segmentation[0]) == 18000
    assert csv.field_size_limit() == limit
