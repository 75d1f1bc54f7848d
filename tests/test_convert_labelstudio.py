"""Label Studio: its JSON against its own COCO export, the brush, every shape."""

import json
import math

import format_samples as samples
import hypothesis
import numpy as np
import pytest
import truth
from hypothesis import strategies as st

from maskrcnn_jax.data.formats import registry, to_coco
from maskrcnn_jax.data.formats.brush import decode_brush
from maskrcnn_jax.data.formats.draft import Options
from maskrcnn_jax.errors import UserError

HW = samples.HW


def codes(draft):
    return [finding.code for finding in draft.findings]


@pytest.mark.parametrize(("suffix", "images"), [("", "images"), ("_fullsize", "images_fullsize")])
def test_the_furniture_equals_its_coco_export(shared_data, suffix, images):
    folder = shared_data / "furniture_labelstudio"
    options = Options(images=folder / images)
    native = registry.read(folder / f"label_studio{suffix}.json", "", options)
    export = registry.read(folder / f"result{suffix}.json", "", options)
    assert (native.kind, export.kind) == ("labelstudio", "coco")
    assert set(native.classes) <= set(export.classes)
    assert export.classes == ["Chair", "Painting", "Plant", "Sofa", "Table"]
    assert {p.name: (p.height, p.width) for p in native.pictures} == {
        p.name: (p.height, p.width) for p in export.pictures
    }
    size = {p.name: (p.height, p.width) for p in native.pictures}
    ours, theirs = _by_picture(native), _by_picture(export)
    assert ours.keys() == theirs.keys()
    for key in ours:
        for a, b in zip(ours[key], theirs[key], strict=True):
            outline = np.reshape(b.segmentation[0], (-1, 2))
            assert truth.outline_iou(a.segmentation, outline, size[key[0]], 2) >= 0.995
    if not suffix:
        assert len(native.pictures) == 60 and len(native.items) == 208
        counts = {c: sum(i.label == c for i in native.items) for c in native.classes}
        assert counts == {"Painting": 65, "Sofa": 40, "Plant": 38, "Table": 36, "Chair": 29}
        for draft in (native, export):
            assert codes(draft).count("outside") == 4
            assert codes(draft).count("wrong-suffix") == 4
        assert codes(export).count("back-slash") == 60
        assert codes(export).count("category-zero") == 1


def _by_picture(draft):
    """Objects by picture and class, in the order of their first coordinates."""
    found = {}
    for item in draft.items:
        found.setdefault((item.picture, item.label), []).append(item)
    return {
        k: sorted(v, key=lambda i: np.round(i.segmentation[0][:2], 1).tolist())
        for k, v in found.items()
    }


def _task(values, **more):
    tasks = samples.labelstudio_content(("a.jpg",))
    region = tasks[0]["annotations"][0]["result"][0]
    tasks[0]["annotations"][0]["result"] = [
        {**region, "id": str(i), "type": kind, "value": value, **more}
        for i, (kind, value) in enumerate(values)
    ]
    return tasks


@pytest.fixture
def folder(tmp_path):
    samples.photo(tmp_path / "a.jpg")
    samples.photo(tmp_path / "b.jpg", seed=1)
    return tmp_path


def _read(folder, tasks, options=Options()):  # noqa: B008
    return registry.read(samples.write(folder / "ls.json", tasks), "", options)


def test_shapes_against_their_equations(folder):
    draft = _read(folder, samples.labelstudio_content())
    assert len(draft.items) == 8 and draft.classes == ["cat", "dog"]
    masks = [truth.decode(item.segmentation, HW, 8) for item in draft.items[:3]]
    y, x = (np.mgrid[: HW[0] * 8, : HW[1] * 8] + 0.5) / 8
    assert truth.iou(masks[0], truth.fill(samples.TRIANGLE, HW, 8)) >= 0.995
    # The rectangle turns about its upper left corner, in pixels; the ellipse about its centre.
    cos, sin = math.cos(math.radians(20)), math.sin(math.radians(20))
    u, v = (x - 32) * cos + (y - 12) * sin, (y - 12) * cos - (x - 32) * sin
    assert truth.iou(masks[1], (u >= 0) & (u <= 24) & (v >= 0) & (v <= 15)) >= 0.995
    cos, sin = math.cos(math.radians(30)), math.sin(math.radians(30))
    u, v = (x - 40) * cos + (y - 30) * sin, (y - 30) * cos - (x - 40) * sin
    assert truth.iou(masks[2], (u / 16) ** 2 + (v / 9) ** 2 <= 1) >= 0.995
    brush = truth.decode(draft.items[3].segmentation, HW)
    expected = np.zeros(HW, bool)
    expected[10:30, 20:50] = True
    expected[15:20, 30:35] = False  # the hole stays
    assert (brush == expected).all()


@hypothesis.settings(max_examples=50)
@hypothesis.given(
    seed=st.integers(0, 2**32 - 1),
    hw=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    share=st.floats(0, 1),
)
def test_the_brush_is_exact(seed, hw, share):
    mask = np.random.default_rng(seed).random(hw) < share
    assert (decode_brush(samples.brush_of(mask), hw) == mask).all()


@hypothesis.settings(max_examples=50)
@hypothesis.given(seed=st.integers(0, 2**32 - 1), word=st.sampled_from([1, 2, 5, 8, 11, 16, 32]))
def test_words_of_any_width(seed, word):
    rng = np.random.default_rng(seed)
    alpha = rng.integers(0, min(2**word, 256), 35)
    values = np.repeat(alpha, 4)
    code = samples.pack_brush(values.tolist(), word)
    assert (decode_brush(code, (5, 7)).ravel() == (alpha >= 128)).all()


def test_the_brush_against_label_studios_own_package():
    brush = pytest.importorskip("label_studio_converter.brush")
    rng = np.random.default_rng(0)
    for share in (0.02, 0.3, 0.5, 0.9):
        hw = (int(rng.integers(20, 90)), int(rng.integers(20, 90)))
        mask = rng.random(hw) < share
        mask[5:15, 3:17] = True
        code = brush.mask2rle(mask.astype(np.uint8) * 255)
        assert (decode_brush(code, hw) == mask).all()
        theirs = brush.decode_rle(samples.brush_of(mask)).reshape(*hw, 4)[:, :, 3]
        assert ((theirs > 127) == mask).all()
    soft = rng.integers(0, 256, (40, 50)).astype(np.uint8)
    code = brush.mask2rle(soft)
    theirs = brush.decode_rle(code).reshape(40, 50, 4)[:, :, 3] >= 128
    assert (decode_brush(code, (40, 50)) == theirs).all()


def test_damaged_brushes_are_findings(folder):
    code = samples.brush_of(np.eye(*HW) > 0)
    bad = [code[:-9], code[:40], [], [300, *code], code[:3], "abc", None, [True] * 99]
    tasks = _task([("brushlabels", {"rle": c, "brushlabels": ["a"]}) for c in bad])
    draft = _read(folder, tasks)
    assert not draft.items and codes(draft) == ["bad-rle"] * len(bad)


NAMES = [
    ({"file_upload": "1a2b3c4d-a.jpg"}, True),
    ({"file_upload": None, "data": {"image": "/data/upload/3/1a2b3c4d-a.jpg"}}, True),
    ({"data": {"image": "/data/local-files/?d=x/y/a.jpg"}}, True),
    ({"data": {"photo": "s3://bucket/x/a.jpg"}}, True),
    ({"data": {"image": "https://host/a.jpg?token=1"}}, True),
    ({"data": {"text": "hello"}}, False),
    ({"data": {"image": "/data/local-files/?d=../../b.jpg"}, "file_upload": None}, True),
    ({"data": {"image": "nowhere.jpg"}}, False),
]


@pytest.mark.parametrize(("fields", "found"), NAMES)
def test_names(folder, fields, found):
    tasks = samples.labelstudio_content(("a.jpg",))
    tasks[0] |= {"file_upload": None} | fields
    draft = _read(folder, tasks)
    assert bool(draft.pictures) == found
    if not found:
        assert codes(draft)[0] in ("no-name", "missing-image")


def test_a_scaled_copy_will_do_and_another_shape_will_not(folder):
    value = ("polygonlabels", {"points": [[10, 10], [60, 10], [60, 90]], "polygonlabels": ["a"]})
    sizes = {"original_width": 800, "original_height": 600}
    draft = _read(folder, _task([value], **sizes))
    assert codes(draft) == ["size-mismatch"] and draft.findings[0].grade == "warning"
    np.testing.assert_allclose(draft.items[0].segmentation[0], [8, 6, 48, 6, 48, 54])
    other = _read(folder, _task([value], **(sizes | {"original_width": 600})))
    assert codes(other) == ["size-mismatch"] and other.findings[0].grade == "error"
    assert not other.items


def test_annotations_and_labels(folder):
    tasks = samples.labelstudio_content(("a.jpg", "b.jpg"))
    first = tasks[0]["annotations"][0]
    second = {**first, "result": first["result"][:1]}
    tasks[0]["annotations"] = [first, second, {**first, "was_cancelled": True}]
    tasks[1]["annotations"] = [{**first, "ground_truth": True}, second]
    draft = _read(folder, tasks)
    assert [i.picture for i in draft.items] == ["a.jpg"] + ["b.jpg"] * 4
    assert codes(draft).count("several-annotations") == 2
    # A shape and its label in two regions of one id.
    points = {"points": [[10, 10], [60, 10], [60, 90]]}
    tasks = _task([("polygon", points), ("labels", points | {"labels": ["tree"]})])
    tasks[0]["annotations"][0]["result"][1]["id"] = "0"
    tasks[0]["annotations"][0]["result"][1]["value"] = {"labels": ["tree"]}
    draft = _read(folder, tasks)
    assert [i.label for i in draft.items] == ["tree"] and not draft.findings
    draft = _read(folder, _task([("polygon", points)]), Options(default_class="thing"))
    assert [i.label for i in draft.items] == ["thing"] and codes(draft) == ["no-class"]


def test_regions_without_ids_keep_their_own_labels(folder):
    points = {"points": [[10, 10], [60, 10], [60, 90]]}
    values = [("polygonlabels", points | {"polygonlabels": names}) for names in (["a"], ["b", "c"])]
    tasks = _task(values)
    for region in tasks[0]["annotations"][0]["result"]:
        del region["id"]
    draft = _read(folder, tasks)
    assert [i.label for i in draft.items] == ["a", "b"] and codes(draft) == ["several-labels"]


def test_json_min_equals_json(folder):
    full = _read(folder, samples.labelstudio_content(("a.jpg",)))
    sizes = {"original_width": HW[1], "original_height": HW[0]}
    result = samples.labelstudio_content(("a.jpg",))[0]["annotations"][0]["result"]
    small = [
        {"id": 1, "image": "/data/upload/1/a.jpg", "tag": [r["value"] | sizes for r in result]}
    ]
    draft = _read(folder, json.loads(json.dumps(small)))
    assert draft.items == full.items


def test_a_coco_file_is_refused(folder):
    source = samples.write(folder / "c.json", samples.coco_content())
    with pytest.raises(UserError, match="no list of tasks"):
        registry.read(source, "labelstudio")


def test_ids_and_boxes_come_from_the_masks(folder):
    coco = to_coco.finish(_read(folder, samples.labelstudio_content()))
    for a in coco["annotations"]:
        mask = truth.decode(a["segmentation"], HW)
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = [columns[0], rows[0], np.ptp(columns) + 1, np.ptp(rows) + 1]
        assert a["bbox"] == box and a["area"] == mask.sum()
