"""ROIAlign, pooling over the pyramid and mask targets against every number of the golden files."""

import re
from dataclasses import replace
from pathlib import Path

import golden_sets
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskrcnn_jax.data.bitmaps import instance_bitmap
from maskrcnn_jax.data.coco import CocoData, instance_mask
from maskrcnn_jax.ops import masks, roi_align

pytestmark = pytest.mark.optimized

CLOSE = {"atol": 1e-5, "rtol": 0.0}
LEVEL_EPS = {"detectron2": 0.0, "torchvision": 1e-6}


@golden_sets.each("torch", "roi_align", inputs="features|rois|spatial_scale|cotangent")
def test_roi_align(name):
    case, _, output = name.rpartition("/")
    golden = golden_sets.section(golden_sets.load("torch", "roi_align"), case)
    aligned, height, width, ratio, gradient = re.fullmatch(
        r"(detectron2_aligned|torchvision_unaligned)_size(\d+)(?:x(\d+))?_ratio(\d+)"
        r"(_grad_features)?",
        output,
    ).groups()
    size = int(height), int(width or height)
    image, rois = golden["rois"][:, 0].astype(int), jnp.asarray(golden["rois"][:, 1:])
    scale, aligned = float(golden["spatial_scale"]), aligned == "detectron2_aligned"

    def pool(features):
        """Every roi out of every image, then its own: the images are few."""
        maps = features.transpose(0, 2, 3, 1)
        every = [roi_align.roi_align(x, rois, size, scale, int(ratio), aligned) for x in maps]
        return jnp.stack(every)[image, np.arange(len(image))].transpose(0, 3, 1, 2)

    features, expected = jnp.asarray(golden["features"]), golden[output]
    if gradient:
        value = lambda x: (pool(x) * golden["cotangent"]).sum()  # noqa: E731
        ours = jax.jit(jax.grad(value))(features)
        np.testing.assert_allclose(ours, expected, atol=1e-5 * np.abs(expected).max(), rtol=1e-5)
    else:
        np.testing.assert_allclose(jax.jit(pool)(features), expected, **CLOSE)


@golden_sets.each("torch", "pooler", inputs=r"features_P\d|boxes_image\d+|image_size")
def test_pooler(name):
    golden = golden_sets.load("torch", "pooler")
    peer, _, output = name.partition("_")
    of_images = [golden[k] for k in sorted(golden) if re.fullmatch(r"boxes_image\d+", k)]
    most = max(map(len, of_images))
    rois = jnp.stack([np.pad(x, ((0, most - len(x)), (0, 0))) for x in of_images])
    own = np.concatenate([np.arange(most) < len(x) for x in of_images])
    if output == "levels":
        levels = np.asarray(roi_align.assign_levels(rois, eps=LEVEL_EPS[peer])).reshape(-1)[own]
        np.testing.assert_array_equal(levels, golden[name])
        return
    size, ratio = map(int, re.fullmatch(r"size(\d+)_ratio(\d+)", output).groups())
    features = {
        k.lower().removeprefix("features_"): jnp.asarray(v.transpose(0, 2, 3, 1))
        for k, v in sorted(golden.items())
        if k.startswith("features_P")
    }
    pool = jax.jit(
        lambda x, r: roi_align.multilevel_roi_align(
            x, r, size, ratio, aligned=peer == "detectron2", level_eps=LEVEL_EPS[peer]
        )
    )
    pooled = np.asarray(pool(features, rois)).transpose(0, 1, 4, 2, 3)
    ours = pooled.reshape(-1, *pooled.shape[2:])[own]
    np.testing.assert_allclose(ours, golden[name], **CLOSE)


def polygons_of(golden):
    """The polygons of each instance, out of the ragged arrays."""
    pieces = np.split(golden["polygon_xy"].astype(np.float64), golden["polygon_lengths"].cumsum())
    found = [[] for _ in range(golden["polygon_instance"].max() + 1)]
    for instance, xy in zip(golden["polygon_instance"], pieces, strict=False):
        found[instance].append(xy)
    return found


def as_data_set(golden):
    """The polygons as a data set of one picture."""
    polygons = polygons_of(golden)
    count = len(polygons)
    return CocoData(
        annotations=Path("instances.json"),
        category_ids=(1,),
        names=("thing",),
        image_ids=np.array([1]),
        file_paths=["1.png"],
        sizes=golden["image_size"][None].astype(np.int32),
        inst_image=np.zeros(count, np.int32),
        inst_class=np.zeros(count, np.int32),
        inst_box=golden["boxes"].astype(np.float32),
        inst_crowd=np.zeros(count, bool),
        inst_area=np.ones(count),
        inst_id=np.arange(count),
        segmentations=polygons,
        num_skipped=0,
        num_skipped_instances=0,
        inst_keypoints=np.zeros((count, 0, 3), np.float32),
    )


def cropped(golden, size, aligned=True):
    bitmaps = golden["bitmasks"].astype(np.float32)
    height, width = golden["image_size"]
    frames = np.tile(np.float32([0, 0, width, height]), (len(bitmaps), 1))
    crop = jax.jit(masks.crop_masks, static_argnums=(3, 4))
    return np.asarray(crop(bitmaps, frames, golden["boxes"], size, aligned))


@golden_sets.each("torch", "mask_targets", inputs=r"image_size|boxes|polygon_(xy|lengths|instance)")
def test_mask_targets(name):
    golden = golden_sets.load("torch", "mask_targets")
    expected, data = golden[name], as_data_set(golden)
    size = int((re.search(r"_(\d+)", name) or [0, 0])[1])
    rows = range(len(data.segmentations))
    if name == "bitmasks":
        ours = np.stack([instance_mask(data, i) for i in rows])
    elif name == "bitmask_boxes":
        ours = np.stack([instance_bitmap(data, i, 8)[0] for i in rows])
    elif name == f"detectron2_polygon_{size}":
        ours = np.stack([drawn_in_box(data, i, size) for i in rows])
    elif name == f"detectron2_bitmask_{size}":
        ours = cropped(golden, size) >= 0.5
    else:
        peer = re.fullmatch(rf"(torchvision|detectron2_bitmask)_{size}(_before_threshold)?", name)
        ours = cropped(golden, size, aligned=peer[1] != "torchvision")
        np.testing.assert_allclose(ours, expected, **CLOSE)
        return
    np.testing.assert_array_equal(ours, expected)


def drawn_in_box(data, i, size):
    """Detectron2's other kind of target: the polygons themselves, moved and scaled into the box."""
    x0, y0, x1, y1 = data.inst_box[i].astype(np.float64)
    scale = size / np.maximum([x1 - x0, y1 - y0], 0.1)
    moved = [((p.reshape(-1, 2) - [x0, y0]) * scale).ravel() for p in data.segmentations[i]]
    alone = {"segmentations": [moved], "sizes": np.int32([[size, size]])}
    return instance_mask(replace(data, **alone), 0)
