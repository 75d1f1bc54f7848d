"""Everything odd that is known of the real data sets is found; what is sound is not accused."""

import re

import pytest

from maskrcnn_jax.data import doctor_fix, doctor_run
from maskrcnn_jax.data.coco import load_coco
from maskrcnn_jax.errors import UserError


def where(report, code):
    """The places of all findings of a code."""
    return [f.where for f in report.findings if f.code == code]


def count(report, code):
    return len(where(report, code))


def repaired(report, folder, images):
    """The repaired copy, as the strict loader reads it."""
    fixed, _ = doctor_fix.repair(report.examined[0])
    doctor_fix.write(folder / "fixed.json", fixed, [])
    return load_coco(folder / "fixed.json", str(images))


def test_coco_is_sound(shared_data):
    paths = sorted((shared_data / "coco_tiny" / "annotations").glob("*.json"))
    report = doctor_run.inspect(paths)
    assert report.counts["error"] == 0
    told = {f.code for f in report.findings if f.grade == "warning"}
    assert told == {"imbalance", "tiny", "self-crossing"}
    assert count(report, "self-crossing") == 1 and count(report, "tiny") == 12


def test_furniture(shared_data, tmp_path):
    folder = shared_data / "furniture_labelstudio"
    report = doctor_run.inspect([folder / "result.json"])
    assert report.counts["error"] == 0
    assert count(report, "back-slash") == 60 and count(report, "category-zero") == 1
    png = {re.search(r"[0-9a-f]{8}-\d+", w)[0] for w in where(report, "wrong-suffix")}
    assert png == {"018229fa-122", "075c07a4-124", "30b504d7-121", "4a7ac690-119"}
    outside = {re.search(r"[0-9a-f]{8}-\d+", w)[0] for w in where(report, "outside")}
    assert outside == {"836b32d2-2", "b5331749-27", "97f9f6ad-15", "601010a9-89"}
    (twice,) = [f for f in report.findings if f.code == "annotated-twice"]
    assert "4c92ebef-97" in twice.where and "b5331749-27" in twice.message
    assert "3 objects here, 5 there" in twice.message
    data = repaired(report, tmp_path, folder / "images")
    assert len(data.inst_id) == 208


def test_furniture_in_its_own_format(shared_data):
    report = doctor_run.inspect([shared_data / "furniture_labelstudio" / "label_studio.json"])
    assert report.counts["error"] == 0
    assert count(report, "wrong-suffix") == 4 and count(report, "outside") == 4
    assert count(report, "annotated-twice") == 1


def test_mushrooms(shared_data, tmp_path):
    folder = shared_data / "mushrooms_roboflow"
    report = doctor_run.inspect([folder / split for split in ("train", "valid", "test")])
    assert report.counts["error"] == 0
    assert count(report, "dummy-class") == 3 and count(report, "category-zero") == 3
    assert count(report, "over-cap") == count(report, "over-max-dets") == 31
    assert count(report, "box-area") > 6500  # the others fill their box, or nearly
    assert count(report, "annotation-zero") == 2  # valid and test: not told in the README
    # The copies carry the name of their photo.
    groups = {}
    for path in sorted((folder / "train").glob("*.jpg")):
        groups.setdefault(path.name.partition("_jpeg")[0], []).append(path.name)
    expected = {frozenset(names) for names in groups.values() if len(names) > 1}
    near = [f for f in report.findings if f.code == "near-duplicate"]
    found = {frozenset(re.findall(r"\((\S+\.jpg)\)", f"{f.where} {f.message}")) for f in near}
    assert found == expected and len(expected) == 13
    assert count(report, "leak") == count(report, "annotated-twice") == 0
    assert len(repaired(report, tmp_path, folder / "train").inst_id) == 5924


def test_cars(shared_data):
    folder = shared_data / "car_damage_via"
    for name, outside in (("via_region_data.json", 1), ("train_multiclass.json", 11)):
        val = name.replace("train", "val")
        report = doctor_run.inspect(
            [folder / "train" / name, folder / "val" / val], also=[folder / "test"]
        )
        assert report.counts["error"] == 0
        leaks = [f for f in report.findings if f.code == "leak"]
        pairs = [
            (re.search(r"\((\d+)", f.where)[1], re.search(r"test/(\d+)", f.message)[1])
            for f in leaks
        ]
        assert ("17", "66") in pairs  # the same file
        assert ("20", "60") in pairs and len(pairs) == 2  # cropped: not told in the README
        same = [
            {re.search(r"\((\d+)", f.where)[1], *re.findall(r"\((\d+)", f.message)}
            for f in report.findings
            if f.code in ("annotated-twice", "duplicate-picture", "near-duplicate")
        ]
        assert sorted(map(sorted, same)) == [["19", "79"], ["25", "48"], ["33", "8"]]
        assert count(report, "outside") == outside


def test_frames_of_a_video(shared_data):
    report = doctor_run.inspect([shared_data / "road_video_labelme"])
    assert report.counts["error"] == 0
    (near,) = [f for f in report.findings if f.code == "near-duplicate"]
    assert "there 5 times" in near.message


def test_fruit_is_sound(shared_data):
    report = doctor_run.inspect([shared_data / "labelme_date_fig_hazelnut"])
    assert report.findings == [] and report.statistics[0]["objects"] == 165


def test_a_missing_picture(shared_data, tmp_path):
    folder = shared_data / "coco_odd_exports" / "horse_dog_one_image_missing"
    report = doctor_run.inspect([folder])
    assert where(report, "missing-image") == ["image 17178 (000000017178.jpg)"]
    assert report.counts["error"] == 1 and report.statistics[0]["crowds"] == 2
    data = repaired(report, tmp_path, folder / "data")
    assert len(data.image_ids) == 12 and data.num_skipped == 0


@pytest.mark.parametrize(
    ("name", "objects"),
    [
        ("street_no_segmentation_key/labels.json", 130),
        ("cvat_boxes_empty_segmentation/annotations/instances_default.json", 19),
    ],
)
def test_boxes_without_masks(shared_data, name, objects):
    report = doctor_run.inspect([shared_data / "coco_odd_exports" / name])
    assert count(report, "no-segmentation") == objects and count(report, "no-objects") == 1
    assert {f.code for f in report.findings if f.grade == "error"} == {
        *("no-segmentation", "no-objects"),
    }
    with pytest.raises(UserError, match="nothing usable"):
        doctor_fix.repair(report.examined[0])


def test_hand_written(shared_data):
    folder = shared_data / "coco_odd_exports" / "hand_written_invalid"
    with pytest.raises(UserError, match=r"tab_in_key.json: not valid JSON at line 28, column 12"):
        doctor_run.inspect([folder / "invalid_json_tab_in_key.json"])
    report = doctor_run.inspect([folder / "annotation_points_to_no_image.json"])
    assert where(report, "orphan-image-id") == ["annotation 1"]
    report = doctor_run.inspect([folder / "box_outside_image.json"])
    assert count(report, "box-far-outside") == 1


def test_results_are_no_data_set(shared_data):
    (path,) = (shared_data / "coco_results_format").glob("*.json")
    with pytest.raises(UserError, match="list of results"):
        doctor_run.inspect([path])
