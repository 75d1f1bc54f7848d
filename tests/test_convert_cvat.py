"""CVAT for images: outlines against another rasteriser, masks exactly, hostile XML refused."""

import time

import format_trees
import numpy as np
import pytest
import truth
from format_samples import HW, photo

from maskrcnn_jax.data.formats import cvat, registry, xml_files
from maskrcnn_jax.data.formats.draft import Options
from maskrcnn_jax.errors import UserError


def _turn(points, centre, degrees):
    """Turned clockwise as seen, by complex numbers."""
    z = np.array([complex(*p) for p in points]) - complex(*centre)
    z = z * np.exp(1j * np.radians(degrees)) + complex(*centre)
    return np.stack([z.real, z.imag], axis=1)


def test_shapes(tmp_path):
    mask = format_trees.cvat(tmp_path)
    for source in (tmp_path, tmp_path / "annotations.xml"):
        draft = registry.read(source)
        assert draft.classes == ["dog", "cat"]
        assert [(p.name, p.id) for p in draft.pictures] == [("sub/a.jpg", 0), ("b.jpg", 1)]
        box, ellipse, bitmap, joined, line, other = draft.items
        labels = [i.label for i in draft.items]
        assert labels == ["dog", "cat", "dog", "cat", "cat", "dog"]  # in the order of z
        corners = _turn([(10, 20), (50, 20), (50, 40), (10, 40)], (30, 30), 30)
        assert truth.outline_iou(box.segmentation, corners, HW) >= 0.995
        t = np.linspace(0, 2 * np.pi, 400)
        curve = _turn(np.stack([40 + 25 * np.cos(t), 30 + 9 * np.sin(t)], 1), (40, 30), 20)
        assert truth.outline_iou(ellipse.segmentation, curve, HW) >= 0.995
        assert np.array_equal(truth.decode(bitmap.segmentation, HW), mask)
        assert len(joined.segmentation) == 2
        both = zip(joined.segmentation, (format_trees.STAR, format_trees.QUAD), strict=True)
        assert all(truth.outline_iou([part], outline, HW) >= 0.995 for part, outline in both)
        assert len(line.segmentation) == 3 and other.picture == "b.jpg"
        assert format_trees.codes(draft) == ["line", "point"]


def test_a_group_of_masks_and_polygons_is_a_mask(tmp_path):
    mask = format_trees.cvat(tmp_path)
    file = tmp_path / "annotations.xml"
    text = file.read_text().replace('<mask label="dog"', '<mask label="cat" group_id="1"')
    file.write_text(text)
    joined = next(i for i in registry.read(tmp_path).items if isinstance(i.segmentation, dict))
    drawn = [np.ravel(p).tolist() for p in (format_trees.STAR, format_trees.QUAD)]
    assert np.array_equal(truth.decode(joined.segmentation, HW), mask | truth.decode(drawn, HW))


def test_subsets_are_folders(tmp_path):
    format_trees.cvat(tmp_path)
    (tmp_path / "images" / "Train").mkdir()
    (tmp_path / "images" / "b.jpg").rename(tmp_path / "images" / "Train" / "b.jpg")
    file = tmp_path / "annotations.xml"
    file.write_text(file.read_text().replace('name="b.jpg"', 'name="b.jpg" subset="Train"'))
    assert [p.name for p in registry.read(tmp_path).pictures] == ["sub/a.jpg", "Train/b.jpg"]


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        ("5,5;60,50", "5,x;60,50", "bad-points"),
        ("50.00,8.00;", "NaN,1;", "bad-points"),
        ('xtl="10"', 'xtl="inf"', "bad-points"),
        ('rotation="20"', 'rotation="1e400"', "bad-points"),
        ('rle="', 'rle="7, ', "bad-rle"),
        ('rle="', 'rle="-1, ', "bad-rle"),
        ('rle="', 'rle="x', "bad-rle"),
        (' left="', ' left="9', "bad-rle"),
        ("<ellipse", "<cuboid", "unknown-shape"),
        ('<box label="dog"', "<box", "no-class"),
        ("sub/a.jpg", "../outside.png", "unsafe-name"),
        ("sub/a.jpg", "gone.jpg", "missing-image"),
        ("sub/a.jpg", "sub\\a.jpg", "back-slash"),
        ('height="60"', 'height="61"', "size-mismatch"),
        ('height="60"', 'height="x"', "no-size"),
    ],
)
def test_what_is_odd(tmp_path, old, new, code):
    format_trees.cvat(tmp_path)
    photo(tmp_path / "outside.png")
    file = tmp_path / "annotations.xml"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new).replace("<cuboid", "<cuboid", 1))
    try:
        assert code in format_trees.codes(registry.read(tmp_path, "cvat"))
    except UserError as error:
        assert code == "unknown-shape" and "XML" in str(error)


def test_a_video_is_refused(tmp_path):
    file = tmp_path / "annotations.xml"
    file.write_text("<annotations><meta/><track id='0' label='a'/></annotations>")
    with pytest.raises(UserError, match="of a video"):
        registry.read(tmp_path)


BOMB = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">' + "".join(
    f'<!ENTITY {chr(98 + i)} "{f"&{chr(97 + i)};" * 10}">' for i in range(9)
)


@pytest.mark.parametrize(
    "text",
    [
        BOMB + "]><annotations>&j;</annotations>",
        '<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><annotations>&e;</annotations>',
        '<!DOCTYPE annotations SYSTEM "http://127.0.0.1/x.dtd"><annotations/>',
        "<annotations>" * 5000,
        "<annotations><image></annotations>",
        "",
    ],
    ids=["bomb", "file", "net", "deep", "crossed", "empty"],
)
def test_hostile_xml_is_refused(tmp_path, text):
    file = tmp_path / "annotations.xml"
    file.write_text(text)
    start = time.monotonic()
    with pytest.raises(UserError, match="annotations.xml"):
        xml_files.read_xml(file)
    xml_files.root_name(file)
    assert time.monotonic() - start < 5  # a bomb would take hours


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
def test_encodings(tmp_path, encoding):
    format_trees.cvat(tmp_path)
    file = tmp_path / "annotations.xml"
    file.write_bytes(file.read_text().replace('"dog"', '"Köter"').encode(encoding))
    assert "Köter" in {i.label for i in registry.read(tmp_path, "cvat").items}


def test_nothing_to_read(tmp_path):
    with pytest.raises(UserError, match=r"no annotations\.xml"):
        cvat.read(tmp_path, Options())
