"""Prepared records: what they hold, that they are cached, and what masks lose on the way."""

import io
import itertools
import json
import os
from pathlib import Path

import augment_cases as cases
import numpy as np
import pytest
import tensorflow_datasets as tfds
import tiny_coco
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from maskrcnn_jax.data import builder
from maskrcnn_jax.data.bitmaps import average_areas, frame_bitmap, instance_bitmap
from maskrcnn_jax.data.builder import decode_image, download_coco_2017, prepare
from maskrcnn_jax.data.coco import instance_mask, load_coco
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.postprocess import paste_binary
from maskrcnn_jax.preprocess import load_image

HW = (40, 50)
SQUARE = tiny_coco.annotation(1, 5, 3, [tiny_coco.rectangle(3, 3, 19, 11)])


def _prepare(path, images, cache, **kwargs):
    return prepare(load_coco(path, images), cache, progress=False, **kwargs)


@given(
    hnp.arrays(bool, st.tuples(st.integers(1, 30), st.integers(1, 30))), st.sampled_from([8, 24])
)
@settings(max_examples=50)
def test_average_areas(mask, side):
    h, w = mask.shape
    # Cut each pixel into side x side parts: then each cell is h x w whole parts.
    parts = np.kron(mask, np.ones((side, side)))
    expected = parts.reshape(side, h, side, w).mean(axis=(1, 3))
    np.testing.assert_allclose(average_areas(mask, side), expected, atol=1e-5)


def test_records_hold_everything(tmp_path):
    y, x = np.mgrid[: HW[0], : HW[1]]
    ring = (np.hypot(y - 20, x - 25) < 15) & (np.hypot(y - 20, x - 25) > 7)
    annotations = [
        SQUARE,
        tiny_coco.rle_annotation(8, 5, 90, ring, compressed=False),
        tiny_coco.rle_annotation(9, 2, 7, ring, compressed=True, iscrowd=1),
    ]
    path, images = tiny_coco.write(tmp_path, {5: HW, 2: HW, 8: (30, 20)}, annotations)
    records = _prepare(path, images, tmp_path / "cache")
    assert len(records) == 3
    np.testing.assert_array_equal(records.image_ids, [2, 5, 8])
    np.testing.assert_array_equal(records.sizes, [HW, HW, (30, 20)])
    np.testing.assert_array_equal(records.num_instances, [0, 2, 0])

    two, five, eight = (records[i] for i in range(3))
    assert five["image"] == Path(images, "5.png").read_bytes()
    assert five["image_id"] == 5
    np.testing.assert_array_equal(five["hw"], HW)
    np.testing.assert_array_equal(five["ids"], [1, 8])
    np.testing.assert_array_equal(five["classes"], [0, 2])
    np.testing.assert_array_equal(five["boxes"][0], [3, 3, 19, 11])
    np.testing.assert_array_equal(five["frames"][0], [3, 3, 19, 11])
    np.testing.assert_array_equal(five["frames"][1], [11, 6, 40, 35])
    np.testing.assert_array_equal(five["areas"], [128, ring.sum()])
    assert five["masks"].shape == (2, 112, 14) and (five["masks"][0] == 255).all()
    assert not np.unpackbits(five["masks"][1], axis=-1)[56, 56]  # the hole
    assert two["crowd"].tolist() == [True] and two["ids"].tolist() == [9]
    for key, shape in (("boxes", (0, 4)), ("masks", (0, 112, 14)), ("classes", (0,))):
        assert eight[key].shape == shape
    assert five["boxes"].dtype == np.float32 and five["masks"].dtype == np.uint8


def test_cache(tmp_path, monkeypatch):
    path, images = tiny_coco.write(tmp_path, {5: HW}, [SQUARE])
    cache = tmp_path / "cache"
    _prepare(path, images, cache)
    with monkeypatch.context() as patch:
        patch.setattr(builder, "_write", lambda *a: pytest.fail("made again"))
        assert _prepare(path, images, cache)[0]["classes"].tolist() == [0]

    path.write_text(path.read_text().replace('"category_id": 3', '"category_id": 7'))
    assert _prepare(path, images, cache)[0]["classes"].tolist() == [1]
    assert _prepare(path, images, cache, mask_side=64)[0]["masks"].shape == (1, 64, 8)
    os.utime(Path(images, "5.png"), (1, 1))
    _prepare(path, images, cache)
    assert len(os.listdir(cache)) == 4


def test_nothing_half_written_is_left(tmp_path):
    path, images = tiny_coco.write(tmp_path, {5: HW, 6: HW}, [SQUARE])
    whole = Path(images, "6.png").read_bytes()
    Path(images, "6.png").write_bytes(whole[: len(whole) // 2])
    for _ in range(2):
        with pytest.raises(UserError, match=r"6\.png"):
            _prepare(path, images, tmp_path / "cache")
        assert os.listdir(tmp_path / "cache") == []


def test_damaged_pictures(tmp_path, caplog):
    path, images = tiny_coco.write(tmp_path, {5: HW, 6: HW, 7: HW}, [SQUARE])
    jpeg = io.BytesIO()
    Image.effect_noise(HW[::-1], 50).convert("RGB").save(jpeg, "JPEG")
    Path(images, "6.png").write_bytes(jpeg.getvalue()[: len(jpeg.getvalue()) // 2])
    Path(images, "7.png").write_bytes(b"<html>404</html>")
    data = load_coco(path, images)
    with pytest.raises(UserError, match=r"6\.png.*truncated"):
        prepare(data, tmp_path / "cache", progress=False)
    records = prepare(data, tmp_path / "cache", on_bad_image="skip", progress=False)
    assert records.num_skipped == 2 and records.image_ids.tolist() == [5]
    assert "2 bad pictures skipped" in caplog.text and "6.png" in caplog.text
    Path(images, "5.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"no picture can be read.*5\.png"):
        prepare(data, tmp_path / "cache", on_bad_image="skip", progress=False)


def _gradient(mode):
    y, x = np.mgrid[: HW[0], : HW[1]]
    image = Image.fromarray(np.stack([3 * y, 5 * x, x + y], -1).astype(np.uint8))
    if mode == "I;16":
        return Image.fromarray((y * 1000 + x).astype(np.uint16))
    return image.convert(mode)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_kinds_of_png(tmp_path, mode):
    path, images = tiny_coco.write(tmp_path, {5: HW}, [SQUARE])
    _gradient(mode).save(Path(images, "5.png"))
    record = _prepare(path, images, tmp_path / "cache")[0]
    expected = load_image(Path(images, "5.png"))
    np.testing.assert_array_equal(decode_image(record["image"]).numpy(), expected)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_kinds_of_jpeg(tmp_path, mode, orientation):
    height, width = HW[::-1] if orientation == 6 else HW
    path, images = tiny_coco.write(tmp_path, {5: (height, width)}, [SQUARE])
    exif = Image.Exif()
    exif[0x0112] = orientation
    _gradient(mode).save(Path(images, "5.png"), "JPEG", exif=exif, quality=95)
    record = _prepare(path, images, tmp_path / "cache")[0]
    expected = load_image(Path(images, "5.png"), (height, width))
    assert expected.shape[:2] == (height, width)
    np.testing.assert_array_equal(decode_image(record["image"]).numpy(), expected)


def test_plain_files_are_stored_as_they_are(tmp_path):
    path, images = tiny_coco.write(tmp_path, {5: HW}, [SQUARE])
    _gradient("RGB").save(Path(images, "5.png"), "JPEG")
    record = _prepare(path, images, tmp_path / "cache")[0]
    assert record["image"] == Path(images, "5.png").read_bytes()


def test_wrong_size(tmp_path):
    path, images = tiny_coco.write(tmp_path, {5: HW}, [SQUARE])
    _gradient("RGB").resize((33, 22)).save(Path(images, "5.png"))
    with pytest.raises(UserError, match=r"5\.png.*22.*33.*40.*50"):
        _prepare(path, images, tmp_path / "cache")


def test_thin_and_empty_masks(tmp_path, caplog):
    thin = tiny_coco.annotation(1, 5, 3, [[3, 3.6, 20, 3.6, 20, 3.9, 3, 3.9]])
    nothing = SQUARE | {"id": 2, "segmentation": {"size": list(HW), "counts": [HW[0] * HW[1]]}}
    path, images = tiny_coco.write(tmp_path, {5: HW}, [thin, nothing])
    data = load_coco(path, images)
    frame, mask = instance_bitmap(data, 0, 112)
    assert not instance_mask(data, 0).any()
    np.testing.assert_allclose(frame, [3, 3.6, 20, 3.9])
    assert np.unpackbits(mask).mean() > 0.95
    with pytest.raises(UserError, match="annotation 2 of image 5: 'segmentation' covers no pixel"):
        prepare(data, tmp_path / "cache", progress=False)
    records = prepare(data, tmp_path / "cache", on_bad_image="skip", progress=False)
    assert records.num_skipped_instances == 1 and records[0]["ids"].tolist() == [1]
    assert "1 bad objects skipped" in caplog.text


def stripe(length, width, degrees):
    """Whether each pixel's centre is in a rectangle of these sides, turned by an angle."""
    y, x = np.mgrid[:length, :length] - (length - 1) / 2
    angle = np.deg2rad(degrees)
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    return (np.abs(along) < length / 2) & (np.abs(across) < width / 2)


@pytest.mark.parametrize(("width", "degrees"), [(1.5, 45), (2, 30), (1.5, 20), (1, 15)])
def test_a_line_thinner_than_the_cells_stays_whole(width, degrees):
    """No cell is half covered, or too few are: without them the line would vanish or crumble."""
    mask = stripe(900, width, degrees)
    frame, cells = frame_bitmap(mask, 112)
    np.testing.assert_array_equal(frame, cases.bounds(mask))
    x0, y0, x1, y1 = frame.astype(int)
    half = average_areas(mask[y0:y1, x0:x1], 112) >= 0.5
    assert half.sum() < cells.sum() / 10
    rows = np.arange(112)[cells.any(1)]
    spans = [(row[0], row[-1]) for row in map(np.flatnonzero, cells[rows])]
    assert len(rows) == 112
    assert all(a[1] >= b[0] - 1 and b[1] >= a[0] - 1 for a, b in itertools.pairwise(spans))
    found = paste_binary(cells.astype(np.float32), frame, mask.shape)
    assert (found & mask).sum() / (found | mask).sum() > 0.4


@given(hnp.arrays(bool, st.tuples(st.integers(1, 60), st.integers(1, 60))))
@settings(max_examples=60)
def test_what_has_a_pixel_has_a_cell(mask):
    if mask.any():
        assert frame_bitmap(mask, 8)[1].any()


def test_a_thin_object_is_prepared(tmp_path):
    hw = (900, 900)
    thin = tiny_coco.rle_annotation(1, 5, 3, stripe(900, 2, 45), compressed=True)
    path, images = tiny_coco.write(tmp_path, {5: hw}, [thin])
    records = _prepare(path, images, tmp_path / "cache")
    assert np.unpackbits(records[0]["masks"]).any()


def test_mask_side_is_checked(tmp_path):
    path, images = tiny_coco.write(tmp_path, {5: HW}, [SQUARE])
    with pytest.raises(UserError, match="data.mask_side is 100"):
        _prepare(path, images, tmp_path / "cache", mask_side=100)


def test_round_trip_on_real_photographs(shared_data, tmp_path):
    folder = shared_data / "coco_tiny"
    overlaps = []
    for split in ("train", "val"):
        path = folder / "annotations" / f"instances_{split}2017.json"
        data = load_coco(path, str(folder / f"{split}2017"))
        records = prepare(data, tmp_path, progress=False)
        row_of = {int(ann_id): i for i, ann_id in enumerate(data.inst_id)}
        for row in range(len(records)):
            record = records[row]
            hw = tuple(record["hw"].tolist())
            bitmaps = np.unpackbits(record["masks"], axis=-1).astype(np.float32)
            for k in np.flatnonzero((record["areas"] > 32**2) & ~record["crowd"]):
                pasted = paste_binary(bitmaps[k], record["frames"][k], hw, 0.5)
                original = instance_mask(data, row_of[int(record["ids"][k])])
                overlaps.append((pasted & original).sum() / (pasted | original).sum())
    assert len(overlaps) > 800
    assert np.mean(overlaps) >= 0.99
    assert np.percentile(overlaps, 5) >= 0.97


def test_download_names_the_files(tmp_path, monkeypatch):
    class Manager:
        def __init__(self, download_dir):
            self.root = Path(download_dir)

        def download_and_extract(self, urls):
            assert all(u.startswith("http://images.cocodataset.org/") for u in urls.values())
            return {name: self.root / name for name in urls}

    monkeypatch.setattr(tfds.download, "DownloadManager", Manager)
    files = download_coco_2017(tmp_path)
    annotations, images = files["val"]
    root = tmp_path / "coco_2017"
    assert annotations == root / "annotations" / "annotations" / "instances_val2017.json"
    assert images == str(root / "val" / "val2017")

    def offline(self, urls):
        raise OSError("no route to host")

    monkeypatch.setattr(Manager, "download_and_extract", offline)
    with pytest.raises(UserError, match="no route to host.*by hand"):
        download_coco_2017(tmp_path)


def test_index_matches_the_records(shared_data, tmp_path):
    folder = shared_data / "coco_odd_exports" / "horse_dog_one_image_missing"
    data = load_coco(folder / "labels.json", str(folder / "data"), on_bad_image="skip")
    records = prepare(data, tmp_path, on_bad_image="skip", progress=False)
    known = {a["id"] for a in json.loads((folder / "labels.json").read_text())["annotations"]}
    for row in range(len(records)):
        record = records[row]
        assert record["image_id"] == records.image_ids[row]
        assert (~record["crowd"]).sum() == records.num_instances[row]
        assert set(record["ids"].tolist()) <= known
