"""YOLO segmentation labels against outlines written by hand and Label Studio's own export."""

import collections

import format_trees
import numpy as np
import pytest
import truth
from format_samples import HW, photo
from PIL import Image

from maskrcnn_jax.data.formats import class_lists, labelstudio, registry, yolo_seg
from maskrcnn_jax.data.formats.draft import Options
from maskrcnn_jax.errors import UserError


def test_polygons_and_boxes(tmp_path):
    expected = format_trees.yolo(tmp_path)
    draft = registry.read(tmp_path)
    format_trees.check(draft, expected)
    assert draft.classes == ["cat", "dog house"]
    assert format_trees.codes(draft) == ["box"]
    from_yaml = registry.read(tmp_path / "data.yaml")
    assert (from_yaml.items, from_yaml.classes) == (draft.items, draft.classes)


def test_a_folder_for_each_split(tmp_path):
    for split in ("train", "valid"):  # Roboflow's layout
        photo(tmp_path / split / "images" / "a.jpg", seed=len(split))
        (tmp_path / split / "labels").mkdir()
        (tmp_path / split / "labels" / "a.txt").write_text("0 0.1 0.1 0.9 0.1 0.5 0.9\n")
    (tmp_path / "data.yaml").write_text("names:\n- no\n")
    draft = registry.read(tmp_path)
    assert [i.picture for i in draft.items] == ["train/images/a.jpg", "valid/images/a.jpg"]
    assert draft.classes == ["no"]  # a name, not False


def test_pictures_beside_their_labels(tmp_path):
    photo(tmp_path / "a.jpg")
    (tmp_path / "a.txt").write_text("1 0.1 0.1 0.9 0.1 0.5 0.9\n")
    (tmp_path / "classes.txt").write_text("cat\ndog\n\n")
    draft = registry.read(tmp_path)
    assert [(i.picture, i.label) for i in draft.items] == [("a.jpg", "dog")]


def test_pictures_of_another_folder(tmp_path):
    format_trees.yolo(tmp_path / "set")
    (tmp_path / "set" / "images" / "train").rename(tmp_path / "photos")
    draft = registry.read(tmp_path / "set", options=Options(images=tmp_path / "photos"))
    assert {i.picture for i in draft.items} == {"a.jpg", "b.png"} and len(draft.items) == 4


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("0 0.1 0.1 0.9 nan 0.5 0.9", "bad-line"),
        ("0 0.1 0.1 0.9 0.1 0.5", "bad-line"),
        ("0 0.1 0.1", "bad-line"),
        ("-1 0.1 0.1 0.9 0.1 0.5 0.9", "bad-line"),
        ("0.5 0.1 0.1 0.9 0.1 0.5 0.9", "bad-line"),
        ("0 0.1 0.1 0.9 1e999 0.5 0.9", "bad-line"),
        ("cat 0.1 0.1 0.9 0.1 0.5 0.9", "bad-line"),
        ("2 0.1 0.1 0.9 0.1 0.5 0.9", "unknown-class"),
        ("0 10 10 40 10 20 50", "not-normalised"),
        ("0 1.1 1.1 1.9 1.1 1.5 1.9", "wholly-outside"),
    ],
)
def test_lines_of_no_use(tmp_path, line, code):
    format_trees.yolo(tmp_path)
    file = tmp_path / "labels" / "train" / "a.txt"
    file.write_text(file.read_text() + line + "\n")
    draft = registry.read(tmp_path)
    found = [f for f in draft.findings if f.code == code]
    assert len(draft.items) == 4 and [f.grade for f in found] == ["error"]
    assert "a.txt, line 3" in found[0].where


def test_numbers_are_names_without_a_list(tmp_path):
    format_trees.yolo(tmp_path, names="")
    draft = registry.read(tmp_path)
    assert draft.classes == ["0", "1"]
    message = next(f.message for f in draft.findings if f.code == "no-class-names")
    assert "--classes coco" in message
    named = registry.read(tmp_path, options=Options(classes=("x", "y", "z")))
    assert named.classes == ["x", "y", "z"] and named.items[0].label == "x"


def test_lone_files_are_told(tmp_path):
    format_trees.yolo(tmp_path)
    photo(tmp_path / "images" / "train" / "empty.jpg")
    (tmp_path / "labels" / "train" / "gone.txt").write_text("0 0.1 0.1 0.9 0.1 0.5 0.9\n")
    draft = registry.read(tmp_path)
    assert format_trees.codes(draft) == ["box", "missing-image", "no-labels"]
    assert len(draft.pictures) == 3


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("names: [a, b]", ["a", "b"]),
        ("names:\n  0: a\n  1: 'b c'", ["a", "b c"]),
        ("names: {1: b, 0: a}", ["a", "b"]),
        ("names: ['yes', no, 1, 2.0, ~]", ["yes", "no", "1", "2.0", "~"]),
        ("nc: 3", None),
    ],
)
def test_names_of_yaml(tmp_path, text, names):
    (tmp_path / "data.yaml").write_text(text)
    assert class_lists.read_yaml_names(tmp_path / "data.yaml") == names


@pytest.mark.parametrize(
    "text",
    ["names: {0: a, 2: b}", "names: a", "names: [[a]]", "names: [a", "? [a]\n: b", "[" * 5000]
    + ["names: !!python/object/apply:os.system [x]\nb: !!python/name:os.system", "names: {x: a}"],
)
def test_yaml_of_no_use(tmp_path, text):
    (tmp_path / "data.yaml").write_text(text)
    try:  # tags are read as what they are put on, never called
        assert class_lists.read_yaml_names(tmp_path / "data.yaml") == ["x"]
    except UserError as error:
        assert "data.yaml" in str(error)


def test_coco128(shared_data):
    folder = shared_data / "coco128_seg"
    draft = registry.read(folder)
    counts = collections.Counter((f.grade, f.code) for f in draft.findings)
    assert (len(draft.pictures), len(draft.items), len(draft.classes)) == (128, 929, 71)
    assert counts == {
        ("error", "missing-image"): 2,
        ("warning", "no-labels"): 2,
        ("warning", "no-class-names"): 1,
    }
    missing = {f.where for f in draft.findings if f.code == "missing-image"}
    assert missing == {f"labels/train2017/000000000{n}.txt" for n in (656, 659)}
    items, masks = iter(draft.items), []
    for file in sorted((folder / "labels" / "train2017").glob("*.txt")):
        picture = folder / "images" / "train2017" / f"{file.stem}.jpg"
        for line in file.read_text().splitlines() if picture.is_file() else ():
            number, *values = line.split()
            with Image.open(picture) as image:
                outline = np.array(values, float).reshape(-1, 2) * image.size
                item, hw = next(items), image.size[::-1]
            assert item.label == number and np.allclose(item.segmentation[0], outline.ravel())
            if len(masks) < 300:  # enough of the slow comparison
                # Small objects on a finer grid: the rasterisers differ by a rim.
                box = np.prod(np.ptp(outline, axis=0))
                scale = 4 if box > 40_000 else 16 if box > 1500 else 64
                masks.append(truth.outline_iou(item.segmentation, outline, hw, scale))
    assert min(masks) >= 0.995
    assert next(items, None) is None


def test_label_studio_exports_agree(shared_data):
    folder = shared_data / "furniture_labelstudio"
    draft = yolo_seg.read(folder / "yolo_labels", Options())
    other = labelstudio.read(folder / "label_studio.json", Options(images=folder / "images"))
    assert (len(draft.pictures), len(draft.items)) == (60, 208)
    assert sorted(draft.classes) == sorted(other.classes)
    sizes = {p.name: (p.height, p.width) for p in draft.pictures}
    key = lambda item: (item.picture, item.label)  # noqa: E731
    mine, theirs = sorted(draft.items, key=key), sorted(other.items, key=key)
    assert [key(i) for i in mine] == [key(i) for i in theirs]
    for item in mine:
        masks = [
            truth.decode(o.segmentation, sizes[o.picture]) for o in theirs if key(o) == key(item)
        ]
        mask = truth.decode(item.segmentation, sizes[item.picture])
        assert max(truth.iou(mask, m) for m in masks) >= 0.995


@pytest.mark.parametrize(
    ("line", "is_label"),
    [
        ("0 0.1 0.2 0.3 0.4 0.5 0.6", True),
        ("  3.0\t1e-3 0.2 0.3 1.001", True),
        ("0 " + "0.123456 0.5 " * 1000, True),
        ("0 10 20 30 40 50 60", False),
        ("car 0.1 0.2 0.3 0.4", False),
        ("0 0.1 0.2", False),
        (" " * 6000, False),
        ("0 0.1 0.2 0.3 nan", False),
    ],
)
def test_what_looks_like_labels(tmp_path, line, is_label):
    (tmp_path / "a.txt").write_text(f"\n{line}\n")
    assert yolo_seg.detect(tmp_path) == is_label


def test_nothing_to_read(tmp_path):
    photo(tmp_path / "a.jpg", hw=HW)
    with pytest.raises(UserError, match="no label files"):
        yolo_seg.read(tmp_path, Options())
