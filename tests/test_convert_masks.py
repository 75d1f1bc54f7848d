"""Masks as pictures: every object is exactly what was written."""

import struct
import zlib

import format_trees
import numpy as np
import pytest
import truth
from format_samples import HW, photo
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from pycocotools import mask as mask_utils

from maskrcnn_jax.data.formats import mask_files, mask_images, outlines, registry
from maskrcnn_jax.data.formats.draft import Options
from maskrcnn_jax.errors import UserError


@pytest.mark.parametrize("make", [format_trees.penn_fudan, format_trees.nuclei])
def test_layouts(tmp_path, make):
    expected = make(tmp_path)
    draft = registry.read(tmp_path, options=Options(default_class="object"))
    format_trees.check(draft, expected)
    assert not draft.findings and draft.classes == ["object"]


def test_nuclei_in_a_split_and_one_picture(tmp_path):
    expected = format_trees.nuclei(tmp_path / "stage1_train")
    draft = registry.read(tmp_path)
    format_trees.check(draft, [(f"stage1_train/{name}", *rest) for name, *rest in expected])
    one = registry.read(tmp_path / "stage1_train" / "0001beef")
    assert len(one.pictures) == 1 and len(one.items) == 2


@pytest.mark.parametrize("form", ["{name}/{j}.png", "{name}_{j}.png", "{name}_mask_{j}.png"])
def test_several_masks_per_picture(tmp_path, form):
    for seed, name in enumerate(("a", "b")):
        photo(tmp_path / "images" / f"{name}.jpg", seed=seed)
        for j in range(2):
            mask = format_trees.blob(seed * 2 + j)
            format_trees.save(tmp_path / "masks" / form.format(name=name, j=j), mask)
    draft = registry.read(tmp_path, options=Options(classes=("nucleus",)))
    expected = [(f"images/{n}.jpg", "nucleus", format_trees.blob(i)) for i, n in enumerate("aabb")]
    format_trees.check(draft, expected)


def test_a_single_pair(tmp_path):
    photo(tmp_path / "a.jpg")
    ids = format_trees.instances()
    format_trees.save(tmp_path / "a_mask.png", ids)
    expected = [("a.jpg", "object", ids == n) for n in (1, 2, 3)]
    for source in (tmp_path, tmp_path / "a_mask.png"):
        format_trees.check(registry.read(source), expected)


def _colours(ids):
    return np.array([(0, 0, 0), (255, 0, 0), (0, 255, 0), (1, 1, 255)], np.uint8)[ids]


@pytest.mark.parametrize(
    "change",
    [
        lambda ids: ids.astype(np.uint16) * 300,
        lambda ids: np.repeat(ids[..., None], 3, 2),
        _colours,
        lambda ids: np.dstack([_colours(ids), np.full(HW, 255, np.uint8)]),
        lambda ids: np.dstack([ids, np.full(HW, 255, np.uint8)]),
    ],
    ids=["16-bit", "grey-rgb", "colours", "rgba", "grey-alpha"],
)
def test_kinds_of_png(tmp_path, change):
    photo(tmp_path / "images" / "a.jpg")
    ids = format_trees.instances()
    format_trees.save(tmp_path / "masks" / "a.png", change(ids))
    draft = registry.read(tmp_path)
    masks = {truth.decode(i.segmentation, HW).tobytes() for i in draft.items}
    assert masks == {(ids == n).tobytes() for n in (1, 2, 3)} and len(draft.items) == 3


def test_jpeg_masks_are_cut_at_half(tmp_path):
    photo(tmp_path / "images" / "a.jpg")
    mask = truth.fill(format_trees.STAR, HW)
    format_trees.save(tmp_path / "masks" / "a.jpg", mask.astype(np.uint8) * 255, quality=95)
    draft = registry.read(tmp_path)
    assert format_trees.codes(draft) == ["lossy-mask"]
    assert truth.iou(truth.decode(draft.items[0].segmentation, HW), mask) > 0.99


def test_jpeg_with_numbers_is_refused(tmp_path):
    photo(tmp_path / "images" / "a.jpg")
    format_trees.save(tmp_path / "masks" / "a.jpg", format_trees.instances() * 60)
    draft = registry.read(tmp_path)
    assert [(f.grade, f.code) for f in draft.findings] == [("error", "lossy-mask")]
    assert not draft.items


def test_blurred_edges(tmp_path):
    photo(tmp_path / "images" / "a.jpg", hw=(300, 400))
    mask = truth.fill(np.array(format_trees.QUAD) * 5, (300, 400)).astype(np.uint8) * 255
    half = Image.fromarray(mask).resize((200, 150), Image.Resampling.BILINEAR)
    format_trees.save(tmp_path / "masks" / "a.png", np.asarray(half.resize((400, 300), 2)))
    draft = registry.read(tmp_path)
    assert len(draft.items) == 1 and format_trees.codes(draft) == ["lossy-mask"]
    assert truth.iou(truth.decode(draft.items[0].segmentation, (300, 400)), mask > 0) > 0.99


def test_what_is_odd(tmp_path):
    for seed, name in enumerate(("white", "void", "black", "large", "lone", "broken")):
        photo(tmp_path / "images" / f"{name}.jpg", seed=seed)
    ids = format_trees.instances()
    masks = {"white": (ids > 0) * np.uint8(255), "black": ids * 0, "large": np.tile(ids, (2, 2))}
    masks |= {"void": np.where(ids == 2, 255, ids).astype(np.uint8), "gone": ids}
    for name, mask in masks.items():
        format_trees.save(tmp_path / "masks" / f"{name}.png", mask)
    (tmp_path / "masks" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    draft = registry.read(tmp_path)
    assert format_trees.codes(draft) == [
        *("bad-mask", "empty-mask", "missing-image", "no-labels", "one-object"),
        *("size-mismatch", "void"),
    ]
    assert len(draft.items) == 1 + 3 and len(draft.pictures) == 3


def test_transparent_pixels_are_background(tmp_path):
    ids = format_trees.instances()
    opaque = (ids > 0).astype(np.uint8) * 255
    noise = np.random.default_rng(0).integers(0, 256, (*HW, 3), np.uint8)
    coloured = np.where(opaque[..., None] > 0, [9, 8, 7], noise).astype(np.uint8)
    for name, colours in (("a", coloured), ("b", np.zeros_like(noise))):
        photo(tmp_path / "images" / f"{name}.jpg", seed=ord(name))
        format_trees.save(tmp_path / "masks" / f"{name}.png", np.dstack([colours, opaque]))
    for item in registry.read(tmp_path).items:
        assert np.array_equal(truth.decode(item.segmentation, HW), ids > 0)


def test_photographs_are_no_masks(tmp_path):
    photo(tmp_path / "images" / "a.jpg", hw=(100, 100))
    photo(tmp_path / "masks" / "a.png", hw=(100, 100))
    assert format_trees.codes(registry.read(tmp_path)) == ["no-mask"]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_huge_headers_are_not_decoded(tmp_path):
    photo(tmp_path / "images" / "a.jpg")
    format_trees.save(tmp_path / "masks" / "a.png", format_trees.instances())
    content = bytearray((tmp_path / "masks" / "a.png").read_bytes())
    content[16:24] = struct.pack(">II", 12_000, 12_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    (tmp_path / "masks" / "a.png").write_bytes(content)
    draft = registry.read(tmp_path)
    assert format_trees.codes(draft) == ["bad-mask"] and not draft.items
    assert "12000" in draft.findings[0].message


@given(
    arrays.arrays(
        np.int64, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 3)
    )
)
def test_run_length_codes_equal_pycocotools(ids):
    found = mask_files.object_counts(ids)
    assert set(found) == set(np.unique(ids)) - {0}
    for number, counts in found.items():
        expected = mask_utils.encode(np.asfortranarray(ids == number, np.uint8))
        rle = outlines.counts_to_rle(counts, ids.shape)
        assert rle["counts"] == expected["counts"].decode()


def test_pedestrians(shared_data):
    folder = shared_data / "pedestrians_instance_png"
    with Image.open(folder / "masks" / "FudanPed00054_mask.png") as image:
        ids = np.asarray(image)
    for source in (folder, folder / "masks" / "FudanPed00054_mask.png"):
        draft = registry.read(source, options=Options(classes=("person",)))
        name = "images/FudanPed00054.png"
        assert [(i.picture, i.label) for i in draft.items] == [(name, "person")] * 3
        for number, item in enumerate(draft.items, 1):
            assert np.array_equal(truth.decode(item.segmentation, ids.shape), ids == number)
        assert not draft.findings


def test_kvasir(shared_data):
    folder = shared_data / "kvasir_semantic"
    draft = registry.read(folder)
    assert format_trees.codes(draft) == ["lossy-mask"] * 5
    for item in draft.items:
        with Image.open(folder / "masks" / item.picture.split("/")[-1]) as image:
            mask = np.asarray(image.convert("L")) > 127
        assert np.array_equal(truth.decode(item.segmentation, mask.shape), mask)


def test_nothing_to_read(tmp_path):
    photo(tmp_path / "a.jpg")
    with pytest.raises(UserError, match="no picture with a mask"):
        mask_images.read(tmp_path, Options())
