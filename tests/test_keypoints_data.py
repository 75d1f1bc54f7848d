"""Keypoints from the file to the batch and back to COCO's average precision."""

import contextlib
import io
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tiny_coco
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from configs.common import get_config
from maskrcnn_jax import config, config_rules_keypoints, visualize
from maskrcnn_jax.data import augment, augment_geometry, copy_paste, keypoints, shapes
from maskrcnn_jax.data.batch_shapes import batch_shapes
from maskrcnn_jax.data.builder import prepare
from maskrcnn_jax.data.coco import load_coco
from maskrcnn_jax.data.pipeline import make_batches
from maskrcnn_jax.datasets import load_data
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.results import evaluate_coco, to_coco_results

NAMES = ["nose", "left_eye", "right_eye"]
SKELETON = [[1, 2], [1, 3], [7, 1]]
RED, GREEN, BLUE = (250, 20, 20), (20, 250, 20), (20, 20, 250)


def categories(names=NAMES, skeleton=SKELETON):
    more = {"keypoints": names, "skeleton": skeleton}
    return [c | (more if c["id"] == 3 else {}) for c in tiny_coco.CATEGORIES]


def person(i=1, image_id=5, points=(10, 9, 2, 0, 0, 0, 20, 14, 1), **more):
    box = [tiny_coco.rectangle(3, 3, 29, 21)]
    return tiny_coco.annotation(i, image_id, 3, box, keypoints=list(points), **more)


def write(folder, annotations, **kwargs):
    return tiny_coco.write(folder, {5: (40, 50), 8: (40, 50)}, annotations, categories(**kwargs))


def test_coco_keypoints_are_read_as_continuous_places(tmp_path):
    other = tiny_coco.annotation(2, 8, 7, [tiny_coco.rectangle(3, 3, 19, 11)])
    path, images = write(tmp_path, [person(), other])
    data = load_coco(path, images, keypoints=3)
    expected = [[10.5, 9.5, 2], [0, 0, 0], [20.5, 14.5, 1]]
    np.testing.assert_array_equal(data.inst_keypoints, [expected, np.zeros((3, 3))])
    assert data.keypoint_names == tuple(NAMES)
    assert data.skeleton == ((0, 1), (0, 2))  # what names no keypoint is left out
    assert load_coco(path, images).inst_keypoints.shape == (2, 0, 3)


@pytest.mark.parametrize(
    ("points", "words"),
    [
        ((1, 2, 2), ["annotation 1", "3 numbers", "9"]),
        ((1, 2, 3, 0, 0, 0, 0, 0, 0), ["annotation 1", "visibility"]),
        ((1, 1e300, 2, 0, 0, 0, 0, 0, 0), ["annotation 1", "keypoints"]),
        ((1, "2", 2, 0, 0, 0, 0, 0, 0), ["annotation 1", "keypoints"]),
        ((True, 10**400, 2, 0, 0, 0, 0, 0, 0), ["annotation 1", "keypoints"]),
    ],
)
def test_bad_keypoints_name_their_annotation(tmp_path, points, words):
    path, images = write(tmp_path, [person(points=points), person(2, 8)])
    with pytest.raises(UserError) as error:
        load_coco(path, images, keypoints=3)
    assert all(word in str(error.value) for word in [str(path), *words])
    assert load_coco(path, images, "skip", keypoints=3).num_skipped_instances == 1
    assert len(load_coco(path, images).inst_id) == 2  # who does not ask for them is not disturbed


@pytest.mark.parametrize("names", [["nose"], "nose", [1, 2, 3]])
def test_another_number_of_keypoints_is_told(tmp_path, names):
    path, images = write(tmp_path, [person()], names=names)
    with pytest.raises(UserError, match="category 3"):
        load_coco(path, images, keypoints=3)


SIDED = ("eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle")
COCO_PERSON = ["nose", *(f"{side}_{part}" for part in SIDED for side in ("left", "right"))]


@pytest.mark.parametrize(
    ("names", "order"),
    [
        (COCO_PERSON, [0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15]),
        (["LeftEye", "RightEye", "tail"], [1, 0, 2]),
        (["l_ear", "R ear", "paw.l", "paw.r"], [0, 1, 3, 2]),
        (["left", "leftmost", "right"], [2, 1, 0]),
        (shapes.KEYPOINTS, [0, 2, 1, 4, 3]),
    ],
)
def test_partners_are_told_by_the_names(names, order):
    np.testing.assert_array_equal(keypoints.flip_order(names, (), len(names)), order)


def test_partners_may_be_given():
    np.testing.assert_array_equal(keypoints.flip_order((), ((0, 2),), 4), [2, 1, 0, 3])
    np.testing.assert_array_equal(keypoints.flip_order(NAMES, ((0, 0),), 3), [0, 1, 2])
    assert len(keypoints.flip_order((), (), 0)) == 0
    with pytest.raises(UserError, match="data.keypoint_flip"):
        keypoints.flip_order((), (), 3)
    assert keypoints.flip_order((), (), 3, mirrors=False) == (0, 1, 2)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"data.keypoint_flip": (1, 2)}, "pairs of places"),
        ({"data.keypoint_flip": ((0, 0.5),)}, "pairs of places"),
        ({"data.keypoint_flip": ((1, 5),)}, "counted from 0"),
        ({"data.keypoint_flip": ((0, 1), (1, 2))}, "two pairs"),
        ({"eval.keypoint_sigmas": (0.1, 0.1)}, "2 values"),
        ({"data.albumentations": "[]"}, "data.albumentations"),
        ({"model.neck": "c4"}, "model.neck"),
        ({"model.keypoints": 0, "train.best_metric": "keypoints/AP"}, "train.best_metric"),
    ],
)
def test_fields_that_contradict_each_other(fields, words):
    tree = config.flatten(get_config())
    good = tree | {"model.keypoints": 5, "data.keypoint_flip": ((1, 2), (0, 0))}
    assert not list(config_rules_keypoints.check(good))
    (message,) = config_rules_keypoints.check(tree | {"model.keypoints": 5} | fields)
    assert words in message


def example():
    """A picture of 40 x 60 with a dot of its own colour at each of three keypoints."""
    image = np.zeros((40, 60, 3), np.uint8)
    points = np.float32([[[10.5, 8.5, 2], [30.5, 20.5, 1], [50.5, 30.5, 2]]])
    for (x, y, _), color in zip(points[0].astype(int), (RED, GREEN, BLUE), strict=True):
        image[y - 2 : y + 3, x - 2 : x + 3] = color
    box = np.float32([[5, 5, 55, 35]])
    masks = np.full((1, 16, 2), 255, np.uint8)
    classes = np.zeros(1, np.int32)
    entries = {"image": image, "boxes": box, "frames": box, "masks": masks, "classes": classes}
    entries |= {"keypoints": points, "keypoint_order": np.int32([0, 2, 1])}
    return {k: tf.constant(v) for k, v in entries.items()}


def finished(example):
    return augment.drop_outer_keypoints(example, tf.shape(example["image"])[:2])


def colors_at(found):
    """The colour of the picture at each keypoint: the channel that is bright, or None."""
    points, image = found["keypoints"].numpy(), found["image"].numpy()
    seen = []
    for x, y, v in points[0]:
        pixel = image[min(int(y), image.shape[0] - 1), min(int(x), image.shape[1] - 1)]
        seen.append(int(pixel.argmax()) if v and pixel.max() > 100 else None)
    return seen


def test_a_flip_swaps_the_partners():
    found = finished(augment.mirror(example()))
    np.testing.assert_array_equal(
        found["keypoints"], [[[49.5, 8.5, 2], [9.5, 30.5, 2], [29.5, 20.5, 1]]]
    )
    assert colors_at(found) == [0, 2, 1]
    back = augment.mirror(found)
    np.testing.assert_array_equal(back["keypoints"], example()["keypoints"])
    again = augment.flip(example(), 1.0, tf.constant([1, 2]))
    np.testing.assert_array_equal(again["keypoints"], found["keypoints"])
    # Upside down is a mirror, too: of a face so mirrored the left eye is the right one.
    assert colors_at(augment_geometry.mirror_vertical(example())) == [0, 2, 1]


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_a_turn_keeps_left_and_right(turns):
    found = finished(augment_geometry.rotate(example(), tf.constant(turns)))
    assert colors_at(found) == [0, 1, 2]


def test_pasted_objects_bring_their_keypoints_and_hide_others():
    below, above = example(), example()
    # A small object over the second keypoint alone.
    above["boxes"] = above["frames"] = tf.constant([[26.0, 16.0, 36.0, 26.0]])
    above["keypoints"] = tf.constant([[[31.5, 21.5, 2.0], [70.0, 10.0, 2.0], [0.0, 0.0, 0.0]]])
    below["keypoints"] = below["keypoints"] * [1, 1, 0] + [0, 0, 2]
    found = finished(copy_paste.paste(below, above))["keypoints"].numpy()
    np.testing.assert_array_equal(found[0, :, 2], [2, 1, 2])
    np.testing.assert_array_equal(found[1], [[31.5, 21.5, 2], [0, 0, 0], [0, 0, 0]])


@pytest.mark.parametrize("size", [(80, 120), (20, 90), (30, 45)])
def test_keypoints_follow_a_resize(size):
    found = augment.resize(example(), tf.constant(size))
    scale = [size[1] / 60, size[0] / 40, 1]
    np.testing.assert_allclose(found["keypoints"], example()["keypoints"] * scale, rtol=1e-6)
    assert colors_at(found) == [0, 1, 2]


def test_a_crop_takes_the_labels_of_what_it_cuts_off():
    found = augment.resize_crop(
        example(), tf.constant([80, 120]), tf.constant([30.0, 10.0]), tf.constant([50, 60])
    )
    assert colors_at(found) == [None, 1, None]
    np.testing.assert_allclose(found["keypoints"], [[[0, 0, 0], [51, 11, 1], [0, 0, 0]]])


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keypoints")
    return shapes.generate(folder, 6, 6, keypoints=True), folder


def test_shapes_have_the_same_pictures_with_and_without(written, tmp_path):
    with_keypoints = json.loads(Path(written[0]["train"][0]).read_text())
    plain = shapes.generate(tmp_path, 6, 6)["train"]
    without = json.loads(Path(plain[0]).read_text())
    for key in ("keypoints", "skeleton", "num_keypoints"):
        for row in [*with_keypoints["annotations"], *with_keypoints["categories"]]:
            row.pop(key, None)
    assert with_keypoints == without


def test_shapes_keypoints_are_corners(written):
    data = load_coco(*written[0]["train"], keypoints=len(shapes.KEYPOINTS))
    counts = {"triangle": 3, "square": 4, "star": 5}
    name_of = [data.names[c] for c in data.inst_class]
    assert set(counts) <= set(name_of)
    seen = set()
    for name, points, polygon in zip(name_of, data.inst_keypoints, data.segmentations, strict=True):
        labelled = points[points[:, 2] > 0]
        assert len(labelled) == counts.get(name, 0)
        seen |= set(labelled[:, 2])
        if isinstance(polygon, list) and len(labelled):
            corners = polygon[0].reshape(-1, 2)
            distance = np.abs(labelled[:, None, :2] - corners).max(-1).min(1)
            assert distance.max() < 0.011  # rounded to hundredths twice
        # By their names: upper ones lie above lower ones in the object's own upright frame, which
        # is turned by 30 degrees at most, so that left is left of right on the same level.
        top, left_up, right_up, left_low, right_low = points
        for a, b in ((left_up, right_up), (left_low, right_low)):
            assert not a[2] or not b[2] or a[0] < b[0]
        for a, b in ((top, left_low), (top, right_low)):
            assert not a[2] or not b[2] or a[1] < b[1]
    assert seen == {1.0, 2.0}


@pytest.mark.parametrize(
    "fields", [{}, {"lsj_scale": (0.3, 1.5), "lsj_size": 128, "copy_paste": 0.5}]
)
def test_batches_carry_keypoints(written, fields):
    paths, folder = written
    number = len(shapes.KEYPOINTS)
    data = load_coco(*paths["train"], keypoints=number)
    records = prepare(data, folder / "cache", progress=False)
    assert (records.num_keypoints > 0).all()
    c = get_config().data
    c.update({"short": (96, 128), "long": 192, "max_instances": 16, "num_workers": 2} | fields)
    order = keypoints.flip_order(data.keypoint_names, (), number)
    seen = 0
    for batch in make_batches(records, c, 3, 0, num_steps=4, keypoint_order=order):
        assert batch.gt_keypoints.shape == (3, 16, number, 3)
        assert batch.gt_keypoints.dtype == np.float32
        for array, foretold in zip(
            batch, batch_shapes(batch.images.shape[1:3], c, 3, number), strict=True
        ):
            assert (array.shape, array.dtype) == (foretold.shape, foretold.dtype)
        assert not batch.gt_keypoints[~batch.gt_valid].any()
        points = batch.gt_keypoints
        assert set(np.unique(points[..., 2])) <= {0.0, 1.0, 2.0}
        assert not points[points[..., 2] == 0].any()
        for b in range(3):
            height, width = batch.image_hw[b]
            own = points[b][points[b][..., 2] > 0]
            assert (own[:, 0] <= width).all() and (own[:, 1] <= height).all()
            for box, object_points in zip(batch.gt_boxes[b], points[b], strict=True):
                visible = object_points[object_points[:, 2] == 2][:, :2]
                assert (visible >= box[:2] - 1.5).all() and (visible <= box[2:] + 1.5).all()
                seen += len(visible)
                # Left stays left after a flip, as the partners are swapped.
                left, right = object_points[3], object_points[4]
                assert not left[2] or not right[2] or left[0] < right[0]
    assert seen > 30


def test_records_without_keypoints_keep_their_folder(tmp_path):
    path, images = write(tmp_path, [person(), person(2, 8, points=[0] * 9)])
    plain, asked = (load_coco(path, images, keypoints=k) for k in (0, 3))
    cache = tmp_path / "cache"
    records = prepare(plain, cache, progress=False)
    assert "keypoints" not in records[0] and not records.num_keypoints.any()
    (folder,) = cache.iterdir()
    with_keypoints = prepare(asked, cache, progress=False)
    assert len(list(cache.iterdir())) == 2 and folder.is_dir()
    assert with_keypoints[0]["keypoints"].shape == (1, 3, 3)
    np.testing.assert_array_equal(with_keypoints.num_keypoints, [2, 0])
    # The hash of what there was before keypoints: annotations, pictures, version, side, rule.
    assert folder.name == prepare_name(plain)
    c = get_config().data
    c.update({"short": (32,), "long": 64, "max_instances": 2, "min_keypoints": 1})
    batches = make_batches(with_keypoints, c, 2, 0, num_steps=3, keypoint_order=[0, 2, 1])
    assert all((batch.index == 0).all() for batch in batches)
    c.min_keypoints = 3
    with pytest.raises(UserError, match="min_keypoints"):
        make_batches(with_keypoints, c, 2, 0, keypoint_order=[0, 2, 1])


def test_pictures_are_chosen_by_keypoints_without_a_head_for_them(tmp_path):
    c = get_config()
    c.data.update({"name": "shapes", "shapes_train": 12, "shapes_val": 2, "short": (64,)})
    c.data.update({"long": 64, "max_instances": 16, "mask_side": 16, "min_keypoints": 12})
    c.data.cache_dir = str(tmp_path)
    found = {}
    for number in (5, 0):
        c.model.keypoints = number
        assert not list(config_rules_keypoints.check(config.flatten(c)))
        train, val = load_data(c, train=True)
        assert val.inst_keypoints.shape[1] == number
        records = prepare(train, tmp_path / "records", mask_side=16, progress=False)
        assert 0 < (records.num_keypoints >= 12).sum() < 12
        order = keypoints.flip_order(train.keypoint_names, (), number)
        batches = list(make_batches(records, c.data, 2, 0, num_steps=6, keypoint_order=order))
        assert all((batch.gt_keypoints is None) == (number == 0) for batch in batches)
        found[number] = batches
    for with_head, without in zip(found[5], found[0], strict=True):
        np.testing.assert_array_equal(with_head.index, without.index)
        np.testing.assert_array_equal(with_head.images, without.images)


def test_keypoints_of_a_file_are_counted(tmp_path):
    assert load_coco(*write(tmp_path, [person()]), keypoints=None).inst_keypoints.shape[1] == 3
    assert keypoints.count_keypoints([{"keypoints": None}, {"keypoints": "x"}, 7, {}]) == 0


def prepare_name(data):
    """The name of a folder of records as it was computed before there were keypoints."""
    import hashlib
    import os

    digest = hashlib.sha256(data.annotations.read_bytes())
    for path in data.file_paths:
        stat = os.stat(path)
        digest.update(f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    digest.update(json.dumps(["1.0.1", 112, "error"]).encode())
    return f"{data.annotations.stem}-{digest.hexdigest()[:16]}"


def truth_as_results(path, data, shift=0.0, rng=None):
    """The objects through the results writer, keypoints moved by up to `shift` pixels."""
    rows = []
    for i, image in enumerate(data.image_ids):
        own = data.inst_image == i
        points = data.inst_keypoints[own].copy()
        scores = np.ones(own.sum(), np.float32)
        if rng is not None:
            points[..., :2] += rng.uniform(-shift, shift, points[..., :2].shape)
            scores = rng.random(own.sum()).astype(np.float32)
        boxes, classes = data.inst_box[own], data.inst_class[own]
        rows += to_coco_results(boxes, scores, classes, None, image, data.category_ids, points)
    return rows


def by_hand(path, rows, sigmas):
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(path))
        evaluator = COCOeval(truth, truth.loadRes(json.loads(json.dumps(rows))), "keypoints")
        evaluator.params.kpt_oks_sigmas = np.array(sigmas)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return dict(zip(("AP", "AP50", "AP75", "APm", "APl"), evaluator.stats[:5], strict=True))


def test_keypoint_ap_is_pycocotools(written):
    path, images = written[0]["val"]
    data = load_coco(path, images, keypoints=5)
    perfect = evaluate_coco(path, truth_as_results(path, data), ("bbox", "keypoints"))
    assert perfect.metrics["keypoints/AP"] == pytest.approx(1.0)
    assert perfect.metrics["bbox/AP"] == pytest.approx(1.0)
    assert "keypoints/APs" not in perfect.metrics
    of_class = {row.name: row.keypoints_ap for row in perfect.per_class}
    assert of_class["star"] == pytest.approx(1.0) and of_class["ring"] == -1.0

    rows = truth_as_results(path, data, 6.0, np.random.default_rng(0))
    for sigmas in ((), (0.1, 0.05, 0.05, 0.2, 0.2)):
        found = evaluate_coco(path, rows, ("keypoints",), keypoint_sigmas=sigmas).metrics
        expected = by_hand(path, rows, sigmas or [0.05] * 5)
        assert found == {f"keypoints/{name}": value for name, value in expected.items()}
        assert 0.05 < found["keypoints/AP"] < 0.95


def test_keypoint_ap_of_coco_uses_its_sigmas(tmp_path):
    rng = np.random.default_rng(2)
    annotations = []
    for n in range(8):
        x, y = 4 + 20 * (n % 4), 4 + 45 * (n // 4)
        points = np.concatenate(
            [
                rng.integers(0, 16, (17, 1)) + x,
                rng.integers(0, 40, (17, 1)) + y,
                rng.integers(0, 3, (17, 1)),
            ],
            1,
        )
        box = [tiny_coco.rectangle(x, y, x + 16, y + 40)]
        more = {
            "keypoints": points.ravel().tolist(),
            "num_keypoints": int((points[:, 2] > 0).sum()),
        }
        annotations.append(tiny_coco.annotation(n + 1, 5, 3, box, **more))
    path, images = tiny_coco.write(tmp_path, {5: (100, 100)}, annotations)
    data = load_coco(path, images, keypoints=17)
    rows = truth_as_results(path, data, 3.0, rng)
    from pycocotools.cocoeval import Params

    expected = by_hand(path, rows, Params("keypoints").kpt_oks_sigmas)
    found = evaluate_coco(path, rows, ("keypoints",)).metrics
    assert found == {f"keypoints/{name}": value for name, value in expected.items()}
    with pytest.raises(UserError, match="keypoint_sigmas"):
        evaluate_coco(path, rows, ("keypoints",), keypoint_sigmas=(0.1,))
    nothing = evaluate_coco(path, [], ("keypoints",))
    assert nothing.reasons["keypoints/AP"] == "no predictions"


def test_keypoints_are_drawn(caplog):
    caplog.set_level(logging.INFO)
    image = np.full((100, 100, 3), 90, np.uint8)
    box = np.float32([[10, 10, 90, 90]])
    points = np.float32([[[30.5, 30.5, 2], [70.5, 30.5, 1], [50.5, 70.5, 0.01]]])
    plain, dots, lines = (
        visualize.draw(image, box, np.array([0]), None, [], NAMES, labels=False, **more)
        for more in ({}, {"keypoints": points}, {"keypoints": points, "skeleton": ((0, 1), (0, 2))})
    )
    changed = (dots != plain).any(-1)
    assert changed[30, 30] and changed[30, 70] and not changed[40:].any()
    assert (lines != dots).any(-1)[30, 35:65].all() and not (lines != dots).any(-1)[40:].any()
