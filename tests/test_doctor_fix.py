"""Repaired copies: what each repair does, and that the strict loader takes every one of them."""

import json
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
import tiny_coco
from doctor_cases import GOOD, HW, JUNK, all_kinds, codes, content, inspect, mutated, ring
from hypothesis import given, settings
from pycocotools import mask as mask_utils

from maskrcnn_jax.data import doctor_fix, doctor_run
from maskrcnn_jax.data.bitmaps import instance_bitmap
from maskrcnn_jax.data.coco import instance_mask, load_coco
from maskrcnn_jax.errors import UserError

# The mutated files of one run; a thousand by MASKRCNN_JAX_FUZZ=1000.
EXAMPLES = int(os.environ.get("MASKRCNN_JAX_FUZZ", "60"))


def repair(folder, made, **more):
    return doctor_fix.repair(inspect(folder, made).examined[0], **more)


def only(fixed):
    assert len(fixed["annotations"]) == 1
    return fixed["annotations"][0]


def test_a_sound_file_stays_as_it_is(tmp_path):
    made = all_kinds() | {"info": {"year": 2026}, "licenses": []}
    made["annotations"][0]["attributes"] = {"occluded": False}
    fixed, done = repair(tmp_path, made)
    assert fixed == made and done == {}


REPAIRS = [
    ({"bbox": [3, 3, 40, 30]}, {"bbox": [3, 3, 16, 16]}),
    ({"bbox": None}, {"bbox": [3, 3, 16, 16]}),
    ({"bbox": [3, 3, 16, float("nan")]}, {"bbox": [3, 3, 16, 16]}),
    ({"area": 2}, {"area": 256}),
    ({"area": "big"}, {"area": 256}),
    ({"id": 0}, {"id": 1}),
    ({"id": "1"}, {"id": 1}),
    ({"id": None}, {"id": 1}),
    ({"image_id": "5", "category_id": 3.0}, {"image_id": 5, "category_id": 3}),
    ({"iscrowd": True}, {"iscrowd": 1}),
    ({"segmentation": tiny_coco.rectangle(3, 3, 19, 19)}, {"segmentation": GOOD["segmentation"]}),
    (
        {"segmentation": [*GOOD["segmentation"], [1, 2, 3, 4], [1, 2, 3, "x", 5, 6]]},
        {"segmentation": GOOD["segmentation"]},
    ),
]


@pytest.mark.parametrize(("change", "expected"), REPAIRS)
def test_repairs_of_an_annotation(tmp_path, change, expected):
    fixed, done = repair(tmp_path, content([GOOD | change]))
    assert only(fixed) == GOOD | expected
    assert done or "iscrowd" in change


def test_outlines_are_cut_off_without_changing_the_mask(tmp_path):
    outline = [[-10.0, 5, 30, -8, 70, 20, 20, 60]]
    fixed, _ = repair(tmp_path, content([GOOD | {"segmentation": outline}]))
    masks = [
        mask_utils.decode(mask_utils.merge(mask_utils.frPyObjects(polygons, *HW)))
        for polygons in (outline, only(fixed)["segmentation"])
    ]
    assert (masks[0] != masks[1]).sum() <= 6  # pixels of which an edge meets the centre
    points = np.reshape(only(fixed)["segmentation"][0], (-1, 2))
    assert points.min() >= 0 and np.all(points.max(0) <= (HW[1], HW[0]))
    assert only(fixed)["area"] == masks[1].sum()


def test_ids_names_and_references(tmp_path):
    made = content([GOOD, GOOD | {"category_id": 7}, GOOD | {"id": 9, "image_id": 77}])
    made["images"][0]["file_name"] = "photos\\5.png"
    made["images"].append(dict(made["images"][1]))
    made["images"].append({"id": None, "file_name": "/x/8.png", "height": 9, "width": 9})
    made["images"].append({"id": 10, "file_name": "../9.png", "height": 9, "width": 9})
    made["categories"][0]["name"] = " big  dog"
    made["categories"].append({"id": 3, "name": "other"})
    fixed, done = repair(tmp_path, made)
    assert [i["file_name"] for i in fixed["images"]] == ["photos/5.png", "2.png", "8.png"]
    assert [i["id"] for i in fixed["images"]] == [5, 2, 11]
    assert [a["id"] for a in fixed["annotations"]] == [1, 2]
    assert [c["name"] for c in fixed["categories"]] == ["big dog", "cat", "owl"]
    assert "annotation 9" in done["left out: object of no usable picture or class"]
    assert len(done["left out: picture (duplicate-id)"]) == 1
    assert len(done["left out: picture (unsafe-name)"]) == 1


def test_duplicates_stay_unless_asked_for(tmp_path):
    made = content([GOOD, GOOD | {"id": 2}])
    assert len(repair(tmp_path, made)[0]["annotations"]) == 2
    fixed, done = repair(tmp_path, made, drop_duplicates=True)
    assert only(fixed)["id"] == 1 and done["left out: duplicate object"]


def test_pictures_that_cannot_be_used_are_left_out(tmp_path):
    path, images = tiny_coco.write(tmp_path, {5: HW, 2: HW, 8: HW}, [GOOD])
    (Path(images) / "2.png").unlink()
    (Path(images) / "8.png").write_bytes(b"no picture")
    fixed, _ = doctor_fix.repair(doctor_run.inspect([path]).examined[0])
    assert [i["id"] for i in fixed["images"]] == [5]


def test_nothing_usable(tmp_path):
    with pytest.raises(UserError, match="instances.json: nothing usable"):
        repair(tmp_path, content([GOOD | {"segmentation": []}]))


def test_never_in_place(tmp_path):
    source = tmp_path / "instances.json"
    made = content()
    fixed, _ = repair(tmp_path, made)
    (tmp_path / "link.json").symlink_to(source)
    (tmp_path / "hard.json").hardlink_to(source)
    for name in ("instances.json", "link.json", "hard.json", "below/../instances.json"):
        with pytest.raises(UserError, match="--fix .*: is the data set itself"):
            doctor_fix.write(tmp_path / name, fixed, [source])
    with pytest.raises(UserError, match="in a folder that exists"):
        doctor_fix.write(tmp_path / "absent" / "out.json", fixed, [source])
    assert json.loads(source.read_text()) == made


def test_what_is_no_json_number_elsewhere_becomes_null(tmp_path):
    made = content([GOOD | {"score": float("inf")}])
    fixed, _ = repair(tmp_path, made)
    doctor_fix.write(tmp_path / "out.json", fixed, [])
    assert json.loads((tmp_path / "out.json").read_text())["annotations"][0]["score"] is None


def check_any(folder, made):
    """The doctor, its repair and the strict loader, on any content."""
    path, images = folder / "instances.json", folder / "images"
    images.mkdir(exist_ok=True)
    tiny_coco.Image.new("RGB", HW[::-1]).save(images / "5.png")
    tiny_coco.Image.new("RGB", HW[::-1], "red").save(images / "2.png")
    path.write_text(json.dumps(made))
    before = path.read_bytes()
    try:
        report = doctor_run.inspect([path], kind="coco", images=[images])
    except UserError as error:
        assert str(path) in str(error)
        return "refused"
    json.dumps(report.to_json(), allow_nan=False)
    if not codes(report, "error"):
        load_coco(path, str(images))
    try:
        fixed, _ = doctor_fix.repair(report.examined[0])
    except UserError as error:
        assert "nothing usable" in str(error)
        return "nothing usable"
    doctor_fix.write(folder / "fixed.json", fixed, [path])
    assert path.read_bytes() == before
    assert {p.name for p in folder.iterdir()} == {"instances.json", "images", "fixed.json"}
    data = load_coco(folder / "fixed.json", str(images))
    for i in range(len(data.inst_id)):
        instance_mask(data, i)
        instance_bitmap(data, i, 28)
    assert 0 not in data.inst_id
    return "repaired"


@settings(max_examples=EXAMPLES)
@given(mutated())
def test_every_repaired_file_loads(made):
    with tempfile.TemporaryDirectory() as folder:
        check_any(Path(folder), made)


@pytest.mark.parametrize("field", ["images", "annotations", "categories"])
def test_every_field_with_every_kind_of_junk(tmp_path, field):
    outcomes = set()
    for key in all_kinds()[field][0]:
        for number, junk in enumerate(JUNK):
            made = all_kinds()
            made[field][0][key] = junk
            folder = tmp_path / f"{key}{number}"
            folder.mkdir()
            outcomes.add(check_any(folder, made))
    assert "repaired" in outcomes


def test_masks_survive(tmp_path):
    folder = tmp_path
    made = content([tiny_coco.rle_annotation(4, 5, 3, ring(), False) | {"bbox": [0, 0, 1, 1]}])
    assert check_any(folder, made) == "repaired"
    data = load_coco(folder / "fixed.json", str(folder / "images"))
    np.testing.assert_array_equal(instance_mask(data, 0), ring())
    np.testing.assert_array_equal(data.inst_box[0], [11, 6, 40, 35])
