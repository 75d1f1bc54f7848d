"""Open Images: masks exactly, by name, and crowd regions of groups."""

import format_trees
import numpy as np
import pytest
import truth
from format_samples import HW, photo

from maskrcnn_jax.data.formats import open_images, registry
from maskrcnn_jax.data.formats.draft import Options
from maskrcnn_jax.errors import UserError

CSV = "train-annotations-object-segmentation.csv"


def test_objects(tmp_path):
    expected = format_trees.open_images(tmp_path)
    for source in (tmp_path, tmp_path / CSV):
        draft = registry.read(source)
        format_trees.check(draft, expected)
        assert draft.classes == ["Cat", "Dog, small"]
        assert [i.crowd for i in draft.items] == [False] * 4 + [True]
        assert format_trees.codes(draft) == ["missing-image"]
        assert draft.findings[0].message.startswith("1 of 3 pictures")


def test_classes_asked_for(tmp_path):
    format_trees.open_images(tmp_path)
    draft = registry.read(tmp_path, options=Options(classes=("Dog, small",)))
    assert draft.classes == ["Dog, small"] and len(draft.items) == 2
    with pytest.raises(UserError, match="no objects of 'Cow'"):
        registry.read(tmp_path, options=Options(classes=("Cow",)))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_encodings(tmp_path, encoding):
    format_trees.open_images(tmp_path)
    for file in tmp_path.glob("*.csv"):
        file.write_bytes(file.read_text().replace("Cat", "Köter").encode(encoding))
    assert registry.read(tmp_path).classes == ["Dog, small", "Köter"]


def test_machine_ids_without_descriptions(tmp_path):
    format_trees.open_images(tmp_path)
    (tmp_path / "class-descriptions.csv").unlink()
    assert registry.read(tmp_path).classes == ["/m/01", "/m/02"]


def test_the_folders_of_fiftyone(tmp_path):
    expected = format_trees.open_images(tmp_path / "x")
    (tmp_path / "labels" / "masks" / "0").mkdir(parents=True)
    (tmp_path / "metadata").mkdir()
    (tmp_path / "x" / CSV).rename(tmp_path / "labels" / "segmentations.csv")
    (tmp_path / "x" / "class-descriptions.csv").rename(tmp_path / "metadata" / "classes.csv")
    (tmp_path / "x" / "train").rename(tmp_path / "data")
    for mask in (tmp_path / "x" / "train-masks").iterdir():
        mask.rename(tmp_path / "labels" / "masks" / "0" / mask.name)
    draft = registry.read(tmp_path)
    names = [(name.replace("train", "data"), *rest) for name, *rest in expected[:4]]
    format_trees.check(draft, names)


def test_masks_of_another_ratio_are_stretched_and_told(tmp_path):
    format_trees.open_images(tmp_path)
    photo(tmp_path / "train" / "ff02.jpg", hw=(60, 60))
    draft = registry.read(tmp_path)
    assert format_trees.codes(draft) == ["missing-image", "size-mismatch", "size-mismatch"]
    assert all(i.segmentation["size"] == [60, 60] for i in draft.items if "ff02" in i.picture)


def test_what_is_odd(tmp_path):
    format_trees.open_images(tmp_path)
    text = (tmp_path / CSV).read_text().splitlines()
    row = text[1].split(",")
    text += [",".join(["../../outside.png", *row[1:]]), ",".join([row[0], row[1], ""])]
    text += [",".join([*row[:4], "0.9", "0.1", *row[6:]]), ",".join([*row[:4], *"0011", "", ""])]
    text[1] = ",".join([*row[:4], "0.0", "0.1", "nan", *row[7:]])
    (tmp_path / CSV).write_text("\n".join(text))
    (tmp_path / "train-masks" / "ff02_02_1a.png").write_bytes(b"x")
    codes = format_trees.codes(registry.read(tmp_path))
    assert set(codes) == {"missing-image", "missing-mask", "no-class", "bad-box", "bad-mask"}


def test_a_mask_out_of_its_box(tmp_path):
    format_trees.open_images(tmp_path)
    file = tmp_path / "train-masks" / "00a1_01_0a.png"
    format_trees.save(file, np.ones(HW, bool))
    draft = registry.read(tmp_path)
    assert format_trees.codes(draft) == ["box-mismatch", "missing-image"]
    assert truth.decode(draft.items[0].segmentation, HW).all()


@pytest.mark.parametrize("content", [b"/m/\rJ,x", b"\0/m/01,Cat", b"/m/01,\xff\xfe\n"])
def test_odd_descriptions(tmp_path, content):
    format_trees.open_images(tmp_path)
    (tmp_path / "class-descriptions.csv").write_bytes(content)
    try:
        assert len(registry.read(tmp_path).items) == 5
    except UserError as error:
        assert "class-descriptions.csv" in str(error)


def test_nothing_to_read(tmp_path):
    format_trees.open_images(tmp_path)
    for picture in (tmp_path / "train").iterdir():
        picture.unlink()
    with pytest.raises(UserError, match="none of its 3 pictures"):
        registry.read(tmp_path)
    with pytest.raises(UserError, match="no CSV"):
        open_images.read(tmp_path / "train", Options())
