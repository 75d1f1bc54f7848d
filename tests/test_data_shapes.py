"""The generated data set keeps its promises, judged from its files by pycocotools and Pillow."""

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from maskrcnn_jax.data import scenes, shapes
from maskrcnn_jax.errors import UserError

NUM_TRAIN, NUM_VAL = 96, 32


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return shapes.generate(tmp_path_factory.mktemp("shapes"), NUM_TRAIN, NUM_VAL, seed=5)


@pytest.fixture(scope="module", params=scenes.SPLITS)
def split(request, written):
    annotations, images = written[request.param]
    with contextlib.redirect_stdout(io.StringIO()):
        return request.param, COCO(annotations), Path(images)


def _objects(split):
    _, coco, _ = split
    return [(row, coco.annToMask(row).astype(bool)) for row in coco.anns.values()]


def test_images_have_the_promised_sizes(split):
    name, coco, folder = split
    assert len(coco.imgs) == {"train": NUM_TRAIN, "val": NUM_VAL}[name]
    sizes = set()
    for row in coco.imgs.values():
        with Image.open(folder / row["file_name"]) as image:
            assert (image.height, image.width) == (row["height"], row["width"])
            assert image.mode == "RGB"
        sizes.add((row["height"], row["width"]))
        assert 3 <= len(coco.imgToAnns[row["id"]]) <= 12
    sizes = np.array(sorted(sizes))
    assert sizes.min() >= 128 and sizes.max() <= 192
    assert (sizes[:, 0] > sizes[:, 1]).any() and (sizes[:, 0] < sizes[:, 1]).any()
    assert len(sizes) > NUM_VAL // 2


def test_annotations_are_tight_and_visible(split):
    _, coco, _ = split
    kinds = {"polygon": 0, "compressed": 0, "uncompressed": 0}
    covered = {i: np.zeros((r["height"], r["width"]), int) for i, r in coco.imgs.items()}
    for row, mask in _objects(split):
        y, x = np.nonzero(mask)
        box = [x.min(), y.min(), x.max() + 1 - x.min(), y.max() + 1 - y.min()]
        assert row["bbox"] == box
        assert min(box[2:]) >= 12 and max(box[2:]) <= 96
        assert row["area"] == mask.sum() >= 40
        covered[row["image_id"]] += mask
        segmentation = row["segmentation"]
        if isinstance(segmentation, list):
            kinds["polygon"] += 1
        else:
            kinds["compressed" if isinstance(segmentation["counts"], str) else "uncompressed"] += 1
    assert all(c.max() == 1 for c in covered.values())  # a pixel shows one object
    assert min(kinds.values()) > 20


def test_all_classes_occur_evenly(split):
    _, coco, _ = split
    assert len(coco.cats) >= 5
    counts = [len(coco.getAnnIds(catIds=[i])) for i in coco.cats]
    assert min(counts) > 0.5 * np.mean(counts)
    ids = sorted(coco.cats)
    assert ids != list(range(ids[0], ids[0] + len(ids)))  # sparse: exercises the mapping


def test_a_third_is_hidden_in_part(split):
    name, _, _ = split
    hidden = []
    for index in range(NUM_VAL):
        scene = scenes.draw_scene(5, name, index)
        for i in range(len(scene.full)):
            front = scene.full[i + 1 :].any(0)
            np.testing.assert_array_equal(scene.visible[i], scene.full[i] & ~front)
            hidden.append((scene.full[i] & front).sum() / scene.full[i].sum())
    assert np.mean(np.array(hidden) >= 0.1) >= 0.3
    assert max(hidden) <= 0.75


def test_files_are_the_scenes(split):
    name, coco, folder = split
    for image_id in (1, 7):
        scene = scenes.draw_scene(5, name, image_id - 1)
        with Image.open(folder / coco.imgs[image_id]["file_name"]) as image:
            np.testing.assert_array_equal(np.array(image), scene.image)
        rows = coco.imgToAnns[image_id]
        assert [r["category_id"] for r in rows] == scene.categories
        for row, visible in zip(rows, scene.visible, strict=True):
            np.testing.assert_array_equal(coco.annToMask(row).astype(bool), visible)


def test_most_objects_are_of_middle_size(written):
    content = json.loads(Path(written["train"][0]).read_text())
    longer = np.array([max(row["bbox"][2:]) for row in content["annotations"]])
    assert np.mean((longer >= 20) & (longer <= 70)) > 0.7
    assert longer.max() > 75


def test_rings_have_holes():
    drawn = (scenes.draw_scene(0, "train", i) for i in range(50))
    scene = next(s for s in drawn if 12 in s.categories)
    ring = scene.full[scene.categories.index(12)]
    y, x = np.nonzero(ring)
    assert not ring[int(y.mean()), int(x.mean())]


def test_colour_does_not_tell_the_class(written):
    """Per class, mean colour and roughness inside the objects and in the background overlap."""
    annotations, folder = written["train"]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(annotations)
    features = {name: [] for name in ("background", *coco.cats)}
    for image_id, row in coco.imgs.items():
        with Image.open(Path(folder) / row["file_name"]) as image:
            pixels = np.array(image, float)
        taken = np.zeros(pixels.shape[:2], bool)
        for ann in coco.imgToAnns[image_id]:
            mask = coco.annToMask(ann).astype(bool)
            taken |= mask
            features[ann["category_id"]].append(pixels[mask].mean(0))
        features["background"].append(pixels[~taken].mean(0))
    groups = [np.array(rows) for rows in features.values()]
    spread = np.concatenate(groups).std(0)
    means = np.array([g.mean(0) for g in groups])
    assert np.all(np.ptp(means, axis=0) < 0.75 * spread)
    assert all(np.all(g.std(0) > 0.6 * spread) for g in groups)


def test_splits_share_no_picture_or_seed(written):
    seen = [
        {path.read_bytes() for path in Path(images).iterdir()} for _, images in written.values()
    ]
    assert not seen[0] & seen[1]
    one, other = scenes.draw_scene(0, "train", 3), shapes.draw_scene(0, "val", 3)
    assert one.image.shape != other.image.shape or (one.image != other.image).any()


def test_same_seed_same_bytes_and_reuse(tmp_path):
    first = shapes.generate(tmp_path / "a", 3, 2)
    second = shapes.generate(tmp_path / "b", 3, 2)
    for one, other in zip(first.values(), second.values(), strict=True):
        assert Path(one[0]).read_bytes() == Path(other[0]).read_bytes()
        for path in Path(one[1]).iterdir():
            assert path.read_bytes() == (Path(other[1]) / path.name).read_bytes()
    annotations, images = (Path(p) for p in first["train"])
    stamp = annotations.stat().st_mtime_ns
    assert shapes.generate(tmp_path / "a", 3, 2) == first
    assert annotations.stat().st_mtime_ns == stamp
    (images / "000002.png").unlink()
    shapes.generate(tmp_path / "a", 3, 2)
    assert len(list(images.iterdir())) == 3
    assert not [p for p in (tmp_path / "a").iterdir() if p.name.startswith(".")]


def test_wrong_use(tmp_path):
    with pytest.raises(UserError, match="data.shapes_val.*at least 1"):
        shapes.generate(tmp_path, 2, 0)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        shapes.generate(tmp_path / "file", 2, 2)
