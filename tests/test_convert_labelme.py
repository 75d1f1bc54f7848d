"""labelme: the real sets, every shape, groups, pictures inside the JSON."""

import base64
import io
import json

import format_samples as samples
import numpy as np
import pytest
import truth
from PIL import Image

from maskrcnn_jax.data.formats import conversion, registry, to_coco
from maskrcnn_jax.errors import UserError


def codes(draft):
    return [finding.code for finding in draft.findings]


def test_the_fruit(shared_data):
    folder = shared_data / "labelme_date_fig_hazelnut"
    coco = to_coco.finish(draft := registry.read(folder))
    assert draft.kind == "labelme" and not draft.findings
    assert len(coco["images"]) == 18 and len(coco["annotations"]) == 165
    labels = [item.label for item in draft.items]
    assert [labels.count(c) for c in ("date", "hazelnut", "fig")] == [71, 53, 41]
    checked = 0
    for image in coco["images"]:
        shapes = json.loads((folder / image["file_name"]).with_suffix(".json").read_text())[
            "shapes"
        ]
        found = [a for a in coco["annotations"] if a["image_id"] == image["id"]]
        hw = image["height"], image["width"]
        for a, shape in zip(found, shapes, strict=True):
            assert truth.outline_iou(a["segmentation"], shape["points"], hw) >= 0.995
            checked += 1
    assert checked == 165


def test_the_road_equals_the_pngs_of_labelme(shared_data):
    folder = shared_data / "road_video_labelme"
    draft = registry.read(folder)
    assert len(draft.pictures) == 5 and len(draft.items) == 15
    for picture in draft.pictures:
        name = picture.name.rpartition("/")[2].replace(".jpg", ".png")
        classes = np.array(Image.open(folder / "SegmentationClassPNG" / name))
        hw = picture.height, picture.width
        ours = {c: np.zeros(hw, bool) for c in ("car", "track")}
        for item in draft.items:
            if item.picture == picture.name:
                ours[item.label] |= truth.decode(item.segmentation, hw)
        for index, label in ((1, "car"), (2, "track")):
            if (classes == index).any():
                # labelme draws the outline, too: half a pixel more all around.
                assert truth.iou(ours[label], classes == index) >= 0.98
            else:
                assert not ours[label].any()


@pytest.fixture
def folder(tmp_path):
    samples.photo(tmp_path / "a.jpg")
    return tmp_path


def _items(folder, shapes, **more):
    content = samples.labelme_content(shapes=shapes, **more)
    return registry.read(samples.write(folder / "a.json", content))


def test_every_shape(folder):
    draft = registry.read(samples.write(folder / "a.json", samples.labelme_content()))
    assert [i.label for i in draft.items] == ["cat", "dog", "cat", "cat", "dog"]
    assert len(draft.items[1].segmentation) == 2  # a group: polygon and rectangle
    assert sorted(set(codes(draft))) == ["ignored", "line", "point"]
    masks = [truth.decode(item.segmentation, samples.HW, 8) for item in draft.items]
    y, x = (np.mgrid[: samples.HW[0] * 8, : samples.HW[1] * 8] + 0.5) / 8
    group = truth.fill(samples.SQUARE, samples.HW, 8)
    group |= (x > 2) & (x < 20) & (y > 3) & (y < 9)
    assert truth.iou(masks[0], truth.fill(samples.TRIANGLE, samples.HW, 8)) >= 0.995
    assert truth.iou(masks[1], group) >= 0.995
    assert truth.iou(masks[2], np.hypot(x - 50, y - 30) <= 10) >= 0.995


def _bitmap(mask):
    stream = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def test_bitmaps_and_groups_with_them(folder):
    bitmap = np.random.default_rng(0).random((9, 12)) < 0.5
    shape = {"label": "a", "shape_type": "mask", "points": [[30, 20], [41, 28]]}
    shape["mask"] = _bitmap(bitmap)
    expected = np.zeros(samples.HW, bool)
    expected[20:29, 30:42] = bitmap
    alone = _items(folder, [shape])
    assert (truth.decode(alone.items[0].segmentation, samples.HW) == expected).all()
    square = {"label": "a", "points": [[0, 0], [8, 0], [8, 8], [0, 8]], "group_id": 4}
    joined = _items(folder, [shape | {"group_id": 4}, square])
    expected[:8, :8] = True
    assert len(joined.items) == 1
    assert (truth.decode(joined.items[0].segmentation, samples.HW) == expected).all()
    far = _items(folder, [shape | {"points": [[75, 20], [86, 28]]}, square])
    assert codes(far) == ["bad-mask"] and len(far.items) == 1


def test_groups_of_two_labels_are_two_objects(folder):
    shapes = [
        {"label": label, "points": samples.TRIANGLE, "group_id": group}
        for label, group in (("a", 1), ("b", 1), ("a", 1), ("a", 2), ("a", None), ("a", None))
    ]
    draft = _items(folder, shapes)
    assert [len(i.segmentation) for i in draft.items if i.label == "a"] == [2, 1, 1, 1]
    assert [len(i.segmentation) for i in draft.items if i.label == "b"] == [1]


def test_names(tmp_path):
    samples.photo(tmp_path / "set" / "pictures" / "a.jpg")
    samples.photo(tmp_path / "set" / "b.jpg", seed=1)
    samples.photo(tmp_path / "secret.jpg", seed=2)
    labels = tmp_path / "set" / "labels"
    samples.write(labels / "a.json", samples.labelme_content("..\\pictures\\a.jpg"))
    samples.write(labels / "b.json", samples.labelme_content("C:\\me\\b.jpg"))
    samples.write(labels / "c.json", samples.labelme_content("../../secret.jpg"))
    samples.write(labels / "d.json", {"images": []})
    samples.write(labels / "e.json", '{"shapes": [')
    draft = registry.read(tmp_path / "set")
    # b.jpg is in the folder, wherever it was once; secret.jpg is not.
    assert [p.name for p in draft.pictures] == ["pictures/a.jpg", "b.jpg"]
    given = {
        (f.grade, f.code, f.file[-6:] if ".json" in f.file else f.where) for f in draft.findings
    }
    assert given == {
        ("note", "back-slash", "labels/a.json"),
        ("note", "back-slash", "labels/b.json"),
        ("warning", "unsafe-name", "labels/b.json"),
        ("error", "unsafe-name", "labels/c.json"),
        ("note", "other-file", "d.json"),
        ("error", "bad-file", "e.json"),
        ("note", "line", "labels/a.json, shape 4"),
    } | {f for f in given if f[1] in ("line", "ignored", "point")}


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_pictures_inside_the_json(tmp_path, suffix):
    picture = samples.photo(tmp_path / f"a.{suffix}")
    data = base64.b64encode(picture.read_bytes()).decode()
    content = picture.read_bytes()
    picture.unlink()
    source = tmp_path / "labels"
    samples.write(source / "x" / "a.json", samples.labelme_content(f"a.{suffix}", imageData=data))
    samples.photo(source / "b.jpg", seed=1)
    samples.write(source / "b.json", samples.labelme_content("b.jpg"))
    draft = registry.read(source)
    assert len(draft.pictures) == 1
    assert [f.message for f in draft.findings if f.code == "missing-image"] == [
        f"'a.{suffix}' is inside the JSON only; get it out with --extract-images"
    ]
    output = tmp_path / "out" / "coco.json"
    done = conversion.convert([source], output, extract_images=True)
    assert done.images == output.parent / "images"
    assert sorted(p.name for p in done.draft.pictures) == sorted([f"x/a.{suffix}", "b.jpg"])
    assert (done.images / "x" / f"a.{suffix}").read_bytes() == content
    again = conversion.convert([source], output, extract_images=True)
    assert again.files == done.files


def test_a_picture_of_another_size_is_an_error(folder):
    draft = _items(folder, [{"label": "a", "points": samples.TRIANGLE}], imageWidth=81)
    assert codes(draft) == ["size-mismatch"] and not draft.items
    assert draft.findings[0].grade == "error"


def test_a_folder_without_labelme_files(tmp_path):
    with pytest.raises(UserError, match="no labelme JSON"):
        registry.read(tmp_path, "labelme")
