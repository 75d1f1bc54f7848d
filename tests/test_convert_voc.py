"""Pascal VOC: masks exactly, classes from pixels or XML."""

import format_trees
import numpy as np
import pytest
from PIL import Image

from maskrcnn_jax.data.formats import registry, voc
from maskrcnn_jax.data.formats.draft import Options
from maskrcnn_jax.errors import UserError


@pytest.mark.parametrize("coloured", [False, True])
@pytest.mark.parametrize("folder", ["VOC2012", "VOCdevkit/VOC2012"])
def test_objects(tmp_path, coloured, folder):
    expected = format_trees.voc(tmp_path / folder, coloured=coloured)
    draft = registry.read(tmp_path)
    format_trees.check(draft, [(f"{folder}/{name}", *rest) for name, *rest in expected])
    assert draft.classes == ["dog", "person"] and not draft.findings


def test_void_is_in_no_object(tmp_path):
    format_trees.voc(tmp_path)
    with Image.open(tmp_path / "SegmentationObject" / "2007_000001.png") as image:
        assert image.mode == "P" and (np.asarray(image) == 255).any()
    assert len(registry.read(tmp_path).items) == 3


def test_classes_of_the_xml(tmp_path):
    expected = format_trees.voc(tmp_path, classes=False)
    format_trees.check(registry.read(tmp_path), expected)


def test_objects_without_classes(tmp_path):
    format_trees.voc(tmp_path, classes=False, xml=False)
    draft = registry.read(tmp_path)
    assert draft.classes == ["object"] and len(draft.items) == 3
    assert format_trees.codes(draft) == ["no-class"]


def test_most_pixels_decide(tmp_path):
    format_trees.voc(tmp_path)
    file = tmp_path / "SegmentationClass" / "2007_000001.png"
    with Image.open(file) as image:
        kinds, image_palette = np.array(image), image.getpalette()
    first = np.argwhere(format_trees.instances() == 1)[:5]
    kinds[tuple(first.T)] = 3
    changed = Image.frombytes("P", kinds.shape[::-1], kinds.tobytes())
    changed.putpalette(image_palette)
    changed.save(file)
    draft = registry.read(tmp_path)
    assert [i.label for i in draft.items] == ["dog", "person", "dog"]
    assert format_trees.codes(draft) == ["mixed-class"]


def test_names_of_cvat_and_labelme(tmp_path):
    format_trees.voc(tmp_path / "a", coloured=True)
    colours = format_trees.palette()
    lines = ["# label:color_rgb:parts:actions", "background:0,0,0::"]
    for name, number in (("wolf", 12), ("elf", 15)):
        lines.append(f"{name}:{','.join(map(str, colours[number]))}::")
    (tmp_path / "a" / "labelmap.txt").write_text("\n".join(lines))
    assert [i.label for i in registry.read(tmp_path / "a").items] == ["wolf", "elf", "wolf"]
    format_trees.voc(tmp_path / "b")
    names = ["_background_", *(f"c{n}" for n in range(1, 20))]
    (tmp_path / "b" / "class_names.txt").write_text("\n".join(names))
    assert [i.label for i in registry.read(tmp_path / "b").items] == ["c12", "c15", "c12"]


def test_given_names(tmp_path):
    format_trees.voc(tmp_path)
    names = tuple(f"n{i}" for i in range(1, 13))
    draft = registry.read(tmp_path, options=Options(classes=names))
    assert [i.label for i in draft.items] == ["n12", "n12"]
    assert format_trees.codes(draft) == ["unknown-class"]


def test_a_mask_without_its_picture(tmp_path):
    format_trees.voc(tmp_path)
    (tmp_path / "JPEGImages" / "2007_000001.jpg").unlink()
    assert format_trees.codes(registry.read(tmp_path)) == ["missing-image"]
    assert not registry.read(tmp_path).items


def test_a_mask_of_another_size(tmp_path):
    format_trees.voc(tmp_path)
    format_trees.photo(tmp_path / "JPEGImages" / "2007_000001.jpg", hw=(61, 80))
    draft = registry.read(tmp_path)
    assert format_trees.codes(draft) == ["size-mismatch"] and not draft.items


@pytest.mark.parametrize("start", ['<!DOCTYPE a [<!ENTITY b "c">]>', "<a>" * 200, ""])
def test_xml_of_strangers(tmp_path, start):
    format_trees.voc(tmp_path, classes=False)
    file = tmp_path / "Annotations" / "2007_000001.xml"
    file.write_text(start + ("" if "DOCTYPE" not in start else file.read_text()))
    assert format_trees.codes(registry.read(tmp_path)) == ["bad-file", "no-class"]


def test_nothing_to_read(tmp_path):
    with pytest.raises(UserError, match="SegmentationObject"):
        voc.read(tmp_path, Options())
