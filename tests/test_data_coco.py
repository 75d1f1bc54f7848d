"""The COCO loader against pycocotools, and every mistake that it must tell."""

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
import tiny_coco
from pycocotools.coco import COCO

from maskrcnn_jax.data import doctor_run
from maskrcnn_jax.data.coco import check_same_classes, instance_mask, load_coco
from maskrcnn_jax.data.formats import conversion
from maskrcnn_jax.errors import UserError

HW = (40, 50)


def _donut():
    y, x = np.mgrid[: HW[0], : HW[1]]
    distance = np.hypot(y - 20, x - 25)
    return (distance < 15) & (distance > 7)


def _all_kinds():
    parts = [tiny_coco.rectangle(2, 3, 12, 9), [20, 20, 44.5, 22.5, 30, 37.5]]
    corner = np.zeros(HW, bool)
    corner[:5, :5] = True  # its uncompressed RLE begins with a run of length 0
    return [
        tiny_coco.annotation(11, 5, 90, parts),
        tiny_coco.rle_annotation(4, 5, 3, _donut(), compressed=False),
        tiny_coco.rle_annotation(9, 5, 3, _donut(), compressed=True),
        tiny_coco.rle_annotation(6, 2, 7, corner, compressed=False, iscrowd=1),
    ]


def _load(folder, annotations, sizes=None, categories=None, **kwargs):
    sizes = sizes or {5: HW, 2: HW, 8: (30, 20)}
    return load_coco(*tiny_coco.write(folder, sizes, annotations, categories), **kwargs)


def _edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_flat_arrays(tmp_path):
    data = _load(tmp_path, _all_kinds())
    assert data.category_ids == (3, 7, 90)
    assert data.names == ("cat", "dog", "owl")
    np.testing.assert_array_equal(data.image_ids, [2, 5, 8])  # 8 has no objects
    np.testing.assert_array_equal(data.sizes, [HW, HW, (30, 20)])
    np.testing.assert_array_equal(data.inst_id, [6, 4, 9, 11])
    np.testing.assert_array_equal(data.inst_image, [0, 1, 1, 1])
    np.testing.assert_array_equal(data.inst_class, [1, 0, 0, 2])
    np.testing.assert_array_equal(data.inst_crowd, [True, False, False, False])
    np.testing.assert_allclose(data.inst_box[3], [2, 3, 44.5, 37.5])
    assert data.inst_area[1] == _donut().sum()
    assert [p.split("/")[-1] for p in data.file_paths] == ["2.png", "5.png", "8.png"]


def _check_masks(path, data):
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(path))
    for i, ann_id in enumerate(data.inst_id):
        expected = coco.annToMask(coco.anns[int(ann_id)])
        np.testing.assert_array_equal(instance_mask(data, i), expected)


def test_masks_equal_pycocotools(tmp_path):
    data = _load(tmp_path, _all_kinds())
    _check_masks(data.annotations, data)
    np.testing.assert_array_equal(instance_mask(data, 1), _donut())


def test_real_photographs(shared_data):
    folder = shared_data / "coco_tiny"
    for split, count, crowds in (("train", 705, 6), ("val", 815, 11)):
        path = folder / "annotations" / f"instances_{split}2017.json"
        data = load_coco(path, str(folder / f"{split}2017"))
        assert len(data.image_ids) == 80 and len(data.names) == 80
        assert len(data.inst_id) == count and data.inst_crowd.sum() == crowds
        assert data.category_ids[-1] == 90
    _check_masks(path, data)


def test_several_folders_and_foreign_paths(tmp_path):
    path, images = tiny_coco.write(tmp_path, {5: HW, 2: HW}, _all_kinds())
    other = tmp_path / "other"
    other.mkdir()
    (tmp_path / "images" / "5.png").rename(other / "5.png")
    with pytest.raises(UserError, match=r"image 5.*5\.png is not in .*images"):
        load_coco(path, images)
    _edit(path, lambda content: content["images"][1].update(file_name="C:\\export\\2.png"))
    data = load_coco(path, f"{images}:{other}")
    assert data.file_paths == [f"{images}/2.png", f"{other}/5.png"]


def test_names_that_lead_out_of_the_folder_are_read(tmp_path):
    """Other tools write them; convert and inspect, which meet strangers' files, refuse them."""
    path, images = tiny_coco.write(tmp_path, {5: HW, 2: HW}, _all_kinds())
    (tmp_path / "other").mkdir()
    (tmp_path / "images" / "5.png").rename(tmp_path / "other" / "five.png")
    (tmp_path / "images" / "2.png").rename(tmp_path / "other" / "two.png")
    names = ["../other/five.png", str(tmp_path / "other" / "two.png")]
    _edit(path, lambda c: [e.update(file_name=n) for e, n in zip(c["images"], names, strict=True)])
    before = sorted(tmp_path.rglob("*"))
    data = load_coco(path, images)
    assert [Path(p).resolve().name for p in data.file_paths] == ["two.png", "five.png"]
    report = doctor_run.inspect([path], images=[Path(images)])
    assert {f.code for f in report.findings} >= {"unsafe-name", "absolute-path", "missing-image"}
    with pytest.raises(UserError, match="no usable object"):
        conversion.convert(
            [path], tmp_path / "out.json", options=conversion.Options(images=Path(images))
        )
    assert sorted(tmp_path.rglob("*")) == before


def test_skip_counts_what_it_leaves_out(tmp_path, caplog):
    bad = tiny_coco.annotation(20, 2, 3, [tiny_coco.rectangle(3, 3, 9, 9)], bbox=[3, 3, 0, 6])
    path, images = tiny_coco.write(tmp_path, {5: HW, 2: HW, 8: HW}, [*_all_kinds(), bad])
    (tmp_path / "images" / "8.png").unlink()
    data = load_coco(path, images, on_bad_image="skip")
    assert (data.num_skipped, data.num_skipped_instances) == (1, 1)
    assert list(data.image_ids) == [2, 5] and 20 not in data.inst_id
    assert "8.png" in caplog.text and "annotation 20" in caplog.text


def test_boxes_are_clipped_to_the_image(tmp_path):
    a = tiny_coco.annotation(1, 5, 3, [tiny_coco.rectangle(40, 30, 50, 40)], bbox=[40, -1, 12, 41])
    data = _load(tmp_path, [a])
    np.testing.assert_array_equal(data.inst_box, [[40, 0, 50, 40]])


def test_area_is_measured_when_it_is_missing(tmp_path):
    a = tiny_coco.rle_annotation(1, 5, 3, _donut(), compressed=False)
    del a["area"]
    assert _load(tmp_path, [a]).inst_area[0] == _donut().sum()


GOOD = tiny_coco.annotation(1, 5, 3, [tiny_coco.rectangle(3, 3, 9, 9)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"segmentation": [[1, 1, 5, 5]]}, r"annotation 1 .*'segmentation'.*three points"),
        ({"segmentation": [[1, 1, 5, 5, 3, 8, 2]]}, r"annotation 1 .*'segmentation'"),
        ({"segmentation": [[1, 1, 5, 5, 3, "8"]]}, r"annotation 1 .*other than numbers"),
        ({"segmentation": [[1, 1, 5, 5, 3, 1e9]]}, r"annotation 1 .*at 1000000000, far outside"),
        ({"segmentation": [1, 1, 5, 5, 3, 8]}, r"annotation 1 .*neither a list of polygons"),
        ({"segmentation": []}, r"'segmentation'.*mask training needs"),
        ({"segmentation": {"size": [9, 9], "counts": [81]}}, r"annotation 1 .*'size' is \[9, 9\]"),
        ({"segmentation": {"size": [40, 50], "counts": [81]}}, r"annotation 1 .*2000 pixels"),
        ({"bbox": [3, 3, 0, 6]}, r"annotation 1 .*'bbox'.*no area"),
        ({"bbox": [3, 3, 6, -6]}, r"annotation 1 .*'bbox'.*no area"),
        ({"bbox": [3, 3, 6]}, r"annotation 1 .*'bbox'.*four numbers"),
        ({"bbox": [3, 3, 6, float("nan")]}, r"annotation 1 .*'bbox'.*four numbers"),
        ({"bbox": [3, 3, 6, 10**400]}, r"annotation 1 .*'bbox'.*four numbers"),
        ({"bbox": [30, 3, 40, 6]}, r"annotation 1 .*'bbox'.*leaves the picture"),
        ({"image_id": 77}, r"annotation 1: 'image_id' is 77"),
        ({"image_id": [5]}, r"annotation 1: 'image_id' is \[5\]"),
        ({"id": 2**64}, r"annotations\[0\] has no whole number"),
        ({"category_id": 1}, r"annotation 1: 'category_id' is 1"),
        ({"id": "1"}, r"annotations\[0\] has no whole number as 'id'"),
    ],
)
def test_bad_annotation(tmp_path, change, message):
    path, images = tiny_coco.write(tmp_path, {5: HW, 2: HW}, [GOOD])
    _edit(path, lambda content: content["annotations"][0].update(change))
    with pytest.raises(UserError, match=message) as error:
        load_coco(path, images)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["annotations"].append(GOOD), "annotations: the id 1 occurs twice"),
        (lambda c: c["images"].append(c["images"][0]), "images: the id 5 occurs twice"),
        (lambda c: c["categories"].append({"id": 3, "name": "x"}), "categories: the id 3 occurs"),
        (lambda c: c["categories"][0].pop("name"), "category 7 has no 'name'"),
        (lambda c: c["categories"].clear(), "'categories' is empty"),
        (lambda c: c["images"].clear(), "'images' is empty"),
        (lambda c: c["annotations"].clear(), "'annotations' is empty"),
        (lambda c: c.pop("images"), "has no list 'images'"),
        (lambda c: c["images"][0].pop("height"), "image 5: 'height' and 'width' are None"),
        (lambda c: c["images"][0].update(width=2**40), "'width' are 40 and 1099511627776"),
        (lambda c: c["images"][0].update(file_name="x" * 5000), "image 5.*xxxx is not in"),
        (lambda c: c["images"][0].update(file_name="gone.png"), "image 5.*gone.png is not in"),
        (lambda c: c["images"][0].pop("file_name"), "image 5 has no 'file_name'"),
    ],
)
def test_bad_file(tmp_path, change, message):
    path, images = tiny_coco.write(tmp_path, {5: HW, 2: HW}, [GOOD], [*tiny_coco.CATEGORIES])
    _edit(path, change)
    with pytest.raises(UserError, match=message) as error:
        load_coco(path, images)
    assert str(path) in str(error.value)


def test_json_cut_off(tmp_path):
    path, images = tiny_coco.write(tmp_path, {5: HW}, [GOOD])
    text = path.read_text()
    path.write_text(text[: len(text) // 2])
    with pytest.raises(UserError, match=r"instances.json: not valid JSON at line 1.*cut off"):
        load_coco(path, images)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"[]", "no list"), (b"\xff\xfe\x00", "text"), (b"[" * 100_000, "not usable as JSON")],
)
def test_not_a_coco_file(tmp_path, content, message):
    path, images = tiny_coco.write(tmp_path, {5: HW}, [GOOD])
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_coco(path, images)


def test_missing_paths(tmp_path):
    path, images = tiny_coco.write(tmp_path, {5: HW}, [GOOD])
    with pytest.raises(UserError, match="absent.json: no such file"):
        load_coco(tmp_path / "absent.json", images)
    with pytest.raises(UserError, match="absent: no such folder"):
        load_coco(path, str(tmp_path / "absent"))
    with pytest.raises(UserError, match="'images' is unset"):
        load_coco(path, "")
    (tmp_path / "images" / "5.png").unlink()
    with pytest.raises(UserError, match="none of its 1 pictures"):
        load_coco(path, images, on_bad_image="skip")


def test_damaged_rle(tmp_path):
    a = tiny_coco.rle_annotation(1, 5, 3, _donut(), compressed=True)
    a["segmentation"]["counts"] = a["segmentation"]["counts"][:-6] + "oooo9"
    data = _load(tmp_path, [a])
    with pytest.raises(UserError, match="annotation 1: 'segmentation' is a damaged RLE"):
        instance_mask(data, 0)


def test_class_tables_must_agree(tmp_path):
    train = _load(tmp_path / "a", [GOOD])
    renamed = [{"id": 7, "name": "dog"}, {"id": 3, "name": "Cat"}]
    val = _load(tmp_path / "b", [GOOD], categories=renamed)
    check_same_classes(train, train)
    with pytest.raises(UserError, match=r"(?s)id 3: 'cat' in train, 'Cat' in val.*id 90.*absent"):
        check_same_classes(train, val)


@pytest.mark.parametrize(
    ("annotations", "images", "message"),
    [
        ("horse_dog_one_image_missing/labels.json", "data", "000000017178.jpg"),
        ("street_no_segmentation_key/labels.json", "data", "mask training needs"),
        (
            "cvat_boxes_empty_segmentation/annotations/instances_default.json",
            "images",
            "mask training needs",
        ),
        ("hand_written_invalid/invalid_json_tab_in_key.json", "images", "line 28"),
        ("hand_written_invalid/annotation_points_to_no_image.json", "images", "'image_id' is 0"),
        ("hand_written_invalid/box_outside_image.json", "images", "'bbox'.*leaves the picture"),
    ],
)
def test_odd_exports(shared_data, annotations, images, message):
    path = shared_data / "coco_odd_exports" / annotations
    folder = shared_data / "coco_odd_exports" / annotations.split("/")[0] / images
    with pytest.raises(UserError, match=message) as error:
        load_coco(path, str(folder))
    assert str(path) in str(error.value)


def test_missing_picture_can_be_skipped(shared_data):
    folder = shared_data / "coco_odd_exports" / "horse_dog_one_image_missing"
    data = load_coco(folder / "labels.json", str(folder / "data"), on_bad_image="skip")
    assert data.num_skipped == 1 and len(data.image_ids) == 12
    assert 17178 not in data.image_ids and data.inst_crowd.sum() == 2
