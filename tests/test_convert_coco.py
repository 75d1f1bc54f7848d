"""COCO JSON as many tools write it: the real sets, RLE kept exactly, what is refused."""

import json

import format_samples as samples
import numpy as np
import pytest
import truth
from pycocotools import mask as mask_utils

from maskrcnn_jax.data.coco import load_coco
from maskrcnn_jax.data.formats import conversion, registry, to_coco
from maskrcnn_jax.errors import UserError

HW = samples.HW


def codes(draft):
    return [finding.code for finding in draft.findings]


@pytest.mark.parametrize(("part", "objects", "crowds"), [("train", 705, 6), ("val", 815, 11)])
def test_coco_tiny_stays_what_it_is(shared_data, part, objects, crowds):
    source = shared_data / "coco_tiny" / "annotations" / f"instances_{part}2017.json"
    original = json.loads(source.read_text())
    coco = to_coco.finish(registry.read(source), keep_category_ids=True)
    sizes = {e["id"]: (e["height"], e["width"]) for e in original["images"]}
    assert {e["id"]: (e["height"], e["width"]) for e in coco["images"]} == sizes
    assert {c["id"]: c["name"] for c in coco["categories"]} == {
        c["id"]: c["name"] for c in original["categories"]
    }
    ours = {a["id"]: a for a in coco["annotations"]}
    assert len(ours) == objects and sum(a["iscrowd"] for a in ours.values()) == crowds
    for a in original["annotations"]:
        hw, found = sizes[a["image_id"]], ours[a["id"]]
        for key in ("image_id", "category_id", "iscrowd"):
            assert found[key] == a[key]
        rle = a["segmentation"]
        if isinstance(rle, list):
            np.testing.assert_allclose(np.hstack(found["segmentation"]), np.hstack(rle), atol=1e-4)
        else:
            rle = mask_utils.frPyObjects(rle, *hw)
            assert found["segmentation"]["counts"] == rle["counts"].decode()
            assert found["area"] == mask_utils.area(rle)
    sparse = to_coco.finish(registry.read(source))
    assert [c["id"] for c in sparse["categories"]] == list(range(1, 81))


def test_the_mushrooms(shared_data):
    folder = shared_data / "mushrooms_roboflow"
    for part, pictures, objects in (("train", 40, 5924), ("valid", 6, 702), ("test", 3, 594)):
        draft = registry.read(folder / part)
        coco = to_coco.finish(draft)
        assert len(coco["images"]) == pictures and len(coco["annotations"]) == objects
        assert [c["name"] for c in coco["categories"]] == ["Mushrooms-DLcx", "Mushroom"]
        assert sorted(codes(draft)) == ["box-area", "category-zero", "unused-class"]
        boxes = np.array([a["bbox"] for a in coco["annotations"]])
        areas = np.array([a["area"] for a in coco["annotations"]])
        ratio = np.median(areas / boxes[:, 2:].prod(1))
        assert 0.7 < ratio < 0.85  # the README: 0.785
    dropped = to_coco.finish(draft, {"Mushrooms-DLcx": None})
    assert [(c["id"], c["name"]) for c in dropped["categories"]] == [(1, "Mushroom")]


def test_a_missing_picture_is_left_out(shared_data):
    draft = registry.read(shared_data / "coco_odd_exports" / "horse_dog_one_image_missing")
    coco = to_coco.finish(draft)
    assert len(coco["images"]) == 12
    missing = [f for f in draft.findings if f.grade == "error"]
    assert [f.code for f in missing] == ["missing-image"]
    assert "000000017178.jpg" in missing[0].message
    assert sum(a["iscrowd"] for a in coco["annotations"]) == 2


REFUSED = [
    ("street_no_segmentation_key", "130 x no-segmentation.*'segmentation' is missing"),
    ("cvat_boxes_empty_segmentation", "19 x no-segmentation.*'segmentation' is empty"),
    ("hand_written_invalid/annotation_points_to_no_image.json", "'image_id' is 0"),
    ("hand_written_invalid/box_outside_image.json", "'segmentation' is empty"),
    ("hand_written_invalid/invalid_json_tab_in_key.json", "line 28"),
]


@pytest.mark.parametrize(("name", "reason"), REFUSED)
def test_what_masks_cannot_be_trained_on_is_refused(shared_data, tmp_path, name, reason):
    with pytest.raises(UserError, match=reason):
        conversion.convert([shared_data / "coco_odd_exports" / name], tmp_path / "c.json")
    assert not list(tmp_path.iterdir())


def test_a_results_file_is_no_data_set(shared_data):
    name = "coco_results_format/instances_val2014_fakesegm100_results.json"
    with pytest.raises(UserError, match="no known annotation format"):
        registry.read(shared_data / name)


@pytest.fixture
def folder(tmp_path):
    samples.photo(tmp_path / "a.jpg")
    samples.photo(tmp_path / "b.jpg", seed=1)
    return tmp_path


def _read(folder, content):
    return registry.read(samples.write(folder / "c.json", content))


def test_parts_holes_and_both_rles_are_kept(folder):
    content = samples.coco_content()
    draft = _read(folder, content)
    assert not draft.findings and len(draft.items) == 8
    for item, a in zip(draft.items, content["annotations"], strict=True):
        assert item.crowd == bool(a["iscrowd"]) and item.id == a["id"]
        form = a["segmentation"]
        if isinstance(form, dict) and isinstance(form["counts"], list):
            form = mask_utils.frPyObjects(form, *HW)
        assert (truth.decode(item.segmentation, HW) == truth.decode(form, HW)).all()
    assert not truth.decode(draft.items[2].segmentation, HW)[15:20, 30:35].any()


def test_what_is_written_is_read_by_training(folder):
    converted = conversion.convert(
        [samples.write(folder / "c.json", samples.coco_content())], folder / "out.json"
    )
    data = load_coco(folder / "out.json", str(converted.images))
    assert data.names == ("cat", "dog") and len(data.inst_id) == 8 and data.num_skipped == 0


def _change(change):
    content = samples.coco_content()
    change(content)
    return content


def _set(table, row, **fields):
    return lambda content: content[table][row].update(fields)


CHANGES = [
    (_set("annotations", 0, image_id=77), "unknown-image", 7),
    (_set("annotations", 0, category_id=77), "unknown-category", 7),
    (_set("annotations", 0, category_id=True), "unknown-category", 7),
    (_set("annotations", 0, segmentation=[[1, 2, 3, 4]]), "bad-points", 7),
    (_set("annotations", 0, segmentation=[[1, 2, 3, 4, 5, float("nan")]]), "bad-points", 7),
    (_set("annotations", 0, segmentation=[[1, 2, 3, 4, 5, True]]), "bad-points", 7),
    (_set("annotations", 0, segmentation=[[1, 2, 3, 4, 5, 10**400]]), "bad-points", 7),
    (_set("annotations", 0, segmentation=[10, 10, 40, 10, 40, 40]), "flat-polygon", 8),
    (_set("annotations", 0, segmentation=[[90, 70, 99, 70, 99, 99]]), "wholly-outside", 7),
    (_set("annotations", 0, segmentation=[[10, 10, 90, 10, 90, 40]]), "far-outside", 8),
    (_set("annotations", 0, segmentation=[[10, 10, 82, 10, 82, 40]]), "outside", 8),
    (_set("annotations", 2, segmentation={"size": [60, 80], "counts": "0"}), "bad-rle", 7),
    (_set("annotations", 2, segmentation={"size": [60, 80], "counts": "\x00" * 9}), "bad-rle", 7),
    (_set("annotations", 2, segmentation={"size": [80, 60], "counts": [4800]}), "bad-rle", 7),
    (_set("annotations", 2, segmentation={"size": [60, 80], "counts": [4800]}), "no-area", 7),
    (_set("annotations", 0, bbox=[10, 12, 95, 38]), "box-outside", 8),
    (_set("annotations", 0, id=11), "duplicate-id", 8),
    (_set("categories", 0, id=0), "category-zero", 4),
    (_set("categories", 0, id=2), "duplicate-id", 4),
    (_set("categories", 0, name="dog"), "duplicate-name", 8),
    (_set("images", 0, file_name="../a.jpg"), "unsafe-name", 8),
    (_set("images", 0, file_name="x\\y\\a.jpg"), "back-slash", 8),
    (_set("images", 0, file_name="nowhere.jpg"), "missing-image", 4),
    (_set("images", 0, height=61), "size-mismatch", 4),
    (_set("images", 0, height=None), None, 8),
    (_set("images", 1, file_name="a.jpg"), "duplicate-picture", 8),
]


@pytest.mark.parametrize(("change", "code", "objects"), CHANGES)
def test_each_mistake_is_told(folder, change, code, objects):
    draft = _read(folder, _change(change))
    assert len(draft.items) == objects
    assert (code in codes(draft)) if code else not draft.findings
    for finding in draft.findings:
        assert finding.where or finding.code == "box-area"


def test_ids(folder):
    """Own ids are kept if they are unique and positive, else given anew in the order of names."""
    coco = to_coco.finish(_read(folder, samples.coco_content()))
    assert [a["id"] for a in coco["annotations"]] == [10, 11, 12, 13, 20, 21, 22, 23]
    zero = to_coco.finish(_read(folder, _change(_set("annotations", 0, id=0))))
    assert [a["id"] for a in zero["annotations"]] == list(range(1, 9))
    content = _change(_set("images", 0, file_name="b.jpg"))
    content["images"][1]["file_name"] = "a.jpg"
    coco = to_coco.finish(_read(folder, content))
    assert [(e["id"], e["file_name"]) for e in coco["images"]] == [(2, "a.jpg"), (1, "b.jpg")]


LAYOUTS = [
    ("_annotations.coco.json", ""),
    ("labels.json", "data"),
    ("result.json", "images"),
    ("annotations/instances_default.json", "images"),
    ("annotations/instances_train.json", "train"),
]


@pytest.mark.parametrize(("name", "images"), LAYOUTS)
def test_layouts_of_the_tools(tmp_path, name, images):
    samples.photo(tmp_path / images / "a.jpg")
    samples.photo(tmp_path / images / "b.jpg", seed=1)
    samples.write(tmp_path / name, samples.coco_content())
    draft = registry.read(tmp_path)
    assert draft.kind == "coco" and len(draft.pictures) == 2


def test_exif(tmp_path):
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    samples.photo(tmp_path / "a.jpg", hw=(80, 60), exif=exif)  # shown 60 high, 80 wide
    samples.photo(tmp_path / "b.jpg", seed=1)
    shown = _read(tmp_path, samples.coco_content())
    assert (shown.pictures[0].height, shown.pictures[0].width) == HW
    assert [(f.grade, f.code) for f in shown.findings] == [("note", "exif")]
    content = _change(_set("images", 0, height=80, width=60))
    stored = _read(tmp_path, content)
    assert (stored.pictures[0].height, stored.pictures[0].width) == (80, 60)
    assert ("warning", "exif") in [(f.grade, f.code) for f in stored.findings]


def test_damaged_pictures(folder):
    (folder / "a.jpg").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    draft = _read(folder, samples.coco_content())
    assert codes(draft) == ["unreadable-image"] and "git lfs pull" in draft.findings[0].message
