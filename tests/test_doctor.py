"""One small file per finding; all that the strict loader refuses is an error; crossings."""

import itertools
import json
import math

import numpy as np
import pytest
import test_data_coco
import tiny_coco
from doctor_cases import GOOD, HW, all_kinds, codes, content, inspect, ring
from hypothesis import given, settings
from hypothesis import strategies as st

from maskrcnn_jax.data import doctor_report, doctor_run
from maskrcnn_jax.data.coco import load_coco
from maskrcnn_jax.data.doctor_outlines import self_crossing
from maskrcnn_jax.errors import UserError

BIG = {5: (400, 500), 2: (400, 500)}


def square(x, y, side, i=1, image=5, category=3, **more):
    shape = [tiny_coco.rectangle(x, y, x + side, y + side)]
    return tiny_coco.annotation(i, image, category, shape, **more)


def test_a_sound_file(tmp_path):
    report = inspect(tmp_path, all_kinds())
    assert codes(report, "error") == set()
    assert codes(report, "warning") == {"crowds"}
    numbers = report.statistics[0]
    assert (numbers["pictures"], numbers["objects"], numbers["crowds"]) == (2, 5, 1)
    assert (numbers["polygons"], numbers["several_parts"], numbers["rles"]) == (2, 1, 3)
    assert numbers["classes"] == {"dog": 1, "cat": 3, "owl": 1}


# What is changed of one good annotation, the code, and its grade.
ANNOTATIONS = [
    ({"bbox": [45, 3, 10, 16]}, "box-far-outside", "error"),
    ({"bbox": [3, 3, 16, 16.2], "segmentation": [[3, 25, 19, 25, 19, 41]]}, "outside", "warning"),
    ({"bbox": [35, 3, 16, 16]}, "box-outside", "note"),
    ({"bbox": [3, 3, 0, 5]}, "empty-box", "error"),
    ({"bbox": [3, 3, 5, math.inf]}, "bad-box", "error"),
    ({"bbox": [3, 3, 5, True]}, "bad-box", "error"),
    ({"bbox": "3 3 5 5"}, "bad-box", "error"),
    ({"bbox": [3, 3, 30, 16]}, "box-not-mask", "warning"),
    ({"bbox": [3, 3, 24, 24]}, "box-not-mask", "warning"),
    (
        {"bbox": [20, 10, 40, 30], "segmentation": [[20, 10, 40, 10, 40, 30]]},
        *("box-corners", "error"),
    ),
    ({"area": 999}, "area-not-mask", "warning"),
    ({"area": math.nan}, "bad-area", "warning"),
    (
        {"segmentation": [[3, 3, 35, 3, 3, 35]], "bbox": [3, 3, 32, 32], "area": 1024},
        *("box-area", "warning"),
    ),
    ({"segmentation": []}, "no-segmentation", "error"),
    ({"segmentation": None}, "no-segmentation", "error"),
    ({"segmentation": [3, 3, 19, 3, 19, 19]}, "flat-polygon", "error"),
    ({"segmentation": [1, 2, 3]}, "bad-mask", "error"),
    ({"segmentation": "polygon"}, "bad-mask", "error"),
    ({"segmentation": [[3, 3, 9, 9]]}, "few-points", "error"),
    ({"segmentation": [[3, 3, 9, 9, 5]]}, "few-points", "error"),
    ({"segmentation": [[3, 3, 9, 3, 9, math.nan]]}, "bad-points", "error"),
    ({"segmentation": [[3, 3, 9, 3, 9, 1e12]]}, "bad-points", "error"),
    ({"segmentation": [[3, 3, 3, 3, 3, 3]]}, "no-area", "error"),
    ({"segmentation": [[3, 3, 19, 19, 3, 19, 19, 3]]}, "self-crossing", "warning"),
    ({"segmentation": [[60, 3, 69, 3, 69, 9]]}, "wholly-outside", "error"),
    ({"segmentation": [[3, 3, 69, 3, 69, 9]]}, "far-outside", "warning"),
    ({"segmentation": [[3, 3, 51, 3, 51, 9]]}, "outside", "warning"),
    ({"segmentation": [[0.1, 0.1, 0.5, 0.1, 0.5, 0.5]]}, "fractions", "error"),
    (
        {"segmentation": [[3, 3, 5, 3, 5, 5, 3, 5]], "bbox": [3, 3, 2, 2], "area": 4},
        *("tiny", "warning"),
    ),
    ({"segmentation": [[3, 3.1, 9, 3.1, 9, 3.2, 3, 3.2]]}, "no-pixel", "warning"),
    ({"segmentation": {"size": [9, 9], "counts": [81]}}, "bad-rle", "error"),
    ({"segmentation": {"size": [40, 50], "counts": [1, 2]}}, "bad-rle", "error"),
    ({"segmentation": {"size": [40, 50], "counts": "oooo9"}}, "bad-rle", "error"),
    ({"segmentation": {"size": [40, 50], "counts": [2000]}}, "no-area", "error"),
    ({"image_id": 77}, "orphan-image-id", "error"),
    ({"image_id": [5]}, "orphan-image-id", "error"),
    ({"category_id": 77}, "orphan-category-id", "error"),
    ({"category_id": "3"}, "bad-id", "error"),
    ({"id": None}, "bad-id", "error"),
    ({"id": 2**64}, "bad-id", "error"),
    ({"id": 0}, "annotation-zero", "warning"),
    ({"iscrowd": "no"}, "bad-crowd", "warning"),
]


@pytest.mark.parametrize(("change", "code", "grade"), ANNOTATIONS)
def test_findings_of_an_annotation(tmp_path, change, code, grade):
    assert code not in codes(inspect(tmp_path, content()))
    report = inspect(tmp_path, content([GOOD | change]))
    found = [f for f in report.findings if f.code == code]
    assert [f.grade for f in found] == [grade]
    assert found[0].file == str(tmp_path / "instances.json") and found[0].message
    assert "annotation" in found[0].where


# What is done to a good file, the code, and its grade.
FILES = [
    (lambda c: c["annotations"].append(GOOD), "duplicate-id", "error"),
    (lambda c: c["annotations"].append(GOOD | {"id": 2}), "duplicate-object", "warning"),
    (lambda c: c["annotations"].append(7), "bad-entry", "error"),
    (lambda c: c["annotations"].clear(), "empty-list", "error"),
    (lambda c: c["annotations"].clear(), "no-objects", "error"),
    (lambda c: c.pop("categories"), "no-list", "error"),
    (lambda c: c["images"][0].update(height=None), "bad-size", "error"),
    (lambda c: c["images"][0].update(height=2**40), "bad-size", "error"),
    (lambda c: c["images"][0].update(file_name=3), "no-name", "error"),
    (lambda c: c["images"][0].update(file_name="../../x.png"), "unsafe-name", "error"),
    (lambda c: c["images"][0].update(file_name="a\0.png"), "unsafe-name", "error"),
    (lambda c: c["images"][0].update(file_name="/photos/5.png"), "absolute-path", "warning"),
    (lambda c: c["images"][0].update(file_name="C:\\photos\\5.png"), "absolute-path", "warning"),
    (lambda c: c["images"][0].update(file_name="photos\\5.png"), "back-slash", "note"),
    (lambda c: c["images"][0].update(file_name="2.png"), "duplicate-file", "warning"),
    (lambda c: c["categories"][0].pop("name"), "no-class-name", "error"),
    (lambda c: c["categories"][0].update(name=" dog "), "stray-blanks", "warning"),
    (lambda c: c["categories"][0].update(name="CAT"), "class-twins", "warning"),
    (lambda c: c["categories"][0].update(id=0), "category-zero", "note"),
    (lambda c: c["categories"][1].update(supercategory="dog"), "dummy-class", "warning"),
    (lambda c: None, "ids-with-gaps", "note"),
    (lambda c: None, "unused-class", "warning"),
    (lambda c: None, "rare-class", "note"),
    (lambda c: None, "no-objects-here", "note"),
    (lambda c: c["annotations"][0].update(iscrowd=1), "crowds", "warning"),
]


@pytest.mark.parametrize(("change", "code", "grade"), FILES)
def test_findings_of_a_file(tmp_path, change, code, grade):
    made = content()
    change(made)
    report = inspect(tmp_path, made)
    assert grade in [f.grade for f in report.findings if f.code == code]


def test_many_objects(tmp_path):
    things = [square(3 * k, 3 * k, 20, i=k + 1) for k in range(101)]
    things.append(square(90, 5, 50, i=900, category=7))
    report = inspect(tmp_path, content(things, BIG), max_instances=60)
    assert {"over-cap", "over-max-dets", "imbalance"} <= codes(report)
    per_picture = report.statistics[0]["objects_per_picture"]
    assert per_picture["most"] == 102 and per_picture["dropped"] == 42
    assert "over-cap" not in codes(inspect(tmp_path, content(things, BIG), max_instances=102))


def test_exchanged_axes_and_percent(tmp_path):
    upright = content([square(100, 350, 45)], {5: (400, 200)})
    assert "swapped" not in codes(inspect(tmp_path, upright))
    exchanged = content([square(100, 350, 45)], {5: (200, 400)})
    assert "swapped" in codes(inspect(tmp_path, exchanged), "warning")
    in_percent = [square(8 * k, 7 * k, 20, i=k + 1) for k in range(10)]
    assert "percent" in codes(inspect(tmp_path, content(in_percent, BIG)), "error")
    assert "percent" in codes(inspect(tmp_path, content(in_percent[:3], BIG)), "warning")
    beyond = [*in_percent, square(200, 200, 50, i=99)]
    assert "percent" not in codes(inspect(tmp_path, content(beyond, BIG)))


def test_twins_are_told_once_each(tmp_path):
    copies = [square(5, 5, 20, i=k) for k in range(1, 7)]
    other_class = square(5, 5, 20, i=8, category=7)
    crowd = square(5, 5, 20, i=9, iscrowd=1)
    report = inspect(tmp_path, content([*copies, other_class, crowd]))
    assert sum(f.code == "duplicate-object" for f in report.findings) == 5


def test_splits_are_compared(tmp_path):
    one, two = tmp_path / "train.json", tmp_path / "val.json"
    one.write_text(json.dumps(content([GOOD, square(20, 20, 9, i=2, category=7)])))
    made = content()
    made["categories"][1]["name"] = "Cat"
    two.write_text(json.dumps(made))
    report = doctor_run.inspect([one, two], open_pictures=False)
    found = {(f.code, f.file, f.where) for f in report.findings}
    assert ("class-tables", str(two), "category 3") in found
    assert ("class-absent", str(two), "class 'dog'") in found
    assert ("class-absent", str(one), "class 'dog'") not in found


def _strict_cases():
    marks = [
        mark.args[1]
        for test in (test_data_coco.test_bad_annotation, test_data_coco.test_bad_file)
        for mark in test.pytestmark
    ]
    return [(isinstance(change, dict), change) for change, _ in itertools.chain(*marks)]


@pytest.mark.parametrize(("of_annotation", "change"), _strict_cases())
def test_what_the_strict_loader_refuses_is_an_error(tmp_path, of_annotation, change):
    path, images = tiny_coco.write(tmp_path, {5: HW, 2: HW}, [GOOD], [*tiny_coco.CATEGORIES])
    made = json.loads(path.read_text())
    made["annotations"][0].update(change) if of_annotation else change(made)
    path.write_text(json.dumps(made))
    with pytest.raises(UserError):
        load_coco(path, images)
    report = doctor_run.inspect([path])
    assert codes(report, "error")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"images": [,]}', r"instances.json: not valid JSON at line 1, column 13 .*export"),
        (b'{"images":\n[\t"a\tb"]}', "line 2, column 5"),
        (b"[" * 100_000, "instances.json: not usable as JSON"),
        (b"[" + b"9" * 10_000 + b"]", "not usable as JSON"),
        (b"[]", "has none of the lists"),
        (b'{"categories": 3}', "has none of the lists"),
        (b'[{"image_id": 1, "category_id": 1, "score": 1}]', "list of results"),
        (b"\xff\xfe\x00", "not a text file"),
        (b"", "not valid JSON at line 1, column 1"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, text, message):
    path = tmp_path / "instances.json"
    path.write_bytes(text)
    with pytest.raises(UserError, match=message):
        doctor_run.inspect([path], kind="coco")


def test_another_encoding_is_read_and_told(tmp_path):
    made = content(categories=[{"id": 3, "name": "Möbel"}])
    path = tmp_path / "instances.json"
    path.write_bytes(json.dumps(made, ensure_ascii=False).encode("cp1252"))
    report = doctor_run.inspect([path], open_pictures=False)
    assert codes(report, "error") == {"encoding"}
    assert report.statistics[0]["classes"] == {"Möbel": 1}
    path.write_bytes(json.dumps(made, ensure_ascii=False).encode("utf-8-sig"))
    assert not codes(doctor_run.inspect([path], open_pictures=False), "error")


def test_numbers_against_pycocotools(tmp_path, shared_data):
    from pycocotools.coco import COCO

    path = shared_data / "coco_tiny" / "annotations" / "instances_val2017.json"
    numbers = doctor_run.inspect([path], open_pictures=False).statistics[0]
    coco = COCO(str(path))
    areas = np.array([coco.annToMask(a).sum() for a in coco.anns.values()])
    assert numbers["sizes"] == {
        "small": (areas < 1024).sum(),
        "medium": ((areas >= 1024) & (areas < 9216)).sum(),
        "large": (areas >= 9216).sum(),
    }
    assert sum(entry["count"] for entry in numbers["size_histogram"]) == len(areas)
    assert sum(entry["count"] for entry in numbers["canvases"]) == 80


def test_text_is_short_and_json_complete(tmp_path):
    things = [square(10, 10, 3, i=k, image=(5, 2)[k % 2], category=3) for k in range(1, 2001)]
    report = inspect(tmp_path, content(things, BIG))
    text = "\n".join(doctor_report.summary(report.findings))
    assert "tiny (2000)" in text and "... 1997 more" in text and len(text) < 8000
    whole = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert sum(f["code"] == "tiny" for f in whole["findings"]) == 2000


def _crosses_slowly(points):
    """Pairs of edges, with exact fractions."""
    from fractions import Fraction

    p = [(Fraction(float(x)), Fraction(float(y))) for x, y in points]
    edges = list(zip(p, p[1:] + p[:1], strict=True))

    def side(a, b, c):
        value = (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
        return (value > 0) - (value < 0)

    return any(
        side(a, b, c) * side(a, b, d) < 0 and side(c, d, a) * side(c, d, b) < 0
        for (a, b), (c, d) in itertools.combinations(edges, 2)
    )


@settings(max_examples=100)
@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=3, max_size=9),
        min_size=1,
        max_size=4,
    )
)
def test_crossings_equal_exact_ones(polygons):
    arrays = [np.array(p, float) for p in polygons]
    crossing, complete = self_crossing(arrays)
    assert crossing.tolist() == [_crosses_slowly(p) for p in arrays] and complete.all()


def test_crossings_of_long_outlines():
    t = np.linspace(0, 2 * np.pi, 20_000, endpoint=False)
    circle = 300 + 250 * np.stack([np.cos(t), np.sin(t)], axis=1)
    bow = circle.copy()
    bow[[5001, 5002]] = bow[[5002, 5001]]
    comb = np.stack([np.tile([0.0, 600.0], 5000), np.arange(10_000) * 0.06], axis=1)
    comb = np.concatenate([comb, [[700, 600], [700, -10], [0, -10]]])
    scribble = np.random.default_rng(0).random((5000, 2)) * 600
    crossing, complete = self_crossing([circle, bow, circle[::-1], comb, scribble])
    assert crossing.tolist() == [False, True, False, False, True] and complete.all()
    slanted = comb @ np.array([[1.0, 1.0], [-1.0, 1.0]])  # every edge beside thousands
    crossing, complete = self_crossing([slanted])
    assert crossing.tolist() == [False] and complete.tolist() == [False]


def test_masks_with_holes_are_measured(tmp_path):
    numbers = inspect(tmp_path, content([tiny_coco.rle_annotation(4, 5, 3, ring(), True)]))
    assert numbers.examined[0].measures.area.tolist() == [ring().sum()]
