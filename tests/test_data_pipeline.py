"""Batches: a function of (seed, step), the same for any number of hosts, boxes on their objects."""

import collections
import itertools
import math

import jax
import numpy as np
import pytest
import tiny_coco

from configs.common import get_config
from maskrcnn_jax.data import pipeline
from maskrcnn_jax.data.batch_shapes import batch_shapes, canvas_groups, usual_canvas
from maskrcnn_jax.data.builder import prepare
from maskrcnn_jax.data.coco import load_coco
from maskrcnn_jax.data.pipeline import make_batches, padding
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.postprocess import paste_binary


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    data = load_coco(*tiny_coco.boxes_set(folder))
    return prepare(data, folder / "cache", progress=False)


def _config(**fields):
    c = get_config().data
    c.update({"short": (64, 96), "long": 160, "short_test": 96, "long_test": 160} | fields)
    c.update({"num_workers": 2, "max_instances": 6})
    c.update(fields)
    return c


def _take(records, c, steps, batch_size=4, seed=0, **kwargs):
    return list(make_batches(records, c, batch_size, seed, num_steps=steps, **kwargs))


def _assert_equal(a, b):
    for name, x, y in zip(a._fields, a, b, strict=True):
        np.testing.assert_array_equal(x, y, err_msg=name)


LSJ = {"lsj_scale": (0.3, 1.5), "lsj_size": 96}


@pytest.mark.parametrize("fields", [{}, LSJ | {"color_jitter": 0.3}])
def test_shapes_and_types(records, fields):
    c = _config(**fields)
    _, canvases = canvas_groups(records.sizes, c)
    seen = set()
    for batch in _take(records, c, 9):
        h, w = batch.images.shape[1:3]
        seen.add((h, w))
        expected = {
            "images": ((4, h, w, 3), np.uint8),
            "image_hw": ((4, 2), np.int32),
            "gt_boxes": ((4, 6, 4), np.float32),
            "gt_classes": ((4, 6), np.int32),
            "gt_valid": ((4, 6), np.bool_),
            "gt_frames": ((4, 6, 4), np.float32),
            "gt_masks": ((4, 6, 112, 14), np.uint8),
            "num_dropped": ((4,), np.int32),
            "index": ((4,), np.int32),
        }
        arrays = batch._asdict()
        assert arrays.pop("gt_keypoints") is None
        assert {k: (v.shape, v.dtype) for k, v in arrays.items()} == expected
        foretold = batch_shapes((h, w), c, 4, 0)
        assert jax.tree.map(lambda x: (x.shape, x.dtype), foretold) == batch._replace(**expected)
        for image, hw in zip(batch.images, batch.image_hw, strict=True):
            assert not image[hw[0] :].any() and not image[:, hw[1] :].any()
            assert image[: hw[0], : hw[1]].any()
        assert not batch.gt_boxes[~batch.gt_valid].any()
    assert seen <= set(canvases) and (len(seen) == 1 if fields else len(seen) > 1)


@pytest.mark.parametrize("fields", [{}, LSJ])
def test_boxes_and_masks_lie_on_their_objects(records, fields):
    colors = np.array([tiny_coco.COLORS[i] for i in (3, 7, 90)])
    checked = 0
    for batch in _take(records, _config(**fields), 9):
        for b, g in zip(*np.nonzero(batch.gt_valid), strict=True):
            image, box = batch.images[b].astype(int), batch.gt_boxes[b, g]
            color = colors[batch.gt_classes[b, g]]
            bits = np.unpackbits(batch.gt_masks[b, g], axis=-1).astype(np.float32)
            mask = paste_binary(bits, batch.gt_frames[b, g], image.shape[:2])
            x0, y0, x1, y1 = box
            if min(x1 - x0, y1 - y0) < 8:
                continue
            inner = (slice(int(y0) + 3, int(y1) - 2), slice(int(x0) + 3, int(x1) - 2))
            assert np.abs(image[inner] - color).max() < 40
            assert mask[inner].all()
            outside = mask.copy()
            outside[max(int(y0) - 1, 0) : int(y1) + 2, max(int(x0) - 1, 0) : int(x1) + 2] = False
            hw = batch.image_hw[b]
            assert not outside[: hw[0], : hw[1]].any()
            checked += 1
    assert checked > 10


@pytest.mark.parametrize("fields", [{}, LSJ | {"color_jitter": 0.3}])
def test_hosts_make_parts_of_the_same_batch(records, fields):
    c = _config(**fields)
    parts = [_take(records, c, 4, host=(i, 2)) for i in range(2)]
    for whole, *of_hosts in zip(_take(records, c, 4), *parts, strict=True):
        joined = jax.tree.map(lambda *rows: np.concatenate(rows), *of_hosts)
        _assert_equal(whole, joined)


def test_padding_is_what_the_batches_have(records):
    """Every picture once at every size: the draw of the size is even, each picture comes once."""
    short, filled, area = (64, 96), 0, 0
    for side in short:
        # One canvas per picture for all sizes: that of the largest.
        _, canvases = canvas_groups(records.sizes, _config(short=short))
        c = _config(short=(side,), canvases=canvases)
        for batch in _take(records, c, len(records), batch_size=1):
            filled += int(batch.image_hw.prod())
            area += math.prod(batch.images.shape[1:3])
    assert padding(records, _config(short=short)) == pytest.approx(1 - filled / area, abs=0.02)


def test_any_start_gives_the_same_steps(records):
    c = _config(color_jitter=0.2)
    all_steps = _take(records, c, 12)
    for start in (1, 7):
        later = _take(records, c, 12 - start, start_step=start)
        for a, b in zip(all_steps[start:], later, strict=True):
            _assert_equal(a, b)


def test_seeds_and_repetitions_differ(records):
    c = _config(limit=1, color_jitter=0.2)
    first, second = (_take(records, c, 1, seed=s)[0] for s in (0, 1))
    assert (first.images != second.images).any()
    # The same picture four times in a batch, each with its own augmentation.
    assert (first.index == 0).all()
    assert len({image.tobytes() for image in first.images}) == 4


def test_training_has_no_end(records):
    batches = make_batches(records, _config(), 4, 0)
    assert len(list(itertools.islice(batches, 30))) == 30


def test_limit_and_filter(records):
    assert set(np.concatenate([b.index for b in _take(records, _config(limit=3), 6)])) == {0, 1, 2}
    filtered = _config(filter_empty=True)
    seen = set(np.concatenate([b.index for b in _take(records, filtered, 9)]))
    assert seen == set(np.flatnonzero(records.num_instances > 0))
    with pytest.raises(UserError, match=r"data\.filter_empty leaves no training image"):
        _take(records, _config(filter_empty=True, limit=1), 1)


def test_cap_on_instances(records):
    dropped = 0
    for batch in _take(records, _config(max_instances=2), 9):
        for b in range(4):
            n = records.num_instances[batch.index[b]]
            assert batch.gt_valid[b].sum() == min(n, 2)
            assert batch.num_dropped[b] == max(n - 2, 0)
        dropped += batch.num_dropped.sum()
    assert dropped > 0


def test_crowds_are_left_out(tmp_path):
    a = tiny_coco.annotation(1, 5, 3, [tiny_coco.rectangle(3, 3, 19, 11)])
    mask = np.zeros((40, 50), bool)
    mask[20:30, 20:40] = True
    crowd = tiny_coco.rle_annotation(2, 5, 7, mask, compressed=False, iscrowd=1)
    data = load_coco(*tiny_coco.write(tmp_path, {5: (40, 50)}, [a, crowd]))
    (batch,) = _take(prepare(data, tmp_path / "cache", progress=False), _config(), 1, batch_size=2)
    assert (batch.gt_valid.sum(1) == 1).all() and (batch.gt_classes[:, 0] == 0).all()
    assert (batch.num_dropped == 0).all()


def test_canvases(records):
    with pytest.raises(UserError, match=r"data\.canvases"):
        _take(records, _config(canvases=((64, 64),)), 1)
    c = _config(canvases=((160, 160),))
    assert all(b.images.shape[1:3] == (160, 160) for b in _take(records, c, 3))


def test_the_usual_canvas_is_that_of_most(records):
    c = _config()
    groups, canvases = canvas_groups(records.sizes, c)
    counts = collections.Counter(canvases[group] for group in groups)
    assert counts[usual_canvas(records.sizes, c)] == max(counts.values()) < len(groups)


def test_batch_must_divide_among_hosts(records):
    with pytest.raises(UserError, match=r"batch_size is 4.*3 hosts"):
        _take(records, _config(), 1, host=(0, 3))


def test_real_photographs(shared_data, tmp_path):
    folder = shared_data / "coco_tiny"
    data = load_coco(folder / "annotations" / "instances_train2017.json", str(folder / "train2017"))
    real = prepare(data, tmp_path, progress=False)
    c = _config(short=(224, 256), long=384, max_instances=100, limit=16)
    rows = set()
    for batch in _take(real, c, 8):
        rows |= set(batch.index.tolist())
        valid = batch.gt_valid
        boxes = batch.gt_boxes[valid]
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        np.testing.assert_array_equal(valid.sum(1), real.num_instances[batch.index])
        # Annotated boxes and the frames of the masks hardly differ.
        assert np.median(np.abs(boxes - batch.gt_frames[valid])) < 1
    assert rows <= set(range(16)) and len(rows) > 8


def test_nothing_holds_up_the_end(records, monkeypatch):
    # The end of an iterator waits for tf.data's tuner, which can sleep for a minute.
    seen = []
    monkeypatch.setattr(pipeline, "_iterate", lambda dataset, _: seen.append(dataset) or iter(()))
    make_batches(records, _config(num_workers=0), 4, 0)
    (dataset,) = seen
    assert dataset.options().autotune.enabled is False
