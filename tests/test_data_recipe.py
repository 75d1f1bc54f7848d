"""All augmentations together, through the pipeline: determinism, canvases, objects in place."""

import jax
import numpy as np
import pytest
import tiny_coco
from scipy.ndimage import binary_erosion

from configs.common import get_config
from maskrcnn_jax.data import recipe
from maskrcnn_jax.data.batch_shapes import canvas_groups
from maskrcnn_jax.data.builder import prepare
from maskrcnn_jax.data.coco import load_coco
from maskrcnn_jax.data.pipeline import make_batches
from maskrcnn_jax.postprocess import paste_binary

GEOMETRY = {
    "flip_vertical": 0.5,
    "rotate90": 0.8,
    "crop": 0.7,
    "crop_range": (0.4, 1.0),
    "copy_paste": 0.6,
}
PIXELS = {"color_jitter": 0.2, "blur": 0.5, "jpeg": 0.5}
LSJ = {"lsj_scale": (0.5, 1.5), "lsj_size": 96}


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipe")
    data = load_coco(*tiny_coco.boxes_set(folder))
    return prepare(data, folder / "cache", progress=False)


def _config(**fields):
    c = get_config().data
    small = {"short": (64, 96), "long": 160, "short_test": 96, "long_test": 160}
    c.update(small | {"num_workers": 2, "max_instances": 8} | fields)
    return c


def _take(records, steps, c, **kwargs):
    return list(make_batches(records, c, 4, 0, num_steps=steps, **kwargs))


def test_a_batch_is_a_function_of_seed_and_step(records):
    c = _config(**GEOMETRY, **PIXELS)
    whole = _take(records, 4, c)
    later = _take(records, 1, c, start_step=3)
    hosts = [_take(records, 4, c, host=(i, 2)) for i in range(2)]
    for step, batch in enumerate(whole):
        joined = jax.tree.map(lambda *rows: np.concatenate(rows), *(h[step] for h in hosts))
        for name, value, parts in zip(batch._fields, batch, joined, strict=True):
            np.testing.assert_array_equal(value, parts, err_msg=name)
    for batch, again in zip(whole[3:], later, strict=True):
        for name, value, same in zip(batch._fields, batch, again, strict=True):
            np.testing.assert_array_equal(value, same, err_msg=name)


@pytest.mark.parametrize("resize", [{}, LSJ])
def test_every_object_lies_on_its_colour(records, resize):
    """The pictures are rectangles of a colour per class: masks and classes must hit them."""
    c = _config(**GEOMETRY, **resize)
    colors = np.array([tiny_coco.COLORS[i] for i in (3, 7, 90)])
    _, canvases = canvas_groups(records.sizes, c)
    seen, checked = set(), 0
    for batch in _take(records, 10, c):
        seen.add(batch.images.shape[1:3])
        for b, g in zip(*np.nonzero(batch.gt_valid), strict=True):
            hw = batch.image_hw[b]
            box = batch.gt_boxes[b, g]
            assert (box >= 0).all() and (box <= hw[[1, 0, 1, 0]]).all()
            bits = np.unpackbits(batch.gt_masks[b, g], axis=-1).astype(np.float32)
            mask = paste_binary(bits, batch.gt_frames[b, g], batch.images.shape[1:3])
            inner = binary_erosion(mask, iterations=3)
            inner[hw[0] :] = inner[:, hw[1] :] = False
            if inner.sum() < 10:
                continue
            found = batch.images[b][inner].astype(int)
            assert np.abs(found - colors[batch.gt_classes[b, g]]).max() < 60
            checked += 1
        for b, colour in np.ndindex(4, 3):
            # And nothing of a class's colour is without a mask, so covered is not unlabelled.
            image = batch.images[b].astype(int)
            strong = (np.abs(image - colors[colour]) < 25).all(-1)
            masks = np.zeros(strong.shape, bool)
            for g in np.flatnonzero(batch.gt_valid[b] & (batch.gt_classes[b] == colour)):
                bits = np.unpackbits(batch.gt_masks[b, g], axis=-1).astype(np.float32)
                masks |= paste_binary(bits, batch.gt_frames[b, g], strong.shape, 0.2)
            if not batch.num_dropped[b]:
                assert (strong & ~masks).sum() <= 0.05 * strong.sum() + 20
    assert seen <= set(canvases) and checked > 40
    assert resize or {h > w for h, w in seen} == {True, False}


def test_copy_paste_adds_objects(records):
    plain = _take(records, 9, _config())
    pasted = _take(records, 9, _config(copy_paste=1.0))
    count = sum(int(b.gt_valid.sum()) for b in plain)
    assert sum(int(b.gt_valid.sum()) for b in pasted) > 1.5 * count
    # Only some pictures, at another probability.
    some = _take(records, 9, _config(copy_paste=0.4))
    changed = [
        (a.images[k] != b.images[k]).any()
        for a, b in zip(plain, some, strict=True)
        for k in range(4)
    ]
    assert 0.1 < np.mean(changed) < 0.7


def test_other_augmentations_do_not_change_the_draws(records):
    """Each has its own stream: turning one on leaves the flips and sizes as they were."""
    plain = _take(records, 4, _config())
    more = _take(records, 4, _config(jpeg=1.0, copy_paste=0.5, jpeg_quality=(90, 95)))
    for a, b in zip(plain, more, strict=True):
        np.testing.assert_array_equal(a.image_hw, b.image_hw)
        np.testing.assert_array_equal(a.index, b.index)


def test_steps_lie_on_their_side_as_often_as_asked():
    c = _config(rotate90=0.6)
    turned = [recipe.turns_canvas(c, 3, step) for step in range(2000)]
    assert abs(np.mean(turned) - 0.4) < 0.04
    assert not recipe.turns_canvas(_config(), 3, 0)
