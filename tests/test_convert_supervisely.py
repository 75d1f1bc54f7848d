"""Supervisely: holes and bitmaps exactly, outlines against another rasteriser."""

import base64
import json
import zlib

import format_trees
import numpy as np
import pytest
import truth
from format_samples import HW

from maskrcnn_jax.data.formats import registry, supervisely
from maskrcnn_jax.data.formats.draft import Options
from maskrcnn_jax.errors import UserError


def test_geometries(tmp_path):
    ring = format_trees.supervisely(tmp_path)
    for source in (tmp_path, tmp_path / "meta.json"):
        draft = registry.read(source)
        assert draft.classes == ["dog", "cat"]
        assert [p.name for p in draft.pictures] == ["ds one/img/a.jpg", "ds2/img/a.jpg"]
        assert [i.id for i in draft.items] == [1, 2, 3, 4, 5, 11, 12, 13, 14, 15]
        quad, star, bitmap, square, line = draft.items[:5]
        assert truth.outline_iou(quad.segmentation, format_trees.QUAD, HW) >= 0.995
        # Pixels at the rim may be in or out; the hole is one.
        differ = truth.decode(star.segmentation, HW) ^ ring
        assert np.count_nonzero(differ) < 0.06 * ring.sum() and not differ[26, 29]
        mask = format_trees.blob(3)
        assert np.array_equal(truth.decode(bitmap.segmentation, HW), mask)
        corners = [(10, 20), (50, 20), (50, 40), (10, 40)]
        assert truth.outline_iou(square.segmentation, corners, HW) >= 0.995
        assert len(line.segmentation) == 3
        assert format_trees.codes(draft) == ["line", "line", "point", "point"]


def test_a_large_polygon_with_a_hole(tmp_path):
    hw = (1200, 1800)
    outer = np.array(format_trees.STAR) * 21
    hole = np.array([[390.5, 360], [660, 390], [540, 630]])
    format_trees.photo(tmp_path / "ds" / "img" / "a.png", hw=hw)
    points = {"exterior": outer.tolist(), "interior": [hole.tolist()]}
    entry = {"classTitle": "x", "geometryType": "polygon", "points": points}
    content = {"size": {"height": 1200, "width": 1800}, "tags": [], "objects": [entry]}
    (tmp_path / "ds" / "ann").mkdir()
    (tmp_path / "ds" / "ann" / "a.png.json").write_text(json.dumps(content))
    draft = registry.read(tmp_path)
    expected = truth.fill(outer, hw) & ~truth.fill(hole, hw)
    assert truth.iou(truth.decode(draft.items[0].segmentation, hw), expected) >= 0.995
    assert draft.classes == ["x"] and not draft.findings


def test_one_data_set_and_old_names(tmp_path):
    format_trees.supervisely(tmp_path)
    ann = tmp_path / "ds2" / "ann"
    (ann / "a.jpg.json").rename(ann / "a.json")
    draft = registry.read(tmp_path / "ds2")
    assert [p.name for p in draft.pictures] == ["img/a.jpg"] and draft.classes == ["dog", "cat"]


def test_classes_of_a_tag(tmp_path):
    format_trees.supervisely(tmp_path)
    draft = registry.read(tmp_path, options=Options(class_key="breed"))
    assert draft.classes == ["cat-x", "dog-x"]


def test_unpacked_bitmaps(tmp_path):
    format_trees.supervisely(tmp_path)
    _change(tmp_path, 2, bitmap=format_trees.supervisely_bitmap(format_trees.blob(4), False))
    item = registry.read(tmp_path / "ds2").items[2]
    assert np.array_equal(truth.decode(item.segmentation, HW), format_trees.blob(4))


def _change(folder, number, **fields):
    file = folder / "ds2" / "ann" / "a.jpg.json"
    content = json.loads(file.read_text())
    content["objects"][number] |= fields
    file.write_text(json.dumps(content))


def _packed(content):
    return base64.b64encode(zlib.compress(content)).decode()


GOOD = format_trees.supervisely_bitmap(format_trees.blob(3))


@pytest.mark.parametrize(
    ("number", "fields", "code"),
    [
        (2, {"bitmap": GOOD | {"data": _packed(bytes(300_000_000))}}, "bad-mask"),
        (2, {"bitmap": GOOD | {"data": _packed(b"no picture")}}, "bad-mask"),
        (2, {"bitmap": GOOD | {"data": GOOD["data"][:40]}}, "bad-mask"),
        (2, {"bitmap": GOOD | {"data": "%"}}, "bad-mask"),
        (2, {"bitmap": GOOD | {"data": 7}}, "bad-mask"),
        (2, {"bitmap": GOOD | {"origin": [1]}}, "bad-mask"),
        (2, {"bitmap": GOOD | {"origin": [-5, 3]}}, "outside"),
        (2, {"bitmap": GOOD | {"origin": [1e6, 3]}}, "no-area"),
        (2, {"bitmap": None}, "bad-mask"),
        (0, {"points": {"exterior": [[0, 0], [1, 1]], "interior": []}}, "bad-points"),
        (0, {"points": None}, "bad-points"),
        (1, {"points": {"exterior": format_trees.STAR, "interior": [[1]]}}, "bad-points"),
        (3, {"points": {"exterior": [[1, 2]], "interior": []}}, "bad-points"),
        (0, {"geometryType": "cuboid"}, "unknown-shape"),
        (0, {"classTitle": ""}, "no-class"),
    ],
)
def test_what_is_odd(tmp_path, number, fields, code):
    format_trees.supervisely(tmp_path)
    _change(tmp_path, number, **fields)
    assert code in format_trees.codes(registry.read(tmp_path / "ds2"))


def test_nothing_to_read(tmp_path):
    with pytest.raises(UserError, match="name the project's folder"):
        supervisely.read(tmp_path, Options())
    (tmp_path / "ann").mkdir()
    (tmp_path / "ann" / "a.json").write_text("[]")
    with pytest.raises(UserError, match="no annotation of Supervisely"):
        supervisely.read(tmp_path, Options())
